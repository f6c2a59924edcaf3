// The six operations: composed they are forward and backward to the bit; over parts of a batch they are the whole
// within the bounds; combine is a commutative monoid.
#include <gtest/gtest.h>

#include <cmath>

#include "support/layer.hpp"

namespace popnorm_test {
namespace {

namespace reference = popnorm::reference;
using reference::Real;
using Values = std::vector<double>;

struct MomentValues {
  Values weight, mean, m2;

  explicit MomentValues(std::int64_t c = 0) : weight(static_cast<std::size_t>(c)), mean(weight), m2(weight) {}
  popnorm_moment_arrays arrays() { return {weight.data(), mean.data(), m2.data()}; }
};

popnorm_options options_of(const Route& route) {
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.isa = route.isa;
  options.schedule = route.schedule;
  options.stores = route.stores;
  return options;
}

// One device's share of a batch, and its scratch.
struct Rank {
  Rank(const popnorm_problem& problem, const Route& route, const void* x_, const void* dy_)
      : plan(problem, options_of(route)),
        x(x_),
        dy(dy_),
        moments(problem.c),
        sum_dy(moments.weight),
        sum_dy_xhat(sum_dy) {}

  void reduce() {
    popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
    args.x = x;
    args.moments = moments.arrays();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.moments(args);
  }

  void finalize(popnorm_finalize_args args) {
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    plan.finalize(args);
  }

  void normalize(void* y) {
    popnorm_normalize_args args = POPNORM_NORMALIZE_ARGS_INIT;
    args.x = x;
    args.y = y;
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.normalize(args);
  }

  void backward_reduce() {
    popnorm_backward_reduce_args args = POPNORM_BACKWARD_REDUCE_ARGS_INIT;
    args.x = x;
    args.dy = dy;
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    args.sum_dy = sum_dy.data();
    args.sum_dy_xhat = sum_dy_xhat.data();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.backward_reduce(args);
  }

  void backward_apply(void* dx, const Values* all_dy, const Values* all_dy_xhat) {
    popnorm_backward_apply_args args = POPNORM_BACKWARD_APPLY_ARGS_INIT;
    args.x = x;
    args.dy = dy;
    args.dx = dx;
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    args.sum_dy = all_dy == nullptr ? nullptr : all_dy->data();
    args.sum_dy_xhat = all_dy_xhat == nullptr ? nullptr : all_dy_xhat->data();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.backward_apply(args);
  }

  popnorm::plan plan;
  const void* x;
  const void* dy;
  MomentValues moments;
  Values sum_dy, sum_dy_xhat;
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
};

struct Shape {
  std::int64_t n, c, s;
};

class Stages : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, popnorm_statistics>> {
 protected:
  static Configuration configuration_of(const Shape& shape) {
    Configuration k;
    k.layout = std::get<0>(GetParam());
    k.storage = std::get<1>(GetParam());
    k.parameters = k.statistics = arithmetic_type(k.storage);
    k.n = shape.n;
    k.c = shape.c;
    k.s = shape.s;
    return k;
  }
};

TEST_P(Stages, ComposedAreForwardAndBackwardToTheBit) {
  const popnorm_statistics source = std::get<2>(GetParam());
  for (const Shape& shape : {Shape{4, 5, 3000}, Shape{90, 20, 49}, Shape{3000, 33, 1}, Shape{1, 3, 2}}) {
    const Configuration k = configuration_of(shape);
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, ::testing::PrintToString(k));
    Random random("Stages");
    const Layer layer(k, random);
    for (const Route& route : forced_routes()) {
      const ::testing::ScopedTrace of_route(__FILE__, __LINE__, ::testing::PrintToString(route));
      Runner whole(layer, route);
      const Forward f = whole.forward(source);
      const Backward b = whole.backward();

      Rank rank(layer.problem(), route, layer.x.data(), layer.dy.data());
      popnorm_finalize_args finalize = POPNORM_FINALIZE_ARGS_INIT;
      finalize.scale = layer.scale.data();
      finalize.shift = layer.shift.data();
      finalize.source.statistics = source;
      if (source == POPNORM_BATCH) {
        rank.reduce();
        finalize.moments = rank.moments.arrays();
        EXPECT_TRUE(same_bits(rank.moments.mean, f.mean));
        EXPECT_TRUE(same_bits(rank.moments.m2, f.m2));
      } else {
        finalize.source.mean = layer.given_mean.data();
        finalize.source.variance = layer.given_variance.data();
      }
      Array saved_mean(k.statistics, k.c, k.where), saved_invstd(k.statistics, k.c, k.where);
      finalize.saved_mean = saved_mean.data();
      finalize.saved_invstd = saved_invstd.data();
      rank.finalize(finalize);
      EXPECT_TRUE(same_bits(saved_mean.values(), f.saved_mean));
      EXPECT_TRUE(same_bits(saved_invstd.values(), f.saved_invstd));

      Tensor y(layer.x.shape(), k.storage, k.where), dx(layer.x.shape(), k.storage, k.where);
      rank.normalize(y.data());
      EXPECT_TRUE(same_bits(y.by_channel(), f.y));
      rank.backward_reduce();
      for (std::size_t c = 0; c < b.dscale.size(); ++c) {
        EXPECT_EQ(stored(k.parameters, rank.sum_dy[c]), b.dshift[c]);
        EXPECT_EQ(stored(k.parameters, rank.sum_dy_xhat[c]), b.dscale[c]);
      }
      const bool batch = source == POPNORM_BATCH;
      rank.backward_apply(dx.data(), batch ? &rank.sum_dy : nullptr, batch ? &rank.sum_dy_xhat : nullptr);
      EXPECT_TRUE(same_bits(dx.by_channel(), b.dx));
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Stages,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes),
                                            ::testing::Values(POPNORM_BATCH, POPNORM_GIVEN)));

class Ranks : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type>> {};

// Synchronized BN by hand: unequal shares of the samples on several ranks, one of them empty, moments combined, sums
// added.
TEST_P(Ranks, AgreeWithTheWholeBatch) {
  const auto& [layout, storage] = GetParam();
  Configuration k;
  k.layout = layout;
  k.storage = storage;
  k.parameters = k.statistics = arithmetic_type(storage);
  k.n = 23;
  k.c = 9;
  k.s = 130;
  Random random("Ranks");
  const Layer layer(k, random);
  const Promises& p = layer.promises(POPNORM_BATCH);
  const std::int64_t sample_bytes = k.c * k.s * static_cast<std::int64_t>(size_of(storage));
  Tensor y(layer.x.shape(), storage, k.where), dx(layer.x.shape(), storage, k.where);

  const std::int64_t shares[] = {1, 0, 15, 7};
  std::vector<Rank> ranks;
  std::vector<std::int64_t> first;
  std::int64_t done = 0;
  for (const std::int64_t n : shares) {
    popnorm_problem problem = layer.problem();
    problem.n = n;
    first.push_back(done * sample_bytes);
    ranks.emplace_back(problem, Route{}, static_cast<const std::byte*>(layer.x.data()) + first.back(),
                       static_cast<const std::byte*>(layer.dy.data()) + first.back());
    done += n;
  }
  std::vector<popnorm_moment_arrays> parts;
  for (Rank& rank : ranks) {
    rank.reduce();
    parts.push_back(rank.moments.arrays());
  }
  MomentValues together(k.c);
  popnorm_combine_args combine = POPNORM_COMBINE_ARGS_INIT;
  combine.parts = parts.data();
  combine.count = static_cast<std::int64_t>(parts.size());
  combine.moments = together.arrays();
  ranks[0].plan.combine(combine);
  EXPECT_EQ(together.weight, Values(9, static_cast<double>(k.n * k.s)));
  EXPECT_TRUE(within(p.exact_mean, together.mean));
  EXPECT_TRUE(within(p.m2, together.m2));

  Values sum_dy(9, 0), sum_dy_xhat(9, 0);
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    popnorm_finalize_args finalize = POPNORM_FINALIZE_ARGS_INIT;
    finalize.scale = layer.scale.data();
    finalize.shift = layer.shift.data();
    finalize.moments = together.arrays();
    ranks[r].finalize(finalize);
    ranks[r].normalize(static_cast<std::byte*>(y.data()) + first[r]);
    ranks[r].backward_reduce();
    for (std::size_t c = 0; c < sum_dy.size(); ++c) {
      sum_dy[c] += ranks[r].sum_dy[c];
      sum_dy_xhat[c] += ranks[r].sum_dy_xhat[c];
    }
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    ranks[r].backward_apply(static_cast<std::byte*>(dx.data()) + first[r], &sum_dy, &sum_dy_xhat);
  }
  EXPECT_TRUE(within(p.y, y.by_channel()));
  EXPECT_TRUE(within(p.dx, dx.by_channel()));
  EXPECT_TRUE(within(p.dshift, sum_dy));
  EXPECT_TRUE(within(p.dscale, sum_dy_xhat));
}

INSTANTIATE_TEST_SUITE_P(Layers, Ranks,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes)));

// ---------------------------------------------------------------------------------------------------- combine

class Combine : public ::testing::Test {
 protected:
  static constexpr std::int64_t kC = 50;

  MomentValues combined(std::vector<MomentValues> parts) {
    std::vector<popnorm_moment_arrays> arrays;
    for (MomentValues& part : parts) arrays.push_back(part.arrays());
    MomentValues result(kC);
    result.weight.assign(kC, -1);
    popnorm_combine_args args = POPNORM_COMBINE_ARGS_INIT;
    args.parts = arrays.data();
    args.count = static_cast<std::int64_t>(arrays.size());
    args.moments = result.arrays();
    plan_.combine(args);
    return result;
  }

  // Weights up to 10^9, with means up to 10^6 deviations apart.
  MomentValues drawn(double weight) {
    MomentValues m(kC);
    for (std::size_t c = 0; c < kC; ++c) {
      m.weight[c] = std::max(1.0, std::floor(weight * random_.unit()));
      m.mean[c] = random_.normal() * std::pow(10, random_.uniform(-3, 6));
      m.m2[c] = m.weight[c] * random_.unit() * std::pow(10, random_.uniform(-3, 3));
    }
    return m;
  }

  static void expect_same(const MomentValues& a, const MomentValues& b) {
    EXPECT_TRUE(same_bits(a.weight, b.weight));
    EXPECT_TRUE(same_bits(a.mean, b.mean));
    EXPECT_TRUE(same_bits(a.m2, b.m2));
  }

  // A few roundings per level of the tree, relative to the largest mean and to m2 (every term of which is positive).
  static void expect_oracle(const std::vector<MomentValues>& parts, const MomentValues& got) {
    const Real u = 0x1p-53L;
    const Real levels = std::ceil(std::log2(static_cast<Real>(parts.size()) + 1)) + 1;
    for (std::size_t c = 0; c < kC; ++c) {
      reference::Moments all;
      Real largest = 0;
      for (const MomentValues& part : parts) {
        all = reference::combine(all, {part.weight[c], part.mean[c], part.m2[c]});
        largest = std::max<Real>(largest, std::fabs(part.mean[c]));
      }
      ASSERT_EQ(got.weight[c], static_cast<double>(all.weight));
      ASSERT_NEAR(got.mean[c], static_cast<double>(all.mean), static_cast<double>(4 * levels * u * largest));
      // Rounded means put the distances between them off, and their squares in proportion.
      const Real of_means = 4 * levels * u * largest * std::sqrt(all.weight * all.m2);
      ASSERT_NEAR(got.m2[c], static_cast<double>(all.m2), static_cast<double>(8 * levels * u * all.m2 + of_means));
      ASSERT_GE(got.m2[c], 0);
    }
  }

  Random random_{"Combine"};
  popnorm::plan plan_{popnorm::problem_nchw(1, kC, 1)};
};

TEST_F(Combine, IsCommutativeToTheBit) {
  for (const double ratio : {1.0, 7.0, 1e3, 1e9}) {
    const MomentValues a = drawn(1e9 / ratio), b = drawn(1e9);
    expect_same(combined({a, b}), combined({b, a}));
  }
}

TEST_F(Combine, OfNothingIsNothing) {
  expect_same(combined({}), MomentValues(kC));
  expect_same(combined({MomentValues(kC), MomentValues(kC), MomentValues(kC)}), MomentValues(kC));
}

TEST_F(Combine, WithNothingChangesNothing) {
  const MomentValues a = drawn(1000), nothing(kC);
  expect_same(combined({a}), a);
  expect_same(combined({a, nothing}), a);
  expect_same(combined({nothing, a}), a);
  expect_same(combined({nothing, nothing, a, nothing, nothing}), a);
}

TEST_F(Combine, AgreesWithTheOracleForAnyNumberOfParts) {
  for (const int count : {2, 3, 4, 5, 8, 31, 64, 100, 129, 300}) {
    std::vector<MomentValues> parts;
    for (int i = 0; i < count; ++i) parts.push_back(drawn(1e4));
    expect_oracle(parts, combined(parts));
  }
}

TEST_F(Combine, HoldsAtWeightRatiosOfABillion) {
  for (const double light : {1.0, 3.0}) {
    const std::vector<MomentValues> parts = {drawn(light), drawn(1e9 * light)};
    expect_oracle(parts, combined(parts));
  }
}

// A billion light batches cannot be lost against a heavy one: equal means keep the mean, m2 adds up.
TEST_F(Combine, OfEqualMeansIsExact) {
  MomentValues a = drawn(100), b = drawn(1e9);
  b.mean = a.mean;
  const MomentValues both = combined({a, b});
  EXPECT_TRUE(same_bits(both.mean, a.mean));
  for (std::size_t c = 0; c < kC; ++c) EXPECT_EQ(both.m2[c], a.m2[c] + b.m2[c]);
}

TEST_F(Combine, MayWriteAPart) {
  MomentValues a = drawn(50), b = drawn(60);
  const MomentValues expected = combined({a, b});
  for (MomentValues* target : {&a, &b}) {
    const MomentValues before = *target;
    popnorm_moment_arrays parts[] = {a.arrays(), b.arrays()};
    popnorm_combine_args args = POPNORM_COMBINE_ARGS_INIT;
    args.parts = parts;
    args.count = 2;
    args.moments = target->arrays();
    plan_.combine(args);
    expect_same(*target, expected);
    *target = before;
  }
}

}  // namespace
}  // namespace popnorm_test
