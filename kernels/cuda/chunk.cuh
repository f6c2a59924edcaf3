// What a block holds of a tensor at a time: a chunk, 64 bytes per thread in packs of 16. In the columns form a pack is neighbouring channels
// of a position. In the rows form it is units of neighbouring positions of a channel: one of 16 bytes, if images are made of such, else in
// 16 bits two of 8 (14 x 14), else single elements (7 x 7). Every thread has its first unit before any has its second, so that the accesses
// of a warp lie side by side. Which thread holds which element depends on form, type and image alone; whether it comes by one access or by
// several, because it is misaligned or short, changes no bit.
#ifndef POPNORM_KERNELS_CUDA_CHUNK_CUH
#define POPNORM_KERNELS_CUDA_CHUNK_CUH

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/layout.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/storage.hpp"

namespace popnorm::cuda {

// How kernels reach tensors. Even: every pack is whole, of one sample, aligned, and either there or not, so that nothing of that is asked
// per element. Small packs are units of 8 bytes and single elements (half_rows, single_rows), where all samples have the same row of
// statistics and affine slot. Loose: element by element. All of these count in 32 bits (gpu/shape.hpp says when), the others in 64.
enum class Access { rows, columns, even_rows, half_rows, single_rows, even_columns, loose_rows };
POPNORM_INLINE constexpr bool in_rows(Access access) {
  return access != Access::columns && access != Access::even_columns;
}
POPNORM_INLINE constexpr bool is_narrow(Access access) { return access != Access::rows && access != Access::columns; }
POPNORM_INLINE constexpr bool is_even(Access access) { return is_narrow(access) && access != Access::loose_rows; }
POPNORM_INLINE constexpr bool is_small(Access access) {
  return access == Access::half_rows || access == Access::single_rows;
}

inline constexpr int kLogThreads = 8;
static_assert(1 << kLogThreads == kThreads);

// Elements of so many bytes that a thread holds.
POPNORM_INLINE constexpr int held_of(std::size_t element) { return static_cast<int>(64 / element); }

// To what an element is computed in, and back.
template <class T>
__device__ __forceinline__ Arithmetic<T> to_arithmetic(T value) {
  if constexpr (std::is_same_v<T, F16>)
    return widen_f16(value);
  else
    return widen<Arithmetic<T>>(value);
}
template <class T>
__device__ __forceinline__ T to_storage(Arithmetic<T> value) {
  if constexpr (std::is_same_v<T, F16>)
    return narrow_f16(value);
  else if constexpr (std::is_same_v<T, Bf16>)
    return narrow_bf16(value);
  else
    return narrow<T>(value);
}

template <class T, Access kAccess>
struct Shape {
  static constexpr bool kRows = in_rows(kAccess);
  static constexpr int kHeld = held_of(sizeof(T));
  static constexpr int kPackOf16 = 16 / sizeof(T);
  static constexpr int kPack = kAccess == Access::half_rows     ? kPackOf16 / 2
                               : kAccess == Access::single_rows ? 1
                                                                : kPackOf16;
  static constexpr int kLogPack = kPack == 8 ? 3 : kPack == 4 ? 2 : kPack - 1;
  static constexpr bool kPacksAreUnits = is_even(kAccess) || !kRows;
  static constexpr int kPackBytes = kPack * sizeof(T);
  static constexpr int kPacks = kHeld / kPack;
  static constexpr int kChannels = kRows ? 1 : kPack;      // of a thread
  static constexpr int kPerChannel = kHeld / kChannels;    // elements
  static constexpr int kWeights = kRows ? kHeld : kPacks;  // weights are of positions
  static constexpr unsigned kWhole = (1U << kPack) - 1;    // a pack without absent elements
  // Small images leave most of a chunk empty: packs are asked so often whether they are the last. Elsewhere no branch stands between loads.
  static constexpr bool kAsks = is_small(kAccess) || kAccess == Access::loose_rows;
  static constexpr int kAsked = kPack < 4 ? 4 / kPack : 1;

  // The e-th element of a thread's k-th channel, the channel of the j-th of a pack, and what weighs that.
  POPNORM_INLINE static constexpr int element(int e, int k) { return kRows ? e : e * kPack + k; }
  POPNORM_INLINE static constexpr int channel(int j) { return kRows ? 0 : j; }
  POPNORM_INLINE static constexpr int weight(int i, int j) { return kRows ? i * kPack + j : i; }
  // log2 of the positions of a chunk.
  __device__ __forceinline__ static int log_positions() {
    return lowest_bit(kRows ? unsigned{kThreads * kHeld} : blockDim.y * kPacks);
  }
};

// Channels of a thread that exist.
template <class T, Access kAccess, class Body>
__device__ __forceinline__ void for_each_channel(const Extents& extents, std::int64_t c, const Body& body) {
#pragma unroll
  for (int k = 0; k < Shape<T, kAccess>::kChannels; ++k)
    if (c + k < extents.c) body(k);
}

// Calls body(k, from) to read what channels k to k + kAtOnce - 1 of a thread have: as many from c + from on. Those of an even pack several
// at once, so that none waits for another, and where they do not exist those of another pack; of others those that exist.
template <class T, Access kAccess, int kAtOnce, class Body>
__device__ __forceinline__ void read_channels(const Extents& extents, std::int64_t c, const Body& body) {
  if constexpr (in_rows(kAccess)) {
    body(0, 0);
  } else if constexpr (is_even(kAccess)) {
    const std::int64_t last = extents.c - Shape<T, kAccess>::kChannels - c;
    const std::int64_t from = last < 0 ? last : 0;
#pragma unroll
    for (int k = 0; k < Shape<T, kAccess>::kChannels; k += kAtOnce) body(k, k + from);
  } else {
    for_each_channel<T, kAccess>(extents, c, [&](int k) { body(k, k); });
  }
}
// As many as there are registers for; where another sample begins in a chunk, whose elements take these, two.
template <class T, Access kAccess>
inline constexpr int kReadAtOnce = !is_even(kAccess)                                 ? 1
                                   : kSinceSm100 && Shape<T, kAccess>::kChannels > 4 ? 4
                                                                                     : Shape<T, kAccess>::kChannels;
template <class T, Access kAccess>
inline constexpr int kReadInChunk = kReadAtOnce<T, kAccess> < 2 ? 1 : 2;

// The first channel of the running thread, its block being the `block`-th in channels.
template <class T, Access kAccess>
__device__ __forceinline__ std::int64_t first_channel(std::int64_t block) {
  return (block * blockDim.x + threadIdx.x) * Shape<T, kAccess>::kChannels;
}

// Positions, channels, samples and rows are counted in; the samples of a group, so.
template <Access kAccess>
using Count = std::conditional_t<is_narrow(kAccess), int, std::int64_t>;
template <Access kAccess>
using Samples = std::conditional_t<is_narrow(kAccess), NarrowMembers, Members>;

// A thread's packs one after the other, of chunks of positions [begin, end) of a group, counted sample after sample, in its channels
// from c on. Those of the next chunk follow on those of a chunk.
template <class T, Access kAccess>
class Packs {
  using S = Shape<T, kAccess>;
  using Index = std::conditional_t<is_narrow(kAccess), std::uint32_t, std::int64_t>;

 public:
  __device__ __forceinline__ Packs(const Extents& extents, const Samples<kAccess>& members, std::int64_t c,
                                   std::int64_t begin, std::int64_t end)
      : extents_(&extents),
        members_(members),
        c_(static_cast<Count<kAccess>>(c)),
        end_(static_cast<Index>(end)),
        walk_(static_cast<Index>(begin) + static_cast<Index>(position(0)), step(), extents.s) {}

  __device__ __forceinline__ void next() { walk_.step(); }
  __device__ __forceinline__ void next_chunk() {
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i) next();
  }
  __device__ __forceinline__ const Extents& extents() const { return *extents_; }
  __device__ __forceinline__ std::int64_t channel() const { return c_; }
  // log2 of the neighbours in a unit, which packs are of but where they may be of several.
  __device__ __forceinline__ int unit() const { return S::kPacksAreUnits ? S::kLogPack : extents_->unit; }
  // From a pack's first position to its j-th.
  __device__ __forceinline__ int offset(int j) const {
    return ((j >> unit()) << (unit() + kLogThreads)) + (j & ((1 << unit()) - 1));
  }
  // Where the thread's i-th element is among the positions of a chunk.
  __device__ __forceinline__ int position(int i) const {
    const int pack = i / S::kPack, y = static_cast<int>(threadIdx.y);
    if (!S::kRows) return pack * static_cast<int>(blockDim.y) + y;
    return pack * (kThreads * S::kPack) + (y << unit()) + offset(i % S::kPack);
  }
  // Which elements of the pack there are.
  __device__ __forceinline__ unsigned mask() const {
    if constexpr (is_even(kAccess)) {
      return at() < end_ && (S::kRows || c_ < extents_->c) ? S::kWhole : 0;
    } else {
      const std::int64_t left = at() >= end_ ? 0 : S::kRows ? within(end_ - at()) : extents_->c - c_;
      return left >= S::kPack ? S::kWhole : left > 0 ? (1U << left) - 1 : 0;
    }
  }
  // Those of `left` that are of the same sample as its first.
  __device__ __forceinline__ unsigned of_one_sample(unsigned left) const {
    if (!S::kRows || is_even(kAccess)) return left;
    const int first = lowest_bit(left) >> unit() << unit();
    const std::int64_t end = first + within(static_cast<Index>(extents_->s.by()) - place(first).position);
    return end < S::kPack ? left & ((1U << end) - 1) : left;
  }
  // The sample, position and channel of the pack's j-th.
  struct Place {
    Index sample;
    Index position;
    std::int64_t channel;
  };
  __device__ __forceinline__ Place place(int j) const {
    Index sample = walk_.sample(), position = walk_.position();
    if constexpr (S::kRows && is_even(kAccess)) {
      position += static_cast<Index>(j);
    } else if constexpr (S::kRows) {
      position += static_cast<Index>(offset(j));
      if (const auto s = static_cast<Index>(extents_->s.by()); position >= s) {
        const Index beyond = extents_->s.quotient(position);
        sample += beyond;
        position -= beyond * s;
      }
    }
    return {members_.at(sample), position, c_ + S::channel(j)};
  }
  // The pack's j-th in memory.
  __device__ __forceinline__ T* of(const Operand& operand, int j) const {
    const Place at = place(j);
    if constexpr (is_even(kAccess))
      return operand.at_pack<T, S::kPack>(operand.pack<T, S::kRows, S::kPack>(at.sample, at.channel, at.position));
    else if constexpr (is_narrow(kAccess))
      return operand.at_element<T>(at.sample, at.channel, at.position);
    else
      return operand.at<T>(at.sample, at.channel, at.position);
  }

  // How many of a thread's packs from here on are of a chunk and there, in even rows.
  __device__ __forceinline__ int there() const {
    constexpr int kStep = kThreads * S::kPack;
    const int left = static_cast<int>(end_ - at());
    return left <= 0 ? 0 : left > (S::kPacks - 1) * kStep ? S::kPacks : (left + kStep - 1) / kStep;
  }
  // Goes through them in a tensor: by a pack's number, so that no place is counted twice.
  class Cursor {
   public:
    __device__ __forceinline__ Cursor(const Packs& packs, const Operand& operand)
        : operand_(operand), extents_(*packs.extents_), position_(packs.walk_.position()) {
      const Place at = packs.place(0);
      number_ = operand.pack<T, S::kRows, S::kPack>(at.sample, at.channel, at.position);
      const Index sample = packs.members_.step * static_cast<Index>(operand.sample / S::kPack);
      positions_ = packs.walk_.positions();
      step_ = packs.walk_.samples() * sample + positions_ / Index{S::kPack};
      cross_ = sample - s() / Index{S::kPack};
    }
    __device__ __forceinline__ T* get() const { return operand_.at_pack<T, S::kPack>(number_); }
    __device__ __forceinline__ void next() {
      position_ += positions_;
      number_ += step_;
      if (position_ < s()) return;
      position_ -= s();
      number_ += cross_;
    }

   private:
    __device__ __forceinline__ Index s() const { return static_cast<Index>(extents_.s.by()); }

    const Operand& operand_;
    const Extents& extents_;
    Index position_, positions_;
    Index number_, step_, cross_;
  };

 private:
  // The elements from the beginning of a unit on that are less than so many positions from there: whole units, at least one.
  __device__ __forceinline__ std::int64_t within(Index positions) const {
    return static_cast<std::int64_t>((((positions - 1) >> (unit() + kLogThreads)) + 1) << unit());
  }
  // Counted again where it is asked for, which takes no register.
  __device__ __forceinline__ Index at() const {
    return walk_.sample() * static_cast<Index>(extents_->s.by()) + walk_.position();
  }
  __device__ __forceinline__ static Index step() {
    return static_cast<Index>(S::kRows ? kThreads * S::kPack : blockDim.y);
  }

  const Extents* extents_;
  Samples<kAccess> members_;
  Count<kAccess> c_;
  Index end_;
  Walk<Index> walk_;
};

template <class T, Access kAccess>
struct Chunk {
  using S = Shape<T, kAccess>;
  struct alignas(S::kPackBytes) Pack {
    T element[S::kPack];
  };

  alignas(16) T held[S::kHeld];
  unsigned present;  // a bit per element, which those of an even pack share

  __device__ __forceinline__ bool has(int i) const {
    return (present >> (is_even(kAccess) ? i / S::kPack * S::kPack : i) & 1U) != 0;
  }
  __device__ __forceinline__ bool whole() const { return present == (~0U >> (32 - S::kHeld)); }
  // What there is of the i-th pack.
  __device__ __forceinline__ unsigned mask(int i) const {
    if constexpr (is_even(kAccess)) return has(i * S::kPack) ? S::kWhole : 0;
    return present >> (i * S::kPack) & S::kWhole;
  }

  // Whether there is nothing from a pack with this mask on, or from the i-th of which so many are there, where somebody asks.
  __device__ __forceinline__ static bool ends(unsigned mask) { return S::kAsks && mask == 0; }
  __device__ __forceinline__ static bool ends(int i, int there) { return i % S::kAsked == 0 && i >= there; }
  __device__ __forceinline__ void take(int packs) { present = packs == 0 ? 0 : ~0U >> (32 - packs * S::kPack); }
  __device__ __forceinline__ void clear() {
    present = 0;
    if constexpr (S::kAsks)
#pragma unroll
      for (T& element : held) element = T{};
  }

  // Begins to copy to shared memory (kernels/cuda/intrinsics.cuh), of which each thread reads what it has copied: 16 bytes of each
  // thread side by side.
  __device__ __forceinline__ static void copy(void* slot, const Operand& from, Packs<T, kAccess> packs) {
    const auto of_pack = [&](int i) { return (static_cast<Pack*>(slot) + i * kThreads + Columns::thread())->element; };
    if constexpr (is_small(kAccess)) {
      by_cursor(from, packs, [&](int i, bool there, const T* at) {
        if (!there) return;
        if constexpr (S::kPackBytes >= 4)
          copy_async<S::kPackBytes>(of_pack(i), at);
        else
          *of_pack(i) = *at;
      });
    } else {
#pragma unroll
      for (int i = 0; i < S::kPacks; ++i, packs.next()) {
        const unsigned mask = packs.mask();
        if (ends(mask)) break;
        T* const to = of_pack(i);
        if ((is_even(kAccess) || (!is_narrow(kAccess) && from.packs)) && mask == S::kWhole) {
          copy_async<16>(to, packs.of(from, 0));
        } else if constexpr (!is_even(kAccess)) {
          if constexpr (sizeof(T) >= 4) {
#pragma unroll
            for (int j = 0; j < S::kPack; ++j)
              if ((mask >> j & 1U) != 0) copy_async<sizeof(T)>(to + j, packs.of(from, j));
          } else {
            Pack pack;
#pragma unroll
            for (int j = 0; j < S::kPack; ++j)
              pack.element[j] = *((mask >> j & 1U) != 0 ? packs.of(from, j) : static_cast<const T*>(from.first));
            *reinterpret_cast<Pack*>(to) = pack;
          }
        }
      }
    }
  }
  __device__ __forceinline__ void get(const void* slot, Packs<T, kAccess> packs) {
    clear();
    const auto read = [&](int i) {
      *reinterpret_cast<Pack*>(held + i * S::kPack) =
          *(static_cast<const Pack*>(slot) + i * kThreads + Columns::thread());
    };
    if constexpr (is_small(kAccess)) {
      const int there = packs.there();
      take(there);
#pragma unroll
      for (int i = 0; i < S::kPacks; ++i) {
        if (ends(i, there)) break;
        read(i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < S::kPacks; ++i, packs.next()) {
        const unsigned mask = packs.mask();
        if (ends(mask)) break;
        present |= mask << (i * S::kPack);
        read(i);
      }
    }
  }

  __device__ __forceinline__ void load(const Operand& from, Packs<T, kAccess> packs, Use use) {
    clear();
    if constexpr (is_small(kAccess)) {
      take(packs.there());
      by_cursor(from, packs, [&](int i, bool there, const T* at) {
        if (there) load_word<S::kPackBytes>(held + i * S::kPack, at, use);
      });
    } else {
#pragma unroll
      for (int i = 0; i < S::kPacks; ++i, packs.next()) {
        const unsigned mask = packs.mask();
        if (ends(mask)) break;
        present |= mask << (i * S::kPack);
        // Absent ones come from where something is: no branch between loads.
        const T* const anywhere = static_cast<const T*>(from.first);
        if constexpr (is_even(kAccess)) {
          load_word<16>(held + i * S::kPack, mask != 0 ? packs.of(from, 0) : anywhere, use);
        } else if constexpr (is_narrow(kAccess)) {
#pragma unroll
          for (int j = 0; j < S::kPack; ++j)
            held[i * S::kPack + j] = *((mask >> j & 1U) != 0 ? packs.of(from, j) : anywhere);
        } else {
          if (from.packs && mask == S::kWhole) {
            load_word<16>(held + i * S::kPack, packs.of(from, 0), use);
            continue;
          }
#pragma unroll
          for (int j = 0; j < S::kPack; ++j) {
            held[i * S::kPack + j] = T{};
            if ((mask >> j & 1U) != 0) held[i * S::kPack + j] = *packs.of(from, j);
          }
        }
      }
    }
  }
  // Calls body(i, whether it is there, where) for the packs of a chunk until there are no more.
  template <class Body>
  __device__ __forceinline__ static void by_cursor(const Operand& operand, const Packs<T, kAccess>& packs,
                                                   const Body& body) {
    const int there = packs.there();
    typename Packs<T, kAccess>::Cursor cursor(packs, operand);
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i, cursor.next()) {
      if (ends(i, there)) break;
      body(i, i < there, cursor.get());
    }
  }

  // Takes out what is absent; weight[kWeights], if it is not null, is what the others count.
  __device__ __forceinline__ void weigh(const Presence& presence, Packs<T, kAccess> packs, float* weight) {
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i, packs.next()) {
#pragma unroll
      for (int j = 0; j < S::kPack; ++j) {
        float w = 0;
        if (has(i * S::kPack + j)) {
          const auto at = packs.place(j);
          w = presence.weight(at.sample, at.position);
          if (w == 0) present &= ~(1U << (i * S::kPack + j));
        }
        // Channels of a position weigh the same, but some may not exist.
        if (weight != nullptr && (S::kRows || j == 0)) weight[S::weight(i, j)] = w;
      }
    }
  }
};

// Shared memory of a block: what reductions need; a number for each warp and channel, of which there are up to 64, in double 16; 24
// bytes for each channel that a kernel of one read knows of their rows; chunks.
inline constexpr std::size_t kPivotsAt = kReduceBytes;
inline constexpr std::size_t kRowsAt = kPivotsAt + kThreads / kWarp * 64 * sizeof(float);
inline constexpr std::size_t kRowBytes = 64 * 24;
inline constexpr std::size_t kChunksAt = kRowsAt + kRowBytes;
inline constexpr std::size_t kChunkBytes = kThreads * 64;

// Whether a thread's elements are in few places.
POPNORM_INLINE constexpr bool has_few_places(Access access) { return is_even(access) && access != Access::single_rows; }

// Blocks to a multiprocessor that leave a kernel enough registers on every architecture, where it needs so many at most: chunks that a
// thread holds, and numbers for each of its channels.
POPNORM_INLINE constexpr int blocks_for(Access access, std::size_t element, int chunks, int per_channel) {
  const int channels = in_rows(access) ? 1 : 16 / static_cast<int>(element);
  const int registers = (has_few_places(access)          ? 48
                         : access == Access::single_rows ? 72
                                                         : 80) +
                        (kBeforeSm80 ? 16 : 0) + 16 * chunks + per_channel * channels;
  return !is_narrow(access) || element == sizeof(double) ? 1 : registers <= 80 ? 3 : registers <= 128 ? 2 : 1;
}

// The same of kernels of one read. Two where that leaves registers enough: not for the sums of several channels a thread, for a
// residual or a recomputed sign, for single elements of 16 bits or of two tensors, in double, or for 16 bits before sm_80.
POPNORM_INLINE constexpr int resident_blocks(bool forward, bool rows, bool few_places, bool fused,
                                             std::size_t element) {
  const bool few = (few_places && !(kBeforeSm80 && element == 2)) || (forward && element == 4);
  return rows && !fused && element < sizeof(double) && few ? 2 : 1;
}

// std::bool_constant, which kernels on a device cannot ask.
template <bool kValue>
struct Constant {
  POPNORM_INLINE constexpr operator bool() const { return kValue; }
};

// Calls body(alike); of narrow access with a constant, so that loops ask nothing per pack.
template <Access kAccess, class Body>
__device__ __forceinline__ void with_alike(bool alike, const Body& body) {
  if constexpr (!is_narrow(kAccess))
    body(alike);
  else if constexpr (is_small(kAccess))
    body(Constant<true>());
  else if (alike)
    body(Constant<true>());
  else
    body(Constant<false>());
}

// Calls body(part) for the elements of a pack that are of one sample, or of samples that are alike, until all of `mask` have been.
template <class T, Access kAccess, class Body>
__device__ __forceinline__ void for_each_part(const Packs<T, kAccess>& packs, unsigned mask, bool alike,
                                              const Body& body) {
  if (is_even(kAccess) || alike) {
    if (mask != 0) body(mask);
  } else {
    for (unsigned left = mask; left != 0;) {
      const unsigned part = packs.of_one_sample(left);
      body(part);
      left &= ~part;
    }
  }
}

// Calls enter(sample) and then element(j) for those that are of that sample; element(j) alone where all samples are alike.
template <class T, Access kAccess, class Enter, class Element>
__device__ __forceinline__ void by_samples(const Packs<T, kAccess>& packs, unsigned mask, bool alike,
                                           const Enter& enter, const Element& element) {
  for_each_part(packs, mask, alike, [&](unsigned part) {
    if (!alike) enter(packs.place(is_even(kAccess) ? 0 : lowest_bit(part)).sample);
#pragma unroll
    for (int j = 0; j < Shape<T, kAccess>::kPack; ++j)
      if (is_even(kAccess) || (part >> j & 1U) != 0) element(j);
  });
}

// The chunks of the running block's stretches of all samples, walked as one group; from the end, because what sums were taken of last
// is still near.
template <class T, Access kAccess>
class ChunksFromEnd {
  using Number = Count<kAccess>;

 public:
  __device__ __forceinline__ ChunksFromEnd(const Extents& extents, std::int64_t stretch, std::int64_t c)
      : extents_(extents), c_(c), stretch_(static_cast<Number>(stretch)) {
    const int step = 1 << Shape<T, kAccess>::log_positions();
    const auto chunks = static_cast<Number>((positions() + step - 1) >> Shape<T, kAccess>::log_positions());
    begin_at(chunks - 1 - static_cast<Number>(blockIdx.y) * stretch_);
  }
  __device__ __forceinline__ bool any() const { return number_ >= 0; }
  __device__ __forceinline__ Packs<T, kAccess> packs() const {
    const std::int64_t at = std::int64_t{number_} << Shape<T, kAccess>::log_positions();
    return {extents_, Samples<kAccess>(Members::all()), c_, at, positions()};
  }
  __device__ __forceinline__ void next() {
    if (--number_ <= last_ - stretch_ || number_ < 0) begin_at(last_ - static_cast<Number>(gridDim.y) * stretch_);
  }

 private:
  __device__ __forceinline__ std::int64_t positions() const { return extents_.n * extents_.s.by(); }
  __device__ __forceinline__ void begin_at(Number last) { last_ = number_ = last; }

  const Extents& extents_;
  std::int64_t c_;
  Number stretch_, last_, number_;
};

// Writes a chunk: enter(sample) before elements of another sample that is not `alike`, value(i, k) for the i-th element, of the
// thread's k-th channel.
template <class T, Access kAccess, class Enter, class Value>
__device__ __forceinline__ void write_chunk(const Operand& to, Packs<T, kAccess> packs, bool alike, const Enter& enter,
                                            const Value& value) {
  using S = Shape<T, kAccess>;
  if constexpr (is_small(kAccess)) {
    Chunk<T, kAccess>::by_cursor(to, packs, [&](int i, bool there, T* at) {
      // What is absent is computed too, and not written.
      alignas(S::kPackBytes) T pack[S::kPack];
#pragma unroll
      for (int j = 0; j < S::kPack; ++j) pack[j] = value(i * S::kPack + j, 0);
      if (there) store_word<S::kPackBytes>(at, pack);
    });
  } else {
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i, packs.next()) {
      const unsigned mask = packs.mask();
      if (Chunk<T, kAccess>::ends(mask)) break;
      alignas(16) T pack[S::kPack]{};
      const auto put = [&](int j) { pack[j] = value(i * S::kPack + j, S::channel(j)); };
      if (is_narrow(kAccess) && (is_even(kAccess) || alike)) {
        // What is absent is computed too, and not written.
        if (!alike && mask != 0) enter(packs.place(0).sample);
#pragma unroll
        for (int j = 0; j < S::kPack; ++j) put(j);
      } else {
        by_samples(packs, mask, alike, enter, put);
      }
      if ((is_even(kAccess) || (!is_narrow(kAccess) && to.packs)) && mask == S::kWhole) {
        store_word<16>(packs.of(to, 0), pack);
      } else if constexpr (!is_even(kAccess)) {
#pragma unroll
        for (int j = 0; j < S::kPack; ++j) {
          if ((mask >> j & 1U) != 0) *packs.of(to, j) = pack[j];
        }
      }
    }
  }
}

}  // namespace popnorm::cuda

#endif
