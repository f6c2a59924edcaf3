// What the backend needs of the CUDA runtime. runtime.cu has it; the tests' emulator has another (tests/support/simt).
#ifndef POPNORM_GPU_RUNTIME_HPP
#define POPNORM_GPU_RUNTIME_HPP

#include <popnorm/popnorm.h>

#include <cstddef>

#include "gpu/module.hpp"
#include "gpu/policy.hpp"

namespace popnorm::cuda {

struct Grid {
  unsigned blocks_x = 1;
  unsigned blocks_y = 1;
  unsigned threads_x = 1;
  unsigned threads_y = 1;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks, side by side in x, that may meet (sm_90 and later)
  bool cooperative = false;  // all blocks may meet
};

// Whether kernels can run here; fails with what is missing.
popnorm_status device_ready();

Memory memory_of(const void* memory);

// The current device can reach `first`, which is named `name` in messages.
popnorm_status check_reachable(const char* operation, const char* name, const void* first);

// What the current device has.
popnorm_status ask_device(Device& device);

// Blocks of a kernel that such launches can have at work at once, whole clusters where there are such; 0: none.
int co_resident(const void* kernel, const Grid& grid);

#ifdef __CUDACC__
popnorm_status launch_kernel(const char* operation, const char* kernel_name, const void* kernel, const Grid& grid,
                             void** arguments, void* stream);
#endif

}  // namespace popnorm::cuda

#endif
