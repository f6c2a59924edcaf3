// Every operation against the oracle, within the bounds of docs/numerics.md: over shapes, layouts, types, strides,
// alignments, absent parameters, tiers, schedules and kinds of stores. In place, subsets of gradients and inference are
// held to the bits of the full call.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "support/layer.hpp"
#include "support/skips.hpp"

namespace popnorm_test {
namespace {

struct Shape {
  std::int64_t n, c, s;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << shape.n << 'x' << shape.c << 'x' << shape.s;
}

// One representative per way of being cut into vectors and tiles.
constexpr Shape kShapes[] = {
    {1, 1, 1},     // a single element
    {1, 5, 1},     // W = 1
    {0, 3, 5},     // no samples
    {3, 2, 0},     // no positions
    {2, 1, 1},     // two elements, one channel
    {1, 1, 2},     //
    {1, 1, 5000},  // one channel, one row of several tiles
    {4, 3, 1},     // BatchNorm1d, fewer channels than a vector has lanes
    {37, 5, 1},    //
    {300, 17, 1},  // one channel more than a vector
    {64, 130, 1},  //
    {5000, 3, 1},  // several tiles of samples
    {200, 1, 3},   // rows shorter than a vector
    {2, 3, 49},    // 7 x 7
    {8, 16, 49},   //
    {150, 6, 49},  // tiles of whole samples, and a rest
    {3, 7, 196},   // 14 x 14
    {16, 8, 64},   // 8 x 8
    {2, 64, 15},   // one position less than the virtual lanes
    {2, 32, 16},   // exactly the virtual lanes
    {1, 33, 17},   // one more
    {33, 2, 31},   //
    {5, 1, 77},    // one channel
    {1, 515, 9},   // many channels, odd
    {3, 4, 1024},  // powers of two
    {2, 3, 2049},  // one position more than a tile
    {2, 2, 4111},  // unequal runs
    {1, 5, 9001},  //
    {7, 19, 113},  // nothing fits anything
};

// What a caller may leave out, accumulate onto, or hand back in another form. After expect_promises.
void expect_variants(const Layer& layer, Runner& runner, popnorm_statistics source) {
  const Promises& p = layer.promises(source);
  const auto per_channel = static_cast<std::size_t>(layer.count());
  const Backward all = runner.backward();
  for (int mask = 1; mask < 7; ++mask) {
    const Wish wish = {.dx = (mask & 1) != 0, .dscale = (mask & 2) != 0, .dshift = (mask & 4) != 0};
    const Backward some = runner.backward(wish);
    EXPECT_TRUE(same_bits(some.dx, wish.dx ? all.dx : std::vector<double>())) << "dx of subset " << mask;
    EXPECT_TRUE(same_bits(some.dscale, wish.dscale ? all.dscale : std::vector<double>())) << "dscale of " << mask;
    EXPECT_TRUE(same_bits(some.dshift, wish.dshift ? all.dshift : std::vector<double>())) << "dshift of " << mask;
  }
  const Backward accumulated = runner.backward({.accumulate = true});
  EXPECT_TRUE(same_bits(accumulated.dx, all.dx)) << "dx while accumulating";
  EXPECT_TRUE(within(p.dscale_accumulated, accumulated.dscale)) << "accumulated dscale";
  EXPECT_TRUE(within(p.dshift_accumulated, accumulated.dshift)) << "accumulated dshift";

  const Backward saved = runner.backward({.from_saved = true});
  EXPECT_TRUE(within(p.dx_from_saved, saved.dx, per_channel)) << "dx from saved statistics";
  EXPECT_TRUE(within(p.dscale_from_saved, saved.dscale)) << "dscale from saved statistics";
  EXPECT_TRUE(within(p.dshift, saved.dshift)) << "dshift from saved statistics";
}

// In place or not: the same bits.
void expect_in_place(const Layer& layer, const Route& route, popnorm_statistics source) {
  SCOPED_TRACE(source == POPNORM_BATCH ? "batch statistics" : "given statistics");
  for (const Aliasing aliasing : {Aliasing::y_is_x, Aliasing::dx_is_dy, Aliasing::dx_is_x}) {
    Runner apart(layer, route, aliasing, false), in_place(layer, route, aliasing, true);
    EXPECT_TRUE(same_bits(apart.forward(source).y, in_place.forward(source).y));
    const Backward a = apart.backward(), b = in_place.backward();
    EXPECT_TRUE(same_bits(a.dx, b.dx) && same_bits(a.dscale, b.dscale) && same_bits(a.dshift, b.dshift))
        << "in place, aliasing " << static_cast<int>(aliasing);
  }
}

void expect_everything(const Configuration& configuration, Random& random, const std::vector<Route>& routes) {
  const ::testing::ScopedTrace of_configuration(__FILE__, __LINE__, ::testing::PrintToString(configuration));
  const Layer layer(configuration, random);
  for (const Route& route : routes) {
    const ::testing::ScopedTrace of_route(__FILE__, __LINE__, ::testing::PrintToString(route));
    Runner runner(layer, route);
    for (const popnorm_statistics source : {POPNORM_BATCH, POPNORM_GIVEN}) {
      expect_promises(layer, runner, source);
      expect_variants(layer, runner, source);
      expect_in_place(layer, route, source);
    }
    if (::testing::Test::HasFailure()) return;  // the other routes would say the same at length
  }
}

Configuration random_configuration(Random& random, Configuration base) {
  const auto spacing = [&] {
    return random.pick({Spacing::packed, Spacing::channel_slice, Spacing::padded_rows, Spacing::padded_samples,
                        Spacing::samples_inside});
  };
  base.x = spacing();
  base.y = spacing();
  base.dy = spacing();
  base.dx = spacing();
  base.scale = random.below(4) != 0;
  base.shift = random.below(4) != 0;
  base.parameters = random.pick({POPNORM_F32, POPNORM_F64});
  base.statistics = random.pick({POPNORM_F32, POPNORM_F64});
  base.epsilon = random.pick({1e-5, 1e-3, 0.0});
  base.where = random.pick({Placement::ends_at_guard, Placement::begins_at_guard});
  base.offset = random.below(17);
  return base;
}

class Grid : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, Shape>> {};

TEST_P(Grid, AgreesWithTheOracle) {
  const auto& [layout, storage, shape] = GetParam();
  Configuration base;
  base.layout = layout;
  base.storage = storage;
  base.parameters = base.statistics = arithmetic_type(storage);
  base.n = shape.n;
  base.c = shape.c;
  base.s = shape.s;
  Random random("Grid " + ::testing::PrintToString(base));
  const std::vector<Route> routes = forced_routes();
  expect_everything(base, random, routes);
  // Random configurations each take a few of the routes, together all of them.
  for (int i = 0; i < 3 * effort(); ++i) {
    std::vector<Route> some;
    for (std::size_t r = static_cast<std::size_t>(i) % 3; r < routes.size(); r += 3) some.push_back(routes[r]);
    expect_everything(random_configuration(random, base), random, some);
    if (HasFailure()) return;
  }
}

std::string name_of_case(const ::testing::TestParamInfo<Grid::ParamType>& info) {
  const auto& [layout, storage, shape] = info.param;
  return std::string(layout == POPNORM_NCHW ? "NCHW" : "NHWC") + "_" + name_of(storage) + "_" +
         ::testing::PrintToString(shape);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Grid,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes), ::testing::ValuesIn(kShapes)),
                         name_of_case);

// Large enough that sizes decide: slabs, streaming stores, many tasks.
class LargeLayer : public ::testing::TestWithParam<popnorm_layout> {};

TEST_P(LargeLayer, AgreesWithTheOracle) {
  Configuration k;
  k.layout = GetParam();
  k.n = 32;
  k.c = 48;
  k.s = 28 * 28;
  Random random("LargeLayer");
  expect_everything(k, random, {Route{}});
}

INSTANTIATE_TEST_SUITE_P(Layouts, LargeLayer, ::testing::Values(POPNORM_NCHW, POPNORM_NHWC));

// A misspelled or missing tier would make the rest of this file pass without testing it.
TEST(Tiers, AllTiersOfThisMachineAreDriven) {
  const std::vector<const char*> tiers = runnable_tiers();
  ASSERT_FALSE(tiers.empty());
  EXPECT_STREQ(tiers.back(), "baseline");
  EXPECT_EQ(forced_routes().size(), 6 * tiers.size());
  EXPECT_EQ(skipped(), expected_skips()) << "a tier was driven that the processor's flags do not allow, or left out";
}

// A plan forced to a tier runs on that tier: this is what the tests of all tiers rest on.
TEST(Tiers, AForcedTierIsTheOneThatRuns) {
  for (const char* tier : runnable_tiers()) {
    popnorm_options options = POPNORM_OPTIONS_INIT;
    options.isa = tier;
    EXPECT_STREQ(popnorm::plan(popnorm::problem_nchw(2, 3, 4), options).info().isa, tier);
  }
}

}  // namespace
}  // namespace popnorm_test
