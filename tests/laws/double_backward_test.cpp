// The gradient of backward: against the formulas of popnorm.h in long double, against differences of backward itself, and with
// the same bits by every route.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "maps/case.hpp"
#include "support/executors.hpp"

namespace popnorm_test {
namespace {

namespace reference = popnorm::reference;
using Values = std::vector<double>;

// Cotangents that are there.
struct Drawn {
  Tensor v;
  Array scale, shift;

  Drawn(const MapCase& c, Random& random)
      : v({c.configuration().layout, c.configuration().n, c.configuration().c, c.configuration().s,
           c.configuration().dx},
          c.configuration().storage, c.configuration().where),
        scale(c.configuration().parameters, c.scale.count(), c.configuration().where),
        shift(c.configuration().parameters, c.scale.count(), c.configuration().where) {
    Values values(c.x_values.size());
    for (double& value : values) value = stored(c.configuration().storage, 0.2 + random.normal());
    v.assign_by_channel(values);
    for (std::int64_t i = 0; i < scale.count(); ++i) {
      scale.set(i, random.normal());
      shift.set(i, random.normal());
    }
  }

  [[nodiscard]] Cotangents all() const { return {&v, &scale, &shift}; }
};

// popnorm.h's formulas, with what rounding may add to each: sizes are sums of the absolute values of all terms, where a mean of
// z*xhat has the size mean(|z*xhat|) + mean(|z|) and xhat 1 + |xhat|, since the mean in xhat is off by 16u of a deviation.
class DoubleOracle {
 public:
  DoubleOracle(const MapCase& of, const Drawn& cotangents)
      : m_(of.meaning()),
        o_(of.oracle()),
        dy_(of.dy_values),
        v_(cotangents.v.by_channel()),
        v_scale_(cotangents.scale.values()),
        v_shift_(cotangents.shift.values()),
        rows_(static_cast<std::size_t>(m_.rows() * m_.c)) {
    each([&](std::int64_t c, std::int64_t n, std::int64_t s, std::size_t i) {
      const Real xhat = o_.xhat_of(c, n, s), weight = o_.row(m_.row(n), c).pull;
      const auto add = [&](Mean& mean, Real value, Real size) {
        mean.value += value / weight;
        mean.size += size / weight;
      };
      if (weight == 0) return;
      Row& r = row(n, c);
      add(r.dy, dy_[i], std::fabs(dy_[i]));
      add(r.v, v_[i], std::fabs(v_[i]));
      add(r.p, dy_[i] * xhat, std::fabs(dy_[i]) * (1 + std::fabs(xhat)));
      add(r.q, v_[i] * xhat, std::fabs(v_[i]) * (1 + std::fabs(xhat)));
      add(r.dy_v, static_cast<Real>(dy_[i]) * v_[i], std::fabs(dy_[i] * v_[i]));
    });
  }

  // The same roundings as dx, of two gradients.
  Exact grad_dy(std::int64_t c, std::int64_t n, std::int64_t s) const {
    const Place at = place(c, n, s);
    const Row& r = row(n, c);
    const Real value = at.a * (at.v - r.v.value - at.xhat * r.q.value) + at.v_shift + at.xhat * at.v_scale;
    const Real size = std::fabs(at.a) * (std::fabs(at.v) + r.v.size + at.xhat_size * r.q.size) + std::fabs(at.v_shift) +
                      at.xhat_size * std::fabs(at.v_scale);
    return {value, 24 * o_.unit(c, n) * size};
  }

  // Products of up to four rounded factors, of 24u each, and two sweeps that round a few times.
  Exact grad_x(std::int64_t c, std::int64_t n, std::int64_t s) const {
    const Place at = place(c, n, s);
    const Row& r = row(n, c);
    const Real direct = at.v_scale * at.invstd;
    Real value = direct * (at.dy - r.dy.value - at.xhat * r.p.value);
    Real size = std::fabs(direct) * (std::fabs(at.dy) + r.dy.size + at.xhat_size * r.p.size);
    if (m_.statistics == POPNORM_BATCH) {
      value -= at.a * at.invstd *
               (r.p.value * (at.v - r.v.value) + r.q.value * (at.dy - r.dy.value) +
                at.xhat * (r.dy_v.value - r.v.value * r.dy.value - 3 * r.p.value * r.q.value));
      size += std::fabs(at.a) * at.invstd *
              (r.p.size * (std::fabs(at.v) + r.v.size) + r.q.size * (std::fabs(at.dy) + r.dy.size) +
               at.xhat_size * (r.dy_v.size + r.v.size * r.dy.size + 3 * r.p.size * r.q.size));
    }
    return {value, 4 * 24 * o_.unit(c, n) * size};
  }

  // Per affine slot.
  Promise grad_scale(popnorm_type type) const {
    std::vector<Exact> sums(v_scale_.size());
    each([&](std::int64_t c, std::int64_t n, std::int64_t s, std::size_t) {
      const Place at = place(c, n, s);
      const Row& r = row(n, c);
      Exact& sum = sums[o_.affine(n, c)];
      sum.value += at.invstd * (at.v * at.dy - r.v.value * r.dy.value - r.q.value * r.p.value);
      sum.bound +=
          2 * 24 * o_.unit(c, n) * at.invstd * (std::fabs(at.v * at.dy) + r.v.size * r.dy.size + r.q.size * r.p.size);
    });
    return promise(type, sums.size(), [&](std::size_t i) { return sums[i]; });
  }

  Promise elements(popnorm_type type, Exact (DoubleOracle::*of)(std::int64_t, std::int64_t, std::int64_t) const) const {
    std::vector<Exact> all;
    each([&](std::int64_t c, std::int64_t n, std::int64_t s, std::size_t) { all.push_back((this->*of)(c, n, s)); });
    return promise(type, all.size(), [&](std::size_t i) { return all[i]; });
  }

 private:
  struct Mean {
    Real value = 0, size = 0;
  };
  // Means over a group; 0 with given statistics.
  struct Row {
    Mean dy, v, p, q, dy_v;
  };
  struct Place {
    Real dy, v, xhat, xhat_size, invstd, a, v_scale, v_shift;
  };

  template <class Visit>
  void each(const Visit& visit) const {
    for (std::int64_t c = 0; c < m_.c; ++c)
      for (std::int64_t n = 0; n < m_.n; ++n)
        for (std::int64_t s = 0; s < m_.s; ++s) visit(c, n, s, o_.at(c, n, s));
  }
  const Row& row(std::int64_t n, std::int64_t c) const { return rows_[static_cast<std::size_t>(m_.row(n) * m_.c + c)]; }
  Row& row(std::int64_t n, std::int64_t c) { return rows_[static_cast<std::size_t>(m_.row(n) * m_.c + c)]; }

  Place place(std::int64_t c, std::int64_t n, std::int64_t s) const {
    const std::size_t i = o_.at(c, n, s), affine = o_.affine(n, c);
    const Real invstd = o_.row(m_.row(n), c).invstd, xhat = o_.xhat_of(c, n, s);
    return {dy_[i],           v_[i],           xhat, 1 + std::fabs(xhat), invstd, m_.scale[affine] * invstd,
            v_scale_[affine], v_shift_[affine]};
  }

  template <class At>
  static Promise promise(popnorm_type type, std::size_t count, const At& exact_at) {
    Promise p;
    p.type = type;
    for (std::size_t i = 0; i < count; ++i) {
      const Exact e = exact_at(i);
      p.add(e.value, reference::rounded(e.bound, e.value, format_of(type)));
    }
    return p;
  }

  const Meaning& m_;
  const Oracle& o_;
  const Values& dy_;
  const Values v_, v_scale_, v_shift_;
  std::vector<Row> rows_;
};

void expect_promises(const MapCase& c, const Drawn& cotangents, const MapDoubleBackward& d) {
  const DoubleOracle oracle(c, cotangents);
  const popnorm_type storage = c.configuration().storage;
  const auto per_channel = static_cast<std::size_t>(c.meaning().n * c.meaning().s);
  EXPECT_TRUE(within(oracle.elements(storage, &DoubleOracle::grad_x), d.grad_x, per_channel)) << "grad_x";
  EXPECT_TRUE(within(oracle.elements(storage, &DoubleOracle::grad_dy), d.grad_dy, per_channel)) << "grad_dy";
  EXPECT_TRUE(within(oracle.grad_scale(c.configuration().parameters), d.grad_scale)) << "grad_scale";
}

void expect_same(const MapDoubleBackward& a, const MapDoubleBackward& b) {
  EXPECT_TRUE(same_bits(a.grad_x, b.grad_x)) << "grad_x";
  EXPECT_TRUE(same_bits(a.grad_dy, b.grad_dy)) << "grad_dy";
  EXPECT_TRUE(same_bits(a.grad_scale, b.grad_scale)) << "grad_scale";
}

// Through batch statistics a group has one scale.
MapSet differentiable_maps(Random& random, std::int64_t n) {
  MapSet m;
  m.statistics = random.pick({POPNORM_BATCH, POPNORM_GIVEN});
  m.group = random_map(random, n);
  m.slot = random_map(random, n);
  m.one_scale = m.statistics == POPNORM_BATCH;
  m.affine = random.pick({popnorm_map{POPNORM_WHOLE, 0}, popnorm_map{POPNORM_LABELS, 1 + random.below(6)},
                          m.one_scale ? m.group : random_map(random, n)});
  return m;
}

TEST(DoubleBackward, AgreesWithTheOracleAndWithItselfByEveryRoute) {
  const std::vector<Route> routes = forced_routes();
  for (int i = 0; i < 100 * effort(); ++i) {
    Random random("DoubleBackward " + std::to_string(i));
    Configuration k = random_configuration(random);
    if (k.storage != POPNORM_F64) k.storage = POPNORM_F32;  // 16 bits are not served
    const MapSet maps = differentiable_maps(random, k.n);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << testing::PrintToString(k) << ", " << maps);
    MapCase c(k, maps, false, random);
    const Drawn cotangents(c, random);
    (void)c.forward({});
    const MapDoubleBackward d = c.double_backward({}, cotangents.all());
    expect_promises(c, cotangents, d);
    ShuffledExecutor executor(static_cast<int>(2 + random.below(6)));
    const popnorm_executor interface = executor.interface();
    for (int r = 0; r < 4; ++r) {
      Route route = routes[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(routes.size())))];
      if (r % 2 == 1) route.executor = &interface;
      SCOPED_TRACE(testing::Message() << route);
      expect_same(c.double_backward(route, cotangents.all()), d);
    }
    if (HasFailure()) return;
  }
}

// Enough work for many tasks.
TEST(DoubleBackward, HasTheSameBitsOnAnyThreads) {
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
    for (const popnorm_type storage : {POPNORM_F32, POPNORM_F64})
      for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN}) {
        Configuration k;
        k.layout = layout;
        k.storage = storage;
        k.n = 40;
        k.c = 24;
        k.s = 150;
        MapSet maps;
        maps.statistics = statistics;
        Random random("DoubleBackward on threads");
        MapCase c(k, maps, false, random);
        const Drawn cotangents(c, random);
        (void)c.forward({});
        const MapDoubleBackward d = c.double_backward({}, cotangents.all());
        expect_promises(c, cotangents, d);
        for (const Route& forced : forced_routes())
          for (const int threads : {1, 3, 16}) {
            ShuffledExecutor executor(threads);
            const popnorm_executor interface = executor.interface();
            Route route = forced;
            route.executor = &interface;
            SCOPED_TRACE(testing::Message() << route << " on " << threads << " threads");
            expect_same(c.double_backward(route, cotangents.all()), d);
            if (threads > 1) {
              EXPECT_GE(executor.most_threads(), 2);
            }
          }
      }
}

// Derivatives of sum(v*dx) + sum(v_scale*dscale) + sum(v_shift*dshift) by differences of backward in f64: the oracle shares
// popnorm.h's formulas, this does not.
class DoubleDifferences : public testing::TestWithParam<std::tuple<popnorm_layout, popnorm_statistics, popnorm_map>> {
 protected:
  static Configuration configuration() {
    Configuration k;
    k.layout = std::get<0>(GetParam());
    k.n = 6;
    k.c = 2;
    k.s = 5;
    k.epsilon = 1e-3;
    k.storage = k.parameters = k.statistics = POPNORM_F64;
    return k;
  }
  static MapSet maps() {
    MapSet m;
    m.statistics = std::get<1>(GetParam());
    m.group = m.slot = std::get<2>(GetParam());
    m.affine = {POPNORM_LABELS, 2};
    m.one_scale = m.statistics == POPNORM_BATCH;
    return m;
  }

  // Moves argument[i] and says how the sum follows; `assign` makes it what the library reads.
  template <class Assign>
  double slope(Values argument, std::size_t i, const Assign& assign) {
    constexpr double kStep = 1e-5;
    const double before = argument[i];
    double sums[2];
    for (const int side : {0, 1}) {
      argument[i] = before + (side == 0 ? -kStep : kStep);
      assign(argument);
      (void)case_.forward({});
      const MapBackward b = case_.backward({});
      const auto product = [](const Values& by, const Values& of) {
        Real sum = 0;
        for (std::size_t j = 0; j < of.size(); ++j) sum += static_cast<Real>(by[j]) * of[j];
        return sum;
      };
      sums[side] = static_cast<double>(product(cotangents_.v.by_channel(), b.dx) +
                                       product(cotangents_.scale.values(), b.dscale) +
                                       product(cotangents_.shift.values(), b.dshift));
    }
    argument[i] = before;
    assign(argument);
    return (sums[1] - sums[0]) / (2 * kStep);
  }

  template <class Assign>
  void expect_slopes(const Values& argument, const Values& gradient, const char* what, const Assign& assign) {
    for (std::size_t i = 0; i < argument.size(); ++i)
      // A central difference is off by step^2 times a third derivative, and by rounding of the sum over the step.
      EXPECT_NEAR(gradient[i], slope(argument, i, assign), 1e-7 * (1 + std::fabs(gradient[i]))) << what << ' ' << i;
  }

  Random random_{"DoubleDifferences"};
  MapCase case_{configuration(), maps(), false, random_};
  Drawn cotangents_{case_, random_};
};

TEST_P(DoubleDifferences, AreTheGradientOfBackward) {
  (void)case_.forward({});
  const MapDoubleBackward d = case_.double_backward({}, cotangents_.all());
  for (Array* argument : {static_cast<Array*>(&case_.x), static_cast<Array*>(&case_.dy), &case_.scale})
    argument->buffer().make_writable();
  expect_slopes(case_.x_values, d.grad_x, "grad_x", [&](const Values& x) { case_.x.assign_by_channel(x); });
  expect_slopes(case_.dy_values, d.grad_dy, "grad_dy", [&](const Values& dy) { case_.dy.assign_by_channel(dy); });
  expect_slopes(case_.scale.values(), d.grad_scale, "grad_scale",
                [&](const Values& scale) { case_.scale.assign(scale); });
}

INSTANTIATE_TEST_SUITE_P(Sources, DoubleDifferences,
                         testing::Combine(testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                          testing::Values(POPNORM_BATCH, POPNORM_GIVEN),
                                          testing::Values(popnorm_map{POPNORM_WHOLE, 0},
                                                          popnorm_map{POPNORM_CONTIGUOUS, 3},
                                                          popnorm_map{POPNORM_LABELS, 2})));

// A cotangent that is null is one of zeros.
TEST(DoubleBackward, TakesNullForZeros) {
  for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN}) {
    Configuration k;
    k.n = 10;
    k.c = 5;
    k.s = 13;
    MapSet maps;
    maps.statistics = statistics;
    Random random("null cotangents");
    MapCase c(k, maps, false, random);
    const Drawn drawn(c, random);
    Drawn zeros(c, random);
    zeros.v.assign_by_channel(Values(c.x_values.size(), 0));
    for (Array* a : {&zeros.scale, &zeros.shift}) a->assign(Values(static_cast<std::size_t>(a->count()), 0));
    (void)c.forward({});
    for (int absent = 1; absent < 8; ++absent) {
      SCOPED_TRACE(absent);
      const auto given = [&](const Drawn& other, bool null) {
        const auto of = [&](int bit, const auto* there, const auto* zero) {
          return (absent >> bit & 1) == 0 ? there : null ? nullptr : zero;
        };
        return Cotangents{of(0, &drawn.v, &other.v), of(1, &drawn.scale, &other.scale),
                          of(2, &drawn.shift, &other.shift)};
      };
      const MapDoubleBackward got = c.double_backward({}, given(zeros, true));
      const MapDoubleBackward expected = c.double_backward({}, given(zeros, false));
      // -0 is 0.
      EXPECT_EQ(got.grad_x, expected.grad_x);
      EXPECT_EQ(got.grad_dy, expected.grad_dy);
      EXPECT_EQ(got.grad_scale, expected.grad_scale);
    }
  }
}

// With given statistics grad_x is v_scale*invstd*dy: neither x nor v reaches it.
TEST(DoubleBackward, WithGivenStatisticsKeepsNonFiniteInputsOutOfGradX) {
  constexpr std::int64_t n = 2, c = 3, s = 5;
  const popnorm::plan plan(popnorm::problem_nchw(n, c, s));
  const popnorm_plan_info info = plan.info();
  popnorm::buffer workspace(std::max(info.workspace_bytes, info.double_backward_workspace_bytes),
                            info.workspace_alignment),
      reserve = plan.make_reserve();
  std::vector<float> x(n * c * s, 1.f), dy(x.size(), 0.5f), v(x.size(), 2.f), y(x.size()), grad_x(x.size());
  x[3] = v[7] = std::numeric_limits<float>::infinity();
  dy[11] = -std::numeric_limits<float>::infinity();
  const std::vector<float> mean(c, 0.25f), variance(c, 4.f), v_scale(c, 3.f);
  popnorm_forward_args f = popnorm::forward_args(workspace, reserve);
  f.x = x.data();
  f.y = y.data();
  f.source.statistics = POPNORM_GIVEN;
  f.source.mean = mean.data();
  f.source.variance = variance.data();
  plan.forward(f);
  popnorm_double_backward_args a = POPNORM_DOUBLE_BACKWARD_ARGS_INIT;
  a.x = x.data();
  a.dy = dy.data();
  a.v = v.data();
  a.v_scale = v_scale.data();
  a.reserve = reserve.data();
  a.reserve_bytes = reserve.size();
  a.workspace = workspace.data();
  a.workspace_bytes = workspace.size();
  a.grad_x = grad_x.data();
  popnorm::check(popnorm_double_backward(plan.get(), &a, nullptr));
  const auto invstd = static_cast<float>(1 / std::sqrt(4 + 1e-5));
  // Four units in the last place: either side rounds invstd and two products.
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_FLOAT_EQ(grad_x[i], 3 * invstd * dy[i]) << i;
}

TEST(DoubleBackward, OfAnEmptyBatchIsZero) {
  for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN})
    for (const popnorm_map group : {popnorm_map{POPNORM_WHOLE, 0}, popnorm_map{POPNORM_LABELS, 3}}) {
      Configuration k;
      k.n = 0;
      k.c = 4;
      k.s = 3;
      MapSet maps;
      maps.statistics = statistics;
      maps.group = group;
      maps.affine = {POPNORM_LABELS, 2};
      Random random("empty");
      MapCase c(k, maps, false, random);
      const Drawn cotangents(c, random);
      (void)c.forward({});
      EXPECT_EQ(c.double_backward({}, cotangents.all()).grad_scale, Values(8, 0));
    }
}

}  // namespace
}  // namespace popnorm_test
