// dx from x, dy and the coefficients of their row: the same formula as the CPU's (kernels/affine.hpp). A row whose statistics are
// constants (weight 0) does not read x.
#ifndef POPNORM_KERNELS_CUDA_BACKWARD_APPLY_CUH
#define POPNORM_KERNELS_CUDA_BACKWARD_APPLY_CUH

#include <cstdint>

#include "kernels/cuda/normalize.cuh"

namespace popnorm::cuda {

template <class A>
struct BackwardApplyArgs {
  Extents extents;
  Operand x;
  Operand dy;
  Operand dx;
  RowSource<A> source;
  const A* k1 = nullptr;  // [rows][c]
  const A* k2 = nullptr;
};

template <class T, class A>
__global__ void __launch_bounds__(kThreads) backward_apply_kernel(const __grid_constant__ BackwardApplyArgs<A> args) {
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= args.extents.c) return;
  const Rows<A> rows = args.source.get();
  std::int64_t row = -1, affine = -1;
  A hi = 0, invstd = 0, a = 0, k1 = 0, k2 = 0;
  bool through = false;
  for (std::int64_t chunk = blockIdx.y; chunk < chunks_of(args.extents, blockDim.y); chunk += gridDim.y)
    for_each_position(args.extents, chunk, [&](std::int64_t n, std::int64_t s) {
      const std::int64_t its_row = rows.map.of(n), its_affine = rows.affine.of(n);
      if (its_row != row || its_affine != affine) {
        row = its_row;
        affine = its_affine;
        const std::int64_t i = row * args.extents.c + c;
        through = rows.of.weight[i] > 0;
        hi = rows.of.hi[i];
        invstd = rows.of.invstd[i];
        a = gain<A>(static_cast<A>(rows.scale.get(affine * args.extents.c + c, 1)), invstd);
        k1 = through ? args.k1[i] : A(0);
        k2 = through ? args.k2[i] : A(0);
      }
      const A dy = static_cast<A>(load<T>(args.dy, n, c, s));
      A dx = a * dy;
      if (through) dx = (dx - k1) - ((static_cast<A>(load<T>(args.x, n, c, s)) - hi) * invstd) * k2;
      store(args.dx, n, c, s, static_cast<T>(dx));
    });
}

}  // namespace popnorm::cuda

#endif
