// What a block holds of a tensor at a time: a chunk, kHeld elements per thread in packs of 16 bytes. A pack is as many neighbours:
// positions of a channel in the rows form, channels of a position in the columns form. Which thread holds which element depends
// on form and type alone; whether it comes by one access or by several, because it is misaligned, short or straddles two samples,
// changes no bit.
#ifndef POPNORM_KERNELS_CUDA_CHUNK_CUH
#define POPNORM_KERNELS_CUDA_CHUNK_CUH

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/layout.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/storage.hpp"

namespace popnorm::cuda {

// Elements that a thread holds.
inline constexpr int kHeld = 16;

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
  else
    return narrow<T>(value);
}

template <class T, bool kRows>
struct Shape {
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kPacks = kHeld / kPack;
  static constexpr int kChannels = kRows ? 1 : kPack;      // of a thread
  static constexpr int kPerChannel = kHeld / kChannels;    // elements
  static constexpr int kWeights = kRows ? kHeld : kPacks;  // weights are of positions
  static constexpr unsigned kWhole = (1U << kPack) - 1;    // a pack without absent elements

  // The e-th element of a thread's k-th channel, and what weighs it.
  POPNORM_INLINE static constexpr int element(int e, int k) { return kRows ? e : e * kPack + k; }
  POPNORM_INLINE static constexpr int weight(int i, int j) { return kRows ? i * kPack + j : i; }
  // Where a thread's i-th element is among the positions of a chunk.
  __device__ __forceinline__ static int position(int i) {
    const int pack = i / kPack, y = static_cast<int>(threadIdx.y);
    return kRows ? (pack * kThreads + y) * kPack + i % kPack : pack * static_cast<int>(blockDim.y) + y;
  }
  // Positions of a chunk.
  POPNORM_INLINE static constexpr int positions(int threads_y) { return kRows ? kThreads * kHeld : threads_y * kPacks; }
};

// Channels of a thread that exist.
template <class T, bool kRows, class Body>
__device__ __forceinline__ void for_each_channel(const Extents& extents, std::int64_t c, const Body& body) {
#pragma unroll
  for (int k = 0; k < Shape<T, kRows>::kChannels; ++k)
    if (c + k < extents.c) body(k);
}

// The first channel of the running thread, its block being the `block`-th in channels.
template <class T, bool kRows>
__device__ __forceinline__ std::int64_t first_channel(std::int64_t block) {
  return (block * blockDim.x + threadIdx.x) * Shape<T, kRows>::kChannels;
}

// Positions [begin, end) of a group, counted sample after sample, in the channels from c on.
struct Range {
  const Extents& extents;
  const Groups& groups;
  std::int64_t group;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t c;  // the thread's first
};

// A thread's packs of a chunk one after the other.
template <class T, bool kRows>
class Packs {
  using S = Shape<T, kRows>;

 public:
  __device__ __forceinline__ explicit Packs(const Range& range)
      : range_(range),
        at_(range.begin + (kRows ? std::int64_t{threadIdx.y} * S::kPack : threadIdx.y)),
        step_(kRows ? std::int64_t{kThreads} * S::kPack : blockDim.y),
        walk_(at_, step_, range.extents.s) {}

  __device__ __forceinline__ void next() {
    at_ += step_;
    walk_.step();
  }
  // Which elements of the pack there are.
  __device__ __forceinline__ unsigned mask() const {
    const std::int64_t left = kRows ? range_.end - at_ : at_ < range_.end ? range_.extents.c - range_.c : 0;
    return left >= S::kPack ? S::kWhole : left > 0 ? (1U << left) - 1 : 0;
  }
  // Those of `left` that are of the same sample as its first.
  __device__ __forceinline__ unsigned of_one_sample(unsigned left) const {
    if (!kRows) return left;
    const int first = lowest_bit(left);
    const std::int64_t end = first + range_.extents.s.by() - place(first).position;
    return end < S::kPack ? left & ((1U << end) - 1) : left;
  }
  // The sample, position and channel of the pack's j-th.
  struct Place {
    std::int64_t sample;
    std::int64_t position;
    std::int64_t channel;
  };
  __device__ __forceinline__ Place place(int j) const {
    std::int64_t sample = walk_.sample(), position = walk_.position() + (kRows ? j : 0);
    for (; kRows && position >= range_.extents.s.by(); position -= range_.extents.s.by()) ++sample;
    return {range_.groups.member(range_.group, sample), position, range_.c + (kRows ? 0 : j)};
  }

 private:
  const Range& range_;
  std::int64_t at_;
  std::int64_t step_;
  Walk walk_;
};

template <class T, bool kRows>
struct Chunk {
  using S = Shape<T, kRows>;
  struct alignas(16) Pack {
    T element[S::kPack];
  };

  alignas(16) T held[kHeld];
  unsigned present;  // a bit per element

  __device__ __forceinline__ bool has(int i) const { return (present >> i & 1U) != 0; }

  // To and from shared memory, of which each thread reads what it wrote: 16 bytes of each thread side by side.
  __device__ __forceinline__ void put(void* slot) const {
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i)
      *(static_cast<Pack*>(slot) + i * kThreads + Columns::thread()) =
          *reinterpret_cast<const Pack*>(held + i * S::kPack);
  }
  __device__ __forceinline__ void get(const void* slot, const Range& range) {
    present = 0;
    Packs<T, kRows> packs(range);
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i, packs.next()) {
      present |= packs.mask() << (i * S::kPack);
      *reinterpret_cast<Pack*>(held + i * S::kPack) =
          *(static_cast<const Pack*>(slot) + i * kThreads + Columns::thread());
    }
  }

  __device__ __forceinline__ void load(const Operand& from, const Range& range, bool last) {
    present = 0;
    Packs<T, kRows> packs(range);
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i, packs.next()) {
      const unsigned mask = packs.mask();
      present |= mask << (i * S::kPack);
      if (from.packs && mask == S::kWhole) {
        const auto at = packs.place(0);
        load_16(held + i * S::kPack, from.at<T>(at.sample, at.channel, at.position), last);
        continue;
      }
#pragma unroll
      for (int j = 0; j < S::kPack; ++j) {
        held[i * S::kPack + j] = T{};
        if ((mask >> j & 1U) == 0) continue;
        const auto at = packs.place(j);
        held[i * S::kPack + j] = *from.at<T>(at.sample, at.channel, at.position);
      }
    }
  }

  // Takes out what is absent; weight[kWeights], if it is not null, is what the others count.
  __device__ __forceinline__ void weigh(const Presence& presence, const Range& range, float* weight) {
    Packs<T, kRows> packs(range);
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
        if (weight != nullptr && (kRows || j == 0)) weight[S::weight(i, j)] = w;
      }
    }
  }
};

// Shared memory of a block: what reductions need; 24 bytes for each of up to 64 channels, moments of a tile and then, in double for 16
// channels, what it knows of their rows; the chunks that it keeps.
inline constexpr std::size_t kRowBytes = 64 * 24;
inline constexpr std::size_t kChunksAt = kReduceBytes + kRowBytes;
template <class T>
inline constexpr std::size_t kChunkBytes = kThreads* kHeld * sizeof(T);

// Blocks to a multiprocessor that leave a kernel of one read enough registers on every architecture. With two, one writes while the
// other reads; not for the sums of several channels a thread, nor for two tensors, of which a residual is one.
POPNORM_INLINE constexpr int resident_blocks(bool forward, bool rows, bool fused) {
  return forward && rows && !fused ? 2 : 1;
}

// On the plain path no chunk is kept: what is needed again is read again.
struct KeepNothing {
  __device__ __forceinline__ bool has_room() const { return false; }
  template <class... Chunks>
  __device__ __forceinline__ void operator()(const Chunks&...) const {}
};

// Calls body(part) for the elements of a pack that are of one sample, until all of `mask` have been.
template <class T, bool kRows, class Body>
__device__ __forceinline__ void for_each_part(const Packs<T, kRows>& packs, unsigned mask, const Body& body) {
  for (unsigned left = mask; left != 0;) {
    const unsigned part = packs.of_one_sample(left);
    body(part);
    left &= ~part;
  }
}

// Calls enter(sample) and then element(j) for those that are of that sample.
template <class T, bool kRows, class Enter, class Element>
__device__ __forceinline__ void by_samples(const Packs<T, kRows>& packs, unsigned mask, const Enter& enter,
                                           const Element& element) {
  for_each_part(packs, mask, [&](unsigned part) {
    enter(packs.place(lowest_bit(part)).sample);
#pragma unroll
    for (int j = 0; j < Shape<T, kRows>::kPack; ++j)
      if ((part >> j & 1U) != 0) element(j);
  });
}

// Writes a chunk: enter(sample) before elements of another sample, value(i, k) for the i-th element, of the thread's k-th channel.
template <class T, bool kRows, class Enter, class Value>
__device__ __forceinline__ void write_chunk(const Operand& to, const Range& range, const Enter& enter,
                                            const Value& value) {
  using S = Shape<T, kRows>;
  Packs<T, kRows> packs(range);
#pragma unroll
  for (int i = 0; i < S::kPacks; ++i, packs.next()) {
    const unsigned mask = packs.mask();
    alignas(16) T pack[S::kPack];
    by_samples(packs, mask, enter, [&](int j) { pack[j] = value(i * S::kPack + j, kRows ? 0 : j); });
    if (to.packs && mask == S::kWhole) {
      const auto at = packs.place(0);
      store_16(to.at<T>(at.sample, at.channel, at.position), pack);
      continue;
    }
#pragma unroll
    for (int j = 0; j < S::kPack; ++j) {
      if ((mask >> j & 1U) == 0) continue;
      const auto at = packs.place(j);
      *to.at<T>(at.sample, at.channel, at.position) = pack[j];
    }
  }
}

}  // namespace popnorm::cuda

#endif
