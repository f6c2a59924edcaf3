// Hard contents: what makes textbook formulas fail. Every promise of docs/numerics.md holds here too, on every tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "support/layer.hpp"

namespace popnorm_test {
namespace {

using popnorm::reference::Real;

using Values = std::vector<double>;

// Lets a kind say what the elements are, given standard normal ones.
Content from_normal(std::function<void(Values&)> reshape) {
  return [reshape = std::move(reshape)](Random& random, std::int64_t channel, std::int64_t count) {
    Values values = normal(0, 1)(random, channel, count);
    reshape(values);
    // Channels differ, or a mix-up between them would not show.
    if (channel % 2 == 1) {
      for (double& v : values) v = -v;
    }
    return values;
  };
}

Content scaled(double factor) {
  return from_normal([=](Values& values) {
    for (double& v : values) v *= factor;
  });
}

Content outliers(double size, std::function<bool(std::int64_t, std::int64_t)> is_outlier) {
  return from_normal([=, is_outlier = std::move(is_outlier)](Values& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    for (std::int64_t i = 0; i < count; ++i) {
      if (is_outlier(i, count)) values[static_cast<std::size_t>(i)] += size;
    }
  });
}

struct Kind {
  std::string name;
  Content content;
  double epsilon = 1e-5;
  bool f32 = true;  // whether f32, and f64, can hold it
  bool f64 = true;
};

std::ostream& operator<<(std::ostream& out, const Kind& kind) { return out << kind.name; }

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  for (const double ratio : {1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6}) {
    all.push_back(
        {"MeanOverDeviation1e" + std::to_string(std::lround(std::log10(ratio))), from_normal([=](Values& values) {
           for (double& v : values) v += ratio;
         })});
  }
  all.push_back({"OutlierFirst1e4", outliers(1e4, [](std::int64_t i, std::int64_t) { return i == 0; })});
  all.push_back({"OutlierFirst1e6", outliers(1e6, [](std::int64_t i, std::int64_t) { return i == 0; })});
  all.push_back({"OutlierLast1e6", outliers(1e6, [](std::int64_t i, std::int64_t n) { return i == n - 1; })});
  // Whatever length tiles and leaves have: their pivots are the outliers, a whole vector of them.
  for (const std::int64_t tile : {64, 128, 1024, 2048}) {
    all.push_back({"OutliersAtEvery" + std::to_string(tile),
                   outliers(1e4, [=](std::int64_t i, std::int64_t) { return i % tile < 16; })});
  }
  all.push_back({"Ascending", from_normal([](Values& values) { std::sort(values.begin(), values.end()); })});
  all.push_back({"Descending", from_normal([](Values& values) { std::sort(values.rbegin(), values.rend()); })});
  all.push_back({"Ramp", from_normal([](Values& values) { std::iota(values.begin(), values.end(), 1000.0); })});
  all.push_back({"TwoFarClusters", from_normal([](Values& values) {
                   for (std::size_t i = 0; i < values.size(); ++i) values[i] += i < values.size() / 2 ? 1e5 : -1e5;
                 })});
  all.push_back({"Alternating", from_normal([](Values& values) {
                   for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 2 == 0 ? 1e6 : -1e6 + values[i];
                 })});
  all.push_back({"MostlyZero", from_normal([](Values& values) {
                   for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 97 == 96 ? values[i] : 0;
                 })});
  all.push_back({"Subnormal", scaled(1e-40), 1e-5, true, false});
  all.push_back({"SubnormalDoubles", scaled(1e-310), 1e-5, false, true});
  // Squares of these leave the range of f32, their variances do not leave that of f64.
  all.push_back({"Tiny1e-12", scaled(1e-12), 0});
  all.push_back({"Tiny1e-20", scaled(1e-20), 0});
  all.push_back({"Tiny1e-25", scaled(1e-25), 0});
  all.push_back({"Tiny1e-30", scaled(1e-30), 0});
  all.push_back({"Tiny1e-140", scaled(1e-140), 0, false, true});
  all.push_back({"Huge1e15", scaled(1e15)});
  all.push_back({"Huge1e20", scaled(1e20)});
  all.push_back({"Huge1e29", scaled(1e29)});
  all.push_back({"HugeMeanSmallDeviation", from_normal([](Values& values) {
                   for (double& v : values) v = 1e30 + 1e25 * v;
                 })});
  all.push_back({"Huge1e140", scaled(1e140), 1e-5, false, true});
  all.push_back({"HugeOutlierFirst", outliers(1e30, [](std::int64_t i, std::int64_t) { return i == 0; })});
  return all;
}

struct Shape {
  std::int64_t n, c, s;
};

class HardContents : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, Kind>> {};

TEST_P(HardContents, KeepsEveryPromise) {
  const auto& [layout, storage, kind] = GetParam();
  if (storage == POPNORM_F64 ? !kind.f64 : !kind.f32) return;  // another type holds it
  for (const Shape shape : {Shape{2, 3, 3000}, Shape{300, 4, 49}, Shape{2500, 18, 1}}) {
    Configuration k;
    k.layout = layout;
    k.storage = storage;
    k.parameters = k.statistics = arithmetic_type(storage);
    k.n = shape.n;
    k.c = shape.c;
    k.s = shape.s;
    k.epsilon = kind.epsilon;
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, ::testing::PrintToString(k));
    Random random(kind.name);
    Contents contents;
    contents.x = kind.content;
    const Layer layer(k, random, contents);
    // What f16 cannot hold has become infinite: that is another test's.
    const std::vector<double> x = layer.x.by_channel();
    if (storage == POPNORM_F16 && std::ranges::any_of(x, [](double v) { return std::isinf(v); })) return;
    for (const char* isa : runnable_tiers()) {
      SCOPED_TRACE(isa);
      Runner runner(layer, {.isa = isa});
      expect_promises(layer, runner, POPNORM_BATCH);
      for (const double m2 : runner.forward(POPNORM_BATCH).m2) EXPECT_GE(m2, 0);
    }
  }
}

std::string name_of_case(const ::testing::TestParamInfo<HardContents::ParamType>& info) {
  const auto& [layout, storage, kind] = info.param;
  std::string name = std::string(layout == POPNORM_NCHW ? "NCHW" : "NHWC") + "_" + name_of(storage) + "_" + kind.name;
  std::replace(name.begin(), name.end(), '-', 'm');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Kinds, HardContents,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes), ::testing::ValuesIn(kinds())),
                         name_of_case);

class PeriodicContents : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type>> {};

// The first element of every 16 bytes is far from the others, which repeat. A pivot that samples only those is itself one of them: sums around
// it are several times larger than around the mean, and since all of their terms are rounded alike, so is their error.
TEST_P(PeriodicContents, KeepEveryPromise) {
  Configuration k;
  std::tie(k.layout, k.storage) = GetParam();
  k.parameters = k.statistics = arithmetic_type(k.storage);
  k.n = 2;
  k.c = 256;  // which error the roundings add up to is a channel's luck
  k.s = 512;
  Random random("PeriodicContents");
  Contents contents;
  contents.x = [period = std::size_t{16} / size_of(k.storage)](Random& draw, std::int64_t channel, std::int64_t count) {
    Values values = normal(0, 0.01)(draw, channel, count);
    values[0] += 1;
    for (std::size_t i = period; i < values.size(); ++i) values[i] = values[i - period];
    return values;
  };
  const Layer layer(k, random, contents);
  for (const char* isa : runnable_tiers()) {
    SCOPED_TRACE(isa);
    Runner runner(layer, {.isa = isa});
    expect_promises(layer, runner, POPNORM_BATCH);
  }
}

INSTANTIATE_TEST_SUITE_P(LayoutsAndTypes, PeriodicContents,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes)));

// ---------------------------------------------------------------------------------------------------- gradients

class HardGradients : public ::testing::TestWithParam<popnorm_layout> {};

TEST_P(HardGradients, KeepEveryPromise) {
  const std::pair<const char*, Content> cases[] = {
      {"large mean", normal(1e6, 1)},
      {"outlier first", outliers(1e6, [](std::int64_t i, std::int64_t) { return i == 0; })},
      {"one element", outliers(1, [](std::int64_t i, std::int64_t n) { return i == n / 2; })},
      {"tiny", scaled(1e-25)},
      {"huge", scaled(1e25)},
  };
  for (const auto& [name, dy] : cases) {
    SCOPED_TRACE(name);
    Configuration k;
    k.layout = GetParam();
    k.n = 5;
    k.c = 6;
    k.s = 1500;
    Random random(name);
    Contents contents;
    contents.x = normal(100, 1);
    contents.dy = dy;
    const Layer layer(k, random, contents);
    for (const char* isa : runnable_tiers()) {
      SCOPED_TRACE(isa);
      Runner runner(layer, {.isa = isa});
      expect_promises(layer, runner, POPNORM_BATCH);
      expect_promises(layer, runner, POPNORM_GIVEN);
    }
  }
}

// A mean that was saved in f64 has digits that f32 lacks: without them x - mean would be off by up to 0.03 deviations here.
TEST_P(HardGradients, OfSavedStatisticsHaveTheirPrecision) {
  Configuration k;
  k.layout = GetParam();
  k.statistics = POPNORM_F64;
  k.n = 5;
  k.c = 6;
  k.s = 1500;
  Random random("OfSavedStatisticsHaveTheirPrecision");
  Contents contents;
  contents.x = normal(1e6, 1);
  const Layer layer(k, random, contents);
  const Promises& p = layer.promises(POPNORM_BATCH);
  for (const char* isa : runnable_tiers()) {
    SCOPED_TRACE(isa);
    Runner runner(layer, {.isa = isa});
    runner.forward(POPNORM_BATCH);
    const Backward b = runner.backward({.from_saved = true});
    EXPECT_TRUE(within(p.dx_from_saved, b.dx));
    EXPECT_TRUE(within(p.dscale_from_saved, b.dscale));
  }
}

TEST_P(HardGradients, ZeroStaysZero) {
  Configuration k;
  k.layout = GetParam();
  k.n = 5;
  k.c = 6;
  k.s = 700;
  Random random("ZeroStaysZero");
  Contents contents;
  contents.dy = constant(0);
  const Layer layer(k, random, contents);
  for (const char* isa : runnable_tiers()) {
    Runner runner(layer, {.isa = isa});
    runner.forward(POPNORM_BATCH);
    const Backward b = runner.backward();
    for (const Values* result : {&b.dx, &b.dscale, &b.dshift}) {
      for (const double v : *result) ASSERT_EQ(v, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, HardGradients, ::testing::Values(POPNORM_NCHW, POPNORM_NHWC));

// ---------------------------------------------------------------------------------------------------- constant
// channels

class ConstantChannel : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, double>> {};

// Theorems, not clamps: variance exactly 0, mean exactly the constant, y exactly shift; with epsilon 0 also invstd 0.
TEST_P(ConstantChannel, IsExact) {
  const auto& [layout, storage, value] = GetParam();
  for (const Shape shape : {Shape{1, 4, 1}, Shape{1, 2, 7}, Shape{3, 5, 2500}, Shape{300, 3, 49}, Shape{5001, 17, 1}}) {
    for (const double epsilon : {1e-5, 0.0}) {
      Configuration k;
      k.layout = layout;
      k.storage = k.parameters = k.statistics = storage;
      k.n = shape.n;
      k.c = shape.c;
      k.s = shape.s;
      k.epsilon = epsilon;
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, ::testing::PrintToString(k));
      Random random("ConstantChannel");
      Contents contents;
      contents.x = constant(value);
      const Layer layer(k, random, contents);
      const double held = stored(storage, value);
      for (const Route& route : forced_routes()) {
        Runner runner(layer, route);
        const Forward f = runner.forward(POPNORM_BATCH);
        const Backward b = runner.backward();
        for (std::int64_t c = 0; c < k.c; ++c) {
          const auto i = static_cast<std::size_t>(c);
          ASSERT_EQ(f.m2[i], 0);
          ASSERT_EQ(f.mean[i], held);
          ASSERT_EQ(f.saved_mean[i], held);
          ASSERT_EQ(f.saved_invstd[i], epsilon == 0 ? 0 : stored(storage, 1 / std::sqrt(epsilon)));
          ASSERT_EQ(b.dscale[i], 0);
          for (std::int64_t j = 0; j < layer.count(); ++j) {
            ASSERT_EQ(f.y[static_cast<std::size_t>(c * layer.count() + j)], layer.shift.get(c)) << j;
          }
        }
        EXPECT_TRUE(within(layer.promises(POPNORM_BATCH).dx, b.dx));
        EXPECT_TRUE(within(layer.promises(POPNORM_BATCH).dshift, b.dshift));
        if (HasFailure()) return;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Values, ConstantChannel,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(POPNORM_F32, POPNORM_F64),
                                            ::testing::Values(0.0, 0.1, -1.0, 16777217.0, 1e30, 1e-40, -123456.789)));

// 1/sqrt(epsilon) is beyond f32, and so is its product with a scale: both are the largest number, and 0 times that is 0.
TEST(ConstantChannel, IsShiftWhereItsInverseDeviationIsBeyondAllNumbers) {
  constexpr std::int64_t n = 3, c = 4, s = 5;
  const std::vector<float> x(n * c * s, 0.1f), scale{1.f, 2.f, -3e38f, 0.f}, shift{1.f, -2.f, 3.f, 4.f};
  std::vector<float> y(x.size());
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
    for (const double epsilon : {1e-77, 1e-80, 2.3e-308}) {
      const popnorm::plan plan(popnorm::problem(layout, n, c, s, epsilon));
      popnorm::buffer workspace = plan.make_workspace();
      popnorm_forward_args f = popnorm::forward_args(workspace);
      f.x = x.data();
      f.y = y.data();
      f.scale = scale.data();
      f.shift = shift.data();
      plan.forward(f);
      for (std::size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(y[i], shift[layout == POPNORM_NHWC ? i % c : i / s % c]) << i << " epsilon " << epsilon;
    }
}

// A single element per channel: what is left of it is shift, and no gradient.
TEST(SingleElement, IsItsOwnMean) {
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC}) {
    Configuration k;
    k.layout = layout;
    k.c = 37;
    Random random("SingleElement");
    const Layer layer(k, random);
    for (const Route& route : forced_routes()) {
      Runner runner(layer, route);
      const Forward f = runner.forward(POPNORM_BATCH);
      EXPECT_TRUE(same_bits(f.saved_mean, layer.x.by_channel()));
      EXPECT_EQ(f.m2, Values(37, 0));
      EXPECT_EQ(f.y, layer.shift.values());
      const Backward b = runner.backward();
      EXPECT_EQ(b.dx, Values(37, 0));
      EXPECT_EQ(b.dscale, Values(37, 0));
      EXPECT_EQ(b.dshift, layer.dy.by_channel());
    }
  }
}

// ---------------------------------------------------------------------------------------------------- the ends of the
// range

// An f32 variance that overflows is +Inf; the moments, invstd, y and dx stay finite (HardContents holds them to
// bounds).
TEST(Range, OverflowingVarianceOfF32) {
  Configuration k;
  k.n = 4;
  k.c = 3;
  k.s = 500;
  Random random("OverflowingVarianceOfF32");
  Contents contents;
  contents.x = normal(0, 1e29);
  const Layer layer(k, random, contents);
  for (const char* isa : runnable_tiers()) {
    Runner runner(layer, {.isa = isa});
    Tensor y(layer.x.shape(), k.storage, k.where);
    Array running_mean(POPNORM_F32, k.c, k.where), running_variance(POPNORM_F32, k.c, k.where);
    running_mean.assign(Values(3, 0));
    running_variance.assign(Values(3, 1));
    popnorm_forward_args args = POPNORM_FORWARD_ARGS_INIT;
    args.x = layer.x.data();
    args.y = y.data();
    args.update.running_mean = running_mean.data();
    args.update.running_variance = running_variance.data();
    args.workspace = runner.workspace().data();
    args.workspace_bytes = runner.workspace().size();
    runner.plan().forward(args);
    for (std::int64_t c = 0; c < k.c; ++c) {
      EXPECT_TRUE(std::isfinite(running_mean.get(c)));
      EXPECT_EQ(running_variance.get(c), std::numeric_limits<double>::infinity());
    }
  }
}

class NonFinite : public ::testing::TestWithParam<std::tuple<popnorm_layout, double>> {};

// NaN and infinities stay in their channel: the others have the bits they have without it.
TEST_P(NonFinite, StaysInItsChannel) {
  const popnorm_layout layout = std::get<0>(GetParam());
  const double intruder = std::get<1>(GetParam());
  constexpr std::int64_t sick = 7;
  for (const Shape shape : {Shape{2, 19, 3000}, Shape{9, 19, 49}, Shape{300, 19, 1}}) {
    for (const bool in_dy : {false, true}) {
      Configuration k;
      k.layout = layout;
      k.n = shape.n;
      k.c = shape.c;
      k.s = shape.s;
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, ::testing::PrintToString(k) + (in_dy ? " dy" : " x"));
      const auto contents = [&](bool with_intruder) {
        Contents result;
        Content& spoiled = in_dy ? result.dy : result.x;
        spoiled = [=, healthy = spoiled](Random& random, std::int64_t channel, std::int64_t count) {
          Values values = healthy(random, channel, count);
          if (with_intruder && channel == sick) values[static_cast<std::size_t>(count / 3)] = intruder;
          return values;
        };
        return result;
      };
      Random random("NonFinite");
      Random again("NonFinite");
      const Layer healthy(k, random, contents(false));
      const Layer spoiled(k, again, contents(true));
      for (const Route& route : forced_routes()) {
        Runner of_healthy(healthy, route), of_spoiled(spoiled, route);
        for (const popnorm_statistics source : {POPNORM_BATCH, POPNORM_GIVEN}) {
          if (source == POPNORM_GIVEN && !in_dy) continue;  // the statistics given for the sick channel differ
          Forward f = of_healthy.forward(source), g = of_spoiled.forward(source);
          Backward b = of_healthy.backward(), d = of_spoiled.backward();
          for (auto [all, spoiled_all] :
               {std::pair{&f.y, &g.y}, std::pair{&b.dx, &d.dx}, std::pair{&f.mean, &g.mean}, std::pair{&f.m2, &g.m2},
                std::pair{&b.dscale, &d.dscale}, std::pair{&b.dshift, &d.dshift},
                std::pair{&f.saved_invstd, &g.saved_invstd}}) {
            const std::size_t per_channel = all->size() / static_cast<std::size_t>(k.c);
            const auto first = static_cast<std::ptrdiff_t>(sick * static_cast<std::int64_t>(per_channel));
            const auto last = first + static_cast<std::ptrdiff_t>(per_channel);
            if (all->empty()) continue;
            if (!in_dy && (all == &f.mean || all == &f.y)) {
              // Infinity minus infinity: with the mean, every element of the channel is lost.
              EXPECT_FALSE(std::isfinite((*spoiled_all)[static_cast<std::size_t>(first)]));
            }
            std::fill(all->begin() + first, all->begin() + last, 0);
            std::fill(spoiled_all->begin() + first, spoiled_all->begin() + last, 0);
            EXPECT_TRUE(same_bits(*all, *spoiled_all));
          }
        }
        if (HasFailure()) return;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Intruders, NonFinite,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(std::numeric_limits<double>::quiet_NaN(),
                                                              std::numeric_limits<double>::infinity(),
                                                              -std::numeric_limits<double>::infinity())));

// ---------------------------------------------------------------------------------------------------- control

// The bounds would be worthless if the textbook formulas kept them.
TEST(Control, NaiveFormulasBreakTheBounds) {
  Random random("Control");
  for (const double ratio : {1e3, 1e4, 1e6}) {
    Values x = normal(ratio, 1)(random, 0, 20000);
    float sum = 0, squares = 0, mean = 0, m2 = 0, count = 0;
    for (double& value : x) {
      const auto v = static_cast<float>(value);
      value = static_cast<double>(v);
      sum += v;
      squares += v * v;
      count += 1;
      const float delta = v - mean;
      mean += delta / count;
      m2 += delta * (v - mean);
    }
    const auto exact = popnorm::reference::moments_of(x);
    const auto statistics = popnorm::reference::statistics_of(exact, 1e-5L);
    const popnorm::reference::Bounds bounds(popnorm::reference::kF32, statistics, {});
    const Real bound = bounds.relative(statistics.variance, popnorm::reference::kF32);
    const float naive = squares / count - (sum / count) * (sum / count);
    EXPECT_GT(std::fabs(naive - statistics.variance), bound) << "E[x^2] - E[x]^2 at mean/deviation " << ratio;
    EXPECT_GT(std::fabs(m2 / count - statistics.variance), bound) << "Welford in f32 at mean/deviation " << ratio;
  }
}

}  // namespace
}  // namespace popnorm_test
