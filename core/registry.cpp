#include "core/registry.hpp"

#include <cstdlib>
#include <cstring>

#include "core/error.hpp"
#include "cpu/backend.hpp"
#include "cpu/dispatch.hpp"

namespace popnorm {

popnorm_status find_backend(popnorm_backend wanted, const Backend*& backend) {
  if (wanted == POPNORM_BACKEND_AUTO) {
    const char* name = std::getenv("POPNORM_BACKEND");
    if (name == nullptr || *name == '\0' || std::strcmp(name, "auto") == 0 || std::strcmp(name, "cpu") == 0)
      wanted = POPNORM_CPU;
    else if (std::strcmp(name, "cuda") == 0)
      wanted = POPNORM_CUDA;
    else
      return fail(POPNORM_INVALID, "plan: POPNORM_BACKEND is \"%s\", must be auto, cpu or cuda", name);
  }
  if (wanted == POPNORM_CUDA)
    return fail(POPNORM_UNSUPPORTED, "plan: backend cuda is not in this version of popnorm; ask for cpu or auto");
  backend = &cpu::backend;
  return POPNORM_SUCCESS;
}

int isa_count() { return cpu::tier_count(); }
const char* isa_name(int index) { return cpu::tier(index).table->isa; }
bool isa_available(int index) { return cpu::tier(index).available(); }

}  // namespace popnorm
