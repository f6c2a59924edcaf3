// y from x, a row of statistics and a row of scale and shift, the same formula as the CPU's (kernels/affine.hpp).
#ifndef POPNORM_KERNELS_CUDA_NORMALIZE_CUH
#define POPNORM_KERNELS_CUDA_NORMALIZE_CUH

#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/elementwise.cuh"

namespace popnorm::cuda {

template <class A>
struct NormalizeArgs {
  Extents extents;
  Operand x;
  Operand y;
  RowSource<A> source;
};

template <class T, class A>
__global__ void __launch_bounds__(kThreads) normalize_kernel(const __grid_constant__ NormalizeArgs<A> args) {
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= args.extents.c) return;
  const Rows<A> rows = args.source.get();
  NormalizeRow<A> k{};
  for_each_element(
      args.extents, rows, c,
      [&](std::int64_t i, std::int64_t j) {
        k = normalize_row<A>({rows.of.hi[i], rows.of.lo[i], rows.of.invstd[i]}, static_cast<A>(rows.scale.get(j, 1)),
                             static_cast<A>(rows.shift.get(j, 0)));
      },
      [&](std::int64_t n, std::int64_t s) {
        const A x = static_cast<A>(load<T>(args.x, n, c, s));
        store(args.y, n, c, s, static_cast<T>((x - k.hi) * k.s + k.b));
      });
}

}  // namespace popnorm::cuda

#endif
