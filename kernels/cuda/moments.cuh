// Moments of a tile of a group: a chunk is held in registers and swept twice, so that the sums are taken around the chunk's own
// mean (exact two-pass; Chan, Golub & LeVeque 1983).
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
template <class A, class T, bool kRows>
__device__ __forceinline__ TwoSums sums_around(const Chunk<T, kRows>& x, int k, A pivot) {
  using S = Shape<T, kRows>;
  constexpr int kRun = S::kPerChannel < 4 ? S::kPerChannel : 4;
  TwoSums all{0, 0};
#pragma unroll
  for (int first = 0; first < S::kPerChannel; first += kRun) {
    A sum = 0, squares = 0;
#pragma unroll
    for (int e = first; e < first + kRun; ++e) {
      const int i = S::element(e, k);
      const A d = x.has(i) ? to_arithmetic(x.held[i]) - pivot : A(0);
      sum += d;
      squares += d * d;
    }
    all.first += static_cast<double>(sum);
    all.second += static_cast<double>(squares);
  }
  constexpr double kLeast = 1e-25, kMost = 1e38;
  if (sizeof(A) == sizeof(double) || (all.second > kLeast && all.second < kMost)) return all;
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

// The moments of a chunk per channel of the thread, which those threads get whose threadIdx.y is 0. `held` is the chunk loaded.
template <class A, class T, bool kRows>
__device__ __forceinline__ void chunk_moments(const Chunk<T, kRows>& held, const Operand& x, const Range& range,
                                              void* shared, Moments (&moments)[Shape<T, kRows>::kChannels]) {
  using S = Shape<T, kRows>;
  const Columns columns(static_cast<int>(blockDim.x));
  // Around the first element, which a constant channel equals: then the mean is exact.
  const Walk start(range.begin, 1, range.extents.s);
  const std::int64_t sample = range.groups.member(range.group, start.sample());
  A pivot[S::kChannels];
  double sum[S::kChannels];
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const bool there = range.c + k < range.extents.c;
    pivot[k] = there ? to_arithmetic(*x.at<T>(sample, range.c + k, start.position())) : A(0);
    constexpr int kRun = S::kPerChannel < 4 ? S::kPerChannel : 4;
    sum[k] = 0;
#pragma unroll
    for (int first = 0; first < S::kPerChannel; first += kRun) {
      A run = 0;
#pragma unroll
      for (int e = first; e < first + kRun; ++e) {
        const int i = S::element(e, k);
        run += held.has(i) ? (to_arithmetic(held.held[i]) - pivot[k]) / kRun : A(0);
      }
      sum[k] += static_cast<double>(run) * kRun;
    }
  }
  block_reduce(sum, columns, shared, Add());
  const auto positions = static_cast<double>(range.end - range.begin);
  const double share = 1 / positions;
  TwoSums sums[S::kChannels];
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const A mean = static_cast<A>(static_cast<double>(pivot[k]) + sum[k] * share);
    if (std::isfinite(mean)) pivot[k] = mean;
    sums[k] = sums_around(held, k, pivot[k]);
  }
  block_reduce(sums, columns, shared, Add());
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) {
    const double off = sums[k].first / positions;
    moments[k] = {positions, static_cast<double>(pivot[k]) + off, sums[k].second - sums[k].first * off};
  }
}

struct Least {
  POPNORM_INLINE double operator()(double a, double b) const { return b < a ? b : a; }
};

// As chunk_moments, of elements that have weights or are absent, in double throughout.
template <class A, class T, bool kRows>
__device__ __forceinline__ void weighted_chunk_moments(Chunk<T, kRows>& held, const Presence& presence,
                                                       const Range& range, void* shared,
                                                       Moments (&moments)[Shape<T, kRows>::kChannels]) {
  using S = Shape<T, kRows>;
  const Columns columns(static_cast<int>(blockDim.x));
  float weight[S::kWeights];
  held.weigh(presence, range, weight);
  const auto value = [&](int i) { return static_cast<double>(to_arithmetic(held.held[i])); };
  const auto weight_of = [&](int i) { return static_cast<double>(weight[S::weight(i / S::kPack, i % S::kPack)]); };
  // The first element that is present in the block, whose position all channels share: from the one thread that holds it.
  double position = INFINITY;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (held.has(i)) position = Least()(position, S::position(i));
  const double first = block_reduce(position, columns, shared, Least());
  double pivot[S::kChannels]{};
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (held.has(i) && S::position(i) == first) pivot[kRows ? 0 : i % S::kPack] = value(i);
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

// The moments of a tile, loaded chunk by chunk, each of which `keep` gets. They lie in shared memory behind what reductions need
// (there are registers for better things), where those threads find theirs whose threadIdx.y is 0.
template <class A, class T, bool kRows, bool kWeighted, class Keep>
__device__ __forceinline__ const Moments* tile_moments(const MomentsArgs& args, const Tile& tile, std::int64_t c,
                                                       std::byte* shared, Keep&& keep) {
  using S = Shape<T, kRows>;
  Moments* const own = reinterpret_cast<Moments*>(shared + kReduceBytes) + threadIdx.x * S::kChannels;
  const std::int64_t step = S::positions(static_cast<int>(blockDim.y));
  for (std::int64_t at = tile.begin; at < tile.end; at += step) {
    const Range range{args.extents, args.groups, tile.group, at, at + step < tile.end ? at + step : tile.end, c};
    Chunk<T, kRows> held;
    Moments of_chunk[S::kChannels];
    held.load(args.x, range, keep.has_room());
    keep(held);
    if constexpr (kWeighted)
      weighted_chunk_moments<A>(held, {args.weights, args.groups, args.affine}, range, shared, of_chunk);
    else
      chunk_moments<A>(held, args.x, range, shared, of_chunk);
    if (threadIdx.y != 0) continue;
#pragma unroll
    for (int k = 0; k < S::kChannels; ++k) own[k] = at == tile.begin ? of_chunk[k] : combine(own[k], of_chunk[k]);
  }
  return own;
}

template <class T, bool kRows, bool kWeighted>
__global__ void __launch_bounds__(kThreads, 1) moments_kernel(const __grid_constant__ MomentsArgs args) {
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  const std::int64_t c = first_channel<T, kRows>(blockIdx.x);
  for (std::int64_t number = blockIdx.y; number < args.tiles.count; number += gridDim.y) {
    const Tile tile = Tile::numbered(args.groups, args.tiles, args.extents.s.by(), number);
    const Moments* own = tile_moments<A, T, kRows, kWeighted>(args, tile, c, shared, KeepNothing());
    if (threadIdx.y != 0) continue;
    for_each_channel<T, kRows>(args.extents, c, [&](int k) {
      args.of_tile.put(number * args.extents.c + c + k, tile.begin < tile.end ? own[k] : Moments{});
    });
  }
}

}  // namespace popnorm::cuda

#endif
