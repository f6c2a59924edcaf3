// The operations of the CUDA backend. Arguments arrive validated, but for what only the device can look at.
#ifndef POPNORM_GPU_OPERATIONS_HPP
#define POPNORM_GPU_OPERATIONS_HPP

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>

#include "core/backend.hpp"
#include "gpu/policy.hpp"

namespace popnorm::cuda {

// What a plan has chosen, by Direction.
inline Policy* policies(Plan& plan) { return reinterpret_cast<Policy*>(plan.state); }
inline const Policy& policy_of(const Plan& plan, Direction direction) {
  return reinterpret_cast<const Policy*>(plan.state)[static_cast<int>(direction)];
}
static_assert(2 * sizeof(Policy) <= sizeof(Plan::state));

// forward.cu
// Whether a grid has as many blocks as the problem has channels for.
bool grid_holds(const Problem& p);
// Partial results per channel.
std::int64_t tile_numbers(const Problem& p);
popnorm_status forward(const Plan& plan, const popnorm_forward_args& a, void* stream);
popnorm_status moments(const Plan& plan, const popnorm_moments_args& a, void* stream);
popnorm_status combine_parts(const Plan& plan, const popnorm_combine_args& a, void* stream);
popnorm_status finalize(const Plan& plan, const popnorm_finalize_args& a, void* stream);
popnorm_status normalize(const Plan& plan, const popnorm_normalize_args& a, void* stream);
std::size_t forward_bytes(const Problem& p);

// backward.cu
popnorm_status backward(const Plan& plan, const popnorm_backward_args& a, void* stream);
popnorm_status backward_reduce(const Plan& plan, const popnorm_backward_reduce_args& a, void* stream);
popnorm_status backward_apply(const Plan& plan, const popnorm_backward_apply_args& a, void* stream);
std::size_t backward_bytes(const Problem& p);

// resident.cu
// So many teams of a policy can be at work at once.
int most_forward_teams(const Problem& p, const Policy& policy);
int most_backward_teams(const Problem& p, const Policy& policy);

}  // namespace popnorm::cuda

#endif
