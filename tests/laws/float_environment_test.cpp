// Results do not depend on the floating-point state of the caller or of the executor's threads, which is left as it
// was.
#include <gtest/gtest.h>
#include <immintrin.h>

#include <cmath>
#include <limits>

#include "support/executors.hpp"
#include "support/layer.hpp"

namespace popnorm_test {
namespace {

constexpr unsigned kMaskAll = 0x1F80;
constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
constexpr unsigned kDown = 0x2000, kUp = 0x4000, kTowardsZero = 0x6000;

// All states of interest, exceptions masked; the last one unmasks them: an operation on NaN, a division by zero or an
// overflow would then kill the process.
constexpr unsigned kStates[] = {kMaskAll | kDown,
                                kMaskAll | kUp,
                                kMaskAll | kTowardsZero,
                                kMaskAll | kFlushToZero,
                                kMaskAll | kDenormalsAreZero,
                                kMaskAll | kFlushToZero | kDenormalsAreZero | kTowardsZero,
                                0};

class State {
 public:
  explicit State(unsigned state) : before_(_mm_getcsr()) { _mm_setcsr(state); }
  ~State() { _mm_setcsr(before_); }
  State(const State&) = delete;

 private:
  unsigned before_;
};

// Subnormal elements and rounding both show in every output; NaN and infinities raise what may be unmasked.
Content delicate(double subnormal) {
  return [=](Random& random, std::int64_t channel, std::int64_t count) {
    std::vector<double> values =
        normal(channel % 3 == 1 ? 0 : 0.1, channel % 3 == 1 ? subnormal : 1)(random, channel, count);
    if (channel == 5) values.front() = std::numeric_limits<double>::quiet_NaN();
    if (channel == 6) values.back() = std::numeric_limits<double>::infinity();
    return values;
  };
}

struct Everything {
  Forward forward;
  Backward backward;
  std::vector<double> dresidual, running_mean, running_variance;
};

// In the given state on the calling thread, and only during the library's calls. `fused`: with a residual, of dy's numbers, and an
// activation.
Everything run(const Layer& layer, const Route& route, unsigned state, bool fused) {
  const Configuration& k = layer.configuration();
  popnorm_problem problem = layer.problem();
  if (fused) {
    problem.activation = POPNORM_LEAKY_RELU;
    problem.adds_residual = 1;
  }
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.isa = route.isa;
  options.executor = route.executor;
  const popnorm::plan plan(problem, options);
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  Tensor y(layer.x.shape(), k.storage, k.where), dx(layer.x.shape(), k.storage, k.where),
      dresidual(layer.x.shape(), k.storage, k.where);
  Array running_mean(k.statistics, k.c, k.where), running_variance(k.statistics, k.c, k.where);
  running_mean.assign(std::vector<double>(static_cast<std::size_t>(k.c), 0.1));
  running_variance.assign(std::vector<double>(static_cast<std::size_t>(k.c), 0.7));
  Array dscale(k.parameters, k.c, k.where), dshift(k.parameters, k.c, k.where);
  popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
  forward.x = layer.x.data();
  forward.y = y.data();
  forward.scale = layer.scale.data();
  forward.shift = layer.shift.data();
  if (fused) forward.residual = layer.dy.data();
  forward.update.running_mean = running_mean.data();
  forward.update.running_variance = running_variance.data();
  popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
  backward.x = layer.x.data();
  backward.dy = layer.dy.data();
  backward.dx = dx.data();
  backward.dscale = dscale.data();
  backward.dshift = dshift.data();
  if (fused) backward.dresidual = dresidual.data();
  popnorm_status forward_status, backward_status;
  unsigned after_forward, after_backward;
  {
    const State scope(state);
    forward_status = popnorm_forward(plan.get(), &forward, nullptr);
    after_forward = _mm_getcsr();
    backward_status = popnorm_backward(plan.get(), &backward, nullptr);
    after_backward = _mm_getcsr();
  }
  EXPECT_EQ(forward_status, POPNORM_SUCCESS);
  EXPECT_EQ(backward_status, POPNORM_SUCCESS);
  // Control bits; the flags of exceptions that happened may be set or not.
  EXPECT_EQ(after_forward & ~0x3Fu, state & ~0x3Fu);
  EXPECT_EQ(after_backward & ~0x3Fu, state & ~0x3Fu);
  Everything result;
  result.forward.y = y.by_channel();
  result.backward = {dx.by_channel(), dscale.values(), dshift.values()};
  result.dresidual = dresidual.by_channel();
  result.running_mean = running_mean.values();
  result.running_variance = running_variance.values();
  return result;
}

void expect_same(const Everything& a, const Everything& b) {
  EXPECT_TRUE(same_bits(a.forward.y, b.forward.y)) << "y";
  EXPECT_TRUE(same_bits(a.backward.dx, b.backward.dx)) << "dx";
  EXPECT_TRUE(same_bits(a.backward.dscale, b.backward.dscale)) << "dscale";
  EXPECT_TRUE(same_bits(a.backward.dshift, b.backward.dshift)) << "dshift";
  EXPECT_TRUE(same_bits(a.dresidual, b.dresidual)) << "dresidual";
  EXPECT_TRUE(same_bits(a.running_mean, b.running_mean)) << "running_mean";
  EXPECT_TRUE(same_bits(a.running_variance, b.running_variance)) << "running_variance";
}

class FloatEnvironment : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, bool>> {
 protected:
  static bool fused() { return std::get<2>(GetParam()); }
  static Layer layer() {
    const auto& [layout, storage, with_fusions] = GetParam();
    Configuration k;
    k.layout = layout;
    k.storage = storage;
    k.parameters = k.statistics = arithmetic_type(storage);
    k.n = 8;
    k.c = 9;
    k.s = 1100;
    k.epsilon = 1e-30;
    Random random("FloatEnvironment");
    Contents contents;
    contents.x = delicate(storage == POPNORM_F64 ? 1e-309 : storage == POPNORM_F16 ? 1e-6 : 1e-39);
    contents.shift = constant(0);  // or it would hide what is left of subnormal numbers
    return {k, random, contents};
  }
};

TEST_P(FloatEnvironment, OfTheCallerDoesNotMatter) {
  const Layer tested = layer();
  for (const char* isa : runnable_tiers()) {
    SCOPED_TRACE(isa);
    const Everything expected = run(tested, {.isa = isa}, kMaskAll, fused());
    for (const unsigned state : kStates) {
      SCOPED_TRACE(state);
      expect_same(run(tested, {.isa = isa}, state, fused()), expected);
    }
  }
}

TEST_P(FloatEnvironment, OfTheExecutorsThreadsDoesNotMatter) {
  const Layer tested = layer();
  const Everything expected = run(tested, {}, kMaskAll, fused());
  ShuffledExecutor spoiled(3, [] { _mm_setcsr(kMaskAll | kFlushToZero | kDenormalsAreZero | kUp); });
  const popnorm_executor executor = spoiled.interface();
  expect_same(run(tested, {.executor = &executor}, kMaskAll, fused()), expected);
  EXPECT_GE(spoiled.most_threads(), 2) << "nothing was run on the spoiled threads";
}

INSTANTIATE_TEST_SUITE_P(Layers, FloatEnvironment,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes), ::testing::Bool()));

// Population arithmetic and combine run in the caller's thread: they too round to nearest.
TEST(FloatEnvironmentOfStages, DoesNotMatter) {
  constexpr std::int64_t c = 40;
  Random random("FloatEnvironmentOfStages");
  std::vector<double> weight(c), mean(c), m2(c), other_mean(c), other_m2(c);
  for (std::size_t i = 0; i < c; ++i) {
    weight[i] = static_cast<double>(random.below(100) + 1);
    mean[i] = random.normal();
    m2[i] = random.unit();
    other_mean[i] = random.normal();
    other_m2[i] = random.unit() * 1e-309;
  }
  const popnorm::plan plan(popnorm::problem_nchw(1, c, 1));
  const auto all = [&](unsigned state) {
    std::vector<double> w(c), a(c), b(c);
    std::vector<float> variance(c);
    popnorm::population population(1, c);
    popnorm_moment_arrays parts[] = {{weight.data(), mean.data(), m2.data()},
                                     {weight.data(), other_mean.data(), other_m2.data()}};
    popnorm_combine_args combine = POPNORM_COMBINE_ARGS_INIT;
    combine.parts = parts;
    combine.count = 2;
    combine.moments = {w.data(), a.data(), b.data()};
    popnorm_population_feed_args feed = POPNORM_POPULATION_FEED_ARGS_INIT;
    popnorm_population_finalize_args finalize = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
    finalize.variance = variance.data();
    unsigned after;
    {
      const State scope(state);
      popnorm_combine(plan.get(), &combine, nullptr);
      for (const popnorm_moment_arrays& part : parts) {
        feed.moments = part;
        popnorm_population_feed(population.data(), population.size(), &feed);
      }
      popnorm_population_finalize(population.data(), population.size(), &finalize);
      after = _mm_getcsr();
    }
    EXPECT_EQ(after & ~0x3Fu, state & ~0x3Fu);
    a.insert(a.end(), b.begin(), b.end());
    a.insert(a.end(), variance.begin(), variance.end());
    const auto* arrays = reinterpret_cast<const double*>(&population.header() + 1);
    a.insert(a.end(), arrays, arrays + 8 * c);
    return a;
  };
  const std::vector<double> expected = all(kMaskAll);
  for (const unsigned state : kStates) {
    SCOPED_TRACE(state);
    EXPECT_TRUE(same_bits(all(state), expected));
  }
}

}  // namespace
}  // namespace popnorm_test
