// Exact contents: numbers whose mean, variance and products are exact in f32 whatever the order of the sums. Here
// nothing is left to a bound: a result is right or wrong.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>

#include "support/layer.hpp"

namespace popnorm_test {
namespace {

// mean +- deviation, equally often, in random order; with `sparse` three quarters of the elements are the mean itself,
// so that the standard deviation is deviation/2. `count` is even (a multiple of 8 if sparse).
Content balanced(double mean, double deviation, bool sparse) {
  return [=](Random& random, std::int64_t channel, std::int64_t count) {
    const double m = channel % 2 == 0 ? mean : 5 - mean;
    const std::int64_t away = sparse ? count / 4 : count;
    std::vector<double> values(static_cast<std::size_t>(count), m);
    for (std::int64_t i = 0; i < away; ++i)
      values[static_cast<std::size_t>(i)] = m + (i % 2 == 0 ? deviation : -deviation);
    random.shuffle(values);
    return values;
  };
}

// Integers from -2 to 2.
Content small_integers() {
  return [](Random& random, std::int64_t, std::int64_t count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& v : values) v = static_cast<double>(random.below(5) - 2);
    return values;
  };
}

struct Case {
  std::int64_t n, c, s;
  double mean, deviation;
  bool sparse;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.n << " x " << c.c << " x " << c.s << ", mean " << c.mean << ", deviation " << c.deviation
             << (c.sparse ? ", sparse" : "");
}

constexpr Case kCases[] = {
    {4, 5, 16, 3, 1, false},         {8, 17, 1, -7, 0.25, false},     {2, 130, 7, 2, 2, false},
    {3, 4, 50, 100, 4, false},       {1, 3, 4098, 12, 0.5, false},    {64, 5, 64, -1000, 1, false},
    {2, 3, 4096, 1 << 20, 1, false}, {512, 9, 16, 1 << 22, 1, false}, {1, 2, 1024, 3, 1, true},
    {16, 33, 64, -250, 2, true},     {5, 4, 1000, 1 << 20, 4, true},  {4096, 6, 2, 77, 8, true},
};

std::vector<double> exact_values(const Promise& p) { return {p.exact.begin(), p.exact.end()}; }

class Exact : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, Case>> {};

TEST_P(Exact, NothingIsLost) {
  const auto& [layout, storage, what] = GetParam();
  Configuration k;
  k.layout = layout;
  k.storage = storage;  // statistics and parameters stay f32, in which all results are exact
  k.n = what.n;
  k.c = what.c;
  k.s = what.s;
  k.epsilon = 0;
  Random random("Exact");
  Contents contents;
  contents.x = balanced(what.mean, what.deviation, what.sparse);
  contents.dy = small_integers();
  contents.scale = constant(1.5);
  contents.shift = constant(4);  // y is then nowhere zero, where the last bit of an f64 would show
  const Layer layer(k, random, contents);
  const Promises& exact = layer.promises(POPNORM_BATCH);
  // The pivot of a GPU's leaf is its mean, which rounds: f32 sums around it keep the contract's 8u instead.
  const bool rounds = on_cuda() && storage == POPNORM_F32;
  const bool divides_exactly = std::has_single_bit(static_cast<std::uint64_t>(layer.count()));

  for (const Route& route : forced_routes()) {
    const ::testing::ScopedTrace of_route(__FILE__, __LINE__, ::testing::PrintToString(route));
    Runner runner(layer, route);
    const Forward f = runner.forward(POPNORM_BATCH);
    EXPECT_TRUE(same_bits(f.saved_mean, exact_values(exact.mean)));
    EXPECT_TRUE(same_bits(f.saved_invstd, exact_values(exact.invstd)));
    for (std::size_t c = 0; c < f.m2.size(); ++c) {
      EXPECT_EQ(f.weight[c], static_cast<double>(layer.count()));
      // As double they show that the means of tiles are rounded, and nothing else.
      const double mean = static_cast<double>(exact.mean.exact[c]);
      const double means_in_deviations = std::fabs(mean) * static_cast<double>(exact.invstd.exact[c]);
      EXPECT_NEAR(f.mean[c] / mean, 1, 0x1p-50);
      EXPECT_NEAR(f.m2[c] / static_cast<double>(exact.m2.exact[c]), 1,
                  rounds ? 8 * 0x1p-24 : 0x1p-50 * (1 + means_in_deviations));
    }
    const Backward b = runner.backward();
    EXPECT_TRUE(same_bits(b.dshift, exact_values(exact.dshift)));
    EXPECT_TRUE(same_bits(b.dscale, exact_values(exact.dscale)));
    if (storage == POPNORM_F32) {
      EXPECT_TRUE(same_bits(f.y, exact_values(exact.y)));
      if (divides_exactly) {
        EXPECT_TRUE(same_bits(b.dx, exact_values(exact.dx)));
      }
    } else {
      EXPECT_TRUE(within(exact.y, f.y));
      EXPECT_TRUE(within(exact.dx, b.dx));
    }
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Contents, Exact,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(POPNORM_F32, POPNORM_F64), ::testing::ValuesIn(kCases)));

}  // namespace
}  // namespace popnorm_test
