// gpu/runtime.hpp for the emulator: its device is the host.
#include "gpu/runtime.hpp"

namespace popnorm::cuda {

popnorm_status device_ready() { return POPNORM_SUCCESS; }

popnorm_status check_reachable(const char* /*operation*/, const char* /*name*/, const void* /*first*/) {
  return POPNORM_SUCCESS;
}

}  // namespace popnorm::cuda
