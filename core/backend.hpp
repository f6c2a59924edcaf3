// What a backend fills in, and the plan it works from. Arguments arrive validated and complete.
#ifndef POPNORM_CORE_BACKEND_HPP
#define POPNORM_CORE_BACKEND_HPP

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"

namespace popnorm {

struct Backend;

struct Plan {
  Problem problem;
  popnorm_schedule schedule = POPNORM_SCHEDULE_AUTO;
  popnorm_stores stores = POPNORM_STORES_AUTO;
  const Backend* backend = nullptr;
  const char* isa = "";
  char policy[320] = "";  // popnorm_plan_info.policy
  std::size_t workspace_bytes = 0;
  std::size_t double_backward_bytes = 0;
  std::size_t reserve_bytes = 0;
  std::int64_t slots = 0;  // partial results per channel, at most
  // The backend's own part, so that a plan is one allocation. Trivially destructible.
  alignas(std::max_align_t) std::byte state[512] = {};
};

struct Backend {
  popnorm_backend id;
  const char* name;
  // Where operands are a device's memory, which nobody else may look at: whether the device reaches `first`. Null: host memory.
  popnorm_status (*check_memory)(const char* operation, const char* name, const void* first);
  // Fills isa, policy, workspace bytes, slots and state. `isa` null: the best.
  popnorm_status (*prepare)(Plan&, const char* isa, const popnorm_executor* executor);
  popnorm_status (*forward)(const Plan&, const popnorm_forward_args&, void* stream);
  popnorm_status (*backward)(const Plan&, const popnorm_backward_args&, void* stream);
  popnorm_status (*moments)(const Plan&, const popnorm_moments_args&, void* stream);
  popnorm_status (*combine)(const Plan&, const popnorm_combine_args&, void* stream);
  popnorm_status (*finalize)(const Plan&, const popnorm_finalize_args&, void* stream);
  popnorm_status (*normalize)(const Plan&, const popnorm_normalize_args&, void* stream);
  popnorm_status (*backward_reduce)(const Plan&, const popnorm_backward_reduce_args&, void* stream);
  popnorm_status (*backward_apply)(const Plan&, const popnorm_backward_apply_args&, void* stream);
  // Null where a backend has none.
  popnorm_status (*double_backward)(const Plan&, const popnorm_double_backward_args&, void* stream);
};

inline constexpr std::size_t kBufferAlignment = 64;

constexpr std::size_t round_up(std::size_t bytes) {
  return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

}  // namespace popnorm

struct popnorm_plan : popnorm::Plan {};

#endif
