// Moments of several parts merged entry by entry along a balanced binary tree.
#ifndef POPNORM_KERNELS_CUDA_COMBINE_CUH
#define POPNORM_KERNELS_CUDA_COMBINE_CUH

#include <cstdint>

#include "kernels/cuda/fold.cuh"

namespace popnorm::cuda {

// So many fit into a kernel's parameters.
inline constexpr std::int64_t kMostParts = 128;

struct CombineArgs {
  std::int64_t entries = 0;
  std::int64_t count = 0;
  MomentArrays part[kMostParts];
  MomentArrays out;
};

template <class Unused>
__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ CombineArgs args) {
  wait_for_earlier_launches();
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < args.entries; i += stride) {
    Moments stack[9];  // deeper than log2(kMostParts)
    int depth = 0;
    for (std::int64_t part = 0; part < args.count; ++part) {
      stack[depth++] = args.part[part].get(i);
      for (std::int64_t pairs = part + 1; pairs % 2 == 0; pairs /= 2, --depth)
        stack[depth - 2] = combine(stack[depth - 2], stack[depth - 1]);
    }
    for (; depth > 1; --depth) stack[depth - 2] = combine(stack[depth - 2], stack[depth - 1]);
    args.out.put(i, depth > 0 ? stack[0] : Moments{});
  }
}

}  // namespace popnorm::cuda

#endif
