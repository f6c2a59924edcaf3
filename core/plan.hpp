// From a problem and options to a plan.
#ifndef POPNORM_CORE_PLAN_HPP
#define POPNORM_CORE_PLAN_HPP

#include <popnorm/popnorm.h>

#include "core/backend.hpp"

namespace popnorm {

// Validates, tiles, and lets the backend choose. Dispatch happens here, once per plan.
popnorm_status make_plan(const popnorm_problem* problem, const popnorm_options* options, Plan& plan);

}  // namespace popnorm

#endif
