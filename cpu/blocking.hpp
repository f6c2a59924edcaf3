// Which task runs which tiles and channels. A pure function of the problem, the caches and the number of threads; it
// can never change a bit.
#ifndef POPNORM_CPU_BLOCKING_HPP
#define POPNORM_CPU_BLOCKING_HPP

#include <popnorm/popnorm.h>

#include <cstdint>

#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/kernel_table.hpp"

namespace popnorm::cpu {

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What blocking asks of a machine. Only measurements fill it in (docs/performance.md).
struct Machine {
  std::int64_t l2 = std::int64_t{1} << 20;          // bytes per core
  std::int64_t llc = std::int64_t{32} << 20;        // bytes that all threads may count on together
  bool four_streams = false;                        // streaming stores go faster to four places in turn
  std::int64_t llc_share = std::int64_t{16} << 20;  // bytes of llc that each thread may count on
  bool far_llc = false;  // ordinary stores win until input and output are a quarter more than that
};

// The one we run on.
const Machine& this_machine();

struct Blocking {
  // Rows, if not 0: tasks of so many statistics rows, each reduced, folded and applied while it is in cache.
  // Slabs: channel groups of `channels`, `slabs_per_task` consecutive ones per task.
  // Phases: tasks of `units` units x `channels` channels, then of `boxes` boxes x `box_channels` channels.
  std::int64_t rows;
  bool slabs;
  std::int64_t channels;
  std::int64_t slabs_per_task;
  bool prefetch;  // the next slab has room in cache beside this one
  std::int64_t units;
  std::int64_t boxes;
  std::int64_t box_channels;
  bool parallel;  // else the calling thread does it all
  Stores stores;
};

// `tensors`: how many tensors statistics read (1 forward, 2 backward). `reduces`, `applies`: whether data is read for statistics,
// and to be applied; only what does both gains from slabs.
struct Work {
  int tensors;
  bool reduces;
  bool applies;
};

// What is run at once: samples, the units of their statistics, the boxes of output, and the statistics rows, if they are
// independent.
struct Extent {
  std::int64_t n;
  std::int64_t all;  // samples of the whole call
  std::int64_t units;
  std::int64_t boxes;
  std::int64_t rows = 0;
};

// Positions of a box of output: tiles, or less where these would not go round.
std::int64_t box_length(const Problem& p, std::int64_t n, int concurrency);

Blocking choose_blocking(const Problem& p, const Extent& extent, const Work& work, const Machine& machine,
                         int concurrency, popnorm_schedule schedule, popnorm_stores stores);

}  // namespace popnorm::cpu

#endif
