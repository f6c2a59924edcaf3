#include "core/plan.hpp"

#include <cstdlib>

#include "core/registry.hpp"
#include "core/reserve.hpp"
#include "core/validate.hpp"

namespace popnorm {

popnorm_status make_plan(const popnorm_problem* problem, const popnorm_options* options, Plan& plan) {
  if (const popnorm_status status = validate_problem(problem, plan.problem); status != POPNORM_SUCCESS) return status;
  Options chosen;
  if (const popnorm_status status = validate_options(options, chosen); status != POPNORM_SUCCESS) return status;
  if (const popnorm_status status = find_backend(chosen.backend, chosen.memory, plan.backend);
      status != POPNORM_SUCCESS)
    return status;
  plan.schedule = chosen.schedule;
  plan.stores = chosen.stores;
  plan.reserve_bytes = reserve_bytes(plan.problem);
  const auto named = [](const char* isa) { return isa != nullptr && *isa != '\0'; };
  const char* isa = named(chosen.isa) ? chosen.isa : std::getenv("POPNORM_ISA");
  return plan.backend->prepare(plan, named(isa) ? isa : nullptr, chosen.executor);
}

}  // namespace popnorm
