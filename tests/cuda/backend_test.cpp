// What only the CUDA backend has to keep: it is the one that runs, the order of its threads changes no bit, and what it does not
// serve is refused by name. Everything else is held to the tests of the CPU (CTest names cuda.*).
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <popnorm/popnorm.hpp>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/moments.hpp"
#include "support/layer.hpp"
#include "support/pages.hpp"
#include "support/simt/simt.hpp"

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
    k.parameters = k.statistics = arithmetic_type(k.storage);
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
                                            ::testing::ValuesIn(kStorageTypes)));

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

// One group alone is fed where it is folded, with no launch of its own.
TEST(CudaBackend, FeedsRunningStatisticsOfOneGroupOnce) {
  constexpr std::int64_t n = 6, c = 5, s = 9;
  Random random("one group");
  std::vector<float> x(n * c * s), y(n * c * s);
  for (float& value : x) value = static_cast<float>(random.normal());
  const auto fed = [&](popnorm_backend backend) {
    popnorm_options options = POPNORM_OPTIONS_INIT;
    options.backend = backend;
    const popnorm::plan plan(popnorm::problem_nchw(n, c, s), options);
    popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
    std::vector<float> running(2 * c, 3);
    popnorm_forward_args args = popnorm::forward_args(workspace, reserve);
    args.x = x.data();
    args.y = y.data();
    args.update.running_mean = running.data();
    args.update.running_variance = running.data() + c;
    args.update.momentum = 0.25;
    for (int batch = 0; batch < 2; ++batch) plan.forward(args);
    return running;
  };
  const std::vector<float> cuda = fed(POPNORM_CUDA), cpu = fed(POPNORM_CPU);
  // Values of up to 3 on both sides: 8u of a variance, and the rounding of two updates.
  for (std::size_t i = 0; i < cuda.size(); ++i) EXPECT_NEAR(cuda[i], cpu[i], (8 + 2) * 2 * 0x1p-24 * 3) << i;
}

// Without POPNORM_BACKEND.
TEST(CudaBackend, IsTakenWhereMemoryIs) {
  const std::string forced = std::getenv("POPNORM_BACKEND");
  ::unsetenv("POPNORM_BACKEND");
  const std::vector<float> x(24);
  popnorm_options options = POPNORM_OPTIONS_INIT;
  const auto backend = [&] { return popnorm::plan(popnorm::problem_nchw(2, 3, 4), options).info().backend; };
  EXPECT_EQ(backend(), POPNORM_CPU);
  options.memory = x.data();
  EXPECT_EQ(backend(), POPNORM_CUDA);
  options.backend = POPNORM_CPU;
  EXPECT_EQ(backend(), POPNORM_CPU);
  ::setenv("POPNORM_BACKEND", forced.c_str(), 1);
}

// docs/design.md: a 64th of a tensor and at most 4 MiB for tiles, 96 bytes per channel and row or affine slot, and what sorting labels takes.
TEST(CudaBackend, NeedsNoMoreScratchThanPromised) {
  struct Case {
    std::int64_t n, c, s;
    popnorm_map group;
    popnorm_map affine{POPNORM_WHOLE, 0};
  };
  for (const popnorm_type storage : kStorageTypes)
    for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
      for (const Case& k : {Case{1, 1, std::int64_t{1} << 32, {POPNORM_WHOLE, 0}},
                            Case{1000, 64, 16, {POPNORM_WHOLE, 0}, {POPNORM_LABELS, 1000}},
                            Case{1000, 64, 16, {POPNORM_LABELS, 10}, {POPNORM_STRIDED, 700}},
                            Case{1000000, 8, 1, {POPNORM_LABELS, 8}, {POPNORM_LABELS, 8}},
                            Case{300, 3, 50, {POPNORM_LABELS, 300}, {POPNORM_LABELS, 300}},
                            Case{2, 100000, 1, {POPNORM_WHOLE, 0}}, Case{1000000, 8, 1, {POPNORM_LABELS, 8}},
                            Case{64, 64, 16, {POPNORM_WHOLE, 0}}, Case{64, 64, 16, {POPNORM_PER_SAMPLE, 0}},
                            Case{1, 1, 1, {POPNORM_WHOLE, 0}}, Case{50, 2048, 49, {POPNORM_CONTIGUOUS, 10}}}) {
        popnorm_problem problem = popnorm::problem(layout, k.n, k.c, k.s);
        problem.storage = storage;
        problem.norm_group = k.group;
        problem.affine_slot = k.affine;
        const popnorm_plan_info info = popnorm::plan(problem).info();
        const std::int64_t bytes = k.n * k.c * k.s * static_cast<std::int64_t>(size_of(storage));
        const bool sorts = k.group.kind == POPNORM_LABELS || k.affine.kind == POPNORM_LABELS;
        const std::int64_t sorting = sorts ? 16 * k.n + (std::int64_t{128} << 10) : 0;
        const std::int64_t rows = std::max(info.groups, info.affine_slots);
        const std::int64_t most = std::min<std::int64_t>(bytes / 64, 4 << 20) + 96 * k.c * rows + sorting + 1024;
        EXPECT_LE(static_cast<std::int64_t>(info.workspace_bytes), most)
            << name_of(storage) << " layout " << layout << " " << k.n << "x" << k.c << "x" << k.s;
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

// A batch of labels and weights that the CPU would refuse, and what comes out of it.
struct Labelled {
  static constexpr std::int64_t n = 12, c = 5, s = 10;
  popnorm_problem problem = popnorm::problem_nchw(n, c, s);
  std::vector<float> x = std::vector<float>(n * c * s), dy = x, y = x, dx = x, dscale = std::vector<float>(2 * c);
  std::vector<std::int32_t> group = std::vector<std::int32_t>(n), slot = group, affine = group;
  std::vector<float> weights = std::vector<float>(n, 1);
  std::vector<std::uint32_t> status{0};  // where a device can write
  popnorm_batch batch = POPNORM_BATCH_INIT;

  Labelled() {
    Random random("Labelled");
    for (float& value : x) value = static_cast<float>(random.normal());
    for (float& value : dy) value = static_cast<float>(random.normal());
    for (std::int64_t i = 0; i < n; ++i) group[i] = static_cast<std::int32_t>(i % 3), affine[i] = i % 2;
    problem.norm_group = {POPNORM_LABELS, 3};
    problem.affine_slot = {POPNORM_LABELS, 2};
    batch.norm_group = group.data();
    batch.affine_slot = affine.data();
    batch.device_status = status.data();
  }
  void run() {
    const popnorm::plan plan(problem);
    popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
    popnorm_forward_args f = POPNORM_FORWARD_ARGS_INIT;
    f.x = x.data();
    f.y = y.data();
    f.batch = batch;
    f.reserve = reserve.data();
    f.reserve_bytes = reserve.size();
    f.workspace = workspace.data();
    f.workspace_bytes = workspace.size();
    plan.forward(f);
    popnorm_backward_args b = POPNORM_BACKWARD_ARGS_INIT;
    b.x = x.data();
    b.dy = dy.data();
    b.batch = batch;
    b.dx = dx.data();
    b.dscale = dscale.data();
    b.reserve = reserve.data();
    b.reserve_bytes = reserve.size();
    b.workspace = workspace.data();
    b.workspace_bytes = workspace.size();
    plan.backward(b);
  }
  void poison(std::int64_t sample) {
    std::fill_n(x.begin() + sample * c * s, c * s, std::nanf(""));
    std::fill_n(dy.begin() + sample * c * s, c * s, std::nanf(""));
  }
};

class CudaAbsence : public ::testing::TestWithParam<std::tuple<int, int>> {};

// Of a group's first sample too, and of one affine slot alone.
TEST_P(CudaAbsence, OfASampleWithoutALabelIsThatOfWeightZero) {
  const auto [slots, sample] = GetParam();
  Labelled labels;
  labels.problem.affine_slot = {POPNORM_LABELS, slots};
  for (std::int32_t& id : labels.affine) id = std::min(id, slots - 1);
  labels.dscale.resize(slots * Labelled::c);
  labels.poison(4);
  labels.poison(sample);
  Labelled weights = labels;
  labels.group[4] = -1;
  labels.affine[sample] = 2;
  labels.batch.norm_group = labels.group.data();
  labels.batch.affine_slot = labels.affine.data();
  labels.batch.device_status = labels.status.data();
  labels.run();
  weights.problem.weights = POPNORM_WEIGHTS_PER_SAMPLE;
  weights.weights[4] = weights.weights[sample] = 0;
  weights.batch.norm_group = weights.group.data();
  weights.batch.affine_slot = weights.affine.data();
  weights.batch.device_status = weights.status.data();
  weights.batch.weights = weights.weights.data();
  weights.run();
  EXPECT_EQ(labels.status[0], POPNORM_DEVICE_LABEL);
  EXPECT_EQ(weights.status[0], 0U);
  // Not the same bits: samples without a label leave their group shorter.
  const auto expect_near = [](const std::vector<float>& a, const std::vector<float>& b) {
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 64 * 0x1p-24 * (1 + std::fabs(b[i]))) << i;
  };
  expect_near(labels.y, weights.y);
  expect_near(labels.dx, weights.dx);
  expect_near(labels.dscale, weights.dscale);
  for (const std::int64_t absent : {4, sample})
    for (std::int64_t i = 0; i < Labelled::c * Labelled::s; ++i) {
      EXPECT_EQ(labels.y[absent * Labelled::c * Labelled::s + i], 0);
      EXPECT_EQ(labels.dx[absent * Labelled::c * Labelled::s + i], 0);
    }
}

INSTANTIATE_TEST_SUITE_P(Slots, CudaAbsence, ::testing::Combine(::testing::Values(1, 2), ::testing::Values(0, 7)));

TEST(CudaLabels, ThatNobodyNamesAreAllAbsent) {
  Labelled labels;
  for (std::int32_t& id : labels.group) id = std::numeric_limits<std::int32_t>::max();
  labels.run();
  EXPECT_EQ(labels.y, std::vector<float>(labels.y.size(), 0));
  EXPECT_EQ(labels.dx, std::vector<float>(labels.dx.size(), 0));
  EXPECT_EQ(labels.dscale, std::vector<float>(labels.dscale.size(), 0));
}

TEST(CudaLabels, OfWeightsAndSlotsAreReported) {
  Labelled labels;
  labels.problem.weights = POPNORM_WEIGHTS_PER_SAMPLE;
  labels.batch.weights = labels.weights.data();
  labels.run();
  EXPECT_EQ(labels.status[0], 0U);
  labels.weights[3] = -1;
  labels.weights[5] = std::nanf("");
  labels.run();
  EXPECT_EQ(labels.status[0], POPNORM_DEVICE_WEIGHT);
  labels.status[0] = 0;
  labels.weights[3] = labels.weights[5] = 1;
  labels.problem.population_slot = {POPNORM_LABELS, 2};
  labels.slot[9] = 1;  // of group 0, whose other samples feed slot 0
  labels.batch.population_slot = labels.slot.data();
  popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
  const popnorm::plan plan(labels.problem);
  popnorm::buffer workspace = plan.make_workspace();
  std::vector<float> running(2 * Labelled::c);
  args.x = labels.x.data();
  args.batch = labels.batch;
  args.update.running_mean = running.data();
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  plan.moments(args);
  EXPECT_EQ(labels.status[0], POPNORM_DEVICE_SLOT);
}

// What a call does not use is not its business, what the CPU refuses is: also where groups are only blended with their slot.
TEST(CudaLabels, AreCheckedIfTheCallUsesThem) {
  Labelled labels;
  labels.problem.population_slot = {POPNORM_LABELS, 2};
  labels.slot[9] = 1;  // of group 0, whose other samples are of slot 0
  labels.batch.population_slot = labels.slot.data();
  const popnorm::plan plan(labels.problem);
  popnorm::buffer workspace = plan.make_workspace();
  const std::vector<float> mean(2 * Labelled::c), variance(2 * Labelled::c, 1);
  std::vector<double> moments(9 * Labelled::c);
  const auto status_of = [&](popnorm_statistics statistics) {
    labels.status[0] = 0;
    popnorm_forward_args args = POPNORM_FORWARD_ARGS_INIT;
    args.x = labels.x.data();
    args.y = labels.y.data();
    args.batch = labels.batch;
    args.source.statistics = statistics;
    if (statistics != POPNORM_BATCH) args.source.mean = mean.data(), args.source.variance = variance.data();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.forward(args);
    return labels.status[0];
  };
  EXPECT_EQ(status_of(POPNORM_BATCH), 0U);
  EXPECT_EQ(status_of(POPNORM_GIVEN), 0U);
  EXPECT_EQ(status_of(POPNORM_BLEND), POPNORM_DEVICE_SLOT);
  labels.slot[9] = -1;
  EXPECT_EQ(status_of(POPNORM_BATCH), 0U);
  EXPECT_EQ(status_of(POPNORM_GIVEN), POPNORM_DEVICE_LABEL);
  labels.slot[9] = 0;
  labels.group[9] = -1;
  EXPECT_EQ(status_of(POPNORM_BATCH), POPNORM_DEVICE_LABEL);
  EXPECT_EQ(status_of(POPNORM_GIVEN), 0U);
  labels.group[9] = 0;
  labels.affine[9] = -1;
  labels.status[0] = 0;
  popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
  args.x = labels.x.data();
  args.batch = labels.batch;
  args.moments = {moments.data(), moments.data() + 3 * Labelled::c, moments.data() + 6 * Labelled::c};
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  plan.moments(args);
  EXPECT_EQ(labels.status[0], 0U);
}

// Of backward and normalize the reserve says which labels those are.
TEST(CudaLabels, AreCheckedIfTheReserveUsesThem) {
  Labelled labels;
  labels.problem.population_slot = {POPNORM_LABELS, 2};
  labels.batch.population_slot = labels.slot.data();
  const popnorm::plan plan(labels.problem);
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  const std::vector<float> mean(2 * Labelled::c), variance(2 * Labelled::c, 1);
  for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN}) {
    popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
    forward.x = labels.x.data();
    forward.y = labels.y.data();
    forward.batch = labels.batch;
    forward.source.statistics = statistics;
    if (statistics == POPNORM_GIVEN) forward.source.mean = mean.data(), forward.source.variance = variance.data();
    plan.forward(forward);
    const auto status_of = [&](const popnorm_batch& batch) {
      std::vector<std::uint32_t> found;
      labels.status[0] = 0;
      popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
      backward.x = labels.x.data();
      backward.dy = labels.dy.data();
      backward.batch = batch;
      backward.dx = labels.dx.data();
      plan.backward(backward);
      found.push_back(labels.status[0]);
      labels.status[0] = 0;
      popnorm_normalize_args normalize = POPNORM_NORMALIZE_ARGS_INIT;
      normalize.x = labels.x.data();
      normalize.y = labels.y.data();
      normalize.batch = batch;
      normalize.reserve = reserve.data();
      normalize.reserve_bytes = reserve.size();
      normalize.workspace = workspace.data();
      normalize.workspace_bytes = workspace.size();
      plan.normalize(normalize);
      found.push_back(labels.status[0]);
      return found;
    };
    const bool given = statistics == POPNORM_GIVEN;
    const std::vector<std::uint32_t> none(2, 0), label(2, POPNORM_DEVICE_LABEL);
    EXPECT_EQ(status_of(labels.batch), none);
    labels.slot[9] = -1;
    EXPECT_EQ(status_of(labels.batch), given ? label : none);
    labels.slot[9] = 0;
    labels.group[9] = 3;
    EXPECT_EQ(status_of(labels.batch), given ? none : label);
    labels.group[9] = 0;
    // None at all is not every label in range.
    popnorm_batch lacking = labels.batch;
    lacking.norm_group = nullptr;
    EXPECT_EQ(status_of(lacking), given ? none : label);
    lacking = labels.batch;
    lacking.population_slot = nullptr;
    EXPECT_EQ(status_of(lacking), given ? label : none);
  }
}

// What the host can see it refuses: whatever the statistics are, one of these two is needed, and scale and shift are.
TEST(CudaLabels, ThatAreMissingAreRefused) {
  Labelled labels;
  labels.problem.population_slot = {POPNORM_LABELS, 2};
  labels.batch.population_slot = labels.slot.data();
  const popnorm::plan plan(labels.problem);
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  popnorm_backward_args args = popnorm::backward_args(workspace, reserve);
  args.x = labels.x.data();
  args.dy = labels.dy.data();
  args.dx = labels.dx.data();
  args.batch = labels.batch;
  args.batch.affine_slot = nullptr;
  EXPECT_TRUE(refused(popnorm_backward(plan.get(), &args, nullptr), POPNORM_INVALID, {"batch.affine_slot", "null"}));
  args.batch = labels.batch;
  args.batch.norm_group = args.batch.population_slot = nullptr;
  EXPECT_TRUE(refused(popnorm_backward(plan.get(), &args, nullptr), POPNORM_INVALID,
                      {"batch.norm_group", "batch.population_slot", "null"}));
}

// Of one slot as of two: -1 is not slot 0.
TEST(CudaLabels, OfNoSlotFeedNone) {
  Labelled labels;
  for (const std::int64_t slots : {1, 2})
    for (const bool population_too : {false, true}) {
      labels.problem.norm_group = {POPNORM_WHOLE, 0};
      labels.problem.population_slot = {POPNORM_LABELS, slots};
      std::ranges::fill(labels.slot, -1);
      labels.batch.norm_group = nullptr;
      labels.batch.population_slot = labels.slot.data();
      labels.status[0] = 0;
      const popnorm::plan plan(labels.problem);
      popnorm::buffer workspace = plan.make_workspace();
      popnorm::population population(slots, Labelled::c);
      std::vector<float> running_mean(slots * Labelled::c, 7), running_variance(slots * Labelled::c, 7);
      popnorm_forward_args args = popnorm::forward_args(workspace);
      args.x = labels.x.data();
      args.y = labels.y.data();
      args.batch = labels.batch;
      args.update.running_mean = running_mean.data();
      args.update.running_variance = running_variance.data();
      if (population_too) {
        args.update.population = population.data();
        args.update.population_bytes = population.size();
      }
      plan.forward(args);
      EXPECT_EQ(labels.status[0], POPNORM_DEVICE_LABEL);
      EXPECT_EQ(running_mean, std::vector<float>(running_mean.size(), 7)) << slots;
      EXPECT_EQ(running_variance, std::vector<float>(running_mean.size(), 7)) << slots;
      EXPECT_EQ(population.header().steps, 0) << slots;
    }
}

TEST(CudaLabels, WithoutElementsNeedNoWeights) {
  for (const popnorm_weights weights : {POPNORM_WEIGHTS_PER_SAMPLE, POPNORM_WEIGHTS_PER_POSITION, POPNORM_LENGTHS}) {
    popnorm_problem problem = popnorm::problem_nchw(4, 3, 0);
    problem.weights = weights;
    std::vector<std::uint32_t> status{0};
    std::vector<double> moments(9, -1);
    popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
    args.batch.device_status = status.data();
    args.moments = {moments.data(), moments.data() + 3, moments.data() + 6};
    const popnorm::plan plan(problem);
    popnorm::buffer workspace = plan.make_workspace();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.moments(args);
    EXPECT_EQ(status[0], 0U);
    EXPECT_EQ(moments, std::vector<double>(9, 0));
  }
}

// Enough ids for three digits, in a batch that several blocks sort.
TEST(CudaLabels, OfManyGroupsAreOrderedStably) {
  popnorm_problem problem = popnorm::problem_nchw(70000, 2, 1);
  problem.norm_group = {POPNORM_LABELS, 66000};
  std::vector<float> x(140000), y(140000);
  std::vector<std::int32_t> ids(70000);
  Random random("CudaLabels");
  for (float& value : x) value = static_cast<float>(random.normal());
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.below(66000));
  std::vector<double> weight(132000), mean(132000), m2(132000);
  const popnorm::plan plan(problem);
  popnorm::buffer workspace = plan.make_workspace();
  popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
  args.x = x.data();
  args.batch.norm_group = ids.data();
  args.moments = {weight.data(), mean.data(), m2.data()};
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  plan.moments(args);
  std::vector<popnorm::Moments> expected(132000);
  for (std::size_t i = 0; i < x.size(); ++i) {
    popnorm::Moments& of = expected[static_cast<std::size_t>(ids[i / 2]) * 2 + i % 2];
    of = popnorm::combine(of, {1, static_cast<double>(x[i]), 0});
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(weight[i], expected[i].weight) << i;
    ASSERT_NEAR(mean[i], expected[i].mean, 1e-5) << i;  // 16u*std, of a few standard normal numbers
    ASSERT_NEAR(m2[i], expected[i].m2, 1e-5 * (1 + expected[i].m2)) << i;
  }
}

// The same samples in the same order, sorted by several rounds, are the same bits.
TEST(CudaLabels, OfOneGroupKeepItsOrder) {
  std::vector<float> x(700 * 3);
  Random random("OfOneGroup");
  for (float& value : x) value = static_cast<float>(random.normal());
  const auto moments = [&](const popnorm_map& map, const std::int32_t* ids) {
    popnorm_problem problem = popnorm::problem_nchw(700, 3, 1);
    problem.norm_group = map;
    const popnorm::plan plan(problem);
    popnorm::buffer workspace = plan.make_workspace();
    std::vector<double> m(9);
    popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
    args.x = x.data();
    args.batch.norm_group = ids;
    args.moments = {m.data(), m.data() + 3, m.data() + 6};
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    plan.moments(args);
    return m;
  };
  const std::vector<std::int32_t> ids(700, 0);
  EXPECT_EQ(moments({POPNORM_LABELS, 1}, ids.data()), moments({POPNORM_WHOLE, 0}, nullptr));
}

// Launches go on from what earlier ones wrote: what the second would read must not be what the first writes.
TEST(CudaBackend, CombineWritesNothingWhereItRefusesAnAlias) {
  const popnorm::plan plan(popnorm::problem_nchw(1, 1, 1));
  std::vector<double> values(3 * 200, 1);
  std::vector<popnorm_moment_arrays> parts;
  for (std::size_t i = 0; i < values.size(); i += 3) parts.push_back({&values[i], &values[i + 1], &values[i + 2]});
  popnorm_combine_args args = POPNORM_COMBINE_ARGS_INIT;
  args.parts = parts.data();
  args.count = static_cast<std::int64_t>(parts.size());
  args.moments = parts[150];
  EXPECT_EQ(popnorm_combine(plan.get(), &args, nullptr), POPNORM_UNSUPPORTED);
  EXPECT_NE(std::string(popnorm_last_error()).find("part 150"), std::string::npos) << popnorm_last_error();
  EXPECT_EQ(values, std::vector<double>(values.size(), 1));
  args.moments = parts[127];
  EXPECT_EQ(popnorm_combine(plan.get(), &args, nullptr), POPNORM_SUCCESS);
  EXPECT_EQ(*parts[127].weight, 200);
}

// Samples so far apart that offsets need 64 bits, of which a few elements are there.
TEST(CudaBackend, ReachesBeyond32Bits) {
  constexpr std::int64_t n = 3, c = 2, s = 21, stride = (std::int64_t{1} << 31) + 3;
  popnorm_problem problem = popnorm::problem_nchw(n, c, s);
  problem.storage = POPNORM_BF16;  // half of the address space
  popnorm_problem dense = problem;
  for (popnorm_strides* strides : {&problem.x, &problem.y, &problem.dy, &problem.dx}) *strides = {stride, s};
  constexpr auto kBytes = static_cast<std::size_t>((n - 1) * stride + c * s) * sizeof(std::uint16_t);
  Random random("ReachesBeyond32Bits");
  std::uint16_t* far[4];
  std::vector<std::uint16_t> near[4];
  for (int i = 0; i < 4; ++i) {
    far[i] = reinterpret_cast<std::uint16_t*>(take_pages(kBytes));
    for (std::int64_t at = 0; at < n * c * s; ++at) {
      near[i].push_back(
          static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(random.normal())) >> 16));
      far[i][at / (c * s) * stride + at % (c * s)] = near[i].back();
    }
  }
  const auto run = [](const popnorm_problem& p, void* x, void* y, void* dy, void* dx) {
    const popnorm::plan plan(p);
    popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
    popnorm_forward_args f = popnorm::forward_args(workspace, reserve);
    f.x = x;
    f.y = y;
    plan.forward(f);
    popnorm_backward_args b = popnorm::backward_args(workspace, reserve);
    b.x = x;
    b.dy = dy;
    b.dx = dx;
    plan.backward(b);
  };
  run(problem, far[0], far[1], far[2], far[3]);
  run(dense, near[0].data(), near[1].data(), near[2].data(), near[3].data());
  for (int i = 0; i < 4; ++i) {
    for (std::int64_t at = 0; at < n * c * s; ++at)
      EXPECT_EQ(far[i][at / (c * s) * stride + at % (c * s)], near[i][at]) << i << " " << at;
    release_pages(reinterpret_cast<std::byte*>(far[i]), kBytes);
  }
}

#ifndef POPNORM_TESTS_ON_DEVICE
// The emulator's streams count: a launch on another than the caller's would be missing.
TEST(CudaStreams, HaveEveryLaunchOfACall) {
  simt::Stream stream;
  const auto launches = [&](popnorm_status status) {
    EXPECT_EQ(status, POPNORM_SUCCESS) << popnorm_last_error();
    return std::exchange(stream.launches, 0);
  };
  Labelled l;
  l.problem.population_slot = {POPNORM_LABELS, 2};
  l.batch.population_slot = l.slot.data();
  const popnorm::plan plan(l.problem);
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  constexpr std::uint64_t kCheck = 1, kOrder = 4, kStatistics = 2;  // an order: count, scan, scatter, begin
  std::vector<float> running(4 * Labelled::c, 1);
  popnorm_forward_args f = popnorm::forward_args(workspace, reserve);
  f.x = l.x.data();
  f.y = l.y.data();
  f.batch = l.batch;
  EXPECT_EQ(launches(popnorm_forward(plan.get(), &f, &stream)), kOrder + kCheck + kStatistics + 1);
  f.update.running_mean = running.data();
  f.update.running_variance = running.data() + 2 * Labelled::c;
  EXPECT_EQ(launches(popnorm_forward(plan.get(), &f, &stream)), kOrder + kCheck + kStatistics + 1 + 1);

  popnorm_backward_args b = popnorm::backward_args(workspace, reserve);
  b.x = l.x.data();
  b.dy = l.dy.data();
  b.dx = l.dx.data();
  b.dscale = l.dscale.data();
  b.batch = l.batch;
  // Only the reserve knows whether rows are groups or slots: both are ordered.
  EXPECT_EQ(launches(popnorm_backward(plan.get(), &b, &stream)), kCheck + 3 * kOrder + 2 * kStatistics + 1 + 1);

  std::vector<double> numbers(9 * Labelled::c);
  const popnorm_moment_arrays moments{&numbers[0], &numbers[3 * Labelled::c], &numbers[6 * Labelled::c]};
  popnorm_moments_args m = POPNORM_MOMENTS_ARGS_INIT;
  m.x = l.x.data();
  m.batch = l.batch;
  m.moments = moments;
  m.workspace = workspace.data();
  m.workspace_bytes = workspace.size();
  EXPECT_EQ(launches(popnorm_moments(plan.get(), &m, &stream)), kOrder + kCheck + kStatistics);

  const std::vector<popnorm_moment_arrays> parts(130, moments);
  popnorm_combine_args combine = POPNORM_COMBINE_ARGS_INIT;
  std::vector<double> sum(9 * Labelled::c);
  combine.parts = parts.data();
  combine.count = 130;
  combine.moments = {&sum[0], &sum[3 * Labelled::c], &sum[6 * Labelled::c]};
  EXPECT_EQ(launches(popnorm_combine(plan.get(), &combine, &stream)), 2U);

  const std::vector<std::int32_t> group_slot(3);
  popnorm_finalize_args finalize = POPNORM_FINALIZE_ARGS_INIT;
  finalize.moments = moments;
  finalize.group_slot = group_slot.data();
  finalize.update = f.update;
  finalize.reserve = reserve.data();
  finalize.reserve_bytes = reserve.size();
  EXPECT_EQ(launches(popnorm_finalize(plan.get(), &finalize, &stream)), 2U);

  popnorm_normalize_args normalize = POPNORM_NORMALIZE_ARGS_INIT;
  normalize.x = l.x.data();
  normalize.y = l.y.data();
  normalize.batch = l.batch;
  normalize.reserve = reserve.data();
  normalize.reserve_bytes = reserve.size();
  normalize.workspace = workspace.data();
  normalize.workspace_bytes = workspace.size();
  EXPECT_EQ(launches(popnorm_normalize(plan.get(), &normalize, &stream)), kCheck + 1);

  popnorm_backward_reduce_args reduce = POPNORM_BACKWARD_REDUCE_ARGS_INIT;
  reduce.x = l.x.data();
  reduce.dy = l.dy.data();
  reduce.batch = l.batch;
  reduce.sum_dy = &sum[0];
  reduce.sum_dy_xhat = &sum[3 * Labelled::c];
  reduce.reserve = reserve.data();
  reduce.reserve_bytes = reserve.size();
  reduce.workspace = workspace.data();
  reduce.workspace_bytes = workspace.size();
  EXPECT_EQ(launches(popnorm_backward_reduce(plan.get(), &reduce, &stream)), kCheck + 2 * kOrder + kStatistics);

  popnorm_backward_apply_args apply = POPNORM_BACKWARD_APPLY_ARGS_INIT;
  apply.x = l.x.data();
  apply.dy = l.dy.data();
  apply.dx = l.dx.data();
  apply.batch = l.batch;
  apply.sum_dy = reduce.sum_dy;
  apply.sum_dy_xhat = reduce.sum_dy_xhat;
  apply.reserve = reserve.data();
  apply.reserve_bytes = reserve.size();
  apply.workspace = workspace.data();
  apply.workspace_bytes = workspace.size();
  EXPECT_EQ(launches(popnorm_backward_apply(plan.get(), &apply, &stream)), kCheck + 1 + 1);
}
#endif

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

// A residual and an activation, by the operations one after the other.
struct Masked {
  static constexpr std::int64_t n = 3, c = 5, s = 7;
  popnorm_problem problem = popnorm::problem_nchw(n, c, s);
  std::vector<float> x = std::vector<float>(n * c * s), y = x, residual = x, dx = x, dresidual = x;
  popnorm::buffer reserve, workspace;

  // `options` are finalize's.
  explicit Masked(const popnorm_options& options = POPNORM_OPTIONS_INIT) {
    problem.adds_residual = 1;
    problem.activation = POPNORM_RELU;
    Random random("Masked");
    for (float& value : x) value = static_cast<float>(random.normal());
    const popnorm::plan plan(problem);
    reserve = plan.make_reserve();
    workspace = plan.make_workspace();
    popnorm_finalize_args args = POPNORM_FINALIZE_ARGS_INIT;
    const std::vector<float> mean(c), variance(c, 1);
    args.source.statistics = POPNORM_GIVEN;
    args.source.mean = mean.data();
    args.source.variance = variance.data();
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    popnorm::plan(problem, options).finalize(args);
  }
  void normalize() {
    popnorm_normalize_args args = POPNORM_NORMALIZE_ARGS_INIT;
    args.x = x.data();
    args.y = y.data();
    args.residual = residual.data();
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    popnorm::plan(problem).normalize(args);
  }
  popnorm_status backward(const popnorm_options& options) {
    popnorm_backward_args args = popnorm::backward_args(workspace, reserve);
    args.x = x.data();
    args.dy = x.data();
    args.dx = dx.data();
    args.dresidual = dresidual.data();
    return popnorm_backward(popnorm::plan(problem, options).get(), &args, nullptr);
  }
};

// Only the device knows whether normalize has been called between finalize and backward: if not, gradients are NaN.
TEST(CudaFusions, BackwardWithoutAMaskIsNotSilentlyWrong) {
  Masked masked;
  ASSERT_EQ(masked.backward(POPNORM_OPTIONS_INIT), POPNORM_SUCCESS);
  for (const std::vector<float>* gradient : {&masked.dx, &masked.dresidual})
    EXPECT_TRUE(std::ranges::all_of(*gradient, [](float value) { return std::isnan(value); }));
  masked.normalize();
  ASSERT_EQ(masked.backward(POPNORM_OPTIONS_INIT), POPNORM_SUCCESS);
  for (std::size_t i = 0; i < masked.x.size(); ++i)
    EXPECT_EQ(masked.dresidual[i], masked.y[i] > 0 ? masked.x[i] : 0) << i;
}

// Its bits lie elsewhere.
TEST(CudaFusions, TheCpuRefusesTheMask) {
  Masked masked;
  masked.normalize();
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = POPNORM_CPU;
  EXPECT_EQ(masked.backward(options), POPNORM_INVALID);
  EXPECT_NE(std::string(popnorm_last_error()).find("reserve"), std::string::npos) << popnorm_last_error();
}

// What it has finalized may be normalized here: the reserve says then whose bits these are.
TEST(CudaFusions, OfTheCpusStatisticsHaveTheDevicesMask) {
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = POPNORM_CPU;
  Masked masked(options);
  masked.normalize();
  EXPECT_EQ(masked.backward(options), POPNORM_INVALID);
  ASSERT_EQ(masked.backward(POPNORM_OPTIONS_INIT), POPNORM_SUCCESS);
  for (std::size_t i = 0; i < masked.x.size(); ++i)
    EXPECT_EQ(masked.dresidual[i], masked.y[i] > 0 ? masked.x[i] : 0) << i;
}

// Nor are its own taken for these: gradients are NaN, not wrong.
TEST(CudaFusions, AMaskOfTheCpuIsNotUsed) {
  Masked masked;
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = POPNORM_CPU;
  popnorm_forward_args args = popnorm::forward_args(masked.workspace, masked.reserve);
  args.x = masked.x.data();
  args.y = masked.y.data();
  args.residual = masked.residual.data();
  popnorm::plan(masked.problem, options).forward(args);
  ASSERT_EQ(masked.backward(POPNORM_OPTIONS_INIT), POPNORM_SUCCESS);
  EXPECT_TRUE(std::ranges::all_of(masked.dx, [](float value) { return std::isnan(value); }));
}

}  // namespace
}  // namespace popnorm_test
