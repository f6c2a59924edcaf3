// What must hold between two calls, whatever the numbers: scaling, shifting, reordering and relaying a batch.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>

#include "support/layer.hpp"

namespace popnorm_test {
namespace {

using popnorm::reference::Real;
using Values = std::vector<double>;

struct Shape {
  std::int64_t n, c, s;
};
constexpr Shape kShapes[] = {{5, 6, 700}, {40, 19, 49}, {300, 33, 1}};

Configuration configuration_of(popnorm_layout layout, popnorm_type storage, const Shape& shape) {
  Configuration k;
  k.layout = layout;
  k.storage = k.parameters = k.statistics = storage;
  k.n = shape.n;
  k.c = shape.c;
  k.s = shape.s;
  return k;
}

Values times(Values values, double factor) {
  for (double& v : values) v *= factor;
  return values;
}

// Draws the same normal numbers for the same seed, and hands them to `change`.
Content changed(const Content& original, double factor) {
  return [=](Random& random, std::int64_t channel, std::int64_t count) {
    return times(original(random, channel, count), factor);
  };
}

// Every |a - b| within the sum of the two bounds.
::testing::AssertionResult agree(const Promise& of_a, const Values& a, const Promise& of_b, const Values& b) {
  Promise both = of_a;
  for (std::size_t i = 0; i < a.size(); ++i) {
    both.exact[i] = b[i];
    both.bound[i] += of_b.bound[i];
  }
  return within(both, a);
}

class Equivariance : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type>> {
 protected:
  // Calls compare(layer, runner) for each shape and tier.
  template <class Compare>
  void for_each_layer(Compare compare) {
    const auto& [layout, storage] = GetParam();
    for (const Shape& shape : kShapes) {
      const Configuration k = configuration_of(layout, storage, shape);
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, ::testing::PrintToString(k));
      for (const char* isa : runnable_tiers()) compare(k, Route{.isa = isa});
    }
  }
};

// x by 2^k and epsilon by 4^k: mean and standard deviation by 2^k, the same y, dscale and dshift, dx by 2^-k. To the
// bit.
TEST_P(Equivariance, ScalingXByPowersOfTwoIsExact) {
  for_each_layer([](const Configuration& k, const Route& route) {
    Random random("scale");
    const Layer original(k, random);
    Runner of_original(original, route);
    const Forward f = of_original.forward(POPNORM_BATCH);
    const Backward b = of_original.backward();
    for (const int exponent : {-20, -1, 3, 20}) {
      SCOPED_TRACE(exponent);
      const double factor = std::ldexp(1, exponent);
      Configuration scaled_k = k;
      scaled_k.epsilon = k.epsilon * factor * factor;
      Contents contents;
      contents.x = changed(ordinary(), factor);
      Random same("scale");
      const Layer scaled(scaled_k, same, contents);
      Runner of_scaled(scaled, route);
      const Forward g = of_scaled.forward(POPNORM_BATCH);
      const Backward d = of_scaled.backward();
      EXPECT_TRUE(same_bits(g.y, f.y)) << "y";
      EXPECT_TRUE(same_bits(g.mean, times(f.mean, factor))) << "mean";
      EXPECT_TRUE(same_bits(g.m2, times(f.m2, factor * factor))) << "m2";
      EXPECT_TRUE(same_bits(g.saved_invstd, times(f.saved_invstd, 1 / factor))) << "invstd";
      EXPECT_TRUE(same_bits(d.dx, times(b.dx, 1 / factor))) << "dx";
      EXPECT_TRUE(same_bits(d.dscale, b.dscale)) << "dscale";
      EXPECT_TRUE(same_bits(d.dshift, b.dshift)) << "dshift";
    }
  });
}

// scale and shift by 2^k: y and dx by 2^k. dy by 2^k: all gradients by 2^k.
TEST_P(Equivariance, ScalingParametersAndGradientsIsExact) {
  for_each_layer([](const Configuration& k, const Route& route) {
    Random random("parameters");
    const Layer original(k, random);
    Runner of_original(original, route);
    const Forward f = of_original.forward(POPNORM_BATCH);
    const Backward b = of_original.backward();
    const double factor = 0x1p7;
    Contents contents;
    contents.scale = changed(contents.scale, factor);
    contents.shift = changed(contents.shift, factor);
    Random same("parameters");
    const Layer scaled(k, same, contents);
    Runner of_scaled(scaled, route);
    EXPECT_TRUE(same_bits(of_scaled.forward(POPNORM_BATCH).y, times(f.y, factor)));
    EXPECT_TRUE(same_bits(of_scaled.backward().dx, times(b.dx, factor)));

    Contents steep;
    steep.dy = changed(steep.dy, factor);
    Random again("parameters");
    const Layer steeper(k, again, steep);
    Runner of_steeper(steeper, route);
    of_steeper.forward(POPNORM_BATCH);
    const Backward d = of_steeper.backward();
    EXPECT_TRUE(same_bits(d.dx, times(b.dx, factor)));
    EXPECT_TRUE(same_bits(d.dscale, times(b.dscale, factor)));
    EXPECT_TRUE(same_bits(d.dshift, times(b.dshift, factor)));
  });
}

// Adding a constant changes the mean by it and nothing else. The numbers lie on a grid on which the addition is exact.
TEST_P(Equivariance, ShiftingXShiftsTheMean) {
  for_each_layer([](const Configuration& k, const Route& route) {
    const auto on_grid = [](double shift) {
      return [=](Random& random, std::int64_t, std::int64_t count) {
        Values values(static_cast<std::size_t>(count));
        for (double& v : values) v = std::nearbyint(random.normal() * 256) / 256 + shift;
        return values;
      };
    };
    Contents contents, shifted_contents;
    contents.x = on_grid(0);
    Random random("shift");
    const Layer original(k, random, contents);
    Runner of_original(original, route);
    const Forward f = of_original.forward(POPNORM_BATCH);
    const Backward b = of_original.backward();
    for (const double shift : {1.0, -64.0, 4096.0}) {
      SCOPED_TRACE(shift);
      shifted_contents.x = on_grid(shift);
      Random same("shift");
      const Layer shifted(k, same, shifted_contents);
      Runner of_shifted(shifted, route);
      const Forward g = of_shifted.forward(POPNORM_BATCH);
      const Backward d = of_shifted.backward();
      const Promises &p = original.promises(POPNORM_BATCH), &q = shifted.promises(POPNORM_BATCH);
      EXPECT_TRUE(agree(p.m2, f.m2, q.m2, g.m2)) << "m2";
      EXPECT_TRUE(agree(p.y, f.y, q.y, g.y)) << "y";
      EXPECT_TRUE(agree(p.dx, b.dx, q.dx, d.dx)) << "dx";
      EXPECT_TRUE(agree(p.dscale, b.dscale, q.dscale, d.dscale)) << "dscale";
      EXPECT_TRUE(same_bits(b.dshift, d.dshift)) << "dshift";
      Values moved = f.mean;
      for (double& v : moved) v += shift;
      EXPECT_TRUE(agree(q.exact_mean, moved, q.exact_mean, g.mean)) << "mean";
    }
  });
}

// The order of the elements of a channel does not matter.
TEST_P(Equivariance, ReorderingElementsReordersResults) {
  for_each_layer([](const Configuration& k, const Route& route) {
    const auto count = static_cast<std::size_t>(k.n * k.s);
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    Random shuffler("order");
    shuffler.shuffle(order);
    const auto reordered = [&](const Values& values) {
      Values result(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) result[i] = values[i / count * count + order[i % count]];
      return result;
    };
    const auto reordering = [&](const Content& original) {
      return [&, original](Random& random, std::int64_t channel, std::int64_t n) {
        return reordered(original(random, channel, n));
      };
    };
    Random random("reorder"), same("reorder");
    Contents contents;
    contents.x = reordering(contents.x);
    contents.dy = reordering(contents.dy);
    const Layer a(k, random), b(k, same, contents);
    Runner of_a(a, route), of_b(b, route);
    const Forward f = of_a.forward(POPNORM_BATCH), g = of_b.forward(POPNORM_BATCH);
    const Backward c = of_a.backward(), d = of_b.backward();
    const Promises &p = a.promises(POPNORM_BATCH), &q = b.promises(POPNORM_BATCH);
    EXPECT_TRUE(agree(q.y, g.y, q.y, reordered(f.y)));
    EXPECT_TRUE(agree(q.dx, d.dx, q.dx, reordered(c.dx)));
    EXPECT_TRUE(agree(p.exact_mean, f.mean, q.exact_mean, g.mean));
    EXPECT_TRUE(agree(p.m2, f.m2, q.m2, g.m2));
    EXPECT_TRUE(agree(p.dscale, c.dscale, q.dscale, d.dscale));
    EXPECT_TRUE(agree(p.dshift, c.dshift, q.dshift, d.dshift));
  });
}

INSTANTIATE_TEST_SUITE_P(Layers, Equivariance,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(POPNORM_F32, POPNORM_F64)));

// The two layouts sum in another order and agree within their bounds.
TEST(Layouts, AgreeWithinBounds) {
  for (const popnorm_type storage : {POPNORM_F32, POPNORM_F64}) {
    for (const Shape& shape : kShapes) {
      Random random("layouts"), same("layouts");
      const Layer first(configuration_of(POPNORM_NCHW, storage, shape), random);
      const Layer last(configuration_of(POPNORM_NHWC, storage, shape), same);
      Runner of_first(first, {}), of_last(last, {});
      const Forward f = of_first.forward(POPNORM_BATCH), g = of_last.forward(POPNORM_BATCH);
      const Backward b = of_first.backward(), d = of_last.backward();
      const Promises& p = first.promises(POPNORM_BATCH);
      EXPECT_TRUE(agree(p.y, f.y, p.y, g.y));
      EXPECT_TRUE(agree(p.exact_mean, f.mean, p.exact_mean, g.mean));
      EXPECT_TRUE(agree(p.m2, f.m2, p.m2, g.m2));
      EXPECT_TRUE(agree(p.dx, b.dx, p.dx, d.dx));
      EXPECT_TRUE(agree(p.dscale, b.dscale, p.dscale, d.dscale));
      EXPECT_TRUE(agree(p.dshift, b.dshift, p.dshift, d.dshift));
    }
  }
}

}  // namespace
}  // namespace popnorm_test
