// What must hold between two calls, whatever the numbers: scaling, shifting, reordering and relaying a batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>

#include "maps/case.hpp"

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
  k.storage = storage;
  k.parameters = k.statistics = arithmetic_type(storage);
  k.n = shape.n;
  k.c = shape.c;
  k.s = shape.s;
  return k;
}

Values times(Values values, double factor) {
  for (double& v : values) v *= factor;
  return values;
}

// Draws the same numbers for the same seed.
Content changed(const Content& original, double factor) {
  return [=](Random& random, std::int64_t channel, std::int64_t count) {
    return times(original(random, channel, count), factor);
  };
}

Values on_grid(Values values, double step) {
  for (double& v : values) v = std::nearbyint(v / step) * step;
  return values;
}

// Numbers that the type holds times small powers of two as well: f16 has subnormal ones from 2^-14 on, so that its lie on a grid.
Values scalable(popnorm_type type, Values values) {
  return type == POPNORM_F16 ? on_grid(std::move(values), 0x1p-10) : values;
}

Content scalable(popnorm_type type, const Content& original) {
  return [=](Random& random, std::int64_t channel, std::int64_t count) {
    return scalable(type, original(random, channel, count));
  };
}

// Powers of two by which x can be multiplied without leaving the type.
std::vector<double> factors_of(popnorm_type type) {
  if (type == POPNORM_F16) return {0x1p-1, 0x1p3};
  return {0x1p-20, 0x1p-1, 0x1p3, 0x1p20};
}

// `b` is `a` times a power of two, to the bit. Where f16 rounds one of them to a multiple of 2^-24, and the other as finely or, in
// proportion, no worse, they are off by half of that each.
::testing::AssertionResult scaled(popnorm_type type, const Values& b, const Values& a, double factor) {
  if (type != POPNORM_F16) return same_bits(b, times(a, factor));
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " elements";
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool may_be_subnormal = std::min(std::fabs(a[i]), std::fabs(b[i])) <= 0x1p-14;
    const double bound = may_be_subnormal ? 0x1p-24 * std::max(1.0, factor) : 0;
    if (!(std::fabs(b[i] - a[i] * factor) <= bound) && !(std::isnan(a[i]) && std::isnan(b[i])))
      return ::testing::AssertionFailure() << "element " << i << " is " << b[i] << ", not " << a[i] << " * " << factor;
  }
  return ::testing::AssertionSuccess();
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
    Contents contents;
    contents.x = scalable(k.storage, contents.x);
    Random random("scale");
    const Layer original(k, random, contents);
    Runner of_original(original, route);
    const Forward f = of_original.forward(POPNORM_BATCH);
    const Backward b = of_original.backward();
    for (const double factor : factors_of(k.storage)) {
      SCOPED_TRACE(factor);
      Configuration scaled_k = k;
      scaled_k.epsilon = k.epsilon * factor * factor;
      Contents scaled_contents;
      scaled_contents.x = changed(contents.x, factor);
      Random same("scale");
      const Layer layer(scaled_k, same, scaled_contents);
      Runner of_scaled(layer, route);
      const Forward g = of_scaled.forward(POPNORM_BATCH);
      const Backward d = of_scaled.backward();
      EXPECT_TRUE(same_bits(g.y, f.y)) << "y";
      EXPECT_TRUE(same_bits(g.mean, times(f.mean, factor))) << "mean";
      EXPECT_TRUE(same_bits(g.m2, times(f.m2, factor * factor))) << "m2";
      EXPECT_TRUE(same_bits(g.saved_invstd, times(f.saved_invstd, 1 / factor))) << "invstd";
      EXPECT_TRUE(scaled(k.storage, d.dx, b.dx, 1 / factor)) << "dx";
      EXPECT_TRUE(same_bits(d.dscale, b.dscale)) << "dscale";
      EXPECT_TRUE(same_bits(d.dshift, b.dshift)) << "dshift";
    }
  });
}

// scale and shift by 2^k: y and dx by 2^k. dy by 2^k: all gradients by 2^k.
TEST_P(Equivariance, ScalingParametersAndGradientsIsExact) {
  for_each_layer([](const Configuration& k, const Route& route) {
    Contents contents;
    contents.dy = scalable(k.storage, contents.dy);
    Random random("parameters");
    const Layer original(k, random, contents);
    Runner of_original(original, route);
    const Forward f = of_original.forward(POPNORM_BATCH);
    const Backward b = of_original.backward();
    const double factor = 0x1p7;
    Contents large = contents;
    large.scale = changed(contents.scale, factor);
    large.shift = changed(contents.shift, factor);
    Random same("parameters");
    const Layer larger(k, same, large);
    Runner of_larger(larger, route);
    EXPECT_TRUE(scaled(k.storage, of_larger.forward(POPNORM_BATCH).y, f.y, factor));
    EXPECT_TRUE(scaled(k.storage, of_larger.backward().dx, b.dx, factor));

    Contents steep = contents;
    steep.dy = changed(contents.dy, factor);
    Random again("parameters");
    const Layer steeper(k, again, steep);
    Runner of_steeper(steeper, route);
    of_steeper.forward(POPNORM_BATCH);
    const Backward d = of_steeper.backward();
    EXPECT_TRUE(scaled(k.storage, d.dx, b.dx, factor));
    EXPECT_TRUE(same_bits(d.dscale, times(b.dscale, factor)));
    EXPECT_TRUE(same_bits(d.dshift, times(b.dshift, factor)));
  });
}

// Multiples of `step` below 8 that the type holds when one of `shifts` is added.
struct Grid {
  double step;
  Values shifts;
};

Grid grid_of(popnorm_type type) {
  if (type == POPNORM_BF16) return {0x1p-2, {1, -16, 40}};
  if (type == POPNORM_F16) return {0x1p-4, {1, -64, 100}};
  return {0x1p-8, {1, -64, 4096}};
}

// Adding a constant changes the mean by it and nothing else. The numbers lie on a grid on which the addition is exact.
TEST_P(Equivariance, ShiftingXShiftsTheMean) {
  for_each_layer([](const Configuration& k, const Route& route) {
    const Grid grid = grid_of(k.storage);
    const auto shifted_by = [&grid](double shift) {
      return [=](Random& random, std::int64_t channel, std::int64_t count) {
        Values values = on_grid(normal(0, 1)(random, channel, count), grid.step);
        for (double& v : values) v = std::clamp(v, -8.0, 8.0) + shift;
        return values;
      };
    };
    Contents contents, shifted_contents;
    contents.x = shifted_by(0);
    Random random("shift");
    const Layer original(k, random, contents);
    Runner of_original(original, route);
    const Forward f = of_original.forward(POPNORM_BATCH);
    const Backward b = of_original.backward();
    for (const double shift : grid.shifts) {
      SCOPED_TRACE(shift);
      shifted_contents.x = shifted_by(shift);
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
                                            ::testing::ValuesIn(kStorageTypes)));

// What follows normalization is homogeneous too: with a residual and an activation, groups, weights and every source of
// statistics.
class ScaledCase {
 public:
  explicit ScaledCase(const std::string& stream) : stream_(stream) {
    Random random(stream);
    k_ = random_configuration(random);
    maps_ = random_maps(random, k_.n);
    add_random_fusion(random, maps_);
  }

  struct Factors {
    double x = 1, parameters = 1, dy = 1;
  };
  struct Results {
    MapForward forward;
    MapBackward backward;
  };
  Results run(const Factors& by, const Route& route) const {
    Configuration k = k_;
    k.epsilon *= by.x * by.x;
    Random random(stream_ + " contents");
    MapCase c(k, maps_, needs_one_slot(maps_), random);
    const auto multiply = [](Array& array, double factor) {
      array.buffer().make_writable();
      array.assign(times(array.values(), factor));
    };
    multiply(c.given_mean, by.x);
    multiply(c.given_variance, by.x * by.x);
    multiply(c.scale, by.parameters);
    multiply(c.shift, by.parameters);
    if (maps_.residual) {
      c.residual.buffer().make_writable();
      c.residual.assign_by_channel(times(scalable(k.storage, c.residual_values), by.parameters));
    }
    c.take(times(scalable(k.storage, c.x_values), by.x), times(scalable(k.storage, c.dy_values), by.dy));
    Results results;
    results.forward = c.forward(route);
    results.backward = c.backward(route);
    return results;
  }

  popnorm_type storage() const { return k_.storage; }
  friend std::ostream& operator<<(std::ostream& out, const ScaledCase& c) { return out << c.k_ << ", " << c.maps_; }

 private:
  std::string stream_;
  Configuration k_;
  MapSet maps_;
};

// Calls compare(case, route) for many, each on one tier.
template <class Compare>
void for_each_scaled_case(const std::string& name, const Compare& compare) {
  const std::vector<const char*> tiers = runnable_tiers();
  for (int i = 0; i < (on_cuda() ? 25 : 100) * effort(); ++i) {
    const ScaledCase c(name + std::to_string(i));
    const Route route{.isa = tiers[static_cast<std::size_t>(i) % tiers.size()]};
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << c << ", " << route);
    compare(c, route);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(FusedEquivariance, ScalingXByPowersOfTwoIsExact) {
  for_each_scaled_case("FusedEquivariance x ", [](const ScaledCase& c, const Route& route) {
    const auto [f, b] = c.run({}, route);
    for (const double factor : factors_of(c.storage())) {
      SCOPED_TRACE(factor);
      const auto [g, d] = c.run({.x = factor}, route);
      EXPECT_TRUE(same_bits(g.y, f.y)) << "y";
      EXPECT_TRUE(same_bits(g.mean, times(f.mean, factor))) << "mean";
      EXPECT_TRUE(same_bits(g.m2, times(f.m2, factor * factor))) << "m2";
      EXPECT_TRUE(scaled(c.storage(), d.dx, b.dx, 1 / factor)) << "dx";
      EXPECT_TRUE(same_bits(d.dresidual, b.dresidual)) << "dresidual";
      EXPECT_TRUE(same_bits(d.dscale, b.dscale)) << "dscale";
      EXPECT_TRUE(same_bits(d.dshift, b.dshift)) << "dshift";
    }
  });
}

TEST(FusedEquivariance, ScalingParametersAndGradientsIsExact) {
  for_each_scaled_case("FusedEquivariance parameters ", [](const ScaledCase& c, const Route& route) {
    const double factor = 0x1p7;
    const auto [f, b] = c.run({}, route);
    const auto [g, d] = c.run({.parameters = factor}, route);
    EXPECT_TRUE(scaled(c.storage(), g.y, f.y, factor)) << "y";
    EXPECT_TRUE(scaled(c.storage(), d.dx, b.dx, factor)) << "dx";
    EXPECT_TRUE(same_bits(d.dresidual, b.dresidual)) << "dresidual";
    EXPECT_TRUE(same_bits(d.dscale, b.dscale)) << "dscale";
    const MapBackward steep = c.run({.dy = factor}, route).backward;
    EXPECT_TRUE(scaled(c.storage(), steep.dx, b.dx, factor)) << "dx";
    EXPECT_TRUE(scaled(c.storage(), steep.dresidual, b.dresidual, factor)) << "dresidual";
    EXPECT_TRUE(same_bits(steep.dscale, times(b.dscale, factor))) << "dscale";
    EXPECT_TRUE(same_bits(steep.dshift, times(b.dshift, factor))) << "dshift";
  });
}

// The two layouts sum in another order and agree within their bounds.
TEST(Layouts, AgreeWithinBounds) {
  for (const popnorm_type storage : kStorageTypes) {
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
