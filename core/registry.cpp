#include "core/registry.hpp"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.hpp"
#include "core/log.hpp"
#include "cpu/backend.hpp"
#include "cpu/dispatch.hpp"
#include "gpu/module.hpp"

namespace popnorm {
namespace {

// The module beside this library, or the file that POPNORM_CUDA_MODULE names.
void* open_module() {
  if (const char* file = std::getenv("POPNORM_CUDA_MODULE"); file != nullptr && *file != '\0')
    return ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  // $ORIGIN is in this library's run path.
  return ::dlopen("libpopnorm_cuda.so", RTLD_NOW | RTLD_LOCAL);
}

void keep_error(const char* message) { fail(POPNORM_UNSUPPORTED, "%s", message); }
void keep_log(const char* line) {
  if (log_dispatch()) log_choice("%s", line);
}
constexpr cuda::Library kLibrary{keep_error, keep_log};

// What became of opening the module: once per process, and it is never closed, because the CUDA runtime in it cannot be.
struct Opened {
  const cuda::Module* module = nullptr;
  char why[400] = "";

  Opened() {
    void* handle = open_module();
    if (handle == nullptr) {
      std::snprintf(why, sizeof(why), "its module cannot be opened (%s)", ::dlerror());
      return;
    }
    const auto entry = reinterpret_cast<cuda::ModuleEntry>(::dlsym(handle, cuda::kModuleEntry));
    const cuda::Module* found = entry != nullptr ? entry(&kLibrary) : nullptr;
    if (found == nullptr || found->abi != cuda::kModuleAbi || found->version != popnorm_version() ||
        found->plan_size != sizeof(Plan)) {
      std::snprintf(why, sizeof(why), "its module is of another build of popnorm; install both from one");
      return;
    }
    module = found;
  }
};

const Opened& opened() {
  static const Opened once;
  return once;
}

popnorm_status find_cuda(const Backend*& backend) {
  if (opened().module == nullptr)
    return fail(POPNORM_UNSUPPORTED, "plan: backend cuda is not installed: %s; ask for cpu or auto", opened().why);
  if (const popnorm_status status = opened().module->ready(); status != POPNORM_SUCCESS) return status;
  backend = opened().module->backend;
  return POPNORM_SUCCESS;
}

// What is a device's alone is that device's, whether plans can be made for it or not: the CPU cannot reach it. Without a module
// nobody can tell.
popnorm_backend where(const void* memory) {
  if (memory == nullptr) return POPNORM_CPU;
  if (opened().module == nullptr) {
    if (log_dispatch()) log_choice("auto takes cpu: backend cuda is not installed, nobody knows whose the memory is");
    return POPNORM_CPU;
  }
  const Backend* found = nullptr;
  const cuda::Memory kind = opened().module->memory_of(memory);
  const bool cuda =
      kind == cuda::Memory::device || (kind == cuda::Memory::managed && find_cuda(found) == POPNORM_SUCCESS);
  if (log_dispatch()) log_choice("auto takes %s by where memory is", cuda ? "cuda" : "cpu");
  return cuda ? POPNORM_CUDA : POPNORM_CPU;
}

}  // namespace

popnorm_status find_backend(popnorm_backend wanted, const void* memory, const Backend*& backend) {
  if (wanted == POPNORM_BACKEND_AUTO) {
    const char* name = std::getenv("POPNORM_BACKEND");
    if (name == nullptr || *name == '\0' || std::strcmp(name, "auto") == 0)
      wanted = where(memory);
    else if (std::strcmp(name, "cpu") == 0)
      wanted = POPNORM_CPU;
    else if (std::strcmp(name, "cuda") == 0)
      wanted = POPNORM_CUDA;
    else
      return fail(POPNORM_INVALID, "plan: POPNORM_BACKEND is \"%s\", must be auto, cpu or cuda", name);
  }
  if (wanted == POPNORM_CUDA) return find_cuda(backend);
  backend = &cpu::backend;
  return POPNORM_SUCCESS;
}

int isa_count() { return cpu::tier_count(); }
const char* isa_name(int index) { return cpu::tier(index).table->isa; }
bool isa_available(int index) { return cpu::tier(index).available(); }

}  // namespace popnorm
