// dx from x, dy and the coefficients of their row: the same formula as the CPU's (kernels/affine.hpp). x is read for rows whose
// statistics are constants too, of whose dx it is no part.
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
  std::int64_t stretch = 1;  // chunks that a block takes at a time
  bool follows = false;      // upon another launch of the call, which writes neither x nor dy
};

// What dx needs of a row.
template <class A>
struct ApplyRow {
  StatisticsRow<A> statistics;
  A k1;
  A k2;
  bool through;  // the statistics, which are those of the batch
};

// dx of a thread's elements, chunk after chunk. row_of(row, k) is what a channel's row has, asked for where it changes.
template <class A, class T, Access kAccess, class RowOf>
class Gradient {
  using S = Shape<T, kAccess>;

 public:
  __device__ __forceinline__ Gradient(const Extents& extents, std::int64_t c, const Rows<A>& rows, const RowOf& row_of)
      : extents_(extents), c_(c), rows_(rows), row_of_(row_of), place_(rows) {
    if (place_.alike()) read<kReadAtOnce<T, kAccess>>(0);
  }

  __device__ __forceinline__ bool alike() const { return place_.alike(); }

  template <bool kWeighted, bool kFused>
  __device__ __forceinline__ void put(const Operand& dx, const Packs<T, kAccess>& packs, const Chunk<T, kAccess>& x,
                                      const Chunk<T, kAccess>& dy, const Gate<A, kFused>& gate, bool alike,
                                      [[maybe_unused]] const float* weight) {
    write_chunk<T, kAccess>(
        dx, packs, alike, [&](std::int64_t sample) { enter(sample); },
        [&](int i, int k) {
          if (!is_narrow(kAccess) && !x.has(i)) return to_storage<T>(A(0));
          const A gradient = of_[k].a * gate.gradient(i, to_arithmetic(dy.held[i]));
          if (!of_[k].through) return to_storage<T>(gradient);
          const A xhat = (to_arithmetic(x.held[i]) - of_[k].hi) * of_[k].invstd;
          if constexpr (kWeighted) {
            const auto w = static_cast<A>(weight[S::weight(i / S::kPack, i % S::kPack)]);
            return to_storage<T>((gradient - w * of_[k].k1) - xhat * (w * of_[k].k2));
          } else {
            return to_storage<T>((gradient - of_[k].k1) - xhat * of_[k].k2);
          }
        });
  }

 private:
  __device__ __forceinline__ void enter(std::int64_t sample) { read<kReadInChunk<T, kAccess>>(sample); }
  template <int kAtOnce>
  __device__ __forceinline__ void read(std::int64_t sample) {
    if (!place_.enter(sample)) return;
    read_channels<T, kAccess, kAtOnce>(extents_, c_, [&](int k, std::int64_t from) {
      ApplyRow<A> row[kAtOnce];
      A scale[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) row[i] = row_of_(place_.row(), from + i);
      rows_.scale.get(place_.affine() * extents_.c + c_ + from, A(1), scale);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const StatisticsRow<A>& s = row[i].statistics;
        of_[k + i] = {s.hi, s.invstd, gain<A>(scale[i], s.invstd), row[i].k1, row[i].k2, row[i].through};
      }
    });
  }

  const Extents& extents_;
  std::int64_t c_;
  const Rows<A>& rows_;
  RowOf row_of_;
  Place<A, Count<kAccess>, is_small(kAccess)> place_;
  struct Coefficients {
    A hi, invstd, a, k1, k2;
    bool through;
  } of_[S::kChannels]{};
};

// The gradient of z, which the residual takes over.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void put_dresidual(const Operand& dresidual, const Packs<T, kAccess>& packs,
                                              const Chunk<T, kAccess>& x, const Chunk<T, kAccess>& dy,
                                              const Gate<A, true>& gate) {
  write_chunk<T, kAccess>(
      dresidual, packs, true, [](std::int64_t) {},
      [&](int i, int) {
        return to_storage<T>(is_narrow(kAccess) || x.has(i) ? gate.gradient(i, to_arithmetic(dy.held[i])) : A(0));
      });
}

template <class T, Access kAccess, bool kWeighted, bool kFused>
__global__ void __launch_bounds__(kThreads, blocks_for(kAccess, sizeof(T), kFused ? 3 : 2, 6))
    backward_apply_kernel(const __grid_constant__ BackwardApplyArgs<Arithmetic<T>> args) {
  using A = Arithmetic<T>;
  const std::int64_t c = first_channel<T, kAccess>(blockIdx.x);
  ChunksFromEnd<T, kAccess> chunks(args.extents, args.stretch, c);
  Chunk<T, kAccess> x, dy;
  const auto read = [&](Use use) {
    const Packs<T, kAccess> packs = chunks.packs();
    x.load(args.x, packs, use);
    dy.load(args.dy, packs, use);
  };
  const bool early = is_even(kAccess) && args.follows && chunks.any();
  if (early) read(Use::early);
  wait_for_earlier_launches();
  if (!chunks.any()) return;
  const Rows<A> rows = args.source.get();
  const auto statistics_of = [&](std::int64_t row, std::int64_t k) { return rows.row(row * args.extents.c + c + k); };
  const auto row_of = [&](std::int64_t row, std::int64_t k) {
    const std::int64_t i = row * args.extents.c + c + k;
    const bool through = rows.of.weight[i] > 0;
    const A k1 = args.k1[i], k2 = args.k2[i];
    return ApplyRow<A>{rows.row(i), through ? k1 : A(0), through ? k2 : A(0), through};
  };
  using Own = Signs<A, T, kAccess, kFused>;
  constexpr bool kKept = Own::kInColumns || Own::kInRows;
  Own signs(shared_memory<std::byte>());
  if constexpr (kKept)
    if (args.fusion.recomputes)
      signs.keep(Normalized<A, T, kAccess, decltype(statistics_of)>(args.extents, c, rows, statistics_of));
  Gradient<A, T, kAccess, decltype(row_of)> gradient(args.extents, c, rows, row_of);
  with_alike<kAccess>(gradient.alike(), [&](auto alike) {
#pragma unroll 1
    for (bool held = early;; held = false) {
      if (!held) read(Use::last);
      const Packs<T, kAccess> packs = chunks.packs();
      float weight[kWeighted ? Shape<T, kAccess>::kWeights : 1];
      if constexpr (kWeighted) x.weigh({args.weights, rows.map, rows.affine}, packs, weight);
      const Gate<A, kFused> gate =
          gate_of<A, T, kAccess, kFused>(args.fusion, packs, rows, x, statistics_of, kKept && alike ? &signs : nullptr);
      // By places of its own: those of dx would take registers meanwhile, which single elements of 16 bits do not leave.
      if constexpr (kFused)
        if (args.dresidual.first != nullptr) put_dresidual(args.dresidual, chunks.packs(), x, dy, gate);
      if (!kFused || args.dx.first != nullptr)
        gradient.template put<kWeighted>(args.dx, packs, x, dy, gate, alike, weight);
      chunks.next();
      if (!chunks.any()) break;
    }
  });
}

}  // namespace popnorm::cuda

#endif
