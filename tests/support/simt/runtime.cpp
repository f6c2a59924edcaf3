// gpu/runtime.hpp for the emulator: its device is the host.
#include "gpu/runtime.hpp"

namespace popnorm::cuda {

popnorm_status device_ready() { return POPNORM_SUCCESS; }

Memory memory_of(const void* /*memory*/) { return Memory::managed; }

popnorm_status check_reachable(const char* /*operation*/, const char* /*name*/, const void* /*first*/) {
  return POPNORM_SUCCESS;
}

// Small, so that small tensors have teams that keep all, some and none of what they read.
popnorm_status ask_device(Device& device) {
  device = {3, std::size_t{80} << 10, std::size_t{162} << 10, std::size_t{256} << 10, true, true, true};
  return POPNORM_SUCCESS;
}

int co_resident(const void* /*kernel*/, const Grid& grid) {
  const int blocks = 3 * static_cast<int>((std::size_t{162} << 10) / (grid.shared_bytes + 1024));
  return blocks / static_cast<int>(grid.cluster) * static_cast<int>(grid.cluster);
}

}  // namespace popnorm::cuda
