// The operations of the CPU backend. Arguments arrive validated and complete.
#ifndef POPNORM_CPU_OPERATIONS_HPP
#define POPNORM_CPU_OPERATIONS_HPP

#include <popnorm/popnorm.h>

#include "core/backend.hpp"
#include "cpu/space.hpp"

namespace popnorm::cpu {

// forward.cpp
popnorm_status forward(const Plan& plan, const popnorm_forward_args& a, void* stream);
popnorm_status moments(const Plan& plan, const popnorm_moments_args& a, void* stream);
popnorm_status combine_parts(const Plan& plan, const popnorm_combine_args& a, void* stream);
popnorm_status finalize(const Plan& plan, const popnorm_finalize_args& a, void* stream);
popnorm_status normalize(const Plan& plan, const popnorm_normalize_args& a, void* stream);

// backward.cpp
popnorm_status backward(const Plan& plan, const popnorm_backward_args& a, void* stream);
popnorm_status backward_reduce(const Plan& plan, const popnorm_backward_reduce_args& a, void* stream);
popnorm_status backward_apply(const Plan& plan, const popnorm_backward_apply_args& a, void* stream);

// double_backward.cpp
popnorm_status double_backward(const Plan& plan, const popnorm_double_backward_args& a, void* stream);
// What it needs of the workspace.
std::size_t double_backward_bytes(const Problem& p, const Rows& by_group, const Rows& by_slot);

}  // namespace popnorm::cpu

#endif
