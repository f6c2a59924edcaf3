// Plans: what is refused when one is made, what a made one says about itself, and calls on an empty batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/executors.hpp"
#include "support/layer.hpp"

namespace popnorm_test {
namespace {

constexpr std::int64_t kBig = std::int64_t{1} << 40;

struct Refusal {
  const char* what;
  std::function<void(popnorm_problem&, popnorm_options&)> spoil;
  std::vector<std::string> words;
  popnorm_status status = POPNORM_INVALID;
};

popnorm_problem valid() { return popnorm::problem_nchw(4, 3, 10); }

void expect_refused(const Refusal& refusal) {
  SCOPED_TRACE(refusal.what);
  popnorm_problem problem = valid();
  popnorm_options options = POPNORM_OPTIONS_INIT;
  refusal.spoil(problem, options);
  auto* plan = reinterpret_cast<popnorm_plan*>(std::uintptr_t{64});
  std::vector<std::string> words = refusal.words;
  words.push_back("^plan:");
  EXPECT_TRUE(refused(popnorm_plan_create(&problem, &options, &plan), refusal.status, words));
  EXPECT_EQ(plan, nullptr);
}

using P = popnorm_problem;
using O = popnorm_options;

TEST(PlanCreate, RefusesBadProblems) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<Refusal> refusals = {
      {"n", [](P& p, O&) { p.n = -1; }, {"\\bn is -1", ">= 0"}},
      {"c = 0", [](P& p, O&) { p.c = 0; }, {"\\bc is 0", ">= 1"}},
      {"c", [](P& p, O&) { p.c = -5; }, {"\\bc is -5", ">= 1"}},
      {"s", [](P& p, O&) { p.s = -2; }, {"\\bs is -2", ">= 0"}},
      {"overflow of n*c", [](P& p, O&) { p.n = p.c = kBig; }, {"overflow"}},
      {"overflow of n*c*s", [](P& p, O&) { p.n = kBig, p.c = 1 << 12, p.s = 1 << 12; }, {"overflow"}},
      {"overflow in bytes", [](P& p, O&) { p.n = 1, p.c = 1, p.s = INT64_MAX / 2; }, {"overflow"}},
      {"overflow beside s = 0", [](P& p, O&) { p.n = p.c = kBig, p.s = 0; }, {"overflow"}},
      {"overflow beside n = 0",
       [](P& p, O&) {
         p.n = 0, p.c = p.s = kBig, p.x = p.y = p.dy = p.dx = {1, 1};
       },
       {"overflow"}},
      {"epsilon < 0", [](P& p, O&) { p.epsilon = -1e-5; }, {"epsilon is -1e-05"}},
      {"epsilon nan", [](P& p, O&) { p.epsilon = std::nan(""); }, {"epsilon is -?nan"}},
      {"epsilon inf", [=](P& p, O&) { p.epsilon = infinity; }, {"epsilon is inf"}},
      {"layout", [](P& p, O&) { p.layout = static_cast<popnorm_layout>(2); }, {"layout is 2"}},
      {"storage", [](P& p, O&) { p.storage = static_cast<popnorm_type>(5); }, {"storage is 5"}},
      {"parameters", [](P& p, O&) { p.parameters = static_cast<popnorm_type>(-1); }, {"parameters is -1"}},
      {"statistics", [](P& p, O&) { p.statistics = static_cast<popnorm_type>(77); }, {"statistics is 77"}},
      {"bf16 parameters", [](P& p, O&) { p.parameters = POPNORM_BF16; }, {"parameters"}, POPNORM_UNSUPPORTED},
      {"f16 statistics", [](P& p, O&) { p.statistics = POPNORM_F16; }, {"statistics"}, POPNORM_UNSUPPORTED},
      {"activation", [](P& p, O&) { p.activation = static_cast<popnorm_activation>(3); }, {"activation is 3"}},
      {"slope inf", [=](P& p, O&) { p.activation = POPNORM_LEAKY_RELU, p.slope = infinity; }, {"slope is inf"}},
      {"slope beyond f32", [](P& p, O&) { p.activation = POPNORM_LEAKY_RELU, p.slope = -1e39; }, {"slope is -1e\\+39"}},
      {"residual 2", [](P& p, O&) { p.adds_residual = 2; }, {"adds_residual is 2"}},
      {"residual strides",
       [](P& p, O&) {
         p.adds_residual = 1, p.residual = {1, 1};
       },
       {"strides of residual", "overlap"}},
      {"dresidual strides",
       [](P& p, O&) {
         p.adds_residual = 1, p.dresidual = {-1, 0};
       },
       {"strides of dresidual", ">= 0"}},
      {"size", [](P& p, O&) { p.size = sizeof(P) - 8; }, {"size", std::to_string(sizeof(P) - 8)}},
      {"size 0", [](P& p, O&) { p.size = 0; }, {"size", "\\b0\\b"}},
  };
  for (const Refusal& refusal : refusals) expect_refused(refusal);
}

TEST(PlanCreate, RefusesBadMaps) {
  constexpr std::int64_t kMost = INT32_MAX;
  struct Field {
    const char* name;
    popnorm_map P::*map;
  };
  for (const Field field : {Field{"norm_group", &P::norm_group}, Field{"population_slot", &P::population_slot},
                            Field{"affine_slot", &P::affine_slot}}) {
    SCOPED_TRACE(field.name);
    const std::string name = field.name;
    const auto set = [&](int kind, std::int64_t k) {
      return [=](P& p, O&) {
        (p.*field.map).kind = static_cast<popnorm_map_kind>(kind);
        (p.*field.map).k = k;
      };
    };
    const auto many = [&](std::int64_t n, popnorm_map map) {
      return [=](P& p, O&) {
        p.n = n;
        p.c = p.s = 1;
        p.*field.map = map;
      };
    };
    std::vector<Refusal> refusals;
    for (const int kind : {-1, 5})
      refusals.push_back({"kind", set(kind, 1), {name + ".kind is " + std::to_string(kind)}});
    for (const popnorm_map_kind kind : {POPNORM_CONTIGUOUS, POPNORM_STRIDED, POPNORM_LABELS})
      for (const std::int64_t k : {std::int64_t{0}, std::int64_t{-1}, INT64_MIN})
        refusals.push_back({"k", set(kind, k), {name + ".k is " + std::to_string(k), ">= 1"}});
    for (const popnorm_map_kind kind : {POPNORM_WHOLE, POPNORM_PER_SAMPLE})
      for (const std::int64_t k : {1, -1})
        refusals.push_back({"k of none", set(kind, k), {name + ".k is " + std::to_string(k), "must be 0"}});
    for (const popnorm_map map :
         {popnorm::contiguous(kMost), popnorm::strided(2), popnorm::per_sample(), popnorm::labels(2)})
      refusals.push_back({"n", many(kMost + 1, map), {"\\bn is " + std::to_string(kMost + 1)}, POPNORM_UNSUPPORTED});
    for (const popnorm_map map : {popnorm::strided(kMost + 1), popnorm::labels(INT64_MAX)})
      refusals.push_back({"ids", many(4, map), {name + ".k is " + std::to_string(map.k)}, POPNORM_UNSUPPORTED});
    refusals.push_back({"ids times channels",
                        [=](P& p, O&) {
                          p.n = 1;
                          p.c = std::int64_t{1} << 40;
                          p.s = 0;
                          p.*field.map = popnorm::labels(1 << 20);
                        },
                        {name, "overflow"}});
    for (const Refusal& refusal : refusals) expect_refused(refusal);
  }
  for (const int number : {-1, 4})
    expect_refused({"weights",
                    [=](P& p, O&) { p.weights = static_cast<popnorm_weights>(number); },
                    {"weights is " + std::to_string(number)}});
}

TEST(PlanCreate, RefusesRowsThatOverlap) {
  const auto strides = [](popnorm_strides P::*which, std::int64_t sample, std::int64_t row) {
    return [=](P& p, O&) { p.*which = {sample, row}; };
  };
  const auto nhwc = [=](std::int64_t sample, std::int64_t row) {
    return [=](P& p, O&) {
      p.layout = POPNORM_NHWC;
      p.x = {sample, row};
    };
  };
  const std::vector<Refusal> refusals = {
      {"negative sample", strides(&P::x, -30, 10), {"strides of x", "-30"}},
      {"negative row", strides(&P::y, 30, -10), {"strides of y", "-10"}},
      {"row too short", strides(&P::dy, 30, 9), {"strides of dy", "\\b9\\b", "overlap"}},
      {"sample too short", strides(&P::dx, 29, 10), {"strides of dx", "\\b29\\b", "overlap"}},
      {"sample short of a padded row", strides(&P::x, 33, 12), {"strides of x", "overlap"}},
      {"samples inside, row too short", strides(&P::x, 10, 39), {"strides of x", "overlap"}},
      {"channels last, row too short", nhwc(30, 2), {"strides of x", "overlap"}},
      {"channels last, sample too short", nhwc(29, 3), {"strides of x", "overlap"}},
      {"extent overflows", strides(&P::x, INT64_MAX / 4, 10), {"strides of x", "overflow"}},
      {"rows overflow", strides(&P::x, 0, INT64_MAX / 2), {"strides of x", "overflow"}},
  };
  for (const Refusal& refusal : refusals) expect_refused(refusal);
}

TEST(PlanCreate, RefusesBadOptions) {
  popnorm_executor idle = POPNORM_EXECUTOR_INIT;
  popnorm_executor nobody = reversed_executor();
  nobody.concurrency = 0;
  popnorm_executor short_one = reversed_executor();
  short_one.size = 8;
  const std::vector<Refusal> refusals = {
      {"backend", [](P&, O& o) { o.backend = static_cast<popnorm_backend>(3); }, {"backend is 3"}},
      {"cuda", [](P&, O& o) { o.backend = POPNORM_CUDA; }, {"cuda"}, POPNORM_UNSUPPORTED},
      {"schedule", [](P&, O& o) { o.schedule = static_cast<popnorm_schedule>(-1); }, {"schedule is -1"}},
      {"stores", [](P&, O& o) { o.stores = static_cast<popnorm_stores>(4); }, {"stores is 4"}},
      {"unknown tier", [](P&, O& o) { o.isa = "avx1024"; }, {"avx1024", "avx2"}},
      {"tier of another case", [](P&, O& o) { o.isa = "AVX2"; }, {"AVX2"}},
      {"executor without parallel_for", [&](P&, O& o) { o.executor = &idle; }, {"parallel_for", "null"}},
      {"executor of nobody", [&](P&, O& o) { o.executor = &nobody; }, {"concurrency is 0"}},
      {"executor's size", [&](P&, O& o) { o.executor = &short_one; }, {"executor", "size", "\\b8\\b"}},
      {"size", [](P&, O& o) { o.size = sizeof(O) - 1; }, {"options", "size", std::to_string(sizeof(O) - 1)}},
  };
  for (const Refusal& refusal : refusals) expect_refused(refusal);
}

TEST(PlanCreate, RefusesTiersThatDoNotRunHere) {
  for (std::int32_t i = 0; i < popnorm_isa_count(); ++i) {
    if (popnorm_isa_available(i) == 1) continue;
    expect_refused(
        {"tier", [=](P&, O& o) { o.isa = popnorm_isa_name(i); }, {popnorm_isa_name(i)}, POPNORM_UNSUPPORTED});
  }
}

TEST(PlanCreate, RefusesNull) {
  popnorm_plan* plan = nullptr;
  const popnorm_problem problem = valid();
  EXPECT_TRUE(refused(popnorm_plan_create(nullptr, nullptr, &plan), POPNORM_INVALID, {"problem", "null"}));
  EXPECT_TRUE(refused(popnorm_plan_create(&problem, nullptr, nullptr), POPNORM_INVALID, {"null"}));
}

TEST(PlanCreate, ReadsLongerStructsOnlyWithAZeroTail) {
  struct LaterProblem {
    popnorm_problem now;
    std::int64_t tail;
  } problem = {valid(), 0};
  struct LaterOptions {
    popnorm_options now;
    std::int64_t tail;
  } options = {POPNORM_OPTIONS_INIT, 0};
  problem.now.size = sizeof(problem);
  options.now.size = sizeof(options);
  popnorm_plan* plan = nullptr;
  ASSERT_TRUE(succeeded(popnorm_plan_create(&problem.now, &options.now, &plan)));
  popnorm_plan_destroy(plan);
  problem.tail = 1;
  EXPECT_TRUE(
      refused(popnorm_plan_create(&problem.now, &options.now, &plan), POPNORM_UNSUPPORTED, {"problem", "byte"}));
  problem.tail = 0;
  options.tail = std::int64_t{1} << 56;
  EXPECT_TRUE(
      refused(popnorm_plan_create(&problem.now, &options.now, &plan), POPNORM_UNSUPPORTED, {"options", "byte"}));
}

TEST(PlanCreate, AcceptsWhatIsUnusualButRight) {
  const auto accept = [](const char* what, const std::function<void(P&)>& change) {
    popnorm_problem problem = valid();
    change(problem);
    popnorm_plan* plan = nullptr;
    EXPECT_TRUE(succeeded(popnorm_plan_create(&problem, nullptr, &plan))) << what;
    popnorm_plan_destroy(plan);
  };
  accept("defaults", [](P&) {});
  accept("epsilon 0", [](P& p) { p.epsilon = 0; });
  accept("empty", [](P& p) { p.n = p.s = 0; });
  accept("more than 2^32 elements", [](P& p) { p.n = 1 << 20, p.c = 64, p.s = 1 << 20; });
  accept("samples inside", [](P& p) { p.x = {10, 40}; });
  accept("a stride of one sample never used", [](P& p) { p.n = 1, p.x = {1, 10}; });
  accept("parameters f64", [](P& p) { p.parameters = p.statistics = POPNORM_F64; });
  accept("statistics f32 of f64", [](P& p) { p.storage = POPNORM_F64, p.statistics = POPNORM_F32; });
  accept("more ids than samples",
         [](P& p) { p.norm_group = popnorm::labels(100), p.affine_slot = popnorm::strided(9); });
  accept("a group larger than the batch", [](P& p) { p.norm_group = popnorm::contiguous(INT64_MAX); });
  accept("groups of no samples", [](P& p) { p.n = 0, p.norm_group = popnorm::per_sample(); });
}

TEST(PlanQuery, DescribesThePlan) {
  const popnorm::plan plan(valid());
  const popnorm_plan_info& info = plan.info();
  EXPECT_EQ(info.workspace_alignment, 64u);
  EXPECT_EQ(info.reserve_alignment, 64u);
  EXPECT_GT(info.reserve_bytes, 0u);
  EXPECT_EQ(info.backend, POPNORM_CPU);
  EXPECT_STREQ(info.isa, runnable_tiers().front());
  EXPECT_EQ(info.tiles, 1);
  EXPECT_GE(popnorm::plan(popnorm::problem_nchw(3, 2, 100000)).info().tiles, 3 * 3);
}

TEST(PlanQuery, CountsIds) {
  const auto counted = [](popnorm_map map) {
    popnorm_problem problem = valid();
    problem.n = 10;
    problem.norm_group = problem.population_slot = problem.affine_slot = map;
    const popnorm::plan plan(problem);
    EXPECT_EQ(plan.info().groups, plan.info().population_slots);
    EXPECT_EQ(plan.info().groups, plan.info().affine_slots);
    return plan.info().groups;
  };
  EXPECT_EQ(counted({POPNORM_WHOLE, 0}), 1);
  EXPECT_EQ(counted(popnorm::contiguous(3)), 4) << "the last one is smaller";
  EXPECT_EQ(counted(popnorm::contiguous(5)), 2);
  EXPECT_EQ(counted(popnorm::contiguous(11)), 1);
  EXPECT_EQ(counted(popnorm::strided(3)), 3);
  EXPECT_EQ(counted(popnorm::strided(12)), 12) << "two of them are empty";
  EXPECT_EQ(counted(popnorm::per_sample()), 10);
  EXPECT_EQ(counted(popnorm::labels(7)), 7);
}

TEST(PlanQuery, RefusesBadArguments) {
  const popnorm::plan plan(valid());
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  EXPECT_TRUE(refused(popnorm_plan_query(nullptr, &info), POPNORM_INVALID, {"plan_query", "null"}));
  EXPECT_TRUE(refused(popnorm_plan_query(plan.get(), nullptr), POPNORM_INVALID, {"plan_query", "null"}));
  info.size = 16;
  EXPECT_TRUE(refused(popnorm_plan_query(plan.get(), &info), POPNORM_INVALID, {"plan_query", "size", "\\b16\\b"}));
  EXPECT_EQ(info.tiles, 0);
}

// Scratch is bounded by the contract, whatever the shape: min(4 MB, T/64) + 64 B per channel and group + 8 B per sample with
// labels. Tensors for which T/64 is less than one row per tile and group are given that row.
void expect_budget(popnorm_layout layout, std::int64_t n, std::int64_t c, std::int64_t s, popnorm_map map) {
  popnorm_problem problem = popnorm::problem(layout, n, c, s);
  problem.norm_group = map;
  const popnorm::plan plan(problem);
  const double tensor = static_cast<double>(n) * static_cast<double>(c) * static_cast<double>(s) * 4;
  // Mean and m2 of c channels have a weight beside them, and tiles of whole samples are three quarters full here.
  const double slots = (1 + 0.5 / static_cast<double>(c)) * (map.kind == POPNORM_WHOLE ? 1 : 4.0 / 3);
  const double budget = std::min(4e6, tensor / 64) * slots +
                        64 * static_cast<double>(c) * static_cast<double>(plan.info().groups) +
                        (map.kind == POPNORM_LABELS ? 8 * static_cast<double>(n) : 0);
  EXPECT_LE(static_cast<double>(plan.info().workspace_bytes), budget + 64)
      << "N " << n << " C " << c << " S " << s << " layout " << layout << " map " << map.kind << " of " << map.k;
}

TEST(PlanQuery, WorkspaceKeepsItsBudget) {
  for (const popnorm_map map : {popnorm_map{POPNORM_WHOLE, 0}, popnorm::strided(2), popnorm::strided(16),
                                popnorm::labels(2), popnorm::labels(8), popnorm::labels(16)})
    for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
      for (const std::int64_t n : {1, 50, 4096, 1000000})
        for (const std::int64_t c : {1, 8, 64, 256, 2048})
          for (const std::int64_t s : {1, 49, 3136, 12544}) {
            if (n * c * s > (std::int64_t{1} << 32)) continue;
            expect_budget(layout, n, c, s, map);
          }
}

TEST(PlanQuery, WorkspaceOfExtremeShapesKeepsItsBudget) {
  const popnorm_map whole = {POPNORM_WHOLE, 0};
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC}) {
    expect_budget(layout, 1, 1, std::int64_t{1} << 32, whole);
    expect_budget(layout, 2, 100000, 1, whole);
    expect_budget(layout, 1000000, 8, 1, popnorm::labels(8));
    expect_budget(layout, 64, 64, 16, whole);
  }
}

TEST(Tiers, AreListedBestFirst) {
  ASSERT_EQ(popnorm_isa_count(), 3);
  EXPECT_STREQ(popnorm_isa_name(0), "avx512");
  EXPECT_STREQ(popnorm_isa_name(1), "avx2");
  EXPECT_STREQ(popnorm_isa_name(2), "baseline");
  EXPECT_EQ(popnorm_isa_available(2), 1);
  for (const std::int32_t outside : {-1, 3, 1000}) {
    EXPECT_EQ(popnorm_isa_name(outside), nullptr);
    EXPECT_EQ(popnorm_isa_available(outside), 0);
  }
  EXPECT_EQ(popnorm_backend_available(POPNORM_CPU), 1);
  EXPECT_EQ(popnorm_backend_available(POPNORM_BACKEND_AUTO), 1);
  popnorm_options cuda = POPNORM_OPTIONS_INIT;
  cuda.backend = POPNORM_CUDA;
  const popnorm_problem problem = popnorm::problem_nchw(2, 3, 4);
  popnorm_plan* plan = nullptr;
  EXPECT_EQ(popnorm_backend_available(POPNORM_CUDA),
            popnorm_plan_create(&problem, &cuda, &plan) == POPNORM_SUCCESS ? 1 : 0);
  popnorm_plan_destroy(plan);
  EXPECT_EQ(popnorm_backend_available(static_cast<popnorm_backend>(9)), 0);
}

TEST(Version, AgreesWithTheHeader) {
  EXPECT_EQ(popnorm_version(), POPNORM_VERSION_MAJOR * 10000 + POPNORM_VERSION_MINOR * 100 + POPNORM_VERSION_PATCH);
  EXPECT_GE(popnorm_numerics_version(), 1);
}

TEST(Null, IsAllowedForDestroy) { popnorm_plan_destroy(nullptr); }

// Of three channels: overwritten by 0, or added to without a change.
void expect_gradients_of_zero(const popnorm::plan& plan, popnorm::buffer& workspace, popnorm::buffer& reserve) {
  std::vector<float> dscale = {1, 2, 3}, dshift = {4, 5, 6};
  popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
  backward.dscale = dscale.data();
  backward.dshift = dshift.data();
  backward.accumulate = 1;
  plan.backward(backward);
  EXPECT_EQ(dscale, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(dshift, (std::vector<float>{4, 5, 6}));
  backward.accumulate = 0;
  plan.backward(backward);
  EXPECT_EQ(dscale, std::vector<float>(3, 0));
  EXPECT_EQ(dshift, std::vector<float>(3, 0));
}

// An empty batch is valid with null tensors, and changes nothing that accumulates.
TEST(EmptyBatch, ChangesNothing) {
  for (const auto& [n, s] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {4, 0}, {0, 0}}) {
    for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC}) {
      const popnorm::plan plan(popnorm::problem(layout, n, 3, s));
      popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
      popnorm::population population(1, 3);
      const std::vector<char> empty_population(static_cast<const char*>(population.data()),
                                               static_cast<const char*>(population.data()) + population.size());
      std::vector<float> running_mean = {1, 2, 3}, running_variance = {4, 5, 6}, saved_mean(3, -1), saved_invstd(3, -1);
      std::vector<double> weight(3, -1), mean(3, -1), m2(3, -1);
      popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
      forward.update.running_mean = running_mean.data();
      forward.update.running_variance = running_variance.data();
      forward.update.population = population.data();
      forward.update.population_bytes = population.size();
      forward.saved_mean = saved_mean.data();
      forward.saved_invstd = saved_invstd.data();
      forward.moments = {weight.data(), mean.data(), m2.data()};
      plan.forward(forward);
      EXPECT_EQ(running_mean, (std::vector<float>{1, 2, 3}));
      EXPECT_EQ(running_variance, (std::vector<float>{4, 5, 6}));
      EXPECT_EQ(std::vector<char>(static_cast<const char*>(population.data()),
                                  static_cast<const char*>(population.data()) + population.size()),
                empty_population);
      EXPECT_EQ(weight, std::vector<double>(3, 0));
      EXPECT_EQ(mean, std::vector<double>(3, 0));
      EXPECT_EQ(m2, std::vector<double>(3, 0));
      for (const float v : saved_mean) EXPECT_TRUE(std::isfinite(v));
      for (const float v : saved_invstd) EXPECT_TRUE(std::isfinite(v));
      expect_gradients_of_zero(plan, workspace, reserve);
    }
  }
}

// Groups of samples without positions have statistics nonetheless, where they are mixed with those of their slot.
TEST(EmptyBatch, OfSamplesIsBlendedWithItsOwnSlots) {
  constexpr std::int64_t n = 20;
  for (const popnorm_map map : {popnorm::per_sample(), popnorm::strided(20), popnorm::strided(3)}) {
    popnorm_problem problem = popnorm::problem_nchw(n, 1, 0);
    problem.norm_group = problem.population_slot = map;
    const popnorm::plan plan(problem);
    popnorm::buffer workspace = plan.make_workspace();
    std::vector<float> mean(n), variance(n, 1), saved_mean(static_cast<std::size_t>(plan.info().groups), -1);
    std::iota(mean.begin(), mean.end(), 1.0f);
    popnorm_forward_args forward = popnorm::forward_args(workspace);
    forward.source.statistics = POPNORM_BLEND;
    forward.source.mean = mean.data();
    forward.source.variance = variance.data();
    forward.saved_mean = saved_mean.data();
    plan.forward(forward);
    mean.resize(saved_mean.size());
    EXPECT_EQ(saved_mean, mean) << map.kind;
  }
}

// Without samples there may be no group either.
TEST(EmptyBatch, WithoutGroupsHasGradientsOfZero) {
  const popnorm_map whole = {POPNORM_WHOLE, 0};
  for (const auto& [group, slot] : {std::pair{popnorm::per_sample(), whole},
                                    {popnorm::contiguous(4), whole},
                                    {whole, popnorm::per_sample()},
                                    {popnorm::per_sample(), popnorm::per_sample()}}) {
    popnorm_problem problem = popnorm::problem_nchw(0, 3, 5);
    problem.norm_group = group;
    problem.population_slot = slot;
    const popnorm::plan plan(problem);
    popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
    for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN}) {
      const std::vector<float> given(3, 1);
      popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
      forward.source.statistics = statistics;
      if (statistics == POPNORM_GIVEN) forward.source.mean = forward.source.variance = given.data();
      plan.forward(forward);
      expect_gradients_of_zero(plan, workspace, reserve);
    }
  }
}

TEST(EmptyBatch, NeedsNoWorkspaceOfNoBytes) {
  popnorm_problem problem = popnorm::problem_nchw(0, 3, 5);
  problem.norm_group = problem.population_slot = problem.affine_slot = popnorm::per_sample();
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = POPNORM_CPU;
  const popnorm::plan plan(problem, options);
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  plan.forward(popnorm::forward_args(workspace, reserve));
  popnorm_double_backward_args args = POPNORM_DOUBLE_BACKWARD_ARGS_INIT;
  args.reserve = reserve.data();
  args.reserve_bytes = reserve.size();
  ASSERT_EQ(plan.info().double_backward_workspace_bytes, 0U);
  EXPECT_TRUE(succeeded(popnorm_double_backward(plan.get(), &args, nullptr)));
}

}  // namespace
}  // namespace popnorm_test
