// From tiles to rows: a group's moments merged along a tree that the number of tiles fixes, statistics made of them, and what a
// forward call leaves behind.
#ifndef POPNORM_KERNELS_CUDA_FOLD_CUH
#define POPNORM_KERNELS_CUDA_FOLD_CUH

#include <cmath>
#include <cstdint>

#include "kernels/cuda/moments.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/population.hpp"
#include "kernels/statistics.hpp"

namespace popnorm::cuda {

// Statistics that are given, of population slots: an array each, or a population.
struct Given {
  Values mean;
  Values variance;
  const double* population = nullptr;  // its arrays
  std::int64_t entries = 0;            // slots * c
  popnorm_estimator estimator = POPNORM_BIASED;

  POPNORM_INLINE MeanVariance at(std::int64_t i) const {
    if (population != nullptr) return population_statistics({population, entries}, i, estimator);
    return {mean.get(i, 0), variance.get(i, 1)};
  }
};

// Running statistics, which batches of moments are blended into.
struct Running {
  Results mean;
  Results variance;
  double momentum = 0;

  POPNORM_INLINE void feed(std::int64_t i, const Moments& m) const {
    if (mean.first != nullptr && m.weight > 0) blend(mean, i, m.mean);
    if (variance.first != nullptr && m.weight > 1) blend(variance, i, unbiased_variance(m));
  }

 private:
  POPNORM_INLINE void blend(const Results& running, std::int64_t i, double now) const {
    running.put(i, (1 - momentum) * running.get(i) + momentum * now);
  }
};

template <class A>
struct FoldArgs {
  Extents extents;
  int columns = 1;  // channels that a block folds at a time on the plain path
  Groups rows;      // groups, or population slots where statistics are given
  Groups slots;     // of populations
  bool from_tiles = false;
  Tiles tiles;
  MomentArrays of_tile;  // [rows * per_group][c]
  MomentArrays of_row;   // [rows][c]: out from tiles, else in; or null
  const std::int32_t* group_slot = nullptr;
  Mixture mixture{};
  Given given;
  double epsilon = 0;
  RowArrays<A> out;  // null: moments only
  Results saved_mean;
  Results saved_invstd;
  Running running;  // of the one row there is
  // Into the reserve, where there is one.
  ReserveHeader header;
  ReserveHeader* reserve = nullptr;
  std::int64_t affine_slots = 0;
  Values scale, shift;
  A* kept_scale = nullptr;
  A* kept_shift = nullptr;
};

// Merges a group's tiles: get(number) of each, `nothing` of none. Neighbours are merged one after the other into leaves, so many as a
// column has threads where a block folds `folded` channels, and these along a tree, which is the same whatever `columns` are: a
// thread has up to kMost leaves. The first thread of a column gets what it is all merged into.
template <int kMost, class V, class Get, class Op>
__device__ __forceinline__ V merged_tiles(const Groups& groups, const Tiles& tiles, std::int64_t s, std::int64_t group,
                                          int folded, const Columns& columns, void* shared, const V& nothing,
                                          const Get& get, const Op& op) {
  const int log_leaves = Columns(folded).log_y();
  const int own = kMost == 1 ? 1 : 1 << (log_leaves - columns.log_y());
  const std::int64_t count = tiles.of(groups.size(group) * s);
  const std::int64_t stretch = (count + (1 << log_leaves) - 1) >> log_leaves;
  const int used = stretch > 1 ? 1 << log_leaves : static_cast<int>(count);  // leaves, if not a few less
  const std::int64_t first = tiles.first(groups, s, group);
  const std::int64_t begin = stretch * columns.of_y() * own;
  V leaf[kMost];
#pragma unroll
  for (int l = 0; l < kMost; ++l) leaf[l] = nothing;
  // A few are under way at a time: of one leaf, or of each.
  constexpr int kAtOnce = kMost == 1 ? 4 : 1;
  if (kMost == 1 && stretch == 1 && begin < count) leaf[0] = op(nothing, get(first + begin));
#pragma unroll 1
  for (std::int64_t t = kMost == 1 && stretch == 1 ? 1 : 0; t < stretch; t += kAtOnce) {
    V some[kMost][kAtOnce];
#pragma unroll
    for (int l = 0; l < kMost; ++l)
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const std::int64_t tile = begin + l * stretch + t + i;
        some[l][i] = l < own && t + i < stretch && tile < count ? get(first + tile) : nothing;
      }
#pragma unroll
    for (int l = 0; l < kMost; ++l)
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) leaf[l] = op(leaf[l], some[l][i]);
  }
#pragma unroll
  for (int half = 1; half < kMost; half *= 2)
    if (half < own && half < used) {
#pragma unroll
      for (int l = 0; l < kMost; l += 2 * half) leaf[l] = op(leaf[l], leaf[l + half]);
    }
  V all[1] = {leaf[0]};
  const int threads = (used + own - 1) / own;  // of a column, which have any
  if (threads << columns.log_x > kWarp)
    block_reduce(all, columns, shared, op, threads);
  else if (Columns::thread() < kWarp)
    for (int mask = columns.x; mask < threads << columns.log_x; mask *= 2) add_lane(all, mask, op);
  return all[0];
}

struct Combine {
  POPNORM_INLINE Moments operator()(const Moments& a, const Moments& b) const { return combine(a, b); }
};

// The moments of a group from its tiles.
template <int kMost, class A>
__device__ __forceinline__ Moments merged(const FoldArgs<A>& args, std::int64_t row, std::int64_t c,
                                          const Columns& columns, void* shared) {
  const bool there = c < args.extents.c;
  const auto get = [&](std::int64_t tile) { return there ? args.of_tile.get(tile * args.extents.c + c) : Moments{}; };
  return merged_tiles<kMost>(args.rows, args.tiles, args.extents.s.by(), row, args.columns, columns, shared, Moments{},
                             get, Combine());
}

template <class A>
__device__ __forceinline__ void keep_affine(const FoldArgs<A>& args, std::int64_t slot, std::int64_t c) {
  const std::int64_t i = slot * args.extents.c + c;
  args.kept_scale[i] = static_cast<A>(args.scale.get(i, 1));
  args.kept_shift[i] = static_cast<A>(args.shift.get(i, 0));
}

// The population slot that a group feeds and is mixed with: what the caller says, else its first sample's; -1 where that is none.
POPNORM_INLINE std::int64_t slot_of(const Groups& groups, const Groups& slots, const std::int32_t* group_slot,
                                    std::int64_t group) {
  if (group_slot != nullptr) return group_slot[group] < slots.count ? group_slot[group] : -1;
  if (slots.count <= 1 && slots.ids == nullptr) return 0;
  return groups.size(group) > 0 ? slots.of(groups.members(group).at(std::int64_t{0})) : 0;
}

// The statistics of a row, left wherever they are wanted; what is normalized with.
template <class A>
__device__ __forceinline__ StatisticsRow<A> put_row(const FoldArgs<A>& args, std::int64_t row, std::int64_t c,
                                                    const Moments& moments, bool writes) {
  const std::int64_t i = row * args.extents.c + c;
  MeanVariance given{};
  if (args.mixture.statistics != POPNORM_BATCH) {
    const std::int64_t slot =
        args.mixture.statistics == POPNORM_GIVEN ? row : slot_of(args.rows, args.slots, args.group_slot, row);
    given = slot >= 0 ? args.given.at(slot * args.extents.c + c) : MeanVariance{NAN, NAN};
  }
  const Statistics s = row_statistics(args.mixture, moments, given, args.epsilon);
  const StatisticsRow<A> rounded = statistics_row<A>(s.mean, s.invstd);
  if (!writes) return rounded;
  if (args.out.hi != nullptr) {
    args.out.hi[i] = rounded.hi;
    args.out.lo[i] = rounded.lo;
    args.out.invstd[i] = rounded.invstd;
  }
  if (args.out.weight != nullptr) {
    args.out.weight[i] = s.weight;
    args.out.d[i] = round_to<A>(s.d);
    args.out.r2[i] = round_to<A>(s.r2);
  }
  if (args.saved_mean.first != nullptr) args.saved_mean.put(i, s.mean);
  if (args.saved_invstd.first != nullptr)
    args.saved_invstd.put(
        i, args.saved_invstd.type == POPNORM_F64 ? s.invstd : static_cast<double>(round_saturated<float>(s.invstd)));
  return rounded;
}

template <class A>
__global__ void __launch_bounds__(kThreads, 1) fold_kernel(const __grid_constant__ FoldArgs<A> args) {
  wait_for_earlier_launches();
  void* const shared = shared_memory<std::byte>();
  const Columns columns(args.columns);
  const std::int64_t c = std::int64_t{blockIdx.x} * args.columns + columns.of_x();
  const bool writes = columns.of_y() == 0 && c < args.extents.c;
  for (std::int64_t row = blockIdx.y; row < args.rows.count; row += gridDim.y) {
    Moments moments{};
    if (args.from_tiles)
      moments = merged<1>(args, row, c, columns, shared);
    else if (writes && args.of_row.weight != nullptr)
      moments = args.of_row.get(row * args.extents.c + c);
    if (!writes) continue;
    if (args.from_tiles && args.of_row.weight != nullptr) args.of_row.put(row * args.extents.c + c, moments);
    if (args.out.hi != nullptr) put_row(args, row, c, moments, true);
    args.running.feed(row * args.extents.c + c, moments);
  }
  if (args.reserve == nullptr) return;
  for (std::int64_t slot = blockIdx.y; writes && slot < args.affine_slots; slot += gridDim.y)
    keep_affine(args, slot, c);
  if (blockIdx.x == 0 && blockIdx.y == 0 && Columns::thread() == 0) *args.reserve = args.header;
}

}  // namespace popnorm::cuda

#endif
