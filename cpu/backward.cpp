// backward_reduce, backward_apply and backward.
#include "core/fp_environment.hpp"
#include "cpu/backward_stages.hpp"
#include "cpu/operations.hpp"

namespace popnorm::cpu {
namespace {

// Without a reserve, hi, lo, invstd and scale wait in rows of coefficients that are made of them, channel by channel.
template <class T>
Source<T> source_of(const Problem& p, const popnorm_backward_args& a, T* const* row) {
  if (a.reserve != nullptr) return reserved<T>(p, a.reserve);
  const FpEnvironment environment;
  T* const saved[4] = {row[0], row[3], row[1], row[2]};
  for (std::int64_t c = 0; c < p.c; ++c) {
    const double mean = read(a.saved_mean, p.statistics, c, 0);
    saved[0][c] = round_to<T>(mean);
    saved[1][c] = round_to<T>(mean - static_cast<double>(saved[0][c]));
    saved[2][c] = round_to<T>(read(a.saved_invstd, p.statistics, c, 0));
    saved[3][c] = round_to<T>(read(a.scale, p.parameters, c, 1));
  }
  Source<T> source{a.statistics, p.weight(), {}};
  source.of.hi = saved[0];
  source.of.lo = saved[1];
  source.of.invstd = saved[2];
  source.of.scale = saved[3];
  return source;
}

// The gradients of scale and shift: of all waves.
template <class T>
void deliver(const Problem& p, const BackwardSpace<T>& space, std::int64_t waves, void* dscale, void* dshift,
             bool accumulate) {
  const FpEnvironment environment;
  const auto to = [&](void* out, const double* sums) {
    if (out == nullptr) return;
    for (std::int64_t i = 0; i < p.affine_slot.count * p.c; ++i) {
      const double sum = waves > 0 ? sums[i] : 0;
      write(out, p.parameters, i, accumulate ? read(out, p.parameters, i, 0) + sum : sum);
    }
  };
  to(dshift, space.affine_dy);
  to(dscale, space.affine_dy_xhat);
}

}  // namespace

popnorm_status backward(const Plan& plan, const popnorm_backward_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = plan.problem;
    const popnorm_statistics statistics =
        a.reserve != nullptr ? static_cast<popnorm_statistics>(static_cast<const ReserveHeader*>(a.reserve)->statistics)
                             : a.statistics;
    const Rows& rows = rows_of(plan, statistics);
    Arena arena(a.workspace);
    const BackwardSpace<T> space(arena, p, rows);
    const Source<T> source = source_of<T>(p, a, space.row);
    const bool sums = a.dscale != nullptr || a.dshift != nullptr;
    const bool applies = a.dx != nullptr || a.dresidual != nullptr;
    const Wanted wanted{sums || (a.dx != nullptr && source.through()), applies, p.affine_slot.count > 1};
    const popnorm_status status =
        run_backward("backward", plan, a.batch, a.x, a.dy, a.dx, a.dresidual, space, source, wanted);
    if (status == POPNORM_SUCCESS) deliver(p, space, rows.waves(), a.dscale, a.dshift, a.accumulate != 0);
    return status;
  });
}

popnorm_status backward_reduce(const Plan& plan, const popnorm_backward_reduce_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = plan.problem;
    const Source<T> source = reserved<T>(p, a.reserve);
    const Rows& rows = rows_of(plan, source.statistics);
    Arena arena(a.workspace);
    const BackwardSpace<T> space(arena, p, rows);
    const Wanted wanted{true, false, p.affine_slot.count > 1, nullptr, nullptr, a.sum_dy, a.sum_dy_xhat};
    const popnorm_status status =
        run_backward("backward_reduce", plan, a.batch, a.x, a.dy, nullptr, nullptr, space, source, wanted);
    if (status == POPNORM_SUCCESS) deliver(p, space, rows.waves(), a.dscale, a.dshift, false);
    return status;
  });
}

popnorm_status backward_apply(const Plan& plan, const popnorm_backward_apply_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = plan.problem;
    const Source<T> source = reserved<T>(p, a.reserve);
    Arena arena(a.workspace);
    const BackwardSpace<T> space(arena, p, rows_of(plan, source.statistics));
    const Wanted wanted{false, true, p.affine_slot.count > 1, a.sum_dy, a.sum_dy_xhat};
    return run_backward("backward_apply", plan, a.batch, a.x, a.dy, a.dx, a.dresidual, space, source, wanted);
  });
}

}  // namespace popnorm::cpu
