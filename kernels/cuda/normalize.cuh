// y from x, a row of statistics and a row of scale and shift, the same formula as the CPU's (kernels/affine.hpp).
#ifndef POPNORM_KERNELS_CUDA_NORMALIZE_CUH
#define POPNORM_KERNELS_CUDA_NORMALIZE_CUH

#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/rows.cuh"

namespace popnorm::cuda {

template <class A>
struct NormalizeArgs {
  Extents extents;
  Operand x;
  Operand y;
  RowSource<A> source;
};

// Calls body(sample, position) for a thread's positions of a chunk of blockDim.y * kHeld, counted over all samples.
template <class Body>
__device__ __forceinline__ void for_each_position(const Extents& extents, std::int64_t chunk, const Body& body) {
  const std::int64_t begin = chunk * blockDim.y * kHeld + threadIdx.y;
  const std::int64_t all = extents.n * extents.s;
  if (begin >= all) return;
  Walk walk(begin, blockDim.y, extents.s);
#pragma unroll 4
  for (int i = 0; i < kHeld; ++i) {
    if (begin + std::int64_t{i} * blockDim.y >= all) return;
    body(walk.sample(), walk.position());
    walk.step();
  }
}
POPNORM_INLINE std::int64_t chunks_of(const Extents& extents, std::int64_t threads) {
  return (extents.n * extents.s + threads * kHeld - 1) / (threads * kHeld);
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads) normalize_kernel(const __grid_constant__ NormalizeArgs<A> args) {
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= args.extents.c) return;
  const Rows<A> rows = args.source.get();
  std::int64_t row = -1, affine = -1;
  NormalizeRow<A> k{};
  for (std::int64_t chunk = blockIdx.y; chunk < chunks_of(args.extents, blockDim.y); chunk += gridDim.y)
    for_each_position(args.extents, chunk, [&](std::int64_t n, std::int64_t s) {
      const std::int64_t its_row = rows.map.of(n), its_affine = rows.affine.of(n);
      if (its_row != row || its_affine != affine) {
        row = its_row;
        affine = its_affine;
        const std::int64_t i = row * args.extents.c + c, j = affine * args.extents.c + c;
        k = normalize_row<A>({rows.of.hi[i], rows.of.lo[i], rows.of.invstd[i]}, static_cast<A>(rows.scale.get(j, 1)),
                             static_cast<A>(rows.shift.get(j, 0)));
      }
      const A x = static_cast<A>(load<T>(args.x, n, c, s));
      store(args.y, n, c, s, static_cast<T>((x - k.hi) * k.s + k.b));
    });
}

}  // namespace popnorm::cuda

#endif
