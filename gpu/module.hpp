// What libpopnorm and its CUDA module say to one another. The module is opened at run time (core/registry.cpp); both must come
// from one build of popnorm.
#ifndef POPNORM_GPU_MODULE_HPP
#define POPNORM_GPU_MODULE_HPP

#include <cstddef>
#include <cstdint>

#include "core/backend.hpp"

namespace popnorm::cuda {

// Changes with every change of what is exchanged.
inline constexpr std::uint32_t kModuleAbi = 3;

// What the module needs of the library.
struct Library {
  // Keeps the message of a failure, as core/error.hpp's fail does.
  void (*set_error)(const char* message);
  // A line for POPNORM_VERBOSE=dispatch.
  void (*log_choice)(const char* line);
};

// Where a pointer points: managed memory is the host's and a device's.
enum class Memory : std::int32_t { host, managed, device };

struct Module {
  std::uint32_t abi;
  std::int32_t version;   // of popnorm
  std::size_t plan_size;  // sizeof(Plan)
  const Backend* backend;
  // SUCCESS if there is a device that the module's kernels run on; otherwise the message says what is missing: a driver, a
  // device, a recent enough one, or kernels for it.
  popnorm_status (*ready)();
  Memory (*memory_of)(const void* memory);
};

inline constexpr const char* kModuleEntry = "popnorm_cuda_module";
// Called once, with what must outlive the process's last call.
using ModuleEntry = const Module* (*)(const Library*);

}  // namespace popnorm::cuda

#endif
