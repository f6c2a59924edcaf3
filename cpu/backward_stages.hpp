// The stages of everything that goes backward.
#ifndef POPNORM_CPU_BACKWARD_STAGES_HPP
#define POPNORM_CPU_BACKWARD_STAGES_HPP

#include "core/reserve.hpp"
#include "cpu/call.hpp"
#include "kernels/affine.hpp"

namespace popnorm::cpu {

// What forward left, or what was made of its saved outputs.
template <class T>
struct Source {
  popnorm_statistics statistics;
  double weight;  // where `of` has none
  ReserveArrays<T, const std::byte> of;

  bool through() const { return statistics != POPNORM_GIVEN; }
  StatisticsRow<T> row(std::int64_t i) const { return {of.hi[i], of.lo[i], of.invstd[i]}; }
  double weight_of(std::int64_t i) const { return of.weight != nullptr ? of.weight[i] : weight; }
  double d(std::int64_t i) const { return of.d != nullptr ? static_cast<double>(of.d[i]) : 0; }
  double r2(std::int64_t i) const { return of.r2 != nullptr ? static_cast<double>(of.r2[i]) : 1; }
};

template <class T>
Source<T> reserved(const Problem& p, const void* reserve) {
  const auto statistics = static_cast<popnorm_statistics>(static_cast<const ReserveHeader*>(reserve)->statistics);
  return {statistics, 0, {static_cast<const std::byte*>(reserve), p, statistics}};
}

struct Sums {
  double dy;
  double dy_xhat;
};
inline Sums operator+(const Sums& p, const Sums& q) { return {p.dy + q.dy, p.dy_xhat + q.dy_xhat}; }

template <class T>
struct Backward {
  const Plan& plan;
  const Kernels& kernels;
  const void* x;
  const void* dy;
  void* dx;
  const BackwardSpace<T>& space;
  const Source<T>& source;
  const Samples& samples;
  const Partition& slots;
  Stores stores = Stores::ordinary;

  const Cells& cells() const { return samples.cells(); }
  // Entry of channel c of a cell's row in what forward left, and of its scale.
  std::int64_t row_entry(std::int64_t cell, std::int64_t c) const {
    return (samples.wave().row0 + cells().row(cell)) * plan.problem.c + c;
  }
  double scale_of(std::int64_t cell, std::int64_t c) const {
    return static_cast<double>(source.of.scale[cells().affine(cell) * plan.problem.c + c]);
  }

  static void reduce(void* context, std::int64_t slot, std::int64_t next, Channels c) {
    const Backward& b = *static_cast<const Backward*>(context);
    const Problem& p = b.plan.problem;
    const Slot s = b.slots[slot];
    const Slot n = next >= 0 ? b.slots[next] : s;
    const std::int64_t at = slot * p.c + c.begin;
    const BackwardReduceArgs args{Samples::block(s, c),
                                  b.samples.template input<T>(b.x, p.x, s, n, c),
                                  b.samples.template input<T>(b.dy, p.dy, s, n, c),
                                  b.source.of.hi + b.row_entry(s.of, c.begin),
                                  b.space.dy + at,
                                  b.space.dy_d + at};
    if (b.samples.weighted())
      b.kernels.weighted_backward_reduce({args, b.samples.weights(s)});
    else
      b.kernels.backward_reduce(args);
  }

  // sum(dy) and sum(dy*xhat) of a cell.
  Sums cell_sums(std::int64_t cell, std::int64_t c) const {
    const std::int64_t count = slots.slots_of(cell);
    if (count == 0) return {0, 0};
    const Sums raw = balanced_tree(
        count,
        [&](std::int64_t i) {
          const std::int64_t at = slots.slot_of(cell, i) * plan.problem.c + c;
          return Sums{space.dy[at], space.dy_d[at]};
        },
        [](const Sums& p, const Sums& q) { return p + q; });
    return {raw.dy, sum_dy_xhat(source.row(row_entry(cell, c)), raw.dy, raw.dy_xhat)};
  }

  // Adds a cell's sums to those of its row, of scale*dy where `scaled`, and to those of its affine slot.
  void add(std::int64_t cell, std::int64_t c, const Sums& sums, bool scaled) const {
    const std::int64_t row = cells().row(cell) * plan.problem.c + c;
    const std::int64_t affine = cells().affine(cell) * plan.problem.c + c;
    const double factor = scaled ? scale_of(cell, c) : 1;
    space.row_dy[row] += factor * sums.dy;
    space.row_dy_xhat[row] += factor * sums.dy_xhat;
    if (space.affine_dy == space.row_dy) return;
    space.affine_dy[affine] += sums.dy;
    space.affine_dy_xhat[affine] += sums.dy_xhat;
  }

  // The rows' sums of channels of this wave begin at nothing, the affine slots' in the first wave.
  void clear(Channels channels) const {
    const auto zero = [&](double* sums, std::int64_t rows) {
      for (std::int64_t r = 0; r < rows; ++r)
        std::fill(sums + r * plan.problem.c + channels.begin, sums + r * plan.problem.c + channels.end, 0.0);
    };
    zero(space.row_dy, samples.wave().rows);
    zero(space.row_dy_xhat, samples.wave().rows);
    if (samples.wave().row0 > 0) return;
    zero(space.affine_dy, plan.problem.affine_slot.count);
    zero(space.affine_dy_xhat, plan.problem.affine_slot.count);
  }

  void reduce_cells(Channels channels, bool scaled) const {
    clear(channels);
    for (std::int64_t cell = 0; cell < cells().count(); ++cell)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) add(cell, c, cell_sums(cell, c), scaled);
  }

  // The coefficients of a cell. `of_row`: the sums of its row, of scale*dy where `scaled`.
  void set_row(std::int64_t cell, std::int64_t c, const Sums& of_row, bool scaled) const {
    const std::int64_t entry = row_entry(cell, c);
    const StatisticsRow<T> row = source.row(entry);
    const double weight = source.weight_of(entry);
    double p1 = 0;
    double p2 = 0;
    if (source.through() && weight > 0) {
      const double pull = (of_row.dy_xhat - source.d(entry) * of_row.dy) * source.r2(entry);
      p1 = (of_row.dy - source.d(entry) * pull) / weight;
      p2 = pull / weight;
    }
    const GradientRow<T> g = gradient_row(row, static_cast<T>(scale_of(cell, c)), scaled, p1, p2);
    const std::int64_t i = cell * plan.problem.c + c;
    space.row[0][i] = row.hi;
    space.row[1][i] = row.invstd;
    space.row[2][i] = g.a;
    space.row[3][i] = g.k1;
    space.row[4][i] = g.k2;
  }

  static void apply(void* context, const Tile& box, Channels c, std::int64_t ahead) {
    const Backward& b = *static_cast<const Backward*>(context);
    const Problem& p = b.plan.problem;
    b.samples.for_each_part(box, [&](std::int64_t n, std::int64_t count, std::int64_t cell, const RowChoice& choice) {
      const Block block{count, box.s1 - box.s0, c.end - c.begin, nullptr};
      const auto input = [&](const void* tensor, const Strides& strides) {
        const T* first = b.samples.template at<T>(tensor, strides, n, box.s0, c.begin);
        return Input{first, strides.sample, strides.row, first + ahead * (p.form == Form::rows ? strides.row : 1)};
      };
      const Output dx{b.samples.template at<T>(b.dx, p.dx, n, box.s0, c.begin), p.dx.sample, p.dx.row};
      const std::int64_t at = cell * p.c + c.begin;
      T* const* row = b.space.row;
      if (!b.source.through()) {
        // dx = a*dy: normalize with k1 = k2 = 0, which does not read x.
        const NormalizeArgs args{block, input(b.dy, p.dy), dx, row[3] + at, row[2] + at, row[4] + at, b.stores, choice};
        if (b.samples.weighted())
          b.kernels.weighted_normalize({args, b.samples.weights(n, box.s0)});
        else
          b.kernels.normalize(args);
        return;
      }
      const BackwardApplyArgs args{block,       input(b.x, p.x), input(b.dy, p.dy), dx,       row[0] + at, row[1] + at,
                                   row[2] + at, row[3] + at,     row[4] + at,       b.stores, choice};
      if (b.samples.weighted())
        b.kernels.weighted_backward_apply({args, b.samples.weights(n, box.s0)});
      else
        b.kernels.backward_apply(args);
    });
  }
};

// What differs between the three operations.
struct Wanted {
  bool reduces;
  bool applies;
  bool scaled;                     // the sums of rows are those of scale*dy
  const double* sum_dy = nullptr;  // from elsewhere, [rows][c]; null: this batch's own
  const double* sum_dy_xhat = nullptr;
  double* out_dy = nullptr;  // [rows][c]
  double* out_dy_xhat = nullptr;
};

template <class T>
struct Staged : Backward<T> {
  const Wanted& wanted;

  static void fold(void* context, Channels channels) {
    const Staged& b = *static_cast<const Staged*>(context);
    const Problem& p = b.plan.problem;
    const Wave& wave = b.samples.wave();
    if (b.wanted.reduces) b.reduce_cells(channels, b.wanted.scaled);
    for (std::int64_t row = 0; b.wanted.out_dy != nullptr && row < wave.rows; ++row)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        b.wanted.out_dy[(wave.row0 + row) * p.c + c] = b.space.row_dy[row * p.c + c];
        b.wanted.out_dy_xhat[(wave.row0 + row) * p.c + c] = b.space.row_dy_xhat[row * p.c + c];
      }
    if (!b.wanted.applies) return;
    for (std::int64_t cell = 0; cell < b.cells().count(); ++cell)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        Sums sums{0, 0};
        if (b.source.through() && b.wanted.sum_dy != nullptr)
          sums = {b.wanted.sum_dy[b.row_entry(cell, c)], b.wanted.sum_dy_xhat[b.row_entry(cell, c)]};
        else if (b.source.through())
          sums = {b.space.row_dy[b.cells().row(cell) * p.c + c], b.space.row_dy_xhat[b.cells().row(cell) * p.c + c]};
        b.set_row(cell, c, sums, b.wanted.scaled);
      }
  }
};

template <class T>
popnorm_status run_backward(const char* operation, const Plan& plan, const popnorm_batch& batch, const void* x,
                            const void* dy, void* dx, const BackwardSpace<T>& space, const Source<T>& source,
                            const Wanted& wanted) {
  const Problem& p = plan.problem;
  const Rows& rows = rows_of(plan, source.statistics);
  for (std::int64_t i = 0; i < rows.waves(); ++i) {
    const Wave wave = rows.wave(p, i);
    const Samples samples(plan, batch, source.statistics, wave, space.cells);
    const Partition slots =
        wanted.reduces ? partition_of_cells(rows, wave, samples.cells(), space.slots_of_cells) : Partition();
    Staged<T> b{{plan, *state_of(plan).kernels, x, dy, dx, space, source, samples, slots}, wanted};
    const Placement at = place(plan, wave, slots.slots(), {2, wanted.reduces, wanted.applies});
    b.stores = at.blocking.stores;
    const Stages stages{&b, wanted.reduces ? Backward<T>::reduce : nullptr, Staged<T>::fold,
                        wanted.applies ? Backward<T>::apply : nullptr};
    if (const popnorm_status status = run(operation, plan, at, stages, slots.slots()); status != POPNORM_SUCCESS)
      return status;
  }
  return POPNORM_SUCCESS;
}

}  // namespace popnorm::cpu

#endif
