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
  std::int64_t stretch = 1;  // chunks that a block takes at a time
  bool follows = false;      // upon another launch of the call, which does not write x
};

// Writes a chunk of y, and of the mask.
template <class A, class T, Access kAccess, bool kFused, class Normalizer>
__device__ __forceinline__ void normalize_chunk(const Operand& y, [[maybe_unused]] const ForwardFusion& fusion,
                                                const Packs<T, kAccess>& packs, const Chunk<T, kAccess>& x, bool alike,
                                                Normalizer& normalized) {
  [[maybe_unused]] Chunk<T, kAccess> residual;
  [[maybe_unused]] unsigned passed = 0;
  if constexpr (kFused)
    if (fusion.residual.first != nullptr) residual.load(fusion.residual, packs, Use::last);
  write_chunk<T, kAccess>(
      y, packs, alike, [&](std::int64_t sample) { normalized.enter(sample); },
      [&](int i, int k) {
        if (!is_narrow(kAccess) && !x.has(i)) return to_storage<T>(A(0));
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
    if (fusion.mask.first != nullptr) put_mask(fusion.mask, packs, passed);
}

template <class T, Access kAccess, bool kWeighted, bool kFused>
__global__ void __launch_bounds__(kThreads, blocks_for(kAccess, sizeof(T), kFused ? 3 : 1, 2))
    normalize_kernel(const __grid_constant__ NormalizeArgs<Arithmetic<T>> args) {
  using A = Arithmetic<T>;
  const std::int64_t c = first_channel<T, kAccess>(blockIdx.x);
  ChunksFromEnd<T, kAccess> chunks(args.extents, args.stretch, c);
  Chunk<T, kAccess> x;
  const auto read = [&](Use use) { x.load(args.x, chunks.packs(), use); };
  const bool early = is_even(kAccess) && args.follows && chunks.any();
  if (early) read(Use::early);
  wait_for_earlier_launches();
  if (!chunks.any()) return;
  const Rows<A> rows = args.source.template get<true>();
  const auto row_of = [&](std::int64_t row, std::int64_t k) { return rows.row(row * args.extents.c + c + k); };
  Normalized<A, T, kAccess, decltype(row_of)> normalized(args.extents, c, rows, row_of);
  with_alike<kAccess>(normalized.alike(), [&](auto alike) {
#pragma unroll 1
    for (bool held = early;; held = false) {
      if (!held) read(Use::last);
      const Packs<T, kAccess> packs = chunks.packs();
      if constexpr (kWeighted) x.weigh({args.weights, rows.map, rows.affine}, packs, nullptr);
      normalize_chunk<A, T, kAccess, kFused>(args.y, args.fusion, packs, x, alike, normalized);
      chunks.next();
      if (!chunks.any()) break;
    }
  });
  if constexpr (kFused) {
    auto* const header = reinterpret_cast<ReserveHeader*>(args.source.reserve);
    if (header != nullptr && args.fusion.mask.first != nullptr && blockIdx.x == 0 && blockIdx.y == 0 &&
        Columns::thread() == 0) {
      // The shape is the CPU's, if that finalized. Others of this launch have read both, for nothing.
      store_relaxed(&header->mask_shape, args.source.mask_shape);
      store_relaxed(&header->masked, std::int8_t{1});
    }
  }
}

}  // namespace popnorm::cuda

#endif
