// How the elements of an output are walked: positions counted over all samples, coefficients looked up where the row changes.
#ifndef POPNORM_KERNELS_CUDA_ELEMENTWISE_CUH
#define POPNORM_KERNELS_CUDA_ELEMENTWISE_CUH

#include <cstdint>

#include "kernels/cuda/rows.cuh"

namespace popnorm::cuda {

// A chunk is blockDim.y * kHeld positions.
POPNORM_INLINE std::int64_t chunks_of(const Extents& extents, std::int64_t threads) {
  return (extents.n * extents.s + threads * kHeld - 1) / (threads * kHeld);
}

// For channel c and this thread's positions: coefficients(i, j) whenever they change, with i the entry of the sample's row of
// statistics and j that of its scale and shift, and element(sample, position) for each.
template <class A, class Coefficients, class Element>
__device__ __forceinline__ void for_each_element(const Extents& extents, const Rows<A>& rows, std::int64_t c,
                                                 const Coefficients& coefficients, const Element& element) {
  const std::int64_t all = extents.n * extents.s;
  std::int64_t row = -1, affine = -1;
  for (std::int64_t chunk = blockIdx.y; chunk < chunks_of(extents, blockDim.y); chunk += gridDim.y) {
    std::int64_t at = chunk * blockDim.y * kHeld + threadIdx.y;
    if (at >= all) return;
    Walk walk(at, blockDim.y, extents.s);
    for (int i = 0; i < kHeld && at < all; ++i, at += blockDim.y, walk.step()) {
      const std::int64_t its_row = rows.map.of(walk.sample()), its_affine = rows.affine.of(walk.sample());
      if (its_row != row || its_affine != affine) {
        row = its_row;
        affine = its_affine;
        coefficients(row * extents.c + c, affine * extents.c + c);
      }
      element(walk.sample(), walk.position());
    }
  }
}

}  // namespace popnorm::cuda

#endif
