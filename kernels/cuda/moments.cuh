// Moments of a tile of a group: sums of d = x - pivot and of d*d, from which mean = pivot + S1/n and m2 = S2 - S1*S1/n. The pivot is
// the mean of the tile's first chunk; where that is far from the mean of the tile, the tile is read again around the latter (two-pass;
// Chan, Golub & LeVeque 1983).
#ifndef POPNORM_KERNELS_CUDA_MOMENTS_CUH
#define POPNORM_KERNELS_CUDA_MOMENTS_CUH

#include <cmath>
#include <cstdint>

#include "kernels/cuda/slots.cuh"
#include "kernels/moments.hpp"

namespace popnorm::cuda {

struct MomentArrays {
  double* weight = nullptr;
  double* mean = nullptr;
  double* m2 = nullptr;

  POPNORM_INLINE Moments get(std::int64_t i) const { return {weight[i], mean[i], m2[i]}; }
  POPNORM_INLINE void put(std::int64_t i, const Moments& m) const {
    weight[i] = m.weight;
    mean[i] = m.mean;
    m2[i] = m.m2;
  }
};

struct MomentsArgs {
  Extents extents;
  Operand x;
  Groups groups;
  Tiles tiles;
  Groups affine;  // samples without a scale and shift are absent
  Weights weights;
  MomentArrays of_tile;  // [tiles.count][c]
  int ahead = 0;         // chunks that are copied ahead
};

// sum(d) and sum(d*d), d = value - pivot, of the elements of a channel: four at a time in A, then in double. `magnitude` is the
// latter in A.
template <bool kWhole, class A, class T, Access kAccess>
__device__ __forceinline__ TwoSums quick_sums(const Chunk<T, kAccess>& x, int k, A pivot, A& magnitude) {
  using S = Shape<T, kAccess>;
  constexpr int kRun = 4;
  static_assert(S::kPerChannel % kRun == 0);
  TwoSums all{0, 0};
#pragma unroll
  for (int first = 0; first < S::kPerChannel; first += kRun) {
    if (!kWhole && S::kAsks && x.present >> first == 0) break;
    A d[kRun];
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      const int i = S::element(first + e, k);
      d[e] = kWhole || x.has(i) ? to_arithmetic(x.held[i]) - pivot : A(0);
    }
    // In pairs: two roundings of a sum, three of a square (docs/numerics.md).
    const A sum = (d[0] + d[1]) + (d[2] + d[3]);
    const A squares = multiply_add(d[1], d[1], d[0] * d[0]) + multiply_add(d[3], d[3], d[2] * d[2]);
    // Nothing is added to zeros, which would take as long.
    magnitude = first == 0 ? squares : magnitude + squares;
    const TwoSums run{static_cast<double>(sum), static_cast<double>(squares)};
    all = first == 0 ? run : Add()(all, run);
  }
  return all;
}

// The same in double throughout.
template <class A, class T, Access kAccess>
__device__ __forceinline__ TwoSums wide_sums(const Chunk<T, kAccess>& x, int k, A pivot) {
  using S = Shape<T, kAccess>;
  TwoSums all{0, 0};
#pragma unroll
  for (int e = 0; e < S::kPerChannel; ++e) {
    const int i = S::element(e, k);
    const double d = x.has(i) ? static_cast<double>(to_arithmetic(x.held[i])) - static_cast<double>(pivot) : 0;
    all.first += d;
    all.second += d * d;
  }
  return all;
}

// Adds a chunk's. A sum of squares that has left A's range, or nearly so, is taken again in double.
template <bool kWhole, class A, class T, Access kAccess>
__device__ __forceinline__ void add_sums(const Chunk<T, kAccess>& x, const A (&pivot)[Shape<T, kAccess>::kChannels],
                                         TwoSums (&sums)[Shape<T, kAccess>::kChannels]) {
  constexpr int kChannels = Shape<T, kAccess>::kChannels;
  constexpr A kLeast = A(1e-25), kMost = A(1e38);
  const auto fits = [&](A magnitude) {
    return sizeof(A) == sizeof(double) || (magnitude > kLeast && magnitude < kMost);
  };
  // One question for several channels, which are computed side by side; for all eight there are no registers.
  constexpr int kAtOnce = kChannels <= 4 ? kChannels : 2;
#pragma unroll
  for (int first = 0; first < kChannels; first += kAtOnce) {
    TwoSums own[kAtOnce];
    A magnitude[kAtOnce];
    bool fit = true;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      magnitude[k] = 0;
      own[k] = quick_sums<kWhole>(x, first + k, pivot[first + k], magnitude[k]);
      fit = fit && fits(magnitude[k]);
    }
    if (!fit && x.present != 0)
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (!fits(magnitude[k])) own[k] = wide_sums(x, first + k, pivot[first + k]);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sums[first + k] = Add()(sums[first + k], own[k]);
  }
}

// The first element of a tile in each of the thread's channels.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void first_elements(const Operand& x, const Extents& extents,
                                               const Stretch<T, kAccess>& tile,
                                               A (&first)[Shape<T, kAccess>::kChannels]) {
  const auto begin = static_cast<typename Stretch<T, kAccess>::Index>(tile.begin);
  const auto in_group = extents.s.quotient(begin);
  const std::int64_t position = begin - in_group * static_cast<decltype(begin)>(extents.s.by());
  const std::int64_t sample = tile.members.at(in_group);
  using S = Shape<T, kAccess>;
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) first[k] = 0;
  read_channels<T, kAccess, S::kChannels>(extents, tile.c, [&](int k, std::int64_t from) {
    const T* const at = x.at<T>(sample, tile.c + from, position);
    if constexpr (S::kChannels > 1 && is_even(kAccess)) {
      alignas(16) T pack[S::kPack];
      load_word<16>(pack, at, Use::again);
#pragma unroll
      for (int i = 0; i < S::kPack; ++i) first[i] = to_arithmetic(pack[i]);
    } else {
      first[k] = to_arithmetic(*at);
    }
  });
}

// Moves the pivots, a tile's first elements, to about the means of an element of every pack of its first chunk: by a number of 8 bits,
// so that differences from the pivot are exact where elements have few bits. A constant is its own pivot.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void move_to_means(const Chunk<T, kAccess>& held, const Extents& extents,
                                              const Stretch<T, kAccess>& tile, std::byte* shared,
                                              A (&pivot)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const int step = tile.step(), thread = renewed(Columns::thread());
  const int positions = tile.end - tile.begin < step ? static_cast<int>(tile.end - tile.begin) : step;
  constexpr int kRound = kThreads * S::kPackOf16;  // all threads' i-th packs
  const int last = (positions % kRound + (1 << extents.unit) - 1) >> extents.unit;
  const int packs = !S::kRows ? positions : positions / kRound * kThreads + (last < kThreads ? last : kThreads);
  const A share = A(1) / static_cast<A>(packs);
  A mean[S::kChannels];
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    mean[k] = 0;
#pragma unroll
    for (int i = 0; i < S::kHeld; i += S::kPackOf16) {
      const int e = i + k;
      if (held.has(e)) mean[k] = multiply_add(to_arithmetic(held.held[e]) - pivot[k], share, mean[k]);
    }
  }
  const int x = static_cast<int>(blockDim.x);
  for (int mask = x; mask < kWarp; mask *= 2) {
    A theirs[S::kChannels];
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) theirs[k] = mean[k];
    shuffle_xor(theirs, mask);
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) mean[k] += theirs[k];
  }
  A* const of_warps = reinterpret_cast<A*>(shared + kPivotsAt);
  if (thread % kWarp < x)
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k)
      of_warps[(thread / kWarp * x + static_cast<int>(threadIdx.x)) * S::kChannels + k] = mean[k];
  __syncthreads();
  // Not all at once: 64 words that are read ahead take the registers of what is summed.
  A off[S::kChannels]{};
#pragma unroll(8 / S::kChannels)
  for (int warp = 0; warp < kThreads / kWarp; ++warp)
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k)
      off[k] += of_warps[(warp * x + static_cast<int>(threadIdx.x)) * S::kChannels + k];
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const A moved = pivot[k] + to_arithmetic(narrow_bf16(static_cast<float>(off[k])));
    if (std::isfinite(moved)) pivot[k] = moved;
  }
}

struct Least {
  POPNORM_INLINE double operator()(double a, double b) const { return b < a ? b : a; }
};

// As chunk_moments, of elements that have weights or are absent, in double throughout.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void weighted_chunk_moments(Chunk<T, kAccess>& held, const Presence& presence,
                                                       const Packs<T, kAccess>& packs, void* shared,
                                                       Moments (&moments)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const Columns columns(static_cast<int>(blockDim.x));
  float weight[S::kWeights];
  held.weigh(presence, packs, weight);
  const auto value = [&](int i) { return static_cast<double>(renewed(to_arithmetic(held.held[i]))); };
  const auto weight_of = [&](int i) { return static_cast<double>(weight[S::weight(i / S::kPack, i % S::kPack)]); };
  // The first element that is present in the block, whose position all channels share: from the one thread that holds it.
  double position = INFINITY;
#pragma unroll
  for (int i = 0; i < S::kHeld; ++i)
    if (held.has(i)) position = Least()(position, packs.position(i));
  const double first = block_reduce(position, columns, shared, Least());
  double pivot[S::kChannels]{};
#pragma unroll
  for (int i = 0; i < S::kHeld; ++i)
    if (held.has(i) && packs.position(i) == first) pivot[S::channel(i % S::kPack)] = value(i);
  block_reduce(pivot, columns, shared, Add());
  TwoSums sums[S::kChannels];
  // Around the first that is present, which a constant channel equals, then around the mean.
  double all = 0;  // what a position weighs it weighs in every channel
#pragma unroll 1
  for (int sweep = 0; sweep < 2; ++sweep) {
    held.present = renewed(held.present);  // else each sweep's questions and doubles were kept from before the first
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) {
      sums[k] = {0, 0};
#pragma unroll
      for (int e = 0; e < S::kPerChannel; ++e) {
        const int i = S::element(e, k);
        if (!held.has(i)) continue;
        const double w = weight_of(i), d = value(i) - pivot[k];
        sums[k].first += w * d;
        sums[k].second += sweep == 0 ? w : w * (d * d);
      }
    }
    block_reduce(sums, columns, shared, Add());
    if (sweep == 1) break;
    all = sums[0].second;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k)
      if (all > 0) pivot[k] += sums[k].first / all;
  }
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const double off = all > 0 ? sums[k].first / all : 0;
    moments[k] = {all, pivot[k] + off, sums[k].second - sums[k].first * off};
  }
}

// How far a pivot may be from the mean, as a share S1*S1/n of S2, and how often a better one is tried: an outlier in the first chunk
// costs one more sweep, one so large that the sums around it have no digits of the others two.
inline constexpr double kPivotGuard = 0.125;
inline constexpr int kMostSweeps = 4;

// The moments of a tile per channel of the thread, which those threads get whose threadIdx.y is 0. read(chunk, packs, i, again) reads the
// i-th chunk of the tile, the first time or again.
template <class A, class T, Access kAccess, class Read>
__device__ __forceinline__ void tile_moments(const MomentsArgs& args, const Stretch<T, kAccess>& tile,
                                             std::byte* shared, const Read& read,
                                             Moments (&moments)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  // Asked for where it is needed: no registers are left while chunks are summed.
  const auto off = [&](const TwoSums& s) { return s.first / static_cast<double>(tile.end - tile.begin); };
  const int chunks = tile.chunks();
  A pivot[S::kChannels];
  first_elements(args.x, args.extents, tile, pivot);
  TwoSums sums[S::kChannels];
#pragma unroll 1
  for (int sweep = 1;; ++sweep) {
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) sums[k] = {0, 0};
    Packs<T, kAccess> packs = tile.packs(args.extents);
#pragma unroll 1
    for (int i = 0; i < chunks; ++i, packs.next_chunk()) {
      Chunk<T, kAccess> held;
      read(held, packs, i, sweep > 1);
      if (sweep == 1 && i == 0) move_to_means(held, args.extents, tile, shared, pivot);
      if (held.whole())
        add_sums<true>(held, pivot, sums);
      else
        add_sums<false>(held, pivot, sums);
    }
    block_reduce(sums, Columns(static_cast<int>(blockDim.x)), shared, Add());
    if (sweep == kMostSweeps) break;
    // To where a pivot that is far from the mean is moved; else where it is.
    const auto moved = [&](int k) {
      const A mean = static_cast<A>(static_cast<double>(pivot[k]) + off(sums[k]));
      return sums[k].first * off(sums[k]) > kPivotGuard * sums[k].second && std::isfinite(mean) ? mean : pivot[k];
    };
    bool again = false;
    if (S::kRows || threadIdx.y == 0)
#pragma unroll
      for (int k = 0; k < S::kChannels; ++k) again = again || moved(k) < pivot[k] || moved(k) > pivot[k];
    // All threads of a channel have the same sums.
    if (!(S::kRows ? again : block_any(again))) break;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) pivot[k] = moved(k);
  }
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    moments[k] = {static_cast<double>(tile.end - tile.begin), static_cast<double>(pivot[k]) + off(sums[k]),
                  sums[k].second - sums[k].first * off(sums[k])};
  }
}

// The same of elements that have weights or are absent, chunk by chunk.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void weighted_tile_moments(const MomentsArgs& args, const Stretch<T, kAccess>& tile,
                                                      std::byte* shared,
                                                      Moments (&moments)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const int chunks = tile.chunks();
  Packs<T, kAccess> packs = tile.packs(args.extents);
#pragma unroll 1
  for (int i = 0; i < chunks; ++i, packs.next_chunk()) {
    Chunk<T, kAccess> held;
    Moments of_chunk[S::kChannels];
    held.load(args.x, packs, Use::again);
    weighted_chunk_moments<A>(held, {args.weights, args.groups, args.affine}, packs, shared, of_chunk);
    if (threadIdx.y != 0) continue;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) moments[k] = i == 0 ? of_chunk[k] : combine(moments[k], of_chunk[k]);
  }
}

template <class T, Access kAccess, bool kWeighted>
__global__ void __launch_bounds__(kThreads, blocks_for(kAccess, sizeof(T), sizeof(T) == 2 ? 2 : 1, 6))
    moments_kernel(const __grid_constant__ MomentsArgs args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  const std::int64_t c = first_channel<T, kAccess>(blockIdx.x);
  for (std::int64_t number = blockIdx.y; number < args.tiles.count; number += gridDim.y) {
    const Tile tile = Tile::numbered(args.groups, args.tiles, args.extents.s.by(), number);
    const Stretch<T, kAccess> stretch{args.groups.members(tile.group), c, tile.begin, tile.end};
    Moments own[Shape<T, kAccess>::kChannels];
    if (tile.begin >= tile.end) {
#pragma unroll
      for (Moments& of : own) of = {};
    } else if constexpr (kWeighted) {
      weighted_tile_moments<A>(args, stretch, shared, own);
    } else {
      const Slots<T, kAccess, 1> slots(shared + kChunksAt, args.ahead);
      Ring<T, kAccess, 1> ring(slots, stretch, args.extents, args.x);
      tile_moments<A, T, kAccess>(
          args, stretch, shared,
          [&](Chunk<T, kAccess>& held, const Packs<T, kAccess>& packs, int i, bool again) {
            if (again)
              held.load(args.x, packs, Use::again);
            else
              ring.read(stretch.chunks() - i, packs, held, args.x);
          },
          own);
    }
    if (threadIdx.y != 0) continue;
    for_each_channel<T, kAccess>(args.extents, c,
                                 [&](int k) { args.of_tile.put(number * args.extents.c + c + k, own[k]); });
  }
}

}  // namespace popnorm::cuda

#endif
