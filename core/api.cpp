// The C ABI: reads structs, validates, runs, logs. Nothing here computes.
#include <popnorm/popnorm.h>

#include <new>

#include "core/backend.hpp"
#include "core/error.hpp"
#include "core/fold.hpp"
#include "core/guard.hpp"
#include "core/plan.hpp"
#include "core/population.hpp"
#include "core/registry.hpp"
#include "core/validate.hpp"

namespace popnorm {
namespace {

// Changes whenever a result may change in any bit.
constexpr std::int32_t kNumericsVersion = 3;

template <class Args>
popnorm_status run(const char* operation, const popnorm_plan* plan, const Args* from, void* stream,
                   popnorm_status (*Backend::*implementation)(const Plan&, const Args&, void*)) noexcept {
  return entry(operation, plan, [&] {
    if (plan == nullptr) return fail(POPNORM_INVALID, "%s: plan is null", operation);
    Args args;
    if (const popnorm_status status = read_struct(operation, from, args); status != POPNORM_SUCCESS) return status;
    if (const popnorm_status status = validate(*plan, args); status != POPNORM_SUCCESS) return status;
    return (plan->backend->*implementation)(*plan, args, stream);
  });
}

}  // namespace
}  // namespace popnorm

using namespace popnorm;

extern "C" {

const char* popnorm_status_string(popnorm_status status) {
  switch (number(status)) {
    case POPNORM_SUCCESS:
      return "POPNORM_SUCCESS";
    case POPNORM_INVALID:
      return "POPNORM_INVALID";
    case POPNORM_UNSUPPORTED:
      return "POPNORM_UNSUPPORTED";
    case POPNORM_OUT_OF_MEMORY:
      return "POPNORM_OUT_OF_MEMORY";
    case POPNORM_INTERNAL:
      return "POPNORM_INTERNAL";
  }
  return "unknown popnorm_status";
}

const char* popnorm_last_error(void) { return last_error(); }

int32_t popnorm_version(void) {
  return POPNORM_VERSION_MAJOR * 10000 + POPNORM_VERSION_MINOR * 100 + POPNORM_VERSION_PATCH;
}

int32_t popnorm_numerics_version(void) { return kNumericsVersion; }

int32_t popnorm_isa_count(void) { return isa_count(); }
const char* popnorm_isa_name(int32_t index) { return index >= 0 && index < isa_count() ? isa_name(index) : nullptr; }
int32_t popnorm_isa_available(int32_t index) {
  return index >= 0 && index < isa_count() && isa_available(index) ? 1 : 0;
}
int32_t popnorm_backend_available(popnorm_backend backend) {
  const Backend* found = nullptr;
  const int n = number(backend);
  const bool exists = n >= POPNORM_BACKEND_AUTO && n <= POPNORM_CUDA;
  return exists &&
                 guarded("backend_available", [&] { return find_backend(backend, nullptr, found); }) == POPNORM_SUCCESS
             ? 1
             : 0;
}

popnorm_status popnorm_plan_create(const popnorm_problem* problem, const popnorm_options* options,
                                   popnorm_plan** plan) {
  return entry("plan", nullptr, [&] {
    if (plan == nullptr) return fail(POPNORM_INVALID, "plan: the plan to write is null");
    *plan = nullptr;
    popnorm_plan made;
    if (const popnorm_status status = make_plan(problem, options, made); status != POPNORM_SUCCESS) return status;
    *plan = new (std::nothrow) popnorm_plan(made);
    return *plan != nullptr ? POPNORM_SUCCESS : fail(POPNORM_OUT_OF_MEMORY, "plan: out of memory");
  });
}

void popnorm_plan_destroy(popnorm_plan* plan) { delete plan; }

popnorm_status popnorm_plan_query(const popnorm_plan* plan, popnorm_plan_info* info) {
  if (plan == nullptr) return fail(POPNORM_INVALID, "plan_query: plan is null");
  if (const popnorm_status status = check_size("plan_query", info, sizeof(*info)); status != POPNORM_SUCCESS)
    return status;
  info->workspace_bytes = plan->workspace_bytes;
  info->workspace_alignment = kBufferAlignment;
  info->reserve_bytes = plan->reserve_bytes;
  info->reserve_alignment = kBufferAlignment;
  info->backend = plan->backend->id;
  info->isa = plan->isa;
  info->tiles = plan->slots;
  info->double_backward_workspace_bytes = plan->double_backward_bytes;
  info->groups = plan->problem.norm_group.count;
  info->population_slots = plan->problem.population_slot.count;
  info->affine_slots = plan->problem.affine_slot.count;
  info->policy = plan->policy;
  return POPNORM_SUCCESS;
}

popnorm_status popnorm_forward(const popnorm_plan* plan, const popnorm_forward_args* args, void* stream) {
  return run("forward", plan, args, stream, &Backend::forward);
}
popnorm_status popnorm_backward(const popnorm_plan* plan, const popnorm_backward_args* args, void* stream) {
  return run("backward", plan, args, stream, &Backend::backward);
}
popnorm_status popnorm_moments(const popnorm_plan* plan, const popnorm_moments_args* args, void* stream) {
  return run("moments", plan, args, stream, &Backend::moments);
}
popnorm_status popnorm_combine(const popnorm_plan* plan, const popnorm_combine_args* args, void* stream) {
  return run("combine", plan, args, stream, &Backend::combine);
}
popnorm_status popnorm_finalize(const popnorm_plan* plan, const popnorm_finalize_args* args, void* stream) {
  return run("finalize", plan, args, stream, &Backend::finalize);
}
popnorm_status popnorm_normalize(const popnorm_plan* plan, const popnorm_normalize_args* args, void* stream) {
  return run("normalize", plan, args, stream, &Backend::normalize);
}
popnorm_status popnorm_backward_reduce(const popnorm_plan* plan, const popnorm_backward_reduce_args* args,
                                       void* stream) {
  return run("backward_reduce", plan, args, stream, &Backend::backward_reduce);
}
popnorm_status popnorm_backward_apply(const popnorm_plan* plan, const popnorm_backward_apply_args* args, void* stream) {
  return run("backward_apply", plan, args, stream, &Backend::backward_apply);
}

popnorm_status popnorm_double_backward(const popnorm_plan* plan, const popnorm_double_backward_args* args,
                                       void* stream) {
  return run("double_backward", plan, args, stream, &Backend::double_backward);
}

popnorm_status popnorm_fold(const popnorm_fold_args* from) {
  return entry("fold", nullptr, [&] {
    popnorm_fold_args args;
    if (const popnorm_status status = read_struct("fold", from, args); status != POPNORM_SUCCESS) return status;
    if (const popnorm_status status = validate_fold(args); status != POPNORM_SUCCESS) return status;
    fold(args);
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_feed(void* population, size_t bytes, const popnorm_population_feed_args* from) {
  return entry("population_feed", nullptr, [&] {
    popnorm_population_feed_args args;
    if (const popnorm_status status = read_struct("population_feed", from, args); status != POPNORM_SUCCESS)
      return status;
    if (const popnorm_status status = validate_feed(population, bytes, args); status != POPNORM_SUCCESS) return status;
    feed_population(population, args.feed, args.momentum, [&args](std::int64_t i) {
      return Moments{args.moments.weight[i], args.moments.mean[i], args.moments.m2[i]};
    });
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_finalize(const void* population, size_t bytes,
                                           const popnorm_population_finalize_args* from) {
  return entry("population_finalize", nullptr, [&] {
    popnorm_population_finalize_args args;
    if (const popnorm_status status = read_struct("population_finalize", from, args); status != POPNORM_SUCCESS)
      return status;
    if (const popnorm_status status = validate_finalize(population, bytes, args); status != POPNORM_SUCCESS)
      return status;
    const auto& header = *static_cast<const popnorm_population_header*>(population);
    const PopulationArrays<const double> a = arrays_of(population);
    const auto write = [&args](void* to, std::int64_t i, double value) {
      if (to == nullptr) return;
      if (args.type == POPNORM_F64)
        static_cast<double*>(to)[i] = value;
      else
        static_cast<float*>(to)[i] = static_cast<float>(value);
    };
    for (std::int64_t i = 0; i < header.slots * header.c; ++i) {
      const MeanVariance v = population_statistics(a, i, args.estimator);
      write(args.mean, i, v.mean);
      write(args.variance, i, v.variance);
    }
    return POPNORM_SUCCESS;
  });
}

}  // extern "C"
