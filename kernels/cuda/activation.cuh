// What may follow normalization in the same kernels: y = activation(z + residual), and the gradient of z, which is dy or what the
// activation makes of it where it stopped. Where that was is told by a mask, or recomputed from x.
#ifndef POPNORM_KERNELS_CUDA_ACTIVATION_CUH
#define POPNORM_KERNELS_CUDA_ACTIVATION_CUH

#include <cmath>
#include <cstdint>

#include "kernels/activation.hpp"
#include "kernels/cuda/chunk.cuh"
#include "kernels/cuda/rows.cuh"

namespace popnorm::cuda {

// A bit for every element that an activation let pass: of a channel (rows form) those of all positions, sample after sample; of a
// position (columns form) those of its channels. Then the packs of a chunk meet bytes at the same places wherever samples end.
struct Mask {
  std::uint8_t* first = nullptr;
  std::int64_t stride = 0;  // bytes, from one channel to the next (rows form), or from one position

  struct Bit {
    std::uint8_t* byte;
    unsigned number;
  };
  template <bool kRows, class Place>
  __device__ __forceinline__ Bit at(const Place& place, std::int64_t s) const {
    const std::int64_t position = place.sample * s + place.position;
    const std::int64_t line = kRows ? place.channel : position, i = kRows ? position : place.channel;
    return {first + (line * stride + (i >> 3)), static_cast<unsigned>(i & 7)};
  }
};

// first null: no residual, no mask.
struct ForwardFusion {
  Activation activation;
  Operand residual;
  Mask mask;
};
struct BackwardFusion {
  Activation activation;
  Mask mask;
  bool recomputes = false;  // without a mask; or nothing is stopped
};

// `value` is z or the gradient of z. The product is rounded by itself, whatever it is added to.
template <class A>
__device__ __forceinline__ A let_through(const Activation& activation, bool passes, A value) {
  if (passes) return value;
  return activation.keeps ? rounded_product(static_cast<A>(activation.slope), value) : A(0);
}

// z of a thread's elements, chunk after chunk: enter(sample) before those of another sample, unless they are alike. row_of(row, k) is
// the row of statistics of a channel, asked for where it changes.
template <class A, class T, Access kAccess, class RowOf>
class Normalized {
 public:
  __device__ __forceinline__ Normalized(const Extents& extents, std::int64_t c, const Rows<A>& rows,
                                        const RowOf& row_of)
      : extents_(extents), c_(c), rows_(rows), row_of_(row_of), place_(rows) {
    if (alike()) enter(0);
  }

  __device__ __forceinline__ void enter(std::int64_t sample) {
    if (!place_.enter(sample)) return;
    read_channels<T, kAccess>(extents_, c_, [&](int k, int from) {
      constexpr int kAtOnce = kReadAtOnce<T, kAccess>;
      const std::int64_t affine = place_.affine() * extents_.c + c_ + from;
      StatisticsRow<A> row[kAtOnce];
      A scale[kAtOnce], shift[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) row[i] = row_of_(place_.row(), from + i);
      rows_.scale.get(affine, A(1), scale);
      rows_.shift.get(affine, A(0), shift);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) of_[k + i] = normalize_row<A>(row[i], scale[i], shift[i]);
    });
  }
  __device__ __forceinline__ bool alike() const { return place_.alike(); }
  __device__ __forceinline__ A z(A x, int k) const { return multiply_add(x - of_[k].hi, of_[k].s, of_[k].b); }

 private:
  const Extents& extents_;
  std::int64_t c_;
  const Rows<A>& rows_;
  RowOf row_of_;
  Place<A, Count<kAccess>> place_;
  NormalizeRow<A> of_[Shape<T, kAccess>::kChannels]{};
};

// Of strewn packs eight lanes have a byte together for every element of each.
template <class T, Access kAccess>
__device__ __forceinline__ void put_strewn_mask(const Mask& mask, Packs<T, kAccess> packs, unsigned passed) {
  using S = Shape<T, kAccess>;
  const unsigned lane = threadIdx.y % 8;
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i, packs.next()) {
    std::uint64_t bytes = 0;
#pragma unroll
    for (int j = 0; j < S::kPack; ++j)
      bytes |= std::uint64_t{passed >> (i * S::kPack + j) & 1U} << (8 * j + static_cast<int>(lane));
    for (int other = 1; other < 8; other *= 2) bytes |= shuffle_xor(bytes, other);
    if (lane != 0) continue;
#pragma unroll
    for (int j = 0; j < S::kPack; ++j)
      if ((packs.mask() >> j & 1U) != 0)
        *mask.at<S::kRows>(packs.place(j), packs.extents().s.by()).byte = static_cast<std::uint8_t>(bytes >> (8 * j));
  }
}

// Writes the bits of a chunk, of which each thread has those of its elements. Neighbouring lanes share a byte; chunks and groups
// must not (gpu/policy.cu).
template <class T, Access kAccess>
__device__ __forceinline__ void put_mask(const Mask& mask, Packs<T, kAccess> packs, unsigned passed) {
  using S = Shape<T, kAccess>;
  if (packs.apart() != 0) return put_strewn_mask(mask, packs, passed);
  constexpr unsigned kLanes = 8 / S::kPack;
  const unsigned lanes = S::kRows || blockDim.x > kLanes ? kLanes : blockDim.x;
  const unsigned lane = (S::kRows ? threadIdx.y : threadIdx.x) % lanes;
  std::uint64_t bytes = 0;
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i)
    bytes |= std::uint64_t{passed >> (i * S::kPack) & S::kWhole} << (8 * i + static_cast<int>(lane) * S::kPack);
  for (unsigned other = 1; other < lanes; other *= 2) bytes |= shuffle_xor(bytes, static_cast<int>(other));
  if (lane != 0) return;
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i, packs.next())
    if (packs.mask() != 0)
      *mask.at<S::kRows>(packs.place(0), packs.extents().s.by()).byte = static_cast<std::uint8_t>(bytes >> (8 * i));
}

template <class T, Access kAccess>
__device__ __forceinline__ unsigned masked_bits(const Mask& mask, Packs<T, kAccess> packs) {
  using S = Shape<T, kAccess>;
  unsigned passed = 0;
  const std::int64_t s = packs.extents().s.by();
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i, packs.next()) {
    if (packs.apart() != 0) {
#pragma unroll
      for (int j = 0; j < S::kPack; ++j)
        if ((packs.mask() >> j & 1U) != 0) {
          const Mask::Bit from = mask.at<S::kRows>(packs.place(j), s);
          passed |= (unsigned{*from.byte} >> from.number & 1U) << (i * S::kPack + j);
        }
      continue;
    }
    for_each_part(packs, packs.mask(), false, [&](unsigned part) {
      const int first = lowest_bit(part);
      const Mask::Bit from = mask.at<S::kRows>(packs.place(first), s);
      unsigned bits = *from.byte;
      if (S::kRows && from.number + S::kPack > 8) bits |= static_cast<unsigned>(from.byte[1]) << 8;
      passed |= (bits >> from.number << first & part) << (i * S::kPack);
    });
  }
  return passed;
}

// The bits that forward's z had.
template <class A, class T, Access kAccess, class RowOf>
__device__ __forceinline__ unsigned recomputed_bits(Packs<T, kAccess> packs, const Rows<A>& rows,
                                                    const Chunk<T, kAccess>& x, const RowOf& row_of) {
  using S = Shape<T, kAccess>;
  Normalized<A, T, kAccess, RowOf> normalized(packs.extents(), packs.channel(), rows, row_of);
  unsigned passed = 0;
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i, packs.next())
    by_samples(
        packs, x.mask(i), normalized.alike(), [&](std::int64_t sample) { normalized.enter(sample); },
        [&](int j) {
          const int at = i * S::kPack + j;
          if (!stops(normalized.z(to_arithmetic(x.held[at]), S::channel(j)))) passed |= 1U << at;
        });
  return passed;
}

// From dy to the gradient of z, of the elements of a chunk.
template <class A, bool kFused>
struct Gate {
  Activation activation;
  unsigned passed = 0;

  __device__ __forceinline__ A gradient(int i, A dy) const {
    if constexpr (kFused) return let_through(activation, (passed >> i & 1U) != 0, dy);
    return dy;
  }
};

template <class A, class T, Access kAccess, bool kFused, class RowOf>
__device__ __forceinline__ Gate<A, kFused> gate_of(const BackwardFusion& fusion, const Packs<T, kAccess>& packs,
                                                   const Rows<A>& rows, const Chunk<T, kAccess>& x,
                                                   const RowOf& row_of) {
  if constexpr (!kFused) return {};
  // A mask should have been written, which only the device knows. If it was not, gradients are NaN.
  if (fusion.mask.first != nullptr && !rows.masked) return {{NAN, true}, 0};
  if (fusion.mask.first != nullptr) return {fusion.activation, masked_bits(fusion.mask, packs)};
  if (fusion.recomputes) return {fusion.activation, recomputed_bits<A>(packs, rows, x, row_of)};
  return {fusion.activation, ~0U};
}

}  // namespace popnorm::cuda

#endif
