// Moments of a tile of a group: sums of d = x - pivot and of d*d, from which mean = pivot + S1/n and m2 = S2 - S1*S1/n. The pivot is
// the mean of the tile's first chunk; where that is far from the mean of the tile, the tile is read again around the latter (two-pass;
// Chan, Golub & LeVeque 1983).
#ifndef POPNORM_KERNELS_CUDA_MOMENTS_CUH
#define POPNORM_KERNELS_CUDA_MOMENTS_CUH

#include <cmath>
#include <cstdint>

#include "kernels/cuda/chunk.cuh"
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
};

// sum(d) and sum(d*d), d = value - pivot, of the elements of a channel: four at a time in A, then in double. A sum of squares
// that has left A's range, or nearly so, is taken again in double.
template <class A, class T, Access kAccess>
__device__ __forceinline__ TwoSums sums_around(const Chunk<T, kAccess>& x, int k, A pivot) {
  using S = Shape<T, kAccess>;
  constexpr int kRun = 4;
  static_assert(S::kPerChannel % kRun == 0);
  TwoSums all{0, 0};
  A magnitude = 0;
#pragma unroll
  for (int first = 0; first < S::kPerChannel; first += kRun) {
    A d[kRun];
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      const int i = S::element(first + e, k);
      d[e] = x.has(i) ? to_arithmetic(x.held[i]) - pivot : A(0);
    }
    // In pairs: two roundings of a sum, three of a square (docs/numerics.md).
    const A sum = (d[0] + d[1]) + (d[2] + d[3]);
    const A squares = multiply_add(d[1], d[1], d[0] * d[0]) + multiply_add(d[3], d[3], d[2] * d[2]);
    // Nothing is added to zeros, which would take as long.
    magnitude = first == 0 ? squares : magnitude + squares;
    const TwoSums run{static_cast<double>(sum), static_cast<double>(squares)};
    all = first == 0 ? run : Add()(all, run);
  }
  constexpr A kLeast = A(1e-25), kMost = A(1e38);
  if (sizeof(A) == sizeof(double) || (magnitude > kLeast && magnitude < kMost)) return all;
  all = {0, 0};
#pragma unroll
  for (int e = 0; e < S::kPerChannel; ++e) {
    const int i = S::element(e, k);
    const double d = x.has(i) ? static_cast<double>(to_arithmetic(x.held[i])) - static_cast<double>(pivot) : 0;
    all.first += d;
    all.second += d * d;
  }
  return all;
}

// The mean of a chunk, by sums around its first element, which a constant channel equals: then it is exact. `held` is the chunk.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void chunk_means(const Chunk<T, kAccess>& held, const Operand& x, const Range& range,
                                            const Columns& columns, void* shared,
                                            A (&mean)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const Walk<std::int64_t> start(range.begin, 1, range.extents.s);
  const std::int64_t sample = range.members.at(start.sample());
  double sum[S::kChannels];
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const bool there = range.c + k < range.extents.c;
    mean[k] = there ? to_arithmetic(*x.at<T>(sample, range.c + k, start.position())) : A(0);
    constexpr int kRun = S::kPerChannel < 4 ? S::kPerChannel : 4;
    sum[k] = 0;
#pragma unroll
    for (int first = 0; first < S::kPerChannel; first += kRun) {
      A run = 0;
#pragma unroll
      for (int e = first; e < first + kRun; ++e) {
        const int i = S::element(e, k);
        run += held.has(i) ? (to_arithmetic(held.held[i]) - mean[k]) / kRun : A(0);
      }
      sum[k] += static_cast<double>(run) * kRun;
    }
  }
  block_reduce(sum, columns, shared, Add());
  const double share = 1 / static_cast<double>(range.end - range.begin);
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const A moved = static_cast<A>(static_cast<double>(mean[k]) + sum[k] * share);
    if (std::isfinite(moved)) mean[k] = moved;
  }
}

struct Least {
  POPNORM_INLINE double operator()(double a, double b) const { return b < a ? b : a; }
};

// As chunk_moments, of elements that have weights or are absent, in double throughout.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void weighted_chunk_moments(Chunk<T, kAccess>& held, const Presence& presence,
                                                       const Range& range, void* shared,
                                                       Moments (&moments)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const Columns columns(static_cast<int>(blockDim.x));
  float weight[S::kWeights];
  held.weigh(presence, range, weight);
  const auto value = [&](int i) { return static_cast<double>(to_arithmetic(held.held[i])); };
  const auto weight_of = [&](int i) { return static_cast<double>(weight[S::weight(i / S::kPack, i % S::kPack)]); };
  // The first element that is present in the block, whose position all channels share: from the one thread that holds it.
  double position = INFINITY;
#pragma unroll
  for (int i = 0; i < S::kHeld; ++i)
    if (held.has(i)) position = Least()(position, S::position(i));
  const double first = block_reduce(position, columns, shared, Least());
  double pivot[S::kChannels]{};
#pragma unroll
  for (int i = 0; i < S::kHeld; ++i)
    if (held.has(i) && S::position(i) == first) pivot[S::channel(i % S::kPack)] = value(i);
  block_reduce(pivot, columns, shared, Add());
  TwoSums sums[S::kChannels];
  // Around the first that is present, which a constant channel equals, then around the mean.
  double all = 0;  // what a position weighs it weighs in every channel
#pragma unroll 1
  for (int sweep = 0; sweep < 2; ++sweep) {
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

// The moments of a tile per channel of the thread, which those threads get whose threadIdx.y is 0. `keep` gets every chunk once.
template <class A, class T, Access kAccess, class Keep>
__device__ __forceinline__ void tile_moments(const MomentsArgs& args, const Tile& tile, std::int64_t c,
                                             std::byte* shared, Keep&& keep,
                                             Moments (&moments)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const Columns columns(static_cast<int>(blockDim.x));
  auto* const far = reinterpret_cast<unsigned*>(shared + kFlagAt);
  const Members members = args.groups.members(tile.group);
  const std::int64_t step = S::positions(static_cast<int>(blockDim.y));
  const auto positions = static_cast<double>(tile.end - tile.begin);
  A pivot[S::kChannels]{};
  TwoSums sums[S::kChannels];
#pragma unroll 1
  for (int sweep = 1;; ++sweep) {
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) sums[k] = {0, 0};
#pragma unroll 1
    for (std::int64_t at = tile.begin; at < tile.end; at += step) {
      const Range range{args.extents, members, at, at + step < tile.end ? at + step : tile.end, c};
      Chunk<T, kAccess> held;
      held.load(args.x, range, keep.has_room());
      if (sweep == 1) {
        keep(held);
        if (at == tile.begin) chunk_means<A>(held, args.x, range, columns, shared, pivot);
      }
#pragma unroll
      for (int k = 0; k < S::kChannels; ++k) sums[k] = Add()(sums[k], sums_around(held, k, pivot[k]));
    }
    if (Columns::thread() == 0) *far = 0;
    block_reduce(sums, columns, shared, Add());
    if (sweep == kMostSweeps) break;
    bool again = false;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) {
      const double off = sums[k].first / positions;
      const A moved = static_cast<A>(static_cast<double>(pivot[k]) + off);
      if (!(sums[k].first * off > kPivotGuard * sums[k].second) || !std::isfinite(moved) || moved == pivot[k]) continue;
      pivot[k] = moved;
      again = true;
    }
    if (again) atomic_or(far, 1);
    __syncthreads();
    if (*far == 0) break;
    __syncthreads();
  }
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const double off = sums[k].first / positions;
    moments[k] = {positions, static_cast<double>(pivot[k]) + off, sums[k].second - sums[k].first * off};
  }
}

// The same of elements that have weights or are absent, chunk by chunk.
template <class A, class T, Access kAccess>
__device__ __forceinline__ void weighted_tile_moments(const MomentsArgs& args, const Tile& tile, std::int64_t c,
                                                      std::byte* shared,
                                                      Moments (&moments)[Shape<T, kAccess>::kChannels]) {
  using S = Shape<T, kAccess>;
  const std::int64_t step = S::positions(static_cast<int>(blockDim.y));
#pragma unroll 1
  for (std::int64_t at = tile.begin; at < tile.end; at += step) {
    const Range range{args.extents, args.groups.members(tile.group), at, at + step < tile.end ? at + step : tile.end,
                      c};
    Chunk<T, kAccess> held;
    Moments of_chunk[S::kChannels];
    held.load(args.x, range, false);
    weighted_chunk_moments<A>(held, {args.weights, args.groups, args.affine}, range, shared, of_chunk);
    if (threadIdx.y != 0) continue;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k)
      moments[k] = at == tile.begin ? of_chunk[k] : combine(moments[k], of_chunk[k]);
  }
}

template <class T, Access kAccess, bool kWeighted>
__global__ void __launch_bounds__(kThreads, blocks_for(kAccess, sizeof(T), 1, 4))
    moments_kernel(const __grid_constant__ MomentsArgs args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  const std::int64_t c = first_channel<T, kAccess>(blockIdx.x);
  for (std::int64_t number = blockIdx.y; number < args.tiles.count; number += gridDim.y) {
    const Tile tile = Tile::numbered(args.groups, args.tiles, args.extents.s.by(), number);
    Moments own[Shape<T, kAccess>::kChannels];
    if (tile.begin >= tile.end) {
#pragma unroll
      for (Moments& of : own) of = {};
    } else if constexpr (kWeighted) {
      weighted_tile_moments<A, T, kAccess>(args, tile, c, shared, own);
    } else {
      tile_moments<A, T, kAccess>(args, tile, c, shared, KeepNothing(), own);
    }
    if (threadIdx.y != 0) continue;
    for_each_channel<T, kAccess>(args.extents, c,
                                 [&](int k) { args.of_tile.put(number * args.extents.c + c + k, own[k]); });
  }
}

}  // namespace popnorm::cuda

#endif
