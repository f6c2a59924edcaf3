// Runs the three stages of an operation over tiles and channels. It knows threads and caches, and no formula.
#ifndef POPNORM_CPU_SCHEDULE_HPP
#define POPNORM_CPU_SCHEDULE_HPP

#include <popnorm/popnorm.h>

#include <cstdint>

#include "core/tiling.hpp"
#include "cpu/blocking.hpp"
#include "cpu/executor.hpp"

namespace popnorm::cpu {

struct Channels {
  std::int64_t begin;
  std::int64_t end;
};

// reduce and apply may be absent. Calls on distinct channels, or distinct units or boxes of one stage, are independent.
struct Stages {
  void* context;
  std::int64_t units;
  // A unit's partial results. `next`: the unit that this thread reads after it, -1 if none follows.
  void (*reduce)(void* context, std::int64_t unit, std::int64_t next, Channels channels);
  // Combines all partial results and makes what apply needs. Every operation has it.
  void (*fold)(void* context, Channels channels);
  // Writes a part of the output. `ahead`: channels to the slab that this thread reads next and has room for in cache; 0 =
  // none.
  void (*apply)(void* context, const Tile& box, Channels channels, std::int64_t ahead);
  // All three stages of one statistics row at once, where rows are independent and lie in order; null elsewhere.
  std::int64_t rows = 0;
  void (*row)(void* context, std::int64_t row) = nullptr;
};

// INTERNAL if the executor did not run every task exactly once.
popnorm_status run_stages(const char* operation, const Stages& stages, const Blocking& blocking, const Tiling& boxes,
                          std::int64_t channels, const Executor& executor);

}  // namespace popnorm::cpu

#endif
