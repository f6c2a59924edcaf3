// Who runs tasks: oneTBB in the caller's arena, the calling thread, or a caller's own pool.
#ifndef POPNORM_CPU_EXECUTOR_HPP
#define POPNORM_CPU_EXECUTOR_HPP

#include <cstdint>

namespace popnorm::cpu {

struct Executor {
  void* context;
  int concurrency;
  void (*parallel_for)(void* context, std::int64_t count, void (*task)(void* argument, std::int64_t index),
                       void* argument);
};

// Its concurrency is that of the calling thread's arena now.
Executor tbb_executor();

inline void inline_parallel_for(void* /*context*/, std::int64_t count, void (*task)(void*, std::int64_t),
                                void* argument) {
  for (std::int64_t i = 0; i < count; ++i) task(argument, i);
}

inline constexpr Executor kInlineExecutor{nullptr, 1, inline_parallel_for};

}  // namespace popnorm::cpu

#endif
