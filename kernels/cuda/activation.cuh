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
  // `first` is one of the samples, which may all be of one row.
  __device__ __forceinline__ Normalized(const Extents& extents, std::int64_t c, const Rows<A>& rows,
                                        const RowOf& row_of, std::int64_t first = 0, bool of_one_row = false)
      : extents_(extents), c_(c), rows_(rows), row_of_(row_of), place_(rows, of_one_row) {
    if (alike()) read<kReadAtOnce<T, kAccess>>(first);
  }

  __device__ __forceinline__ void enter(std::int64_t sample) { read<kReadInChunk<T, kAccess>>(sample); }
  template <int kAtOnce>
  __device__ __forceinline__ void read(std::int64_t sample) {
    if (!place_.enter(sample)) return;
    read_channels<T, kAccess, kAtOnce>(extents_, c_, [&](int k, std::int64_t from) {
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
  __device__ __forceinline__ const NormalizeRow<A>& of(int k) const { return of_[k]; }
  __device__ __forceinline__ A z(A x, int k) const { return multiply_add(x - of_[k].hi, of_[k].s, of_[k].b); }

 private:
  const Extents& extents_;
  std::int64_t c_;
  const Rows<A>& rows_;
  RowOf row_of_;
  Place<A, Count<kAccess>, is_small(kAccess)> place_;
  NormalizeRow<A> of_[Shape<T, kAccess>::kChannels]{};
};

// Calls body(e, packs, j) for the units of a chunk, which begin at the thread's e-th element, the j-th of the pack at hand.
template <class T, Access kAccess, class Body>
__device__ __forceinline__ void for_each_unit(Packs<T, kAccess> packs, const Body& body) {
  using S = Shape<T, kAccess>;
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i, packs.next())
#pragma unroll
    for (int j = 0; j < (S::kPacksAreUnits ? 1 : S::kPack); ++j)
      if ((j & ((1 << packs.unit()) - 1)) == 0) body(i * S::kPack + j, packs, j);
}

// Writes the bits of a chunk, of which each thread has those of its elements. Neighbouring lanes share the byte that has those of a unit;
// chunks and groups must not share one (gpu/policy.cu).
template <class T, Access kAccess>
__device__ __forceinline__ void put_mask(const Mask& mask, const Packs<T, kAccess>& packs, unsigned passed) {
  using S = Shape<T, kAccess>;
  const int unit = packs.unit();
  const unsigned most = 8U >> unit, lanes = S::kRows || blockDim.x > most ? most : blockDim.x;
  const unsigned lane = (S::kRows ? threadIdx.y : threadIdx.x) % lanes;
  // A word for four units, if the compiler knows how many elements these have, or four elements.
  constexpr int kOfWord = 4 * (S::kPacksAreUnits ? S::kPack : 1);
  constexpr int kWords = (S::kHeld + kOfWord - 1) / kOfWord;
  unsigned bytes[kWords]{};
  const auto first_bit = [&](int e) { return 8 * (e >> unit & 3); };
  for_each_unit(packs, [&](int e, const Packs<T, kAccess>&, int) {
    const unsigned bits = passed >> e & ((1U << (1 << unit)) - 1);
    bytes[e / kOfWord] |= bits << (first_bit(e) + static_cast<int>(lane << unit));
  });
#pragma unroll
  for (unsigned& word : bytes)
    for (unsigned other = 1; other < lanes; other *= 2) word |= shuffle_xor(word, static_cast<int>(other));
  if (lane != 0) return;
  for_each_unit(packs, [&](int e, const Packs<T, kAccess>& at, int j) {
    if ((at.mask() >> j & 1U) == 0) return;
    *mask.at<S::kRows>(at.place(j), at.extents().s.by()).byte =
        static_cast<std::uint8_t>(bytes[e / kOfWord] >> first_bit(e));
  });
}

template <class T, Access kAccess>
__device__ __forceinline__ unsigned masked_bits(const Mask& mask, const Packs<T, kAccess>& packs) {
  using S = Shape<T, kAccess>;
  unsigned passed = 0;
  for_each_unit(packs, [&](int e, const Packs<T, kAccess>& at, int j) {
    const unsigned part = at.mask() >> j & ((1U << (1 << at.unit())) - 1);
    if (part == 0) return;
    const Mask::Bit from = mask.at<S::kRows>(at.place(j), at.extents().s.by());
    passed |= (unsigned{*from.byte} >> from.number & part) << e;
  });
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

// The same of samples that are alike, by coefficients that are kept from chunk to chunk. In columns the block has them in shared memory: a
// thread needs those of several channels, for which the elements leave it no registers.
template <class A, class T, Access kAccess, bool kFused>
class Signs {
  using S = Shape<T, kAccess>;
  static constexpr int kMost = sizeof(A) == sizeof(double) ? 16 : 64;  // channels of a block
  static_assert(3 * kMost * sizeof(A) <= kRowBytes);

 public:
  static constexpr bool kInColumns = kFused && kAccess == Access::even_columns;
  static constexpr bool kInRows = kFused && in_rows(kAccess) && is_even(kAccess);

  __device__ __forceinline__ explicit Signs(std::byte* shared)
      : shared_(reinterpret_cast<A*>(shared + kRowsAt) + threadIdx.x * S::kChannels) {}

  // By all threads of a block, which have no use for the coefficients before.
  template <class RowOf>
  __device__ __forceinline__ void keep(const Normalized<A, T, kAccess, RowOf>& normalized) {
    if constexpr (kInRows) {
      own_ = normalized.of(0);
    } else {
      if (threadIdx.y == 0) {
#pragma unroll
        for (int k = 0; k < S::kChannels; ++k) {
          const NormalizeRow<A>& of = normalized.of(k);
          shared_[k] = of.hi;
          shared_[kMost + k] = of.s;
          shared_[2 * kMost + k] = of.b;
        }
      }
      __syncthreads();
    }
  }
  __device__ __forceinline__ unsigned passed(const Chunk<T, kAccess>& x) const {
    unsigned passed = 0;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) {
      const NormalizeRow<A> of =
          kInRows ? own_ : NormalizeRow<A>{shared_[k], shared_[kMost + k], shared_[2 * kMost + k]};
#pragma unroll
      for (int e = 0; e < S::kPerChannel; ++e) {
        const int at = S::element(e, k);
        if (!stops(multiply_add(to_arithmetic(x.held[at]) - of.hi, of.s, of.b))) passed |= 1U << at;
      }
    }
    return passed;
  }

 private:
  NormalizeRow<A> own_{};
  A* shared_;  // hi, and s and b behind it
};

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

// `signs`, if not null, has the coefficients.
template <class A, class T, Access kAccess, bool kFused, class RowOf>
__device__ __forceinline__ Gate<A, kFused> gate_of(const BackwardFusion& fusion, const Packs<T, kAccess>& packs,
                                                   const Rows<A>& rows, const Chunk<T, kAccess>& x, const RowOf& row_of,
                                                   const Signs<A, T, kAccess, kFused>* signs = nullptr) {
  if constexpr (!kFused) return {};
  // A mask should have been written, which only the device knows. If it was not, gradients are NaN.
  if (fusion.mask.first != nullptr && !rows.masked) return {{NAN, true}, 0};
  if (fusion.mask.first != nullptr) return {fusion.activation, masked_bits(fusion.mask, packs)};
  if (fusion.recomputes)
    return {fusion.activation, signs != nullptr ? signs->passed(x) : recomputed_bits<A>(packs, rows, x, row_of)};
  return {fusion.activation, ~0U};
}

}  // namespace popnorm::cuda

#endif
