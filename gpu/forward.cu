// forward, moments, combine, finalize and normalize: which kernels run, on what.
#include <algorithm>

#include "core/error.hpp"
#include "gpu/call.hpp"
#include "gpu/operations.hpp"
#include "gpu/resident.hpp"
#include "kernels/cuda/combine.cuh"
#include "kernels/cuda/feed.cuh"
#include "kernels/cuda/moments.cuh"
#include "kernels/cuda/normalize.cuh"

namespace popnorm::cuda {
namespace {

// Scratch of a forward call.
template <class A>
struct ForwardSpace {
  MomentArrays of_tile;   // [tiles][c]
  MomentArrays of_group;  // [groups][c]
  RowArrays<A> rows;      // [rows][c], without a reserve
  OrderSpace groups;
  SortSpace sort;

  ForwardSpace(Arena& arena, const Problem& p)
      : of_tile(take(arena, tiles_of(p, groups_of(p, p.norm_group, nullptr)).count * p.c)),
        of_group(take(arena, p.norm_group.count * p.c)),
        rows(take_rows(arena, std::max(p.norm_group.count, p.population_slot.count) * p.c)),
        groups(arena, p, p.norm_group),
        sort(arena, p) {}

 private:
  static MomentArrays take(Arena& arena, std::int64_t count) {
    return {arena.take<double>(count), arena.take<double>(count), arena.take<double>(count)};
  }
  static RowArrays<A> take_rows(Arena& arena, std::int64_t entries) {
    RowArrays<A> rows;
    rows.hi = arena.take<A>(entries);
    rows.lo = arena.take<A>(entries);
    rows.invstd = arena.take<A>(entries);
    return rows;
  }
};

Running running_of(const Problem& p, const popnorm_update& u) {
  return {results(u.running_mean, p.statistics), results(u.running_variance, p.statistics), u.momentum};
}

// Whether the fold can feed running statistics: there is one group to feed them, no label to forbid it, and nobody else reads them
// meanwhile.
bool fold_feeds(const Problem& p, popnorm_statistics statistics, const popnorm_update& u) {
  return u.population == nullptr && p.norm_group.count == 1 && p.population_slot.count == 1 &&
         p.population_slot.kind != POPNORM_LABELS && statistics == POPNORM_BATCH;
}

MomentArrays moment_arrays(const popnorm_moment_arrays& m) { return {m.weight, m.mean, m.m2}; }

// A member of a labelled group has a label: `affine` alone can make it absent. It is empty where scale and shift play no part, but
// the problem alone decides how sums are taken: moments have forward's bits.
MomentsArgs moments_args(const Problem& p, const void* x, const Maps& maps, const Groups& affine,
                         const popnorm_batch& batch, const MomentArrays& of_tile, int ahead) {
  return {extents_of(p), operand(p, x, p.x),   maps.norm_group, tiles_of(p, maps.norm_group),
          affine,        weights_of(p, batch), of_tile,         ahead};
}

popnorm_status launch_moments(const char* operation, const Problem& p, const MomentsArgs& args, void* stream) {
  return with_arithmetic_type(p, [&](auto arithmetic) {
    const bool weighted = p.weights != POPNORM_UNWEIGHTED || p.affine_slot.kind == POPNORM_LABELS;
    return with_weights<decltype(arithmetic)>(
        p, reach_of(p, {args.x}), weighted, [&](auto type, auto access, auto weighs) {
          return launch(operation, "moments", moments_kernel<decltype(type), access.value, weighs.value>, args,
                        ahead_grid_of(p, args.tiles.count, Direction::forward, args.ahead), stream);
        });
  });
}

template <class A>
FoldArgs<A> fold_args(const Problem& p, const Maps& maps, const popnorm_source& source) {
  FoldArgs<A> args;
  args.extents = extents_of(p);
  args.columns = fold_columns(p);
  args.rows = source.statistics == POPNORM_GIVEN ? maps.population_slot : maps.norm_group;
  args.slots = maps.population_slot;
  args.mixture = {source.statistics, source.share, source.renorm_r, source.renorm_d};
  args.given = {values(source.mean, p.statistics), values(source.variance, p.statistics), nullptr,
                p.population_slot.count * p.c, source.estimator};
  if (source.population != nullptr)
    args.given.population =
        reinterpret_cast<const double*>(static_cast<const popnorm_population_header*>(source.population) + 1);
  args.epsilon = p.epsilon;
  return args;
}

// What forward and finalize leave behind besides y.
template <class A, class Args>
void keep(const Problem& p, const Args& a, FoldArgs<A>& fold) {
  const popnorm_statistics statistics = a.source.statistics;
  fold.saved_mean = results(a.saved_mean, p.statistics);
  fold.saved_invstd = results(a.saved_invstd, p.statistics);
  if (a.reserve == nullptr) return;
  const auto reserve = reserve_arrays<A>(static_cast<std::byte*>(a.reserve), p, statistics);
  fold.out = {reserve.weight, reserve.hi, reserve.lo, reserve.invstd, reserve.d, reserve.r2};
  fold.header = make_reserve_header(p, statistics, 0);
  fold.header.mask_shape = device_mask_shape(p);
  fold.reserve = static_cast<ReserveHeader*>(a.reserve);
  fold.affine_slots = p.affine_slot.count;
  fold.scale = values(a.scale, p.parameters);
  fold.shift = values(a.shift, p.parameters);
  fold.kept_scale = reserve.scale;
  fold.kept_shift = reserve.shift;
}

template <class A>
popnorm_status launch_fold(const char* operation, const Problem& p, const FoldArgs<A>& args, void* stream) {
  const std::int64_t rows = std::max(args.rows.count, args.affine_slots);
  return launch(operation, "fold", fold_kernel<A>, args, fold_grid_of(p, std::max<std::int64_t>(rows, 1)), stream);
}

popnorm_status launch_feed(const char* operation, const Problem& p, const Maps& maps, const popnorm_update& u,
                           const MomentArrays& of_group, const std::int32_t* group_slot, void* stream) {
  FeedArgs args;
  args.c = p.c;
  args.groups = maps.norm_group;
  args.slots = maps.population_slot;
  args.group_slot = group_slot;
  args.of_group = of_group;
  args.running = running_of(p, u);
  args.momentum = u.momentum;
  args.population = static_cast<popnorm_population_header*>(u.population);
  args.feed = u.feed;
  return launch(operation, "feed", feed_kernel<void>, args, {1, 1, kThreads, 1, kReduceBytes}, stream);
}

template <class A>
popnorm_status launch_normalize(const char* operation, const Problem& p, const void* x, void* y,
                                const ForwardFusion& fusion, const popnorm_batch& batch, const RowSource<A>& source,
                                bool follows, void* stream) {
  NormalizeArgs<A> args;
  args.extents = extents_of(p);
  args.x = operand(p, x, p.x);
  args.y = operand(p, y, p.y);
  args.fusion = fusion;
  args.weights = weights_of(p, batch);
  args.source = source;
  args.stretch = stretch_of(p);
  args.follows = follows;
  const Reach reach = reach_of(p, {args.x, args.y, fusion.residual});
  return with_weights<A>(p, reach, is_weighted(p), p.fused(), [&](auto type, auto access, auto weighs, auto fused) {
    return launch(operation, "normalize", normalize_kernel<decltype(type), access.value, weighs.value, fused.value>,
                  args, stretch_grid_of(p), stream);
  });
}

}  // namespace

bool grid_holds(const Problem& p) { return channel_blocks(p) <= kMostChannelBlocks; }

std::int64_t tile_numbers(const Problem& p) { return tiles_of(p, groups_of(p, p.norm_group, nullptr)).count; }

std::size_t forward_bytes(const Problem& p) {
  Arena arena(nullptr);
  if (p.storage == POPNORM_F64)
    ForwardSpace<double>(arena, p);
  else
    ForwardSpace<float>(arena, p);
  return arena.used();
}

popnorm_status forward(const Plan& plan, const popnorm_forward_args& a, void* stream) {
  const Problem& p = plan.problem;
  return with_arithmetic_type(p, [&](auto arithmetic) -> popnorm_status {
    using A = decltype(arithmetic);
    Arena arena(a.workspace);
    const ForwardSpace<A> space(arena, p);
    Maps maps(p, a.batch);
    const bool reduces = a.source.statistics != POPNORM_GIVEN;
    const bool feeds = reduces && updates(a.update);
    const bool one_slot = feeds || (reduces && a.source.statistics != POPNORM_BATCH);
    const bool folds = feeds && fold_feeds(p, a.source.statistics, a.update);
    if (reduces) POPNORM_TRY(order("forward", maps.norm_group, space.groups, space.sort, stream));
    POPNORM_TRY(check("forward", p, a.batch, maps, {reduces, !reduces || one_slot, true, one_slot}, stream));
    FoldArgs<A> fold = fold_args<A>(p, maps, a.source);
    fold.out = space.rows;
    keep(p, a, fold);
    const ForwardFusion fusion = fusion_of(p, a.residual, a.reserve);
    fold.header.masked = p.masked() ? 1 : 0;  // before backward can look
    if (reduces) {
      fold.from_tiles = true;
      fold.tiles = tiles_of(p, fold.rows);
      fold.of_tile = space.of_tile;
      if (a.moments.weight != nullptr)
        fold.of_row = moment_arrays(a.moments);
      else if (feeds && !folds)
        fold.of_row = space.of_group;
      if (folds) fold.running = running_of(p, a.update);
    }
    RowSource<A> source = row_source<A>(p, maps, nullptr);
    source.statistics = a.source.statistics;
    source.own = fold.out;
    source.scale = values(a.scale, p.parameters);
    source.shift = values(a.shift, p.parameters);
    const Policy& policy = policy_of(plan, Direction::forward);
    const MomentsArgs moments = moments_args(p, a.x, maps, maps.affine_slot, a.batch, space.of_tile, policy.ahead);
    const Operand y = operand(p, a.y, p.y);
    if (reduces && policy.path != Path::plain && is_kept(policy, p, {moments.x, y, fusion.residual})) {
      if (a.reserve == nullptr) fold.out = {};
      const ResidentForwardArgs<A> args{moments, fold, source, y, fusion, crew_of(p, policy)};
      POPNORM_TRY(launch_resident(p, args, policy, stream));
    } else {
      if (reduces) POPNORM_TRY(launch_moments("forward", p, moments, stream));
      POPNORM_TRY(launch_fold("forward", p, fold, stream));
      POPNORM_TRY(launch_normalize("forward", p, a.x, a.y, fusion, a.batch, source, true, stream));
    }
    return feeds && !folds ? launch_feed("forward", p, maps, a.update, fold.of_row, nullptr, stream) : POPNORM_SUCCESS;
  });
}

popnorm_status moments(const Plan& plan, const popnorm_moments_args& a, void* stream) {
  const Problem& p = plan.problem;
  Arena arena(a.workspace);
  const ForwardSpace<float> space(arena, p);  // moments are double, whatever the storage
  Maps maps(p, a.batch);
  POPNORM_TRY(order("moments", maps.norm_group, space.groups, space.sort, stream));
  const bool feeds = updates(a.update);
  POPNORM_TRY(check("moments", p, a.batch, maps, {true, feeds, false, feeds}, stream));
  const int ahead = policy_of(plan, Direction::forward).ahead;
  POPNORM_TRY(launch_moments("moments", p, moments_args(p, a.x, maps, {}, a.batch, space.of_tile, ahead), stream));
  FoldArgs<float> fold = fold_args<float>(p, maps, {});
  fold.from_tiles = true;
  fold.tiles = tiles_of(p, fold.rows);
  fold.of_tile = space.of_tile;
  fold.of_row = a.moments.weight != nullptr ? moment_arrays(a.moments) : space.of_group;
  POPNORM_TRY(launch_fold("moments", p, fold, stream));
  return feeds ? launch_feed("moments", p, maps, a.update, fold.of_row, nullptr, stream) : POPNORM_SUCCESS;
}

popnorm_status combine_parts(const Plan& plan, const popnorm_combine_args& a, void* stream) {
  const Problem& p = plan.problem;
  for (std::int64_t i = kMostParts; i < a.count; ++i)
    if (a.parts[i].weight == a.moments.weight)
      return fail(POPNORM_UNSUPPORTED, "combine: moments is part %lld, must be one of the first %lld on backend cuda",
                  static_cast<long long>(i), static_cast<long long>(kMostParts));
  CombineArgs args;
  args.entries = p.norm_group.count * p.c;
  args.out = moment_arrays(a.moments);
  const auto blocks =
      static_cast<unsigned>(std::clamp<std::int64_t>((args.entries + kThreads - 1) / kThreads, 1, 65535));
  // Later launches go on from what earlier ones wrote.
  std::int64_t next = 0;
  do {
    args.count = 0;
    if (next > 0) args.part[args.count++] = args.out;
    for (; next < a.count && args.count < kMostParts; ++next) args.part[args.count++] = moment_arrays(a.parts[next]);
    POPNORM_TRY(launch("combine", "combine", combine_kernel<void>, args, {blocks, 1, kThreads, 1, 0}, stream));
  } while (next < a.count);
  return POPNORM_SUCCESS;
}

popnorm_status finalize(const Plan& plan, const popnorm_finalize_args& a, void* stream) {
  const Problem& p = plan.problem;
  return with_arithmetic_type(p, [&](auto arithmetic) -> popnorm_status {
    using A = decltype(arithmetic);
    const Maps maps(p, {});
    FoldArgs<A> fold = fold_args<A>(p, maps, a.source);
    fold.of_row = moment_arrays(a.moments);
    fold.group_slot = a.group_slot;
    keep(p, a, fold);
    POPNORM_TRY(launch_fold("finalize", p, fold, stream));
    if (a.source.statistics == POPNORM_GIVEN || !updates(a.update)) return POPNORM_SUCCESS;
    return launch_feed("finalize", p, maps, a.update, fold.of_row, a.group_slot, stream);
  });
}

popnorm_status normalize(const Plan& plan, const popnorm_normalize_args& a, void* stream) {
  const Problem& p = plan.problem;
  return with_arithmetic_type(p, [&](auto arithmetic) -> popnorm_status {
    using A = decltype(arithmetic);
    const Maps maps(p, a.batch);
    POPNORM_TRY(check("normalize", p, a.batch, maps, {.reserve = a.reserve}, stream));
    const RowSource<A> source = row_source<A>(p, maps, a.reserve);
    return launch_normalize("normalize", p, a.x, a.y, fusion_of(p, a.residual, a.reserve), a.batch, source, false,
                            stream);
  });
}

}  // namespace popnorm::cuda
