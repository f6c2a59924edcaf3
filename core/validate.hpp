// Every check of every argument, and every message. What passes is complete (unknown struct tails handled, defaults
// filled in) and may be trusted by backends.
#ifndef POPNORM_CORE_VALIDATE_HPP
#define POPNORM_CORE_VALIDATE_HPP

#include <popnorm/popnorm.h>

#include <cstring>

#include "core/backend.hpp"
#include "core/error.hpp"
#include "core/problem.hpp"

namespace popnorm {

// Reads a caller's size-first struct into ours: shorter ones are INVALID (version 1 is the shortest), longer ones
// UNSUPPORTED unless the bytes beyond are zero.
popnorm_status check_size(const char* operation, const void* from, std::size_t known);

template <class Struct>
popnorm_status read_struct(const char* operation, const Struct* from, Struct& to) {
  if (const popnorm_status status = check_size(operation, from, sizeof(Struct)); status != POPNORM_SUCCESS)
    return status;
  std::memcpy(&to, from, sizeof(Struct));
  return POPNORM_SUCCESS;
}

// A caller's enum may hold any number: read it as one.
template <class Enum>
int number(const Enum& value) {
  static_assert(sizeof(Enum) == sizeof(int));
  int n;
  std::memcpy(&n, &value, sizeof(n));
  return n;
}

struct Options {
  popnorm_backend backend = POPNORM_BACKEND_AUTO;
  popnorm_schedule schedule = POPNORM_SCHEDULE_AUTO;
  popnorm_stores stores = POPNORM_STORES_AUTO;
  const char* isa = nullptr;
  const popnorm_executor* executor = nullptr;
  const void* memory = nullptr;
};

popnorm_status validate_problem(const popnorm_problem* from, Problem& to);
popnorm_status validate_options(const popnorm_options* from, Options& to);

popnorm_status validate(const Plan& plan, const popnorm_forward_args& a);
popnorm_status validate(const Plan& plan, const popnorm_backward_args& a);
popnorm_status validate(const Plan& plan, const popnorm_moments_args& a);
popnorm_status validate(const Plan& plan, const popnorm_combine_args& a);
popnorm_status validate(const Plan& plan, const popnorm_finalize_args& a);
popnorm_status validate(const Plan& plan, const popnorm_normalize_args& a);
popnorm_status validate(const Plan& plan, const popnorm_backward_reduce_args& a);
popnorm_status validate(const Plan& plan, const popnorm_backward_apply_args& a);
popnorm_status validate(const Plan& plan, const popnorm_double_backward_args& a);

popnorm_status validate_fold(const popnorm_fold_args& a);

popnorm_status check_estimator(const char* operation, const popnorm_estimator& estimator);
popnorm_status validate_feed(const void* population, std::size_t bytes, const popnorm_population_feed_args& a);
popnorm_status validate_finalize(const void* population, std::size_t bytes, const popnorm_population_finalize_args& a);

}  // namespace popnorm

#endif
