// dx from x, dy and the coefficients of their row: the same formula as the CPU's (kernels/affine.hpp). A row whose statistics are
// constants (weight 0) does not read x.
#ifndef POPNORM_KERNELS_CUDA_BACKWARD_APPLY_CUH
#define POPNORM_KERNELS_CUDA_BACKWARD_APPLY_CUH

#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/elementwise.cuh"

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
  A hi = 0, invstd = 0, a = 0, k1 = 0, k2 = 0;
  bool through = false;
  for_each_element(
      args.extents, rows, c,
      [&](std::int64_t i, std::int64_t j) {
        through = rows.of.weight[i] > 0;
        hi = rows.of.hi[i];
        invstd = rows.of.invstd[i];
        a = gain<A>(static_cast<A>(rows.scale.get(j, 1)), invstd);
        k1 = through ? args.k1[i] : A(0);
        k2 = through ? args.k2[i] : A(0);
      },
      [&](std::int64_t n, std::int64_t s) {
        A dx = a * static_cast<A>(load<T>(args.dy, n, c, s));
        if (through) dx = (dx - k1) - ((static_cast<A>(load<T>(args.x, n, c, s)) - hi) * invstd) * k2;
        store(args.dx, n, c, s, static_cast<T>(dx));
      });
}

}  // namespace popnorm::cuda

#endif
