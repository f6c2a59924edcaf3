// What only the CUDA backend has to keep: it is the one that runs, the order of its threads changes no bit, and what it does not
// serve is refused by name. Everything else is held to the tests of the CPU (CTest names cuda.*).
#include <gtest/gtest.h>

#include <cmath>
#include <popnorm/popnorm.hpp>
#include <string>
#include <tuple>

#include "maps/case.hpp"
#include "support/layer.hpp"

namespace popnorm_test {
namespace {

TEST(CudaBackend, IsTheOneThatRuns) {
  EXPECT_TRUE(on_cuda());
  EXPECT_EQ(popnorm::plan(popnorm::problem_nchw(2, 3, 4)).info().backend, POPNORM_CUDA);
  EXPECT_EQ(popnorm_backend_available(POPNORM_CUDA), 1);
}

struct Shape {
  std::int64_t n, c, s;
};

class CudaOrder : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type>> {};

// Every launch of the emulator takes threads and blocks in another order; a device does as it likes.
TEST_P(CudaOrder, OfThreadsAndBlocksChangesNoBit) {
  for (const Shape& shape : {Shape{3, 5, 7}, Shape{40, 3, 130}, Shape{2, 2, 9000}, Shape{5000, 33, 1}}) {
    Configuration k;
    std::tie(k.layout, k.storage) = GetParam();
    k.parameters = k.statistics = k.storage;
    k.n = shape.n;
    k.c = shape.c;
    k.s = shape.s;
    Random random("CudaOrder");
    const Layer layer(k, random);
    Runner runner(layer, {});
    expect_promises(layer, runner, POPNORM_BATCH);
    const Forward f = runner.forward(POPNORM_BATCH);
    const Backward b = runner.backward();
    for (int i = 0; i < 3; ++i) {
      const Forward g = runner.forward(POPNORM_BATCH);
      EXPECT_TRUE(same_bits(f.y, g.y) && same_bits(f.mean, g.mean) && same_bits(f.m2, g.m2))
          << ::testing::PrintToString(k);
      const Backward d = runner.backward();
      EXPECT_TRUE(same_bits(b.dx, d.dx) && same_bits(b.dscale, d.dscale) && same_bits(b.dshift, d.dshift))
          << ::testing::PrintToString(k);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, CudaOrder,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(POPNORM_F32, POPNORM_F64)));

popnorm_map closed_map(Random& random, std::int64_t n) {
  switch (random.below(4)) {
    case 0:
      return {POPNORM_WHOLE, 0};
    case 1:
      return {POPNORM_CONTIGUOUS, 1 + random.below(n + 1)};
    case 2:
      return {POPNORM_STRIDED, 1 + random.below(n + 1)};
    default:
      return {POPNORM_PER_SAMPLE, 0};
  }
}

// Maps in closed form, all sources of statistics: against the oracle that loops group by group, and by the six operations.
TEST(CudaMaps, AgreeWithTheOracle) {
  for (int i = 0; i < 120 * effort(); ++i) {
    Random random("CudaMaps " + std::to_string(i));
    const Configuration k = random_configuration(random);
    MapSet maps;
    maps.group = closed_map(random, k.n);
    maps.affine = random.coin() ? closed_map(random, k.n) : popnorm_map{POPNORM_WHOLE, 0};
    maps.statistics = random.pick({POPNORM_BATCH, POPNORM_BATCH, POPNORM_GIVEN, POPNORM_BLEND, POPNORM_RENORM});
    const bool mixes = maps.statistics == POPNORM_BLEND || maps.statistics == POPNORM_RENORM;
    maps.slot = !mixes ? closed_map(random, k.n) : random.coin() ? maps.group : popnorm_map{POPNORM_WHOLE, 0};
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << testing::PrintToString(k) << ", " << maps);
    MapCase c(k, maps, mixes, random);
    const MapForward f = c.forward({});
    const MapBackward b = c.backward({});
    c.expect_promises(f, b);
    MapForward parts;
    MapBackward gradients;
    c.run_operations({}, parts, gradients);
    EXPECT_TRUE(same_bits(parts.y, f.y) && same_bits(parts.mean, f.mean) && same_bits(parts.m2, f.m2));
    EXPECT_TRUE(same_bits(gradients.dx, b.dx) && same_bits(gradients.dscale, b.dscale) &&
                same_bits(gradients.dshift, b.dshift));
    if (HasFailure()) return;
  }
}

// What three batches leave in running statistics and in a population; the last has a NaN in channel 1 of the second slot.
struct Fed {
  std::vector<double> running_mean, running_variance, population;
};
Fed feed(popnorm_backend backend, popnorm_feed feed) {
  constexpr std::int64_t n = 16, c = 5, s = 9, slots = 2;
  popnorm_problem problem = popnorm::problem_nchw(n, c, s);
  problem.statistics = POPNORM_F64;
  problem.norm_group = {POPNORM_CONTIGUOUS, 4};
  problem.population_slot = {POPNORM_CONTIGUOUS, 8};
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = backend;
  const popnorm::plan plan(problem, options);
  popnorm::buffer workspace = plan.make_workspace();
  popnorm::population population(slots, c);
  Fed fed{std::vector<double>(slots * c, 0.5), std::vector<double>(slots * c, 2), {}};
  Random random("feed");
  std::vector<float> x(n * c * s);
  for (int batch = 0; batch < 3; ++batch) {
    for (float& value : x) value = static_cast<float>(random.normal() + batch);
    if (batch == 2) x[(8 * c + 1) * s] = std::nanf("");
    popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
    args.x = x.data();
    args.update.running_mean = fed.running_mean.data();
    args.update.running_variance = fed.running_variance.data();
    args.update.population = population.data();
    args.update.population_bytes = population.size();
    args.update.feed = feed;
    args.update.momentum = 0.25;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.moments(args);
  }
  const auto* arrays = reinterpret_cast<const double*>(&population.header() + 1);
  fed.population.assign(arrays, arrays + 8 * slots * c);
  fed.population.push_back(static_cast<double>(population.header().steps));
  return fed;
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(b[i]))
      EXPECT_TRUE(std::isnan(a[i])) << what << " " << i;
    else
      EXPECT_NEAR(a[i], b[i], 32 * 0x1p-24 * (1 + std::fabs(b[i]))) << what << " " << i;  // each within 16u*std
  }
}

TEST(CudaBackend, FeedsPopulationsAsTheCpuDoes) {
  for (const popnorm_feed kind : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE}) {
    SCOPED_TRACE(kind);
    const Fed cpu = feed(POPNORM_CPU, kind), cuda = feed(POPNORM_CUDA, kind);
    expect_near(cuda.running_mean, cpu.running_mean, "running_mean");
    expect_near(cuda.running_variance, cpu.running_variance, "running_variance");
    expect_near(cuda.population, cpu.population, "population");
    const double* nonfinite = cuda.population.data() + 7 * 2 * 5;
    EXPECT_EQ(std::vector<double>(nonfinite, nonfinite + 10), (std::vector<double>{0, 0, 0, 0, 0, 0, 1, 0, 0, 0}));
  }
}

popnorm_status plan_of(const popnorm_problem& problem, const popnorm_options& options) {
  popnorm_plan* plan = nullptr;
  const popnorm_status status = popnorm_plan_create(&problem, &options, &plan);
  popnorm_plan_destroy(plan);
  return status;
}

void expect_refused(popnorm_status expected, const popnorm_problem& problem, const popnorm_options& options,
                    const char* what) {
  EXPECT_EQ(plan_of(problem, options), expected) << what;
  EXPECT_NE(std::string(popnorm_last_error()).find(what), std::string::npos) << popnorm_last_error();
}

TEST(CudaBackend, RefusesByNameWhatItDoesNotServe) {
  const popnorm_options options = POPNORM_OPTIONS_INIT;
  popnorm_problem weighted = popnorm::problem_nchw(2, 3, 4);
  weighted.weights = POPNORM_LENGTHS;
  expect_refused(POPNORM_UNSUPPORTED, weighted, options, "weights");
  popnorm_problem labelled = popnorm::problem_nchw(2, 3, 4);
  labelled.norm_group = {POPNORM_LABELS, 2};
  expect_refused(POPNORM_UNSUPPORTED, labelled, options, "LABELS");
  expect_refused(POPNORM_UNSUPPORTED, popnorm::problem_nchw(1, std::int64_t{1} << 31, 2), options, "channels");

  popnorm_executor executor = POPNORM_EXECUTOR_INIT;
  executor.parallel_for = [](void*, std::int64_t, void (*)(void*, std::int64_t), void*) {};
  popnorm_options with_executor = POPNORM_OPTIONS_INIT;
  with_executor.executor = &executor;
  expect_refused(POPNORM_INVALID, popnorm::problem_nchw(2, 3, 4), with_executor, "executor");

  const popnorm::plan plan(popnorm::problem_nchw(2, 3, 4));
  popnorm_double_backward_args second = POPNORM_DOUBLE_BACKWARD_ARGS_INIT;
  EXPECT_EQ(popnorm_double_backward(plan.get(), &second, nullptr), POPNORM_UNSUPPORTED);
  EXPECT_NE(std::string(popnorm_last_error()).find("second derivative"), std::string::npos) << popnorm_last_error();
}

// The sums may be left out where statistics are given. Only the device knows whether they are: if not, dx is NaN, not wrong.
TEST(CudaBackend, BackwardApplyWithoutSumsIsNotSilentlyWrong) {
  Configuration k;
  k.n = 4;
  k.c = 3;
  k.s = 5;
  Random random("without sums");
  const Layer layer(k, random);
  Runner runner(layer, {});
  for (const popnorm_statistics source : {POPNORM_BATCH, POPNORM_GIVEN}) {
    runner.forward(source);
    Tensor dx(layer.x.shape(), k.storage, k.where);
    popnorm_backward_apply_args args = POPNORM_BACKWARD_APPLY_ARGS_INIT;
    args.x = layer.x.data();
    args.dy = layer.dy.data();
    args.dx = dx.data();
    args.reserve = runner.reserve().data();
    args.reserve_bytes = runner.reserve().size();
    args.workspace = runner.workspace().data();
    args.workspace_bytes = runner.workspace().size();
    ASSERT_EQ(popnorm_backward_apply(runner.plan().get(), &args, nullptr), POPNORM_SUCCESS);
    for (const double value : dx.values()) EXPECT_EQ(std::isnan(value), source == POPNORM_BATCH);
  }
}

}  // namespace
}  // namespace popnorm_test
