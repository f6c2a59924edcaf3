// A fused residual and activation are what the plain operations and scalar code beside them give, to the bit: y is the activated
// sum of the plain y and the residual, and dx, dscale and dshift are the plain ones of the gradient behind the activation, which is
// dresidual. In 16 bits all of it is the f32 result, rounded once; on CUDA, where tiles hold more elements of 16 bits, but for what
// depends on sums, which the oracle checks.
#include <gtest/gtest.h>

#include "maps/case.hpp"
#include "support/executors.hpp"

namespace popnorm_test {
namespace {

bool has_f32_sums(const Configuration& k) { return !on_cuda() || k.storage == POPNORM_F32 || k.storage == POPNORM_F64; }

MapSet random_fusions(Random& random, const Configuration& k) {
  MapSet maps = random_maps(random, k.n);
  if (!has_f32_sums(k)) maps.statistics = POPNORM_GIVEN;
  add_random_fusion(random, maps);
  return maps;
}

// A value of the arithmetic type T, where z was.
template <class T>
double activated(const MapSet& maps, double z, double value) {
  if (!(z <= 0)) return value;
  if (maps.activation == POPNORM_RELU) return 0;
  return maps.activation == POPNORM_IDENTITY ? value
                                             : static_cast<double>(static_cast<T>(maps.slope) * static_cast<T>(value));
}

// Zeros may differ in sign where statistics are constants: there plain backward is a normalization.
void expect_equal(const std::vector<double>& a, const std::vector<double>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (std::size_t i = 0; i < a.size(); ++i)
    ASSERT_TRUE(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))
        << what << " " << i << ": " << a[i] << ", " << b[i];
}

template <class T>
void expect_composed(MapCase& fused, MapCase& plain) {
  const MapSet& maps = fused.maps();
  const popnorm_type storage = fused.configuration().storage;
  const Configuration& k = fused.configuration();
  plain.take(fused.x_values, fused.dy_values);
  const MapForward f = fused.forward({}), p = plain.forward({});
  EXPECT_TRUE(same_bits(f.saved_mean, p.saved_mean) && same_bits(f.saved_invstd, p.saved_invstd));
  std::vector<double> y, g, rounded;
  for (std::int64_t c = 0; c < k.c; ++c)
    for (std::int64_t n = 0; n < k.n; ++n)
      for (std::int64_t s = 0; s < k.s; ++s) {
        const std::size_t i = fused.oracle().at(c, n, s);
        if (fused.oracle().absent(n, s)) {
          y.push_back(0);
          g.push_back(0);
          continue;
        }
        const T z = static_cast<T>(p.y[i]) + (maps.residual ? static_cast<T>(fused.residual_values[i]) : T(0));
        y.push_back(stored(storage, activated<T>(maps, z, z)));
        g.push_back(activated<T>(maps, z, fused.dy_values[i]));
      }
  expect_equal(f.y, y, "y");
  plain.take(fused.x_values, g);
  const MapBackward b = fused.backward({}), q = plain.backward({});
  for (const double value : g) rounded.push_back(stored(storage, value));
  if (maps.residual) expect_equal(b.dresidual, rounded, "dresidual");
  std::vector<double> dx;
  for (const double value : q.dx) dx.push_back(stored(storage, value));
  expect_equal(b.dx, dx, "dx");
  if (!has_f32_sums(k)) return plain.expect_promises(p, {q.dx, b.dscale, b.dshift, {}});
  EXPECT_TRUE(same_bits(b.dscale, q.dscale)) << "dscale";
  EXPECT_TRUE(same_bits(b.dshift, q.dshift)) << "dshift";
}

// random_configuration or random_aligned, random_fusions or aligned_fusions.
template <class Configure, class Choose>
void expect_parts(const std::string& name, int cases, const Configure& configure, const Choose& choose) {
  for (int i = 0; i < cases; ++i) {
    Random random(name + std::to_string(i)), again(name + std::to_string(i));
    const Configuration k = configure(random);
    const MapSet maps = choose(random, k);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << testing::PrintToString(k) << ", " << maps);
    MapCase fused(k, maps, needs_one_slot(maps), random);
    Configuration wide = configure(again);
    MapSet bare = choose(again, k);
    if (k.storage != POPNORM_F64) wide.storage = POPNORM_F32;
    bare.activation = POPNORM_IDENTITY;
    bare.residual = false;
    MapCase plain(wide, bare, needs_one_slot(bare), again);
    k.storage == POPNORM_F64 ? expect_composed<double>(fused, plain) : expect_composed<float>(fused, plain);

    const MapForward f = fused.forward({});
    const MapBackward b = fused.backward({});
    fused.expect_same_by_every_route(f, b, random);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Fusions, AreWhatTheirPartsGiveByEveryRoute) {
  expect_parts("Fusions ", 150 * effort(), random_configuration, random_fusions);
}

// Signs that are recomputed, of one group or several, in images and rows of whole packs.
MapSet aligned_fusions(Random& random, const Configuration& k) {
  MapSet maps;
  maps.group = random.pick({popnorm_map{POPNORM_WHOLE, 0}, popnorm::contiguous(1 + k.n / 2), popnorm::strided(3)});
  maps.slot = maps.group;
  if (!has_f32_sums(k)) maps.statistics = POPNORM_GIVEN;
  maps.activation = random.pick({POPNORM_RELU, POPNORM_LEAKY_RELU});
  maps.residual = random.below(4) == 0;
  return maps;
}

TEST(Fusions, OfWholePacksAreWhatTheirPartsGive) {
  expect_parts("Whole packs ", 40 * effort(), random_aligned, aligned_fusions);
}

// Enough for many tasks, whose rows end within bytes of the mask.
TEST(Fusions, HaveTheSameBitsOnAnyThreads) {
  struct Shape {
    popnorm_layout layout;
    std::int64_t n, c, s;
  };
  for (const Shape& shape : {Shape{POPNORM_NCHW, 260, 34, 49}, Shape{POPNORM_NCHW, 3, 6, 9001},
                             Shape{POPNORM_NHWC, 40, 37, 196}, Shape{POPNORM_NHWC, 7001, 12, 1}})
    for (const bool residual : {false, true}) {
      Configuration k;
      k.layout = shape.layout;
      k.n = shape.n;
      k.c = shape.c;
      k.s = shape.s;
      MapSet maps;
      maps.activation = POPNORM_RELU;
      maps.residual = residual;
      SCOPED_TRACE(testing::Message() << testing::PrintToString(k) << maps);
      Random random("fused threads");
      MapCase c(k, maps, false, random);
      const MapForward f = c.forward({"baseline", POPNORM_PHASES, POPNORM_STORES_ORDINARY, nullptr});
      const MapBackward b = c.backward({"baseline", POPNORM_PHASES, POPNORM_STORES_ORDINARY, nullptr});
      for (const Route& forced : forced_routes())
        for (const int threads : {1, 3, 16}) {
          ShuffledExecutor executor(threads);
          const popnorm_executor interface = executor.interface();
          Route route = forced;
          route.executor = &interface;
          SCOPED_TRACE(testing::Message() << route << " on " << threads << " threads");
          expect_same(c.forward(route), f);
          expect_same(c.backward(route), b);
        }
    }
}

}  // namespace
}  // namespace popnorm_test
