// The module's one exported symbol, its plans, and where its messages go.
#include "gpu/module.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

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

popnorm_status prepare(Plan& plan, const char* /*isa*/, const popnorm_executor* executor) {
  const Problem& p = plan.problem;
  if (executor != nullptr)
    return fail(POPNORM_INVALID, "plan: an executor is given, must be null: backend cuda has no host threads");
  if (!grid_holds(p)) return unserved("so many channels");
  plan.isa = "cuda";
  plan.workspace_bytes = std::max(forward_bytes(p), backward_bytes(p));
  return POPNORM_SUCCESS;
}

constexpr Backend backend{POPNORM_CUDA,  "cuda",   check_reachable, prepare,         forward,        backward, moments,
                          combine_parts, finalize, normalize,       backward_reduce, backward_apply, nullptr};

constexpr Module module{kModuleAbi, POPNORM_VERSION_MAJOR * 10000 + POPNORM_VERSION_MINOR * 100 + POPNORM_VERSION_PATCH,
                        sizeof(Plan), &backend, device_ready};

}  // namespace
}  // namespace cuda
}  // namespace popnorm

extern "C" __attribute__((visibility("default"))) const popnorm::cuda::Module* popnorm_cuda_module(
    const popnorm::cuda::Library* opened_by) {
  popnorm::library = opened_by;
  return &popnorm::cuda::module;
}
