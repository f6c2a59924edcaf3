// dx from x, dy and the coefficients of their row: the same formula as the CPU's (kernels/affine.hpp). A row whose statistics are
// constants (weight 0) does not read x.
#ifndef POPNORM_KERNELS_CUDA_BACKWARD_APPLY_CUH
#define POPNORM_KERNELS_CUDA_BACKWARD_APPLY_CUH

#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/activation.cuh"

namespace popnorm::cuda {

template <class A>
struct BackwardApplyArgs {
  Extents extents;
  Operand x;
  Operand dy;
  Operand dx;         // first null: not wanted
  Operand dresidual;  // the same
  BackwardFusion fusion;
  Weights weights;
  RowSource<A> source;
  const A* k1 = nullptr;  // [rows][c]
  const A* k2 = nullptr;
};

// What dx needs of a row.
template <class A>
struct ApplyRow {
  StatisticsRow<A> statistics;
  A k1;
  A k2;
  bool through;  // the statistics, which are those of the batch
};

// Writes a chunk of dx. row_of(row, k) is what a channel's row has, asked for where it changes.
template <class A, class T, bool kRows, bool kWeighted, bool kFused, class RowOf>
__device__ __forceinline__ void apply_chunk(const Operand& dx, const Range& range, const Rows<A>& rows,
                                            const Chunk<T, kRows>& x, const Chunk<T, kRows>& dy,
                                            const Gate<A, kFused>& gate, [[maybe_unused]] const float* weight,
                                            const RowOf& row_of) {
  using S = Shape<T, kRows>;
  std::int64_t row = -1, affine = -1;
  struct Coefficients {
    A hi, invstd, a, k1, k2;
    bool through;
  } of[S::kChannels]{};
  write_chunk<T, kRows>(
      dx, range,
      [&](std::int64_t sample) {
        const std::int64_t its_row = rows.map.of(sample), its_affine = rows.affine.of(sample);
        if ((its_row == row && its_affine == affine) || its_row < 0 || its_affine < 0) return;
        row = its_row;
        affine = its_affine;
        for_each_channel<T, kRows>(range.extents, range.c, [&](int k) {
          const ApplyRow<A> r = row_of(row, k);
          const auto scale = static_cast<A>(rows.scale.get(affine * range.extents.c + range.c + k, 1));
          of[k] = {r.statistics.hi, r.statistics.invstd, gain<A>(scale, r.statistics.invstd), r.k1, r.k2, r.through};
        });
      },
      [&](int i, int k) {
        if (!x.has(i)) return to_storage<T>(A(0));
        const A gradient = of[k].a * gate.gradient(i, to_arithmetic(dy.held[i]));
        if (!of[k].through) return to_storage<T>(gradient);
        const A xhat = (to_arithmetic(x.held[i]) - of[k].hi) * of[k].invstd;
        if constexpr (kWeighted) {
          const auto w = static_cast<A>(weight[S::weight(i / S::kPack, i % S::kPack)]);
          return to_storage<T>((gradient - w * of[k].k1) - xhat * (w * of[k].k2));
        } else {
          return to_storage<T>((gradient - of[k].k1) - xhat * of[k].k2);
        }
      });
}

// The gradient of z, which the residual takes over.
template <class A, class T, bool kRows>
__device__ __forceinline__ void put_dresidual(const Operand& dresidual, const Range& range, const Chunk<T, kRows>& x,
                                              const Chunk<T, kRows>& dy, const Gate<A, true>& gate) {
  write_chunk<T, kRows>(
      dresidual, range, [](std::int64_t) {},
      [&](int i, int) { return to_storage<T>(x.has(i) ? gate.gradient(i, to_arithmetic(dy.held[i])) : A(0)); });
}

template <class T, bool kRows, bool kWeighted, bool kFused>
__global__ void __launch_bounds__(kThreads, 1)
    backward_apply_kernel(const __grid_constant__ BackwardApplyArgs<Arithmetic<T>> args) {
  using A = Arithmetic<T>;
  const std::int64_t c = first_channel<T, kRows>(blockIdx.x);
  const Rows<A> rows = args.source.get();
  const Groups all{POPNORM_WHOLE, Divisor(), 1, args.extents.n};
  const std::int64_t positions = args.extents.n * args.extents.s.by();
  const std::int64_t step = Shape<T, kRows>::positions(static_cast<int>(blockDim.y));
  for (std::int64_t at = blockIdx.y * step; at < positions; at += gridDim.y * step) {
    const Range range{args.extents, all, 0, at, at + step < positions ? at + step : positions, c};
    Chunk<T, kRows> x, dy;
    float weight[kWeighted ? Shape<T, kRows>::kWeights : 1];
    x.load(args.x, range, true);
    dy.load(args.dy, range, true);
    if constexpr (kWeighted) x.weigh({args.weights, rows.map, rows.affine}, range, weight);
    const Gate<A, kFused> gate = gate_of<A, T, kRows, kFused>(
        args.fusion, range, rows, x, [&](std::int64_t row, int k) { return rows.row(row * args.extents.c + c + k); });
    if constexpr (kFused)
      if (args.dresidual.first != nullptr) put_dresidual(args.dresidual, range, x, dy, gate);
    if (kFused && args.dx.first == nullptr) continue;
    apply_chunk<A, T, kRows, kWeighted>(args.dx, range, rows, x, dy, gate, weight, [&](std::int64_t row, int k) {
      const std::int64_t i = row * args.extents.c + c + k;
      const bool through = rows.of.weight[i] > 0;
      return ApplyRow<A>{rows.row(i), through ? args.k1[i] : A(0), through ? args.k2[i] : A(0), through};
    });
  }
}

}  // namespace popnorm::cuda

#endif
