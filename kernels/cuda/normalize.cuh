// y from x, a row of statistics and a row of scale and shift, the same formula as the CPU's (kernels/affine.hpp).
#ifndef POPNORM_KERNELS_CUDA_NORMALIZE_CUH
#define POPNORM_KERNELS_CUDA_NORMALIZE_CUH

#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/chunk.cuh"
#include "kernels/cuda/rows.cuh"

namespace popnorm::cuda {

template <class A>
struct NormalizeArgs {
  Extents extents;
  Operand x;
  Operand y;
  Weights weights;
  RowSource<A> source;
};

// Writes a chunk of y. row_of(sample, k) is the row of statistics of a channel, asked for where it changes.
template <class A, class T, bool kRows, class RowOf>
__device__ __forceinline__ void normalize_chunk(const Operand& y, const Range& range, const Rows<A>& rows,
                                                const Chunk<T, kRows>& x, const RowOf& row_of) {
  std::int64_t row = -1, affine = -1;
  NormalizeRow<A> coefficients[Shape<T, kRows>::kChannels]{};
  write_chunk<T, kRows>(
      y, range,
      [&](std::int64_t sample) {
        const std::int64_t its_row = rows.map.of(sample), its_affine = rows.affine.of(sample);
        if ((its_row == row && its_affine == affine) || its_row < 0 || its_affine < 0) return;
        row = its_row;
        affine = its_affine;
        for_each_channel<T, kRows>(range.extents, range.c, [&](int k) {
          const std::int64_t j = affine * range.extents.c + range.c + k;
          coefficients[k] = normalize_row<A>(row_of(row, k), static_cast<A>(rows.scale.get(j, 1)),
                                             static_cast<A>(rows.shift.get(j, 0)));
        });
      },
      [&](int i, int k) {
        const NormalizeRow<A>& of = coefficients[k];
        return x.has(i) ? to_storage<T>((to_arithmetic(x.held[i]) - of.hi) * of.s + of.b) : to_storage<T>(A(0));
      });
}

// All samples are walked as one group, each with its own row.
template <class T, bool kRows, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kWeighted || sizeof(T) == sizeof(double) ? 1 : 0)
    normalize_kernel(const __grid_constant__ NormalizeArgs<Arithmetic<T>> args) {
  using A = Arithmetic<T>;
  const std::int64_t c = first_channel<T, kRows>(blockIdx.x);
  const Rows<A> rows = args.source.get();
  const Groups all{POPNORM_WHOLE, Divisor(), 1, args.extents.n};
  const std::int64_t positions = args.extents.n * args.extents.s.by();
  const std::int64_t step = Shape<T, kRows>::positions(static_cast<int>(blockDim.y));
  for (std::int64_t at = blockIdx.y * step; at < positions; at += gridDim.y * step) {
    const Range range{args.extents, all, 0, at, at + step < positions ? at + step : positions, c};
    Chunk<T, kRows> x;
    x.load(args.x, range, true);
    if constexpr (kWeighted) x.weigh({args.weights, rows.map, rows.affine}, range, nullptr);
    normalize_chunk<A, T, kRows>(args.y, range, rows, x,
                                 [&](std::int64_t row, int k) { return rows.row(row * args.extents.c + c + k); });
  }
}

}  // namespace popnorm::cuda

#endif
