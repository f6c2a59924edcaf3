// Moments of a tile of a group: positions are held in registers and swept twice, so that the sums are taken around the tile's own
// mean (exact two-pass; Chan, Golub & LeVeque 1983).
#ifndef POPNORM_KERNELS_CUDA_MOMENTS_CUH
#define POPNORM_KERNELS_CUDA_MOMENTS_CUH

#include <cmath>
#include <cstdint>

#include "kernels/cuda/layout.cuh"
#include "kernels/moments.hpp"

namespace popnorm::cuda {

struct MomentsArgs {
  Extents extents;
  Operand x;
  Groups groups;
  Tiles tiles;
  double* weight;  // [groups.count * tiles.per_group][c]
  double* mean;
  double* m2;
};

struct TwoSums {
  double first;
  double second;
};
struct AddTwoSums {
  POPNORM_INLINE TwoSums operator()(const TwoSums& a, const TwoSums& b) const {
    return {a.first + b.first, a.second + b.second};
  }
};

// sum(d) and sum(d*d), d = value - pivot, of `count` held values: four at a time in T, then in double. A sum of squares that
// has left T's range, or nearly so, is taken again in double.
template <class T>
__device__ __forceinline__ TwoSums sums_around(const T* held, int count, T pivot) {
  TwoSums all{0, 0};
#pragma unroll
  for (int i = 0; i < kHeld; i += 4) {
    T sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T d = i + k < count ? held[i + k] - pivot : T(0);
      sum += d;
      squares += d * d;
    }
    all.first += static_cast<double>(sum);
    all.second += static_cast<double>(squares);
  }
  constexpr double kLeast = 1e-25, kMost = 1e38;
  if (sizeof(T) == sizeof(double) || (all.second > kLeast && all.second < kMost)) return all;
  all = {0, 0};
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const double d = i < count ? static_cast<double>(held[i]) - static_cast<double>(pivot) : 0;
    all.first += d;
    all.second += d * d;
  }
  return all;
}

// One chunk: blockDim.y * kHeld positions [begin, end) of a group, channel c. T is the storage type.
template <class T>
__device__ __forceinline__ Moments chunk_moments(const MomentsArgs& args, std::int64_t group, std::int64_t begin,
                                                 std::int64_t end, std::int64_t c, TwoSums* shared) {
  const bool present = c < args.extents.c;
  T held[kHeld];
  int count = 0;
  Walk walk(begin + threadIdx.y, blockDim.y, args.extents.s);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const bool there = present && begin + threadIdx.y + std::int64_t{i} * blockDim.y < end;
    held[i] = there ? load<T>(args.x, args.groups.member(group, walk.sample()), c, walk.position()) : T(0);
    count += there ? 1 : 0;
    walk.step();
  }
  // Around the first element, which a constant channel equals: then the mean is exact.
  T first = 0;
  if (present) {
    const Walk start(begin, 1, args.extents.s);
    first = load<T>(args.x, args.groups.member(group, start.sample()), c, start.position());
  }
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; i += 4) {
    T four = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) four += i + k < count ? (held[i + k] - first) / 4 : T(0);
    sum += static_cast<double>(four) * 4;
  }
  const auto positions = static_cast<double>(end - begin);
  const double about = block_sum(TwoSums{sum, 0}, shared, AddTwoSums()).first / positions;
  T pivot = static_cast<T>(static_cast<double>(first) + about);
  if (!std::isfinite(pivot)) pivot = first;
  const TwoSums sums = block_sum(sums_around(held, count, pivot), shared, AddTwoSums());
  const double share = sums.first / positions;
  return {positions, static_cast<double>(pivot) + share, sums.second - sums.first * share};
}

template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(const __grid_constant__ MomentsArgs args) {
  TwoSums* shared = shared_memory<TwoSums>();
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t chunk = std::int64_t{blockDim.y} * kHeld;
  for (std::int64_t tile = blockIdx.y; tile < args.groups.count * args.tiles.per_group; tile += gridDim.y) {
    const Tile t(args.groups, args.tiles, args.extents.s, tile);
    Moments all{};
    for (std::int64_t at = t.begin; at < t.end; at += chunk)
      all = combine(all, chunk_moments<T>(args, t.group, at, at + chunk < t.end ? at + chunk : t.end, c, shared));
    if (threadIdx.y != 0 || c >= args.extents.c) continue;
    const std::int64_t to = tile * args.extents.c + c;
    args.weight[to] = all.weight;
    args.mean[to] = all.mean;
    args.m2[to] = all.m2;
  }
}

}  // namespace popnorm::cuda

#endif
