#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <tbb/task_group.h>

#include "cpu/executor.hpp"

#ifdef POPNORM_DESCRIBE_TBB_TO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace popnorm::cpu {
namespace {

// The system's oneTBB is not instrumented: ThreadSanitizer does not see that it orders what comes before a loop before the
// loop's tasks, and those before what follows. These tell it.
class LoopOrder {
 public:
#ifdef POPNORM_DESCRIBE_TBB_TO_TSAN
  LoopOrder() { __tsan_release(&begin_); }
  void before_task() { __tsan_acquire(&begin_); }
  void after_task() { __tsan_release(&end_); }
  void after_loop() { __tsan_acquire(&end_); }

 private:
  char begin_ = 0, end_ = 0;
#else
  void before_task() {}
  void after_task() {}
  void after_loop() {}
#endif
};

void tbb_parallel_for(void* /*context*/, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
  LoopOrder order;
  // Isolated: while it waits, this thread may not pick up the caller's unrelated tasks, and who cancels those does not cancel these.
  tbb::task_group_context own(tbb::task_group_context::isolated);
  tbb::this_task_arena::isolate([&] {
    tbb::parallel_for(
        tbb::blocked_range<std::int64_t>(0, count, 1),
        [&](const tbb::blocked_range<std::int64_t>& range) {
          order.before_task();
          for (std::int64_t i = range.begin(); i < range.end(); ++i) task(argument, i);
          order.after_task();
        },
        tbb::simple_partitioner(), own);
  });
  order.after_loop();
}

}  // namespace

Executor tbb_executor() { return {nullptr, tbb::this_task_arena::max_concurrency(), tbb_parallel_for}; }

}  // namespace popnorm::cpu
