#include "cpu/schedule.hpp"

#include <immintrin.h>

#include <algorithm>
#include <atomic>

#include "core/error.hpp"
#include "core/fp_environment.hpp"
#include "kernels/virtual_lanes.hpp"

namespace popnorm::cpu {
namespace {

// A number that stands for a task where all tasks that were run are added up (the finalizer of SplitMix64).
std::uint64_t sign_of(std::int64_t index) {
  auto z = static_cast<std::uint64_t>(index) + 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

// body(i) for i in [0, count), each under the library's floating-point environment; false if not each was run once.
template <class Body>
bool for_each_task(const Executor& executor, std::int64_t count, const Body& body) {
  struct Shared {
    const Body& body;
    std::atomic<std::uint64_t> done{0};
  } shared{body};
  const auto task = [](void* argument, std::int64_t index) {
    auto& s = *static_cast<Shared*>(argument);
    const FpEnvironment environment;
    s.body(index);
    s.done.fetch_add(sign_of(index), std::memory_order_relaxed);
  };
  if (count == 1)
    task(&shared, 0);
  else if (count > 1)
    executor.parallel_for(executor.context, count, task, &shared);
  std::uint64_t all = 0;
  for (std::int64_t i = 0; i < count; ++i) all += sign_of(i);
  return shared.done.load(std::memory_order_relaxed) == all;
}

// Ends a task that writes output: whoever waits for it sees what was streamed. Once a task, because a fence after every box or
// slab waits for memory each time (docs/performance.md).
void finish(const Blocking& b) {
  if (b.stores != Stores::ordinary) _mm_sfence();
}

// Tiles [begin, end) as few boxes: tiles of whole samples together, runs of one sample together.
template <class Body>
void for_each_box(const Tiling& tiling, std::int64_t begin, std::int64_t end, const Body& body) {
  for (std::int64_t t = begin; t < end;) {
    Tile box = tiling[t];
    for (++t; t < end; ++t) {
      const Tile next = tiling[t];
      const bool same_sample = next.n0 == box.n0;
      const bool whole_samples = next.s0 == box.s0 && next.s1 == box.s1;
      if (same_sample)
        box.s1 = next.s1;
      else if (whole_samples)
        box.n1 = next.n1;
      else
        break;
    }
    body(box);
  }
}

void reduce_units(const Stages& stages, std::int64_t begin, std::int64_t end, Channels channels) {
  for (std::int64_t i = begin; i < end; ++i) stages.reduce(stages.context, i, i + 1 < end ? i + 1 : -1, channels);
}

bool run_slabs(const Stages& stages, const Blocking& b, const Tiling& boxes, std::int64_t channels,
               const Executor& executor) {
  const std::int64_t slabs = divide_up(channels, b.channels);
  const std::int64_t tasks = divide_up(slabs, b.slabs_per_task);
  return for_each_task(executor, tasks, [&](std::int64_t task) {
    const std::int64_t last = std::min(slabs, (task + 1) * b.slabs_per_task);
    for (std::int64_t slab = task * b.slabs_per_task; slab < last; ++slab) {
      const Channels c{slab * b.channels, std::min(channels, (slab + 1) * b.channels)};
      if (stages.reduce != nullptr) reduce_units(stages, 0, stages.units, c);
      stages.fold(stages.context, c);
      const std::int64_t ahead = b.prefetch && slab + 1 < last ? b.channels : 0;
      if (stages.apply != nullptr)
        for_each_box(boxes, 0, boxes.tiles(), [&](const Tile& box) { stages.apply(stages.context, box, c, ahead); });
    }
    finish(b);
  });
}

bool run_rows(const Stages& stages, const Blocking& b, const Executor& executor) {
  return for_each_task(executor, divide_up(stages.rows, b.rows), [&](std::int64_t task) {
    const std::int64_t end = std::min(stages.rows, (task + 1) * b.rows);
    for (std::int64_t row = task * b.rows; row < end; ++row) stages.row(stages.context, row);
    finish(b);
  });
}

bool run_phases(const Stages& stages, const Blocking& b, const Tiling& boxes, std::int64_t channels,
                const Executor& executor) {
  // stage(begin, end, channels) over [0, count) in pieces of `grain`, and over channels in pieces of `width`.
  const auto over = [&](std::int64_t count, std::int64_t grain, std::int64_t width, const auto& stage) {
    const std::int64_t cuts = divide_up(channels, width);
    return for_each_task(executor, divide_up(count, grain) * cuts, [&](std::int64_t task) {
      const std::int64_t cut = task % cuts;
      const Channels c{cut * width, std::min(channels, (cut + 1) * width)};
      stage(task / cuts * grain, std::min(count, (task / cuts + 1) * grain), c);
    });
  };
  // Merging costs tens of nanoseconds a partial result: spread it only where there are many, in vectors as wide as those of merging,
  // and not thinner than so that threads share it evenly: every row and cell costs something per task.
  constexpr std::int64_t kFoldGrain = 4096;
  constexpr std::int64_t kTasksPerThread = 4;
  const std::int64_t fold_channels = divide_up(std::max(kFoldGrain / std::max<std::int64_t>(stages.units, 1),
                                                        divide_up(channels, kTasksPerThread * executor.concurrency)),
                                               kLanes) *
                                     kLanes;
  bool complete = true;
  if (stages.reduce != nullptr)
    complete = over(stages.units, b.units, b.channels,
                    [&](std::int64_t begin, std::int64_t end, Channels c) { reduce_units(stages, begin, end, c); });
  complete = complete && for_each_task(executor, divide_up(channels, fold_channels), [&](std::int64_t i) {
               stages.fold(stages.context, {i * fold_channels, std::min(channels, (i + 1) * fold_channels)});
             });
  if (complete && stages.apply != nullptr)
    complete = over(boxes.tiles(), b.boxes, b.box_channels, [&](std::int64_t begin, std::int64_t end, Channels c) {
      for_each_box(boxes, begin, end, [&](const Tile& box) { stages.apply(stages.context, box, c, 0); });
      finish(b);
    });
  return complete;
}

}  // namespace

popnorm_status run_stages(const char* operation, const Stages& stages, const Blocking& blocking, const Tiling& boxes,
                          std::int64_t channels, const Executor& executor) {
  const Executor& chosen = blocking.parallel ? executor : kInlineExecutor;
  const bool complete = blocking.rows > 0 ? run_rows(stages, blocking, chosen)
                        : blocking.slabs  ? run_slabs(stages, blocking, boxes, channels, chosen)
                                          : run_phases(stages, blocking, boxes, channels, chosen);
  if (complete) return POPNORM_SUCCESS;
  return fail(POPNORM_INTERNAL, "%s: the executor did not run every task exactly once; outputs are incomplete",
              operation);
}

}  // namespace popnorm::cpu
