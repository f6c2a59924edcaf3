// y from x, a row of statistics and a row of scale and shift, the same formula as the CPU's (kernels/affine.hpp).
#ifndef POPNORM_KERNELS_CUDA_NORMALIZE_CUH
#define POPNORM_KERNELS_CUDA_NORMALIZE_CUH

#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/activation.cuh"

namespace popnorm::cuda {

template <class A>
struct NormalizeArgs {
  Extents extents;
  Operand x;
  Operand y;
  ForwardFusion fusion;
  Weights weights;
  RowSource<A> source;
};

// Writes a chunk of y, and of the mask. row_of(row, k) is the row of statistics of a channel, asked for where it changes.
template <class A, class T, bool kRows, bool kFused, class RowOf>
__device__ __forceinline__ void normalize_chunk(const Operand& y, [[maybe_unused]] const ForwardFusion& fusion,
                                                const Range& range, const Rows<A>& rows, const Chunk<T, kRows>& x,
                                                const RowOf& row_of) {
  Normalized<A, T, kRows, RowOf> normalized(range, rows, row_of);
  [[maybe_unused]] Chunk<T, kRows> residual;
  [[maybe_unused]] unsigned passed = 0;
  if constexpr (kFused)
    if (fusion.residual.first != nullptr) residual.load(fusion.residual, range, true);
  write_chunk<T, kRows>(
      y, range, [&](std::int64_t sample) { normalized.enter(sample); },
      [&](int i, int k) {
        if (!x.has(i)) return to_storage<T>(A(0));
        A z = normalized.z(to_arithmetic(x.held[i]), k);
        if constexpr (kFused) {
          if (fusion.residual.first != nullptr) z += to_arithmetic(residual.held[i]);
          const bool passes = !stops(z);
          if (passes) passed |= 1U << i;
          z = let_through(fusion.activation, passes, z);
        }
        return to_storage<T>(z);
      });
  if constexpr (kFused)
    if (fusion.mask.first != nullptr) put_mask<T, kRows>(fusion.mask, range, passed);
}

// All samples are walked as one group, each with its own row.
template <class T, bool kRows, bool kWeighted, bool kFused>
__global__ void __launch_bounds__(kThreads, kRows && !kWeighted && !kFused && sizeof(T) < sizeof(double) ? 0 : 1)
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
    normalize_chunk<A, T, kRows, kFused>(args.y, args.fusion, range, rows, x, [&](std::int64_t row, int k) {
      return rows.row(row * args.extents.c + c + k);
    });
  }
  if constexpr (kFused) {
    auto* const header = reinterpret_cast<ReserveHeader*>(args.source.reserve);
    if (header != nullptr && args.fusion.mask.first != nullptr && blockIdx.x == 0 && blockIdx.y == 0 &&
        Columns::thread() == 0)
      header->masked = 1;
  }
}

}  // namespace popnorm::cuda

#endif
