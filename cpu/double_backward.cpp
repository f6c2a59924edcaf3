// The gradient of backward, composed of its operations: sums over (x, dy), (x, v) and (v, dy), then one sweep for grad_dy and two
// for grad_x. popnorm.h has the formulas.
#include "core/fp_environment.hpp"
#include "cpu/backward_stages.hpp"
#include "cpu/operations.hpp"

namespace popnorm::cpu {
namespace {

// Beside the space of backward: sums [rows][c], and rows that make a kernel read its first input as it is.
template <class T>
struct DoubleSpace {
  double* dy;
  double* dy_xhat;
  double* v;
  double* v_xhat;
  double* dy_again;
  double* dy_v;
  T* zero;
  T* one;

  DoubleSpace(Arena& arena, const Problem& p, const Rows& rows) {
    const std::int64_t entries = rows.map.count * p.c;
    for (double** piece : {&dy, &dy_xhat, &v, &v_xhat, &dy_again, &dy_v}) *piece = arena.take<double>(entries);
    zero = arena.take<T>(entries);
    one = arena.take<T>(entries);
  }
};

template <class T>
struct KernelRow {
  T hi;
  T invstd;
  T a;
  T k1;
  T k2;
};

// dx = (a*dy - k1) - ((x - hi)*invstd)*k2 with rows that coefficients(cell, c) gives.
template <class T, class Coefficients>
struct Sweep : Backward<T> {
  const Coefficients& coefficients;

  static void fold(void* context, Channels channels) {
    const Sweep& b = *static_cast<const Sweep*>(context);
    for (std::int64_t cell = 0; cell < b.cells().count(); ++cell)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        const KernelRow<T> row = b.coefficients(b.samples, cell, c);
        const std::int64_t i = cell * b.plan.problem.c + c;
        b.space.row[0][i] = row.hi;
        b.space.row[1][i] = row.invstd;
        b.space.row[2][i] = row.a;
        b.space.row[3][i] = row.k1;
        b.space.row[4][i] = row.k2;
      }
  }
};

struct Tensor {
  const void* first;
  Strides strides;
};

// The plan with other strides for the tensors of backward.
Plan with_strides(const Plan& plan, const Strides& x, const Strides& dy, const Strides& dx) {
  Plan other = plan;
  other.problem.x = x;
  other.problem.dy = dy;
  other.problem.dx = dx;
  return other;
}

template <class T, class Coefficients>
popnorm_status sweep(const Plan& original, const popnorm_batch& batch, const Tensor& x, const Tensor& dy, void* dx,
                     const Strides& dx_strides, const BackwardSpace<T>& space, const Source<T>& source,
                     const Coefficients& coefficients) {
  const Plan plan = with_strides(original, x.strides, dy.strides, dx_strides);
  const Rows& rows = rows_of(plan, source.statistics);
  // Sweeps read x, if there is one, whatever the statistics.
  Source<T> both = source;
  both.statistics = x.first != nullptr ? POPNORM_BATCH : POPNORM_GIVEN;
  for (std::int64_t i = 0; i < rows.waves(); ++i) {
    const Wave wave = rows.wave(plan.problem, i);
    const Samples samples(plan, batch, source.statistics, wave, space.cells);
    const Partition none;
    Sweep<T, Coefficients> s{
        {plan, *state_of(plan).kernels, x.first, dy.first, dx, nullptr, space, both, samples, none}, coefficients};
    const Placement at = place(plan, wave, 0, {2, false, true}, 0);
    s.stores = at.blocking.stores;
    const Stages stages{&s, 0, nullptr, Sweep<T, Coefficients>::fold, Backward<T>::apply};
    if (const popnorm_status status = run("double_backward", plan, at, stages); status != POPNORM_SUCCESS)
      return status;
  }
  return POPNORM_SUCCESS;
}

template <class T>
popnorm_status sums(const Plan& original, const popnorm_batch& batch, const Tensor& x, const Tensor& dy,
                    const BackwardSpace<T>& space, const Source<T>& source, double* out_dy, double* out_product) {
  const Plan plan = with_strides(original, x.strides, dy.strides, original.problem.dx);
  const Wanted wanted{true, false, false, nullptr, nullptr, out_dy, out_product};
  return run_backward("double_backward", plan, batch, x.first, dy.first, nullptr, nullptr, space, source, wanted);
}

template <class T>
popnorm_status run_double(const Plan& plan, const popnorm_double_backward_args& a) {
  const Problem& p = plan.problem;
  const Source<T> source = reserved<T>(p, a.reserve);
  const Rows& rows = rows_of(plan, source.statistics);
  Arena arena(a.workspace);
  const BackwardSpace<T> space(arena, p, rows);
  const DoubleSpace<T> own(arena, p, rows);
  const Tensor x{a.x, p.x};
  const Tensor dy{a.dy, p.dy};
  const Tensor v{a.v, p.dx};
  const std::int64_t entries = rows.map.count * p.c;
  for (double* piece : {own.dy, own.dy_xhat, own.v, own.v_xhat, own.dy_again, own.dy_v})
    std::fill(piece, piece + entries, 0.0);
  std::fill(own.zero, own.zero + entries, T(0));
  std::fill(own.one, own.one + entries, T(1));

  // The sums over (v, dy) are taken of v itself; with given statistics times invstd, which makes those of affine slots grad_scale.
  Source<T> as_it_is = source;
  as_it_is.of.hi = as_it_is.of.lo = own.zero;
  if (source.through()) as_it_is.of.invstd = own.one;
  popnorm_status status = POPNORM_SUCCESS;
  const auto then = [&](auto&& step) {
    if (status == POPNORM_SUCCESS) status = step();
  };
  const bool through = source.through();
  if (through) then([&] { return sums(plan, a.batch, x, dy, space, source, own.dy, own.dy_xhat); });
  if (through && a.v != nullptr) then([&] { return sums(plan, a.batch, x, v, space, source, own.v, own.v_xhat); });
  if (a.v != nullptr) then([&] { return sums(plan, a.batch, v, dy, space, as_it_is, own.dy_again, own.dy_v); });

  // Of a cell's row and affine slot, everything that coefficients are made of; means are 0 with given statistics.
  struct Terms {
    double scale, invstd, lo, v_scale, v_shift;
    double dy, dy_xhat, v, v_xhat, dy_v;  // means m1, p, mean(v), q, mean(v*dy)
  };
  const auto terms = [&](const Samples& samples, std::int64_t cell, std::int64_t c) {
    const std::int64_t row = (samples.wave().row0 + samples.cells().row(cell)) * p.c + c;
    const std::int64_t affine = samples.cells().affine(cell) * p.c + c;
    const double weight = source.weight_of(row);
    const auto mean = [&](const double* sum) { return through && weight > 0 ? sum[row] / weight : 0; };
    return Terms{static_cast<double>(source.of.scale[affine]),
                 static_cast<double>(source.of.invstd[row]),
                 static_cast<double>(source.of.lo[row]),
                 read(a.v_scale, p.parameters, affine, 0),
                 read(a.v_shift, p.parameters, affine, 0),
                 mean(own.dy),
                 mean(own.dy_xhat),
                 mean(own.v),
                 mean(own.v_xhat),
                 mean(own.dy_v)};
  };
  const auto hi_of = [&](const Samples& samples, std::int64_t cell, std::int64_t c) {
    return source.of.hi[(samples.wave().row0 + samples.cells().row(cell)) * p.c + c];
  };
  // a*v - k1 - xhat*k2, with the low part of the mean folded into k1.
  const auto kernel_row = [&](const Terms& t, T hi, double gain, double k1, double k2) {
    return KernelRow<T>{hi, round_to<T>(t.invstd), round_to<T>(gain), round_to<T>(k1 - t.lo * t.invstd * k2),
                        round_to<T>(k2)};
  };
  // Without v its place is taken by x, with a gain of 0.
  const Tensor& first = a.v != nullptr ? v : x;
  const double with_v = a.v != nullptr ? 1 : 0;

  if (a.grad_dy != nullptr)
    then([&] {
      return sweep(plan, a.batch, x, first, a.grad_dy, p.dx, space, source,
                   [&](const Samples& samples, std::int64_t cell, std::int64_t c) {
                     const Terms t = terms(samples, cell, c);
                     const double gain = t.scale * t.invstd;
                     return kernel_row(t, hi_of(samples, cell, c), with_v * gain, gain * t.v - t.v_shift,
                                       gain * t.v_xhat - t.v_scale);
                   });
    });
  if (!through)
    then([&] {
      return sweep(plan, a.batch, Tensor{nullptr, p.dy}, dy, a.grad_x, p.y, space, source,
                   [&](const Samples& samples, std::int64_t cell, std::int64_t c) {
                     const Terms t = terms(samples, cell, c);
                     return KernelRow<T>{T(0), T(0), round_to<T>(t.v_scale * t.invstd), T(0), T(0)};
                   });
    });
  if (through)
    then([&] {
      return sweep(plan, a.batch, x, first, a.grad_x, p.y, space, source,
                   [&](const Samples& samples, std::int64_t cell, std::int64_t c) {
                     const Terms t = terms(samples, cell, c);
                     const double g2 = t.scale * t.invstd * t.invstd;
                     const double gv = t.v_scale * t.invstd;
                     const double k1 = -g2 * (t.dy_xhat * t.v + t.v_xhat * t.dy) + gv * t.dy;
                     const double k2 = g2 * (t.dy_v - t.v * t.dy - 3 * t.v_xhat * t.dy_xhat) + gv * t.dy_xhat;
                     return kernel_row(t, hi_of(samples, cell, c), with_v * -g2 * t.dy_xhat, k1, k2);
                   });
    });
  // grad_x + a*dy.
  if (through)
    then([&] {
      return sweep(plan, a.batch, Tensor{a.grad_x, p.y}, dy, a.grad_x, p.y, space, source,
                   [&](const Samples& samples, std::int64_t cell, std::int64_t c) {
                     const Terms t = terms(samples, cell, c);
                     const double gain = t.v_scale * t.invstd - t.scale * t.invstd * t.invstd * t.v_xhat;
                     return KernelRow<T>{T(0), T(1), round_to<T>(gain), T(0), T(-1)};
                   });
    });
  if (status != POPNORM_SUCCESS || a.grad_scale == nullptr) return status;

  const FpEnvironment environment;
  double* const grad_scale = space.affine_dy_xhat;
  if (through || a.v == nullptr || rows.waves() == 0)
    std::fill(grad_scale, grad_scale + p.affine_slot.count * p.c, 0.0);
  for (std::int64_t i = 0; through && i < rows.waves(); ++i) {
    const Samples samples(plan, a.batch, source.statistics, rows.wave(p, i), space.cells);
    const Cells& cells = samples.cells();
    for (std::int64_t cell = 0; cell < cells.count(); ++cell) {
      // A row has one scale: among the cells of a whole batch only that of its samples counts.
      if (rows.map.kind == POPNORM_WHOLE && p.n > 0 && cell != cells.of(0)) continue;
      for (std::int64_t c = 0; c < p.c; ++c) {
        const Terms t = terms(samples, cell, c);
        const std::int64_t row = (samples.wave().row0 + cells.row(cell)) * p.c + c;
        const double through_statistics = source.weight_of(row) * (t.v * t.dy + t.v_xhat * t.dy_xhat);
        grad_scale[cells.affine(cell) * p.c + c] += t.invstd * (own.dy_v[row] - through_statistics);
      }
    }
  }
  for (std::int64_t i = 0; i < p.affine_slot.count * p.c; ++i) write(a.grad_scale, p.parameters, i, grad_scale[i]);
  return POPNORM_SUCCESS;
}

template <class T>
std::size_t bytes_of(const Problem& p, const Rows& rows) {
  Arena arena(nullptr);
  const BackwardSpace<T> space(arena, p, rows);
  const DoubleSpace<T> own(arena, p, rows);
  return arena.used();
}

}  // namespace

popnorm_status double_backward(const Plan& plan, const popnorm_double_backward_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) { return run_double<decltype(arithmetic)>(plan, a); });
}

std::size_t double_backward_bytes(const Problem& p, const Rows& by_group, const Rows& by_slot) {
  return p.storage == POPNORM_F64 ? std::max(bytes_of<double>(p, by_group), bytes_of<double>(p, by_slot))
                                  : std::max(bytes_of<float>(p, by_group), bytes_of<float>(p, by_slot));
}

}  // namespace popnorm::cpu
