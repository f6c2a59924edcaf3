#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "cpu/executor.hpp"

namespace popnorm::cpu {
namespace {

void tbb_parallel_for(void* /*context*/, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
  // Isolated: while it waits, this thread may not pick up the caller's unrelated tasks.
  tbb::this_task_arena::isolate([&] {
    tbb::parallel_for(
        tbb::blocked_range<std::int64_t>(0, count, 1),
        [&](const tbb::blocked_range<std::int64_t>& range) {
          for (std::int64_t i = range.begin(); i < range.end(); ++i) task(argument, i);
        },
        tbb::simple_partitioner());
  });
}

}  // namespace

Executor tbb_executor() { return {nullptr, tbb::this_task_arena::max_concurrency(), tbb_parallel_for}; }

}  // namespace popnorm::cpu
