// backward, backward_reduce and backward_apply: which kernels run, on what.
#include <algorithm>

#include "gpu/call.hpp"
#include "gpu/operations.hpp"
#include "gpu/resident.hpp"
#include "kernels/cuda/backward_apply.cuh"
#include "kernels/cuda/backward_reduce.cuh"

namespace popnorm::cuda {
namespace {

// As many tiles as the samples have, whatever they are classed by.
std::int64_t most_tiles(const Problem& p) {
  std::int64_t most = 0;
  for (const Map* map : {&p.norm_group, &p.population_slot, &p.affine_slot})
    most = std::max(most, tiles_of(p, groups_of(p, *map, nullptr)).count);
  return most;
}

// Scratch of a backward call.
template <class A>
struct BackwardSpace {
  double* dy_of_tile;
  double* dy_xhat_of_tile;
  double* dy_of_class;  // [rows or affine slots][c]
  double* dy_xhat_of_class;
  A* k1;  // [rows][c]
  A* k2;
  RowArrays<A> saved;  // [c], where there is no reserve
  OrderSpace groups, slots, affine;
  SortSpace sort;

  BackwardSpace(Arena& arena, const Problem& p)
      : dy_of_tile(arena.take<double>(most_tiles(p) * p.c)),
        dy_xhat_of_tile(arena.take<double>(most_tiles(p) * p.c)),
        dy_of_class(arena.take<double>(std::max(most_rows(p), p.affine_slot.count) * p.c)),
        dy_xhat_of_class(arena.take<double>(std::max(most_rows(p), p.affine_slot.count) * p.c)),
        k1(arena.take<A>(most_rows(p) * p.c)),
        k2(arena.take<A>(most_rows(p) * p.c)),
        saved(take_saved(arena, p.plain() ? p.c : 0)),
        groups(arena, p, p.norm_group),
        slots(arena, p, p.population_slot),
        affine(arena, p, p.affine_slot),
        sort(arena, p) {}

 private:
  static RowArrays<A> take_saved(Arena& arena, std::int64_t c) {
    RowArrays<A> saved;
    saved.weight = arena.take<double>(c);
    for (A** piece : {&saved.hi, &saved.lo, &saved.invstd, &saved.d, &saved.r2}) *piece = arena.take<A>(c);
    return saved;
  }
};

// One of the three operations, or a part of it.
template <class A>
struct Call {
  const char* operation;
  const Problem& p;
  const popnorm_batch& batch;
  const void* reserve;
  BackwardSpace<A> space;
  RowSource<A> source;
  int ahead;  // Policy::ahead
  void* stream;

  // With several affine slots a row's sums are those of scale*dy, and dscale and dshift need sums of their own.
  bool scaled() const { return p.affine_slot.count > 1; }
  AffineGradients affine_gradients(void* dscale, void* dshift, bool accumulate) const {
    return {results(dscale, p.parameters), results(dshift, p.parameters), accumulate};
  }
  ClassTiles tiles() const {
    return {tiles_of(p, source.groups), tiles_of(p, source.slots), tiles_of(p, source.affine)};
  }

  // Which of groups and slots have the rows is written in the reserve: both are ordered.
  popnorm_status order_rows() {
    POPNORM_TRY(order(operation, source.groups, space.groups, space.sort, stream));
    return order(operation, source.slots, space.slots, space.sort, stream);
  }
  popnorm_status order_affine() { return order(operation, source.affine, space.affine, space.sort, stream); }

  BackwardReduceArgs<A> reduce_args(const void* x, const void* dy, Classes classes, bool for_dx_alone) const {
    BackwardReduceArgs<A> args;
    args.extents = extents_of(p);
    args.x = operand(p, x, p.x);
    args.dy = operand(p, dy, p.dy);
    args.fusion = fusion_of(p, reserve);
    args.source = source;
    args.classes = classes;
    args.scaled = scaled() && classes == Classes::rows;
    args.for_dx_alone = for_dx_alone;
    args.weights = weights_of(p, batch);
    args.tiles = tiles();
    args.dy_of_tile = space.dy_of_tile;
    args.dy_xhat_of_tile = space.dy_xhat_of_tile;
    args.ahead = ahead;
    return args;
  }

  popnorm_status reduce(const void* x, const void* dy, Classes classes, bool for_dx_alone) const {
    const BackwardReduceArgs<A> args = reduce_args(x, dy, classes, for_dx_alone);
    const bool activated = p.activation != POPNORM_IDENTITY;
    const Reach reach = reach_of(p, {args.x, args.dy});
    return with_weights<A>(p, reach, is_weighted(p), activated, [&](auto type, auto access, auto weighs, auto fused) {
      return launch(operation, "backward_reduce",
                    backward_reduce_kernel<decltype(type), access.value, weighs.value, fused.value>, args,
                    ahead_grid_of(p, most_tiles(p), Direction::backward, ahead), stream);
    });
  }

  // Of tiles, or given; into class sums, coefficients of dx, or both.
  FoldSumsArgs<A> fold_args(Classes classes, bool of_tiles, double* dy_of_class, double* dy_xhat_of_class,
                            bool gradient, const AffineGradients& affine) const {
    FoldSumsArgs<A> args;
    args.extents = extents_of(p);
    args.source = source;
    args.classes = classes;
    args.columns = fold_columns(p);
    args.of_tiles = of_tiles;
    args.tiles = tiles();
    args.dy_of_tile = space.dy_of_tile;
    args.dy_xhat_of_tile = space.dy_xhat_of_tile;
    args.dy_of_class = dy_of_class;
    args.dy_xhat_of_class = dy_xhat_of_class;
    args.scaled = scaled();
    if (gradient) {
      args.k1 = space.k1;
      args.k2 = space.k2;
    }
    args.affine = affine;
    return args;
  }

  popnorm_status fold(Classes classes, bool of_tiles, double* dy_of_class, double* dy_xhat_of_class, bool gradient,
                      const AffineGradients& affine = {}) const {
    const FoldSumsArgs<A> args = fold_args(classes, of_tiles, dy_of_class, dy_xhat_of_class, gradient, affine);
    return launch(operation, "fold_sums", fold_sums_kernel<A>, args,
                  fold_grid_of(p, std::max(most_rows(p), p.affine_slot.count)), stream);
  }

  popnorm_status deliver(Classes classes, const double* dy_of_class, const double* dy_xhat_of_class,
                         const AffineGradients& affine) const {
    DeliverArgs<A> args;
    args.source = source;
    args.classes = classes;
    args.dy_of_class = dy_of_class;
    args.dy_xhat_of_class = dy_xhat_of_class;
    args.affine = affine;
    return launch(operation, "deliver", deliver_kernel<A>, args, line_of(p.c, p.affine_slot.count), stream);
  }

  popnorm_status apply(const void* x, const void* dy, void* dx, void* dresidual, bool follows) const {
    BackwardApplyArgs<A> args;
    args.extents = extents_of(p);
    args.x = operand(p, x, p.x);
    args.dy = operand(p, dy, p.dy);
    args.dx = operand(p, dx, p.dx);
    args.dresidual = operand(p, dresidual, p.dresidual);
    args.fusion = fusion_of(p, reserve);
    args.weights = weights_of(p, batch);
    args.source = source;
    args.k1 = space.k1;
    args.k2 = space.k2;
    args.stretch = stretch_of(p);
    args.follows = follows;
    const Reach reach = reach_of(p, {args.x, args.dy, args.dx, args.dresidual});
    return with_weights<A>(p, reach, is_weighted(p), p.fused(), [&](auto type, auto access, auto weighs, auto fused) {
      return launch(operation, "backward_apply",
                    backward_apply_kernel<decltype(type), access.value, weighs.value, fused.value>, args,
                    stretch_grid_of(p), stream);
    });
  }

  // Sums, dx, and dscale and dshift where wanted, by one read.
  popnorm_status resident(const void* x, const void* dy, void* dx, void* dresidual, const AffineGradients& affine,
                          const Policy& policy) const {
    const ResidentBackwardArgs<A> args{reduce_args(x, dy, Classes::rows, false),
                                       fold_args(Classes::rows, true, space.dy_of_class, space.dy_xhat_of_class, false,
                                                 fold_delivers(p) ? affine : AffineGradients{}),
                                       operand(p, dx, p.dx), operand(p, dresidual, p.dresidual), crew_of(p, policy)};
    POPNORM_TRY(launch_resident(p, args, policy, stream));
    if (!affine.any() || fold_delivers(p)) return POPNORM_SUCCESS;
    return deliver(Classes::rows, space.dy_of_class, space.dy_xhat_of_class, affine);
  }

  // Sums of rows, into sum_dy and sum_dy_xhat; dscale and dshift where wanted.
  popnorm_status sums(const void* x, const void* dy, double* sum_dy, double* sum_dy_xhat, const AffineGradients& affine,
                      bool gradient) {
    const bool all = affine.any();
    POPNORM_TRY(order_rows());
    POPNORM_TRY(reduce(x, dy, Classes::rows, gradient && !all));
    POPNORM_TRY(
        fold(Classes::rows, true, sum_dy, sum_dy_xhat, gradient, fold_delivers(p) ? affine : AffineGradients{}));
    if (!all || fold_delivers(p)) return POPNORM_SUCCESS;
    if (!scaled()) return deliver(Classes::rows, sum_dy, sum_dy_xhat, affine);
    POPNORM_TRY(order_affine());
    POPNORM_TRY(reduce(x, dy, Classes::affine, false));
    POPNORM_TRY(fold(Classes::affine, true, space.dy_of_class, space.dy_xhat_of_class, false));
    return deliver(Classes::affine, space.dy_of_class, space.dy_xhat_of_class, affine);
  }
};

template <class A>
popnorm_status launch_saved(const Problem& p, const popnorm_backward_args& a, const RowArrays<A>& out, void* stream) {
  SavedArgs<A> args;
  args.c = p.c;
  args.weight = a.statistics == POPNORM_GIVEN ? 0 : p.weight();
  args.mean = values(a.saved_mean, p.statistics);
  args.invstd = values(a.saved_invstd, p.statistics);
  args.out = out;
  return launch("backward", "saved", saved_kernel<A>, args, line_of(p.c), stream);
}

template <class Args, class Body>
popnorm_status with_call(const char* operation, const Plan& plan, const Args& a, void* stream, const Body& body) {
  return with_arithmetic_type(plan.problem, [&](auto arithmetic) -> popnorm_status {
    using A = decltype(arithmetic);
    const Problem& p = plan.problem;
    Arena arena(a.workspace);
    const Maps maps(p, a.batch);
    POPNORM_TRY(check(operation, p, a.batch, maps, {.reserve = a.reserve}, stream));
    return body(Call<A>{operation, p, a.batch, a.reserve, BackwardSpace<A>(arena, p), row_source<A>(p, maps, a.reserve),
                        policy_of(plan, Direction::backward).ahead, stream});
  });
}

}  // namespace

std::size_t backward_bytes(const Problem& p) {
  Arena arena(nullptr);
  if (p.storage == POPNORM_F64)
    BackwardSpace<double>(arena, p);
  else
    BackwardSpace<float>(arena, p);
  return arena.used();
}

popnorm_status backward(const Plan& plan, const popnorm_backward_args& a, void* stream) {
  return with_call("backward", plan, a, stream, [&](auto call) -> popnorm_status {
    if (a.reserve == nullptr) {
      POPNORM_TRY(launch_saved(call.p, a, call.space.saved, stream));
      call.source.statistics = a.statistics;
      call.source.own = call.space.saved;
      call.source.scale = values(a.scale, call.p.parameters);
    }
    const Policy& policy = policy_of(plan, Direction::backward);
    const AffineGradients affine = call.affine_gradients(a.dscale, a.dshift, a.accumulate != 0);
    const Problem& p = call.p;
    if (a.dx != nullptr && policy.path != Path::plain &&
        is_kept(policy, p,
                {operand(p, a.x, p.x), operand(p, a.dy, p.dy), operand(p, a.dx, p.dx),
                 operand(p, a.dresidual, p.dresidual)}))
      return call.resident(a.x, a.dy, a.dx, a.dresidual, affine, policy);
    const bool sums = a.dx != nullptr || affine.any();
    if (sums)
      POPNORM_TRY(call.sums(a.x, a.dy, call.space.dy_of_class, call.space.dy_xhat_of_class, affine, a.dx != nullptr));
    const bool applies = a.dx != nullptr || a.dresidual != nullptr;
    return applies ? call.apply(a.x, a.dy, a.dx, a.dresidual, sums) : POPNORM_SUCCESS;
  });
}

popnorm_status backward_reduce(const Plan& plan, const popnorm_backward_reduce_args& a, void* stream) {
  return with_call("backward_reduce", plan, a, stream, [&](auto call) {
    return call.sums(a.x, a.dy, a.sum_dy, a.sum_dy_xhat, call.affine_gradients(a.dscale, a.dshift, false), false);
  });
}

popnorm_status backward_apply(const Plan& plan, const popnorm_backward_apply_args& a, void* stream) {
  return with_call("backward_apply", plan, a, stream, [&](const auto& call) -> popnorm_status {
    if (a.dx != nullptr)
      POPNORM_TRY(
          call.fold(Classes::rows, false, const_cast<double*>(a.sum_dy), const_cast<double*>(a.sum_dy_xhat), true));
    return call.apply(a.x, a.dy, a.dx, a.dresidual, a.dx != nullptr);
  });
}

}  // namespace popnorm::cuda
