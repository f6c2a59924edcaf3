// The module's one exported symbol, its plans, and where its messages go.
#include "gpu/module.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.hpp"
#include "gpu/operations.hpp"
#include "gpu/runtime.hpp"

namespace popnorm {
namespace {

const cuda::Library* library = nullptr;

}  // namespace

// core/error.hpp within the module: the message is kept by the library that will be asked for it.
popnorm_status fail(popnorm_status status, const char* format, ...) {
  char message[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  library->set_error(message);
  return status;
}

namespace cuda {
namespace {

popnorm_status unserved(const char* what) {
  return fail(POPNORM_UNSUPPORTED, "plan: backend cuda does not serve %s yet; ask for cpu", what);
}

// For each direction the way that POPNORM_CUDA_POLICY names, as far as this problem and this device can go it.
popnorm_status choose_policies(Plan& plan) {
  const char* wanted = std::getenv("POPNORM_CUDA_POLICY");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  if (!is_policy(wanted))
    return fail(POPNORM_INVALID,
                "plan: POPNORM_CUDA_POLICY is \"%s\", must be plain, block, cluster, grid, auto or measured", wanted);
  Device device;
  POPNORM_TRY(ask_device(device));
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    const char* why = nullptr;
    Policy policy = choose(plan.problem, direction, device, wanted, &why);
    if (policy.path != Path::plain) {
      policy.teams =
          std::min(policy.teams, direction == Direction::forward ? most_forward_teams(plan.problem, policy)
                                                                 : most_backward_teams(plan.problem, policy));
      if (policy.teams == 0) {
        policy = choose(plan.problem, direction, device, "plain", nullptr);
        why = "the device has no room for it";
      }
    }
    policies(plan)[static_cast<int>(direction)] = policy;
    char text[160];
    describe(plan.problem, policy, text, sizeof(text));
    const std::size_t used = std::strlen(plan.policy);
    std::snprintf(plan.policy + used, sizeof(plan.policy) - used, "%s%s %s%s%s", used > 0 ? "; " : "",
                  direction == Direction::forward ? "forward" : "backward", text, why != nullptr ? ", because " : "",
                  why != nullptr ? why : "");
  }
  library->log_choice(plan.policy);
  return POPNORM_SUCCESS;
}

popnorm_status prepare(Plan& plan, const char* /*isa*/, const popnorm_executor* executor) {
  const Problem& p = plan.problem;
  if (executor != nullptr)
    return fail(POPNORM_INVALID, "plan: an executor is given, must be null: backend cuda has no host threads");
  if (!grid_holds(p)) return unserved("so many channels");
  POPNORM_TRY(choose_policies(plan));
  plan.isa = "cuda";
  plan.slots = tile_numbers(p);
  plan.workspace_bytes = std::max(forward_bytes(p), backward_bytes(p));
  return POPNORM_SUCCESS;
}

constexpr Backend backend{POPNORM_CUDA,  "cuda",   check_reachable, prepare,         forward,        backward, moments,
                          combine_parts, finalize, normalize,       backward_reduce, backward_apply, nullptr};

constexpr Module module{
    kModuleAbi,   POPNORM_VERSION_MAJOR * 10000 + POPNORM_VERSION_MINOR * 100 + POPNORM_VERSION_PATCH,
    sizeof(Plan), &backend,
    device_ready, memory_of};

}  // namespace
}  // namespace cuda
}  // namespace popnorm

extern "C" __attribute__((visibility("default"))) const popnorm::cuda::Module* popnorm_cuda_module(
    const popnorm::cuda::Library* opened_by) {
  popnorm::library = opened_by;
  return &popnorm::cuda::module;
}
