// forward, moments, combine, finalize and normalize: which kernels run, on what.
#include <algorithm>

#include "core/error.hpp"
#include "gpu/call.hpp"
#include "gpu/operations.hpp"
#include "kernels/cuda/combine.cuh"
#include "kernels/cuda/feed.cuh"
#include "kernels/cuda/moments.cuh"

namespace popnorm::cuda {
namespace {

bool updates(const popnorm_update& u) {
  return u.running_mean != nullptr || u.running_variance != nullptr || u.population != nullptr;
}

// Scratch of a forward call.
template <class A>
struct ForwardSpace {
  MomentArrays of_tile;   // [groups * tiles][c]
  MomentArrays of_group;  // [groups][c]
  RowArrays<A> rows;      // [rows][c], without a reserve

  ForwardSpace(Arena& arena, const Problem& p) {
    const Groups groups = groups_of(p, p.norm_group);
    const auto take = [&](std::int64_t count) {
      return MomentArrays{arena.take<double>(count), arena.take<double>(count), arena.take<double>(count)};
    };
    of_tile = take(slots_of(groups, tiles_of(p, groups)) * p.c);
    of_group = take(groups.count * p.c);
    const std::int64_t entries = std::max(p.norm_group.count, p.population_slot.count) * p.c;
    rows.hi = arena.take<A>(entries);
    rows.lo = arena.take<A>(entries);
    rows.invstd = arena.take<A>(entries);
  }
};

MomentArrays moment_arrays(const popnorm_moment_arrays& m) { return {m.weight, m.mean, m.m2}; }

popnorm_status launch_moments(const char* operation, const Problem& p, const void* x, const MomentArrays& of_tile,
                              void* stream) {
  const Groups groups = groups_of(p, p.norm_group);
  const Tiles tiles = tiles_of(p, groups);
  const MomentsArgs args{extents_of(p), operand(p, x, p.x), groups, tiles, of_tile.weight, of_tile.mean, of_tile.m2};
  const Grid grid = grid_of<TwoSums>(p, block_of(p), slots_of(groups, tiles));
  return p.storage == POPNORM_F64 ? launch(operation, "moments", moments_kernel<double>, args, grid, stream)
                                  : launch(operation, "moments", moments_kernel<float>, args, grid, stream);
}

template <class A>
FoldArgs<A> fold_args(const Problem& p, const popnorm_source& source) {
  FoldArgs<A> args;
  args.extents = extents_of(p);
  args.rows = groups_of(p, p.row_map(source.statistics));
  args.slots = groups_of(p, p.population_slot);
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
  return launch(operation, "fold", fold_kernel<A>, args,
                grid_of<Moments>(p, block_of(p), std::max<std::int64_t>(rows, 1)), stream);
}

popnorm_status launch_feed(const char* operation, const Problem& p, const popnorm_update& u,
                           const MomentArrays& of_group, const std::int32_t* group_slot, void* stream) {
  FeedArgs args;
  args.c = p.c;
  args.groups = groups_of(p, p.norm_group);
  args.slots = groups_of(p, p.population_slot);
  args.group_slot = group_slot;
  args.of_group = of_group;
  args.momentum = u.momentum;
  args.running_mean = results(u.running_mean, p.statistics);
  args.running_variance = results(u.running_variance, p.statistics);
  args.population = static_cast<popnorm_population_header*>(u.population);
  args.feed = u.feed;
  return launch(operation, "feed", feed_kernel<void>, args, {1, 1, 1, kThreads, kThreads * sizeof(double)}, stream);
}

template <class A>
popnorm_status launch_normalize(const char* operation, const Problem& p, const NormalizeArgs<A>& args, void* stream) {
  const Block block = block_of(p);
  return launch(operation, "normalize", normalize_kernel<A, A>, args,
                grid_of<double>(p, block, chunks_of(args.extents, block.y)), stream);
}

}  // namespace

bool grid_holds(const Problem& p) { return channel_blocks(p, block_of(p)) <= kMostChannelBlocks; }

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
    FoldArgs<A> fold = fold_args<A>(p, a.source);
    fold.out = space.rows;
    keep(p, a, fold);
    const bool reduces = a.source.statistics != POPNORM_GIVEN;
    const bool feeds = reduces && updates(a.update);
    if (reduces) {
      POPNORM_TRY(launch_moments("forward", p, a.x, space.of_tile, stream));
      fold.from_tiles = true;
      fold.tiles = tiles_of(p, fold.rows);
      fold.of_tile = space.of_tile;
      if (a.moments.weight != nullptr)
        fold.of_row = moment_arrays(a.moments);
      else if (feeds)
        fold.of_row = space.of_group;
    }
    POPNORM_TRY(launch_fold("forward", p, fold, stream));
    if (feeds) POPNORM_TRY(launch_feed("forward", p, a.update, fold.of_row, nullptr, stream));
    NormalizeArgs<A> args;
    args.extents = extents_of(p);
    args.x = operand(p, a.x, p.x);
    args.y = operand(p, a.y, p.y);
    args.source = row_source<A>(p, nullptr);
    args.source.statistics = a.source.statistics;
    args.source.own = fold.out;
    args.source.scale = values(a.scale, p.parameters);
    args.source.shift = values(a.shift, p.parameters);
    return launch_normalize("forward", p, args, stream);
  });
}

popnorm_status moments(const Plan& plan, const popnorm_moments_args& a, void* stream) {
  const Problem& p = plan.problem;
  Arena arena(a.workspace);
  const ForwardSpace<float> space(arena, p);  // moments are double, whatever the storage
  POPNORM_TRY(launch_moments("moments", p, a.x, space.of_tile, stream));
  FoldArgs<float> fold = fold_args<float>(p, {});
  fold.from_tiles = true;
  fold.tiles = tiles_of(p, fold.rows);
  fold.of_tile = space.of_tile;
  fold.of_row = a.moments.weight != nullptr ? moment_arrays(a.moments) : space.of_group;
  POPNORM_TRY(launch_fold("moments", p, fold, stream));
  return updates(a.update) ? launch_feed("moments", p, a.update, fold.of_row, nullptr, stream) : POPNORM_SUCCESS;
}

popnorm_status combine_parts(const Plan& plan, const popnorm_combine_args& a, void* stream) {
  const Problem& p = plan.problem;
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
    for (; next < a.count && args.count < kMostParts; ++next) {
      if (next >= kMostParts && a.parts[next].weight == a.moments.weight)
        return fail(POPNORM_UNSUPPORTED, "combine: moments is part %lld, must be one of the first %lld on backend cuda",
                    static_cast<long long>(next), static_cast<long long>(kMostParts));
      args.part[args.count++] = moment_arrays(a.parts[next]);
    }
    POPNORM_TRY(launch("combine", "combine", combine_kernel<void>, args, {blocks, 1, kThreads, 1, 0}, stream));
  } while (next < a.count);
  return POPNORM_SUCCESS;
}

popnorm_status finalize(const Plan& plan, const popnorm_finalize_args& a, void* stream) {
  const Problem& p = plan.problem;
  return with_arithmetic_type(p, [&](auto arithmetic) -> popnorm_status {
    using A = decltype(arithmetic);
    FoldArgs<A> fold = fold_args<A>(p, a.source);
    fold.of_row = moment_arrays(a.moments);
    fold.group_slot = a.group_slot;
    keep(p, a, fold);
    POPNORM_TRY(launch_fold("finalize", p, fold, stream));
    if (a.source.statistics == POPNORM_GIVEN || !updates(a.update)) return POPNORM_SUCCESS;
    return launch_feed("finalize", p, a.update, fold.of_row, a.group_slot, stream);
  });
}

popnorm_status normalize(const Plan& plan, const popnorm_normalize_args& a, void* stream) {
  const Problem& p = plan.problem;
  return with_arithmetic_type(p, [&](auto arithmetic) -> popnorm_status {
    using A = decltype(arithmetic);
    NormalizeArgs<A> args;
    args.extents = extents_of(p);
    args.x = operand(p, a.x, p.x);
    args.y = operand(p, a.y, p.y);
    args.source = row_source<A>(p, a.reserve);
    return launch_normalize("normalize", p, args, stream);
  });
}

}  // namespace popnorm::cuda
