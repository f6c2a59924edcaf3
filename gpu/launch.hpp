// How kernels are launched: one argument struct each.
#ifndef POPNORM_GPU_LAUNCH_HPP
#define POPNORM_GPU_LAUNCH_HPP

#include <type_traits>

#include "gpu/runtime.hpp"
#include "kernels/cuda/intrinsics.cuh"

namespace popnorm::cuda {

template <class Args>
popnorm_status launch(const char* operation, const char* kernel_name, void (*kernel)(Args),
                      const std::type_identity_t<Args>& args, const Grid& grid, void* stream) {
  if (grid.blocks_x == 0 || grid.blocks_y == 0) return POPNORM_SUCCESS;
#ifdef __CUDACC__
  void* arguments[] = {const_cast<Args*>(&args)};
  return launch_kernel(operation, kernel_name, reinterpret_cast<const void*>(kernel), grid, arguments, stream);
#else
  static_cast<void>(operation), static_cast<void>(kernel_name);
  simt::enqueue(stream);
  simt::run({{grid.blocks_x, grid.blocks_y},
             {grid.threads_x, grid.threads_y},
             grid.shared_bytes,
             grid.cluster,
             grid.cooperative},
            [&] { kernel(args); });
  return POPNORM_SUCCESS;
#endif
}

}  // namespace popnorm::cuda

#endif
