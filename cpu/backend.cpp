#include "cpu/backend.hpp"

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "core/error.hpp"
#include "core/fp_environment.hpp"
#include "core/log.hpp"
#include "core/population.hpp"
#include "core/reserve.hpp"
#include "cpu/blocking.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/executor.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/schedule.hpp"
#include "kernels/affine.hpp"
#include "kernels/moments.hpp"

namespace popnorm::cpu {
namespace {

// ---------------------------------------------------------------------------------------------------------------- the
// plan

struct State {
  const Kernels* kernels;
  Executor executor;  // parallel_for null: oneTBB
};
static_assert(sizeof(State) <= sizeof(Plan::state) && std::is_trivially_destructible_v<State>);

const State& state_of(const Plan& plan) { return *std::launder(reinterpret_cast<const State*>(plan.state)); }

// double first[tiles][c], second[tiles][c] | T rows[5][c]
template <class T>
struct Workspace {
  double* first = nullptr;
  double* second = nullptr;
  T* row[5] = {};

  static std::int64_t slots(const Plan& plan) {
    return std::max<std::int64_t>(plan.tiling.tiles(), 1) * plan.problem.c;
  }
  static std::size_t bytes(const Plan& plan) {
    return round_up(static_cast<std::size_t>(slots(plan)) * 2 * sizeof(double) +
                    static_cast<std::size_t>(plan.problem.c) * 5 * sizeof(T));
  }
  Workspace(const Plan& plan, void* memory) : first(static_cast<double*>(memory)), second(first + slots(plan)) {
    row[0] = reinterpret_cast<T*>(second + slots(plan));
    for (int r = 1; r < 5; ++r) row[r] = row[r - 1] + plan.problem.c;
  }
};

popnorm_status prepare(Plan& plan, const char* isa, const popnorm_executor* executor) {
  const KernelTable* table = nullptr;
  if (const popnorm_status status = choose_tier(isa, table); status != POPNORM_SUCCESS) return status;
  const Problem& p = plan.problem;
  const bool wide = p.storage == POPNORM_F64;
  State state{&table->kernels[static_cast<int>(p.form)][static_cast<int>(wide ? Storage::f64 : Storage::f32)],
              Executor{nullptr, 0, nullptr}};
  if (executor != nullptr) state.executor = {executor->context, executor->concurrency, executor->parallel_for};
  new (plan.state) State(state);
  plan.isa = table->isa;
  plan.workspace_bytes = wide ? Workspace<double>::bytes(plan) : Workspace<float>::bytes(plan);
  if (log_dispatch())
    log_choice("cpu %s chosen: %s form, %lld tiles", table->isa, p.form == Form::rows ? "rows" : "columns",
               static_cast<long long>(plan.tiling.tiles()));
  return POPNORM_SUCCESS;
}

// Calls body with a value of the problem's arithmetic type.
template <class Body>
popnorm_status with_arithmetic_type(const Plan& plan, Body&& body) {
  return plan.problem.storage == POPNORM_F64 ? body(double{}) : body(float{});
}

popnorm_status run(const char* operation, const Plan& plan, const Stages& stages, const Executor& executor,
                   const Blocking& blocking) {
  return run_stages(operation, stages, blocking, plan.tiling, plan.problem.c, executor);
}

struct Placement {
  Executor executor;
  Blocking blocking;
};

Placement place(const Plan& plan, const Work& work) {
  const State& state = state_of(plan);
  const Executor executor = state.executor.parallel_for != nullptr ? state.executor : tbb_executor();
  return {executor, choose_blocking(plan.problem, plan.tiling, work, this_machine(), executor.concurrency,
                                    plan.schedule, plan.stores)};
}

// ----------------------------------------------------------------------------------------------------------------
// memory

// Where a box of a tensor begins, from channel c on.
std::int64_t offset_of(const Problem& p, const Strides& strides, const Tile& box, std::int64_t c) {
  const std::int64_t in_sample = p.form == Form::rows ? c * strides.row + box.s0 : box.s0 * strides.row + c;
  return box.n0 * strides.sample + in_sample;
}

// The part of a tensor that a box and a channel range cover. `next`: the box read afterwards, from channel next_c on.
template <class T>
Input input_of(const Problem& p, const void* tensor, const Strides& strides, const Tile& box, Channels c,
               const Tile& next, std::int64_t next_c) {
  const T* first = static_cast<const T*>(tensor);
  return {first + offset_of(p, strides, box, c.begin), strides.sample, strides.row,
          first + offset_of(p, strides, next, next_c)};
}
template <class T>
Output output_of(const Problem& p, void* tensor, const Strides& strides, const Tile& box, Channels c) {
  return {static_cast<T*>(tensor) + offset_of(p, strides, box, c.begin), strides.sample, strides.row};
}

Block block_of(const Tile& tile, Channels c) {
  return {tile.n1 - tile.n0, tile.s1 - tile.s0, c.end - c.begin, nullptr};
}

double read(const void* array, popnorm_type type, std::int64_t i, double absent) {
  if (array == nullptr) return absent;
  return type == POPNORM_F64 ? static_cast<const double*>(array)[i]
                             : static_cast<double>(static_cast<const float*>(array)[i]);
}

void write(void* array, popnorm_type type, std::int64_t i, double value) {
  if (type == POPNORM_F64)
    static_cast<double*>(array)[i] = value;
  else
    static_cast<float*>(array)[i] = static_cast<float>(value);
}

// ----------------------------------------------------------------------------------------------------------------
// statistics

// The batch's moments of each channel: a weight for all channels, or one each.
struct BatchMoments {
  const double* weights;
  double weight;
  const double* mean;
  const double* m2;
  Moments operator()(std::int64_t c) const { return {weights != nullptr ? weights[c] : weight, mean[c], m2[c]}; }
};

template <class Args>
MeanVariance statistics_of(const Problem& p, const Args& a, const BatchMoments& batch, std::int64_t c) {
  if (a.statistics == POPNORM_BATCH) {
    const Moments m = batch(c);
    return {m.mean, biased_variance(m)};
  }
  if (a.given_population != nullptr) return population_statistics(arrays_of(a.given_population), c, a.given_estimator);
  return {read(a.mean, p.statistics, c, 0), read(a.variance, p.statistics, c, 1)};
}

// What finalize decides for one channel; written to the reserve where there is one.
template <class T, class Args>
NormalizeRow<T> finalize_channel(const Problem& p, const Args& a, const BatchMoments& batch,
                                 const ReserveArrays<T, std::byte>& reserve, std::int64_t c) {
  const MeanVariance v = statistics_of(p, a, batch, c);
  const StatisticsRow<T> row = statistics_row<T>(v.mean, v.variance, p.epsilon);
  const T scale = round_to<T>(read(a.scale, p.parameters, c, 1));
  const T shift = round_to<T>(read(a.shift, p.parameters, c, 0));
  if (reserve.weight != nullptr) {
    reserve.weight[c] = a.statistics == POPNORM_BATCH ? batch(c).weight : p.weight();
    reserve.hi[c] = row.hi;
    reserve.lo[c] = row.lo;
    reserve.invstd[c] = row.invstd;
    reserve.scale[c] = scale;
    reserve.shift[c] = shift;
  }
  return normalize_row(row, scale, shift);
}

// Everything that leaves the call besides y: after all channels are known, since a population takes a batch whole or
// not at all.
template <class Args>
void publish(const Problem& p, const Args& a, const BatchMoments& batch) {
  const FpEnvironment environment;
  if (a.reserve != nullptr) {
    const ReserveHeader header = make_reserve_header(p, a.statistics);
    std::memcpy(a.reserve, &header, sizeof(header));
  }
  for (std::int64_t c = 0; c < p.c; ++c) {
    if (a.saved_mean != nullptr || a.saved_invstd != nullptr) {
      const MeanVariance v = statistics_of(p, a, batch, c);
      const double invstd = inverse_std(v.variance, p.epsilon);
      if (a.saved_mean != nullptr) write(a.saved_mean, p.statistics, c, v.mean);
      if (a.saved_invstd != nullptr)
        write(a.saved_invstd, p.statistics, c,
              p.statistics == POPNORM_F64 ? invstd : static_cast<double>(round_saturated<float>(invstd)));
    }
    if (a.statistics != POPNORM_BATCH) continue;
    const Moments m = batch(c);
    const auto blend = [&](void* running, double now) {
      write(running, p.statistics, c, (1 - a.momentum) * read(running, p.statistics, c, 0) + a.momentum * now);
    };
    if (a.running_mean != nullptr && m.weight > 0) blend(a.running_mean, m.mean);
    if (a.running_variance != nullptr && m.weight > 1) blend(a.running_variance, unbiased_variance(m));
  }
  if (a.population != nullptr) feed_population(a.population, a.feed, a.momentum, batch);
}

// ----------------------------------------------------------------------------------------------------------------
// forward

// The stages of moments, normalize and forward.
template <class T>
struct Forward {
  const Plan& plan;
  const Kernels& kernels;
  const void* x;
  void* y;
  Workspace<T> workspace;
  Stores stores;

  static void reduce(void* context, std::int64_t tile, std::int64_t next, Channels c) {
    const Forward& f = *static_cast<const Forward*>(context);
    const Problem& p = f.plan.problem;
    const Tile t = f.plan.tiling[tile];
    const Tile n = next >= 0 ? f.plan.tiling[next] : t;
    const std::int64_t slot = tile * p.c + c.begin;
    f.kernels.moments({block_of(t, c), input_of<T>(p, f.x, p.x, t, c, n, c.begin), f.workspace.first + slot,
                       f.workspace.second + slot});
  }

  // Tile 0's slots receive the combined moments.
  void combine_slots(Channels c) const {
    const std::int64_t tiles = plan.tiling.tiles();
    for (std::int64_t i = c.begin; i < c.end; ++i) {
      double* mean = workspace.first + i;
      double* m2 = workspace.second + i;
      Moments all{};
      if (tiles > 0)
        all = balanced_tree(
            tiles,
            [&](std::int64_t t) {
              return Moments{plan.tiling.weight(t), mean[t * plan.problem.c], m2[t * plan.problem.c]};
            },
            combine);
      *mean = all.mean;
      *m2 = all.m2;
    }
  }

  BatchMoments batch() const { return {nullptr, plan.problem.weight(), workspace.first, workspace.second}; }

  void set_row(std::int64_t c, const NormalizeRow<T>& row) const {
    workspace.row[0][c] = row.hi;
    workspace.row[1][c] = row.s;
    workspace.row[2][c] = row.b;
  }

  static void apply(void* context, const Tile& box, Channels c, std::int64_t ahead) {
    const Forward& f = *static_cast<const Forward*>(context);
    const Problem& p = f.plan.problem;
    T* const* row = f.workspace.row;
    f.kernels.normalize({block_of(box, c), input_of<T>(p, f.x, p.x, box, c, box, c.begin + ahead),
                         output_of<T>(p, f.y, p.y, box, c), row[0] + c.begin, row[1] + c.begin, row[2] + c.begin,
                         f.stores});
  }
};

template <class T>
struct WholeForward : Forward<T> {
  const popnorm_forward_args& args;
  ReserveArrays<T, std::byte> reserve;

  static void fold(void* context, Channels c) {
    const WholeForward& f = *static_cast<const WholeForward*>(context);
    if (f.args.statistics == POPNORM_BATCH) f.combine_slots(c);
    for (std::int64_t i = c.begin; i < c.end; ++i)
      f.set_row(i, finalize_channel<T>(f.plan.problem, f.args, f.batch(), f.reserve, i));
  }
};

popnorm_status forward(const Plan& plan, const popnorm_forward_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const bool batch = a.statistics == POPNORM_BATCH;
    const Placement at = place(plan, {1, batch, true});
    WholeForward<T> f{{plan, *state_of(plan).kernels, a.x, a.y, {plan, a.workspace}, at.blocking.stores},
                      a,
                      {static_cast<std::byte*>(a.reserve), plan.problem.c}};
    const Stages stages{&f, batch ? Forward<T>::reduce : nullptr, WholeForward<T>::fold, Forward<T>::apply};
    if (const popnorm_status status = run("forward", plan, stages, at.executor, at.blocking); status != POPNORM_SUCCESS)
      return status;
    publish(plan.problem, a, f.batch());
    if (batch && a.moments.weight != nullptr) {
      for (std::int64_t c = 0; c < plan.problem.c; ++c) {
        const Moments m = f.batch()(c);
        a.moments.weight[c] = m.weight;
        a.moments.mean[c] = m.mean;
        a.moments.m2[c] = m.m2;
      }
    }
    return POPNORM_SUCCESS;
  });
}

template <class T>
struct MomentsOnly : Forward<T> {
  const popnorm_moment_arrays& out;

  static void fold(void* context, Channels c) {
    const MomentsOnly& f = *static_cast<const MomentsOnly*>(context);
    f.combine_slots(c);
    for (std::int64_t i = c.begin; i < c.end; ++i) {
      const Moments m = f.batch()(i);
      f.out.weight[i] = m.weight;
      f.out.mean[i] = m.mean;
      f.out.m2[i] = m.m2;
    }
  }
};

popnorm_status moments(const Plan& plan, const popnorm_moments_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Placement at = place(plan, {1, true, false});
    MomentsOnly<T> f{{plan, *state_of(plan).kernels, a.x, nullptr, {plan, a.workspace}, Stores::ordinary}, a.moments};
    return run("moments", plan, {&f, Forward<T>::reduce, MomentsOnly<T>::fold, nullptr}, at.executor, at.blocking);
  });
}

template <class T>
struct NormalizeOnly : Forward<T> {
  ReserveArrays<T, const std::byte> reserve;

  static void fold(void* context, Channels c) {
    const NormalizeOnly& f = *static_cast<const NormalizeOnly*>(context);
    const auto& r = f.reserve;
    for (std::int64_t i = c.begin; i < c.end; ++i)
      f.set_row(i, normalize_row<T>({r.hi[i], r.lo[i], r.invstd[i]}, r.scale[i], r.shift[i]));
  }
};

popnorm_status normalize(const Plan& plan, const popnorm_normalize_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Placement at = place(plan, {1, false, true});
    NormalizeOnly<T> f{{plan, *state_of(plan).kernels, a.x, a.y, {plan, a.workspace}, at.blocking.stores},
                       {static_cast<const std::byte*>(a.reserve), plan.problem.c}};
    return run("normalize", plan, {&f, nullptr, NormalizeOnly<T>::fold, Forward<T>::apply}, at.executor, at.blocking);
  });
}

popnorm_status finalize(const Plan& plan, const popnorm_finalize_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const FpEnvironment environment;
    const BatchMoments batch{a.moments.weight, 0, a.moments.mean, a.moments.m2};
    const ReserveArrays<T, std::byte> reserve(static_cast<std::byte*>(a.reserve), plan.problem.c);
    for (std::int64_t c = 0; c < plan.problem.c; ++c) finalize_channel<T>(plan.problem, a, batch, reserve, c);
    publish(plan.problem, a, batch);
    return POPNORM_SUCCESS;
  });
}

popnorm_status combine_parts(const Plan& plan, const popnorm_combine_args& a, void* /*stream*/) {
  const FpEnvironment environment;
  for (std::int64_t c = 0; c < plan.problem.c; ++c) {
    Moments all{};
    if (a.count > 0)
      all = balanced_tree(
          a.count,
          [&](std::int64_t i) {
            return Moments{a.parts[i].weight[c], a.parts[i].mean[c], a.parts[i].m2[c]};
          },
          combine);
    a.moments.weight[c] = all.weight;
    a.moments.mean[c] = all.mean;
    a.moments.m2[c] = all.m2;
  }
  return POPNORM_SUCCESS;
}

// ----------------------------------------------------------------------------------------------------------------
// backward

struct Sums {
  double dy;
  double dy_d;
};

// The stages of backward_reduce, backward_apply and backward. Workspace rows: a, k1, k2; without a reserve also hi and
// invstd, and until fold a holds the scale and k1 the low part of the mean.
template <class T>
struct Backward {
  const Plan& plan;
  const Kernels& kernels;
  const void* x;
  const void* dy;
  void* dx;
  Workspace<T> workspace;
  Stores stores;
  bool through_statistics;
  const double* weight;  // per channel; null: n*s
  const T* hi;
  const T* lo;
  const T* invstd;
  const T* scale;

  void use(const ReserveArrays<T, const std::byte>& reserve) {
    weight = reserve.weight;
    hi = reserve.hi;
    lo = reserve.lo;
    invstd = reserve.invstd;
    scale = reserve.scale;
  }

  void use(const popnorm_backward_args& a) {
    const FpEnvironment environment;
    const Problem& p = plan.problem;
    weight = nullptr;
    T* const* row = workspace.row;
    for (std::int64_t c = 0; c < p.c; ++c) {
      const double mean = read(a.saved_mean, p.statistics, c, 0);
      row[3][c] = round_to<T>(mean);
      row[1][c] = round_to<T>(mean - static_cast<double>(row[3][c]));
      row[4][c] = round_to<T>(read(a.saved_invstd, p.statistics, c, 0));
      row[0][c] = round_to<T>(read(a.scale, p.parameters, c, 1));
    }
    scale = row[0];
    lo = row[1];
    hi = row[3];
    invstd = row[4];
  }

  StatisticsRow<T> statistics(std::int64_t c) const { return {hi[c], lo[c], invstd[c]}; }

  static void reduce(void* context, std::int64_t tile, std::int64_t next, Channels c) {
    const Backward& b = *static_cast<const Backward*>(context);
    const Problem& p = b.plan.problem;
    const Tile t = b.plan.tiling[tile];
    const Tile n = next >= 0 ? b.plan.tiling[next] : t;
    const std::int64_t slot = tile * p.c + c.begin;
    b.kernels.backward_reduce({block_of(t, c), input_of<T>(p, b.x, p.x, t, c, n, c.begin),
                               input_of<T>(p, b.dy, p.dy, t, c, n, c.begin), b.hi + c.begin, b.workspace.first + slot,
                               b.workspace.second + slot});
  }

  // sum(dy) and sum(dy*xhat) over all tiles.
  Sums combined(std::int64_t c) const {
    const std::int64_t channels = plan.problem.c;
    const std::int64_t tiles = plan.tiling.tiles();
    if (tiles == 0) return {0, 0};
    const Sums s = balanced_tree(
        tiles,
        [&](std::int64_t t) {
          return Sums{workspace.first[t * channels + c], workspace.second[t * channels + c]};
        },
        [](const Sums& p, const Sums& q) {
          return Sums{p.dy + q.dy, p.dy_d + q.dy_d};
        });
    return {s.dy, sum_dy_xhat(statistics(c), s.dy, s.dy_d)};
  }

  void set_row(std::int64_t c, double sum_dy, double sum_dy_xhat) const {
    const double w = weight != nullptr ? weight[c] : plan.problem.weight();
    const GradientRow<T> g = gradient_row(statistics(c), scale[c], through_statistics ? w : 0, sum_dy, sum_dy_xhat);
    workspace.row[0][c] = g.a;
    workspace.row[1][c] = g.k1;
    workspace.row[2][c] = g.k2;
  }

  static void apply(void* context, const Tile& box, Channels c, std::int64_t ahead) {
    const Backward& b = *static_cast<const Backward*>(context);
    const Problem& p = b.plan.problem;
    const Block block = block_of(box, c);
    const Output dx = output_of<T>(p, b.dx, p.dx, box, c);
    const Input dy = input_of<T>(p, b.dy, p.dy, box, c, box, c.begin + ahead);
    const T* a = b.workspace.row[0] + c.begin;
    const T* k1 = b.workspace.row[1] + c.begin;
    const T* k2 = b.workspace.row[2] + c.begin;
    if (b.through_statistics)
      b.kernels.backward_apply({block, input_of<T>(p, b.x, p.x, box, c, box, c.begin + ahead), dy, dx, b.hi + c.begin,
                                b.invstd + c.begin, a, k1, k2, b.stores});
    else  // dx = a*dy: normalize with k1 = k2 = 0, which does not read x
      b.kernels.normalize({block, dy, dx, k1, a, k2, b.stores});
  }
};

template <class T>
Backward<T> make_backward(const Plan& plan, const void* x, const void* dy, void* dx, void* workspace,
                          const Placement& at) {
  return {plan,
          *state_of(plan).kernels,
          x,
          dy,
          dx,
          {plan, workspace},
          at.blocking.stores,
          true,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr};
}

bool through_statistics(const void* reserve) {
  return static_cast<const ReserveHeader*>(reserve)->statistics == POPNORM_BATCH;
}

template <class T>
struct WholeBackward : Backward<T> {
  const popnorm_backward_args& args;
  bool reduces;

  static void fold(void* context, Channels c) {
    const WholeBackward& b = *static_cast<const WholeBackward*>(context);
    const Problem& p = b.plan.problem;
    for (std::int64_t i = c.begin; i < c.end; ++i) {
      const Sums sums = b.reduces ? b.combined(i) : Sums{0, 0};
      const auto deliver = [&](void* to, double sum) {
        if (to != nullptr)
          write(to, p.parameters, i, b.args.accumulate != 0 ? read(to, p.parameters, i, 0) + sum : sum);
      };
      deliver(b.args.dshift, sums.dy);
      deliver(b.args.dscale, sums.dy_d);
      b.set_row(i, sums.dy, sums.dy_d);
    }
  }
};

popnorm_status backward(const Plan& plan, const popnorm_backward_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const bool batch = a.reserve != nullptr ? through_statistics(a.reserve) : a.statistics == POPNORM_BATCH;
    const bool reduces = a.dscale != nullptr || a.dshift != nullptr || batch;
    const bool applies = a.dx != nullptr;
    const Placement at = place(plan, {2, reduces, applies});
    WholeBackward<T> b{make_backward<T>(plan, a.x, a.dy, a.dx, a.workspace, at), a, reduces};
    b.through_statistics = batch;
    if (a.reserve != nullptr)
      b.use(ReserveArrays<T, const std::byte>(static_cast<const std::byte*>(a.reserve), plan.problem.c));
    else
      b.use(a);
    return run(
        "backward", plan,
        {&b, reduces ? Backward<T>::reduce : nullptr, WholeBackward<T>::fold, applies ? Backward<T>::apply : nullptr},
        at.executor, at.blocking);
  });
}

template <class T>
struct ReduceOnly : Backward<T> {
  const popnorm_backward_reduce_args& args;

  static void fold(void* context, Channels c) {
    const ReduceOnly& b = *static_cast<const ReduceOnly*>(context);
    for (std::int64_t i = c.begin; i < c.end; ++i) {
      const Sums sums = b.combined(i);
      b.args.sum_dy[i] = sums.dy;
      b.args.sum_dy_xhat[i] = sums.dy_d;
    }
  }
};

popnorm_status backward_reduce(const Plan& plan, const popnorm_backward_reduce_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Placement at = place(plan, {2, true, false});
    ReduceOnly<T> b{make_backward<T>(plan, a.x, a.dy, nullptr, a.workspace, at), a};
    b.use(ReserveArrays<T, const std::byte>(static_cast<const std::byte*>(a.reserve), plan.problem.c));
    return run("backward_reduce", plan, {&b, Backward<T>::reduce, ReduceOnly<T>::fold, nullptr}, at.executor,
               at.blocking);
  });
}

template <class T>
struct ApplyOnly : Backward<T> {
  const popnorm_backward_apply_args& args;

  static void fold(void* context, Channels c) {
    const ApplyOnly& b = *static_cast<const ApplyOnly*>(context);
    for (std::int64_t i = c.begin; i < c.end; ++i) {
      if (b.through_statistics)
        b.set_row(i, b.args.sum_dy[i], b.args.sum_dy_xhat[i]);
      else
        b.set_row(i, 0, 0);
    }
  }
};

popnorm_status backward_apply(const Plan& plan, const popnorm_backward_apply_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Placement at = place(plan, {2, false, true});
    ApplyOnly<T> b{make_backward<T>(plan, a.x, a.dy, a.dx, a.workspace, at), a};
    b.through_statistics = through_statistics(a.reserve);
    b.use(ReserveArrays<T, const std::byte>(static_cast<const std::byte*>(a.reserve), plan.problem.c));
    return run("backward_apply", plan, {&b, nullptr, ApplyOnly<T>::fold, Backward<T>::apply}, at.executor, at.blocking);
  });
}

}  // namespace

constinit const Backend backend{POPNORM_CPU,   "cpu",    prepare,   forward,         backward,      moments,
                                combine_parts, finalize, normalize, backward_reduce, backward_apply};

}  // namespace popnorm::cpu
