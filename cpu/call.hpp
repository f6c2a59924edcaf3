// What the operations of the CPU backend share: the plan's own part, where in memory things are, and how a stage addresses
// kernels.
#ifndef POPNORM_CPU_CALL_HPP
#define POPNORM_CPU_CALL_HPP

#include <popnorm/popnorm.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>

#include "core/backend.hpp"
#include "core/partition.hpp"
#include "core/reserve.hpp"
#include "cpu/blocking.hpp"
#include "cpu/executor.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/schedule.hpp"
#include "cpu/space.hpp"

namespace popnorm::cpu {

struct State {
  const Kernels* kernels;
  Executor executor;  // parallel_for null: oneTBB
  Rows by_group;      // statistics of the batch
  Rows by_slot;       // given ones
};
static_assert(sizeof(State) <= sizeof(Plan::state) && std::is_trivially_destructible_v<State>);

inline const State& state_of(const Plan& plan) { return *std::launder(reinterpret_cast<const State*>(plan.state)); }

inline const Rows& rows_of(const Plan& plan, popnorm_statistics statistics) {
  return statistics == POPNORM_GIVEN ? state_of(plan).by_slot : state_of(plan).by_group;
}

// Calls body with a value of the problem's arithmetic type.
template <class Body>
popnorm_status with_arithmetic_type(const Plan& plan, Body&& body) {
  return plan.problem.storage == POPNORM_F64 ? body(double{}) : body(float{});
}

inline double read(const void* array, popnorm_type type, std::int64_t i, double absent) {
  if (array == nullptr) return absent;
  return type == POPNORM_F64 ? static_cast<const double*>(array)[i]
                             : static_cast<double>(static_cast<const float*>(array)[i]);
}

inline void write(void* array, popnorm_type type, std::int64_t i, double value) {
  if (type == POPNORM_F64)
    static_cast<double*>(array)[i] = value;
  else
    static_cast<float*>(array)[i] = static_cast<float>(value);
}

inline Labelled labelled_rows(const Problem& p, popnorm_statistics statistics, const popnorm_batch& batch) {
  return {p.row_map(statistics), statistics == POPNORM_GIVEN ? batch.population_slot : batch.norm_group};
}

// What follows normalization, as kernels want it.
inline Activation activation_of(const Problem& p) {
  return {p.activation == POPNORM_LEAKY_RELU ? p.slope : 1, p.activation != POPNORM_RELU};
}

// One wave of a call: its samples, its cells, and how kernels find them.
class Samples {
 public:
  // Unless it `scales`, a call has no affine slots, nor labels of them.
  Samples(const Plan& plan, const popnorm_batch& batch, popnorm_statistics statistics, const Wave& wave,
          const Cells::Arrays& arrays, bool scales = true)
      : plan_(plan),
        batch_(batch),
        wave_(wave),
        cells_(labelled_rows(plan.problem, statistics, batch),
               scales ? Labelled{plan.problem.affine_slot, batch.affine_slot} : Labelled{}, wave, arrays) {}

  const Wave& wave() const { return wave_; }
  const Cells& cells() const { return cells_; }
  bool weighted() const { return plan_.problem.weights != POPNORM_UNWEIGHTED; }

  // A tensor from sample `sample` of the wave, position s and channel c on.
  template <class Void>
  auto* at(Void* tensor, const Strides& strides, std::int64_t sample, std::int64_t s, std::int64_t c) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
    const std::int64_t in_sample = plan_.problem.form == Form::rows ? c * strides.row + s : s * strides.row + c;
    return static_cast<Byte*>(tensor) + ((wave_.n0 + sample) * strides.sample + in_sample) * element_bytes();
  }
  std::int64_t element_bytes() const { return size_of(plan_.problem.storage); }

  // The samples of a slot, counted from its first where they are neighbours, else from the wave's. `next`: the slot that is
  // read after it.
  Input input(const void* tensor, const Strides& strides, const Slot& slot, const Slot& next, Channels c) const {
    const std::byte* first = at(tensor, strides, slot.index != nullptr ? 0 : slot.first, slot.s0, c.begin);
    if (slot.index != nullptr && plan_.problem.form == Form::columns)
      return {first, strides.sample, strides.row, at(tensor, strides, next.first + slot.before, next.s0, c.begin)};
    const std::int64_t ahead =
        at(tensor, strides, next.first, next.s0, 0) - at(tensor, strides, slot.first, slot.s0, 0);
    return {first, strides.sample, strides.row, first + ahead};
  }
  static Block block(const Slot& slot, Channels c) {
    return {slot.samples, slot.s1 - slot.s0, c.end - c.begin, slot.index};
  }

  // Weights of samples counted from the wave's `sample`, positions from s0 on.
  Weights weights(std::int64_t sample, std::int64_t s0) const {
    const Problem& p = plan_.problem;
    const std::int64_t n = wave_.n0 + sample;
    Weights w;
    w.s0 = s0;
    switch (p.weights) {
      case POPNORM_UNWEIGHTED:
        break;
      case POPNORM_WEIGHTS_PER_SAMPLE:
        w.first = static_cast<const float*>(batch_.weights) + n;
        w.sample = 1;
        break;
      case POPNORM_WEIGHTS_PER_POSITION:
        w.first = static_cast<const float*>(batch_.weights) + n * p.s + s0;
        w.sample = p.s;
        w.position = 1;
        break;
      case POPNORM_LENGTHS:
        w.length = static_cast<const std::int64_t*>(batch_.weights) + n;
        break;
    }
    return w;
  }
  Weights weights(const Slot& slot) const { return weights(slot.index != nullptr ? 0 : slot.first, slot.s0); }

  // A box of a tensor that is read, samples [n, ...), channels [c, ...); `ahead`: elements to what is prefetched meanwhile.
  Input input(const void* tensor, const Strides& strides, std::int64_t n, std::int64_t s, std::int64_t c,
              std::int64_t ahead) const {
    const std::byte* first = at(tensor, strides, n, s, c);
    return {first, strides.sample, strides.row, first + ahead * element_bytes()};
  }
  // One that is written, or none.
  Output output(void* tensor, const Strides& strides, std::int64_t n, std::int64_t s, std::int64_t c) const {
    if (tensor == nullptr) return {};
    return {at(tensor, strides, n, s, c), strides.sample, strides.row};
  }

  // A part of the mask, if there is one: Input or Output. Its rows begin at a byte there (tiles and cuts of channels do).
  template <class Tensor, class Byte>
  Tensor mask(Byte* first, std::int64_t n, std::int64_t s, std::int64_t c) const {
    if (first == nullptr) return {};
    const Problem& p = plan_.problem;
    const MaskShape shape(p);
    const std::int64_t row = p.form == Form::rows ? c : s;
    const std::int64_t element = p.form == Form::rows ? s : c;
    return {first + (wave_.n0 + n) * shape.sample + row * shape.row + element / 8, shape.sample, shape.row};
  }
  template <class Byte>
  Input mask(Byte* first, const Slot& slot, Channels c) const {
    return mask<Input>(first, slot.index != nullptr ? 0 : slot.first, slot.s0, c.begin);
  }

  // Splits a box of the output so that each part is one kernel call: body(first sample, samples, cell, choice), where the
  // choice names the cells of a part that has several.
  template <class Body>
  void for_each_part(const Tile& box, const Body& body) const {
    if (cells_.count() <= 1) {
      body(box.n0, box.n1 - box.n0, std::int64_t{0}, RowChoice{});
      return;
    }
    if (const std::int32_t* labels = cells_.labels(); labels != nullptr) {
      body(box.n0, box.n1 - box.n0, std::int64_t{0}, RowChoice{labels + box.n0, plan_.problem.c});
      return;
    }
    constexpr std::int64_t kMost = 256;
    std::int32_t row[kMost];
    for (std::int64_t n = box.n0; n < box.n1;) {
      // Either as many samples of one cell as there are, or so many of several.
      const std::int64_t cell = cells_.of(n);
      std::int64_t end = n + 1;
      while (end < box.n1 && cells_.of(end) == cell) ++end;
      const std::int64_t uniform = end - n;
      if (uniform >= 8 || end == box.n1) {
        body(n, uniform, cell, RowChoice{});
        n = end;
        continue;
      }
      const std::int64_t count = std::min(kMost, box.n1 - n);
      for (std::int64_t i = 0; i < count; ++i) row[i] = static_cast<std::int32_t>(cells_.of(n + i));
      body(n, count, std::int64_t{0}, RowChoice{row, plan_.problem.c});
      n += count;
    }
  }

 private:
  const Plan& plan_;
  const popnorm_batch& batch_;
  Wave wave_;
  Cells cells_;
};

// The slots of a wave's statistics rows, for moments.
inline Partition partition_of_rows(const Rows& rows, const Wave& wave, const Labelled& map,
                                   const Partition::Arrays& arrays) {
  Partition::Shape shape = rows.by_row;
  shape.n = wave.n;
  return Partition(shape, {map.map, map.labels != nullptr ? map.labels + wave.n0 : nullptr}, wave.rows, arrays);
}

// The slots of a wave's cells, for the sums of backward.
inline Partition partition_of_cells(const Rows& rows, const Wave& wave, const Cells& cells,
                                    const Partition::Arrays& arrays) {
  Partition::Shape shape = rows.by_cell;
  shape.n = wave.n;
  return Partition(shape, cells.map(), cells.count(), arrays);
}

inline SlotList slot_list(const Partition& partition, std::int64_t of, std::int64_t pitch) {
  const Partition::Of slots = partition.slots_of(of);
  return {slots.count, slots.first, slots.stride, pitch};
}

// Channels are folded so many at a time, in arrays on the stack.
inline constexpr std::int64_t kFoldChannels = 256;

// Calls body(c, n) for the pieces [c, c + n) of a range of channels.
template <class Body>
void for_each_piece(Channels channels, const Body& body) {
  for (std::int64_t c = channels.begin; c < channels.end; c += kFoldChannels)
    body(c, std::min(kFoldChannels, channels.end - c));
}

// Where and how a wave runs.
struct Placement {
  Executor executor;
  Blocking blocking;
  Tiling boxes;  // of the output, in memory order; never decides a bit
};

// `rows`: statistics rows that are independent of one another, if any are.
inline Placement place(const Plan& plan, const Wave& wave, std::int64_t units, const Work& work, std::int64_t rows) {
  const Problem& p = plan.problem;
  const State& state = state_of(plan);
  const Executor executor = state.executor.parallel_for != nullptr ? state.executor : tbb_executor();
  const Tiling boxes(wave.n, p.s, box_length(p, wave.n, executor.concurrency), wave.n);
  const Extent extent{wave.n, p.n, units, boxes.tiles(), rows};
  return {executor, choose_blocking(p, extent, work, this_machine(), executor.concurrency, plan.schedule, plan.stores),
          boxes};
}

inline popnorm_status run(const char* operation, const Plan& plan, const Placement& at, const Stages& stages) {
  return run_stages(operation, stages, at.blocking, at.boxes, plan.problem.c, at.executor);
}

}  // namespace popnorm::cpu

#endif
