// The environment variables, each in a process of its own: POPNORM_ISA, POPNORM_BACKEND, POPNORM_VERBOSE.
#include <gtest/gtest.h>

#include <cfenv>
#include <cstdio>
#include <sstream>
#include <vector>

#include "support/child.hpp"
#include "support/layer.hpp"

namespace popnorm_test {
namespace {

// Prints what became of a plan with default options.
const ChildRole kMakePlan("make_plan", [] {
  const popnorm_problem problem = popnorm::problem_nchw(2, 3, 4);
  popnorm_plan* plan = nullptr;
  const popnorm_status status = popnorm_plan_create(&problem, nullptr, &plan);
  if (status != POPNORM_SUCCESS) {
    std::printf("%s %s", popnorm_status_string(status), popnorm_last_error());
    return 0;
  }
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  popnorm_plan_query(plan, &info);
  std::printf("%s", info.isa);
  popnorm_plan_destroy(plan);
  return 0;
});

// The same with a tier in the options, which go before the environment, but for an empty one.
void print_isa_with(const char* isa) {
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.isa = isa;
  std::printf("%s", popnorm::plan(popnorm::problem_nchw(2, 3, 4), options).info().isa);
}
const ChildRole kMakeBaselinePlan("make_baseline_plan", [] {
  print_isa_with("baseline");
  return 0;
});
const ChildRole kMakeUnnamedPlan("make_unnamed_plan", [] {
  print_isa_with("");
  return 0;
});

// A forward that succeeds, a backward, a forward that is refused, and calls without a plan.
const ChildRole kRunForward("run_forward", [] {
  const popnorm::plan plan(popnorm::problem_nhwc(5, 7, 11));
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  std::vector<float> x(5 * 7 * 11, 1.0f), y(x.size());
  popnorm_forward_args args = popnorm::forward_args(workspace, reserve);
  args.x = x.data();
  args.y = y.data();
  plan.forward(args);
  popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
  backward.x = x.data();
  backward.dy = y.data();
  backward.dx = y.data();
  plan.backward(backward);
  args.update.momentum = 2;
  popnorm_forward(plan.get(), &args, nullptr);
  popnorm_forward(nullptr, &args, nullptr);
  popnorm_fold(nullptr);
  std::vector<double> population(64);
  popnorm_population_init(population.data(), population.size() * sizeof(double), 1, 2);
  popnorm_population_decay(population.data(), population.size() * sizeof(double), 0);
  return 0;
});

// A call while every floating-point exception traps.
const ChildRole kRunTrapping("run_trapping", [] {
  feenableexcept(FE_ALL_EXCEPT);
  const popnorm_status status = popnorm_fold(nullptr);
  fedisableexcept(FE_ALL_EXCEPT);
  return status == POPNORM_INVALID ? 0 : 1;
});

std::string plan_with(const char* variable, const std::string& value) {
  const ChildResult child = run_in_child("make_plan", {{variable, value}});
  EXPECT_EQ(child.exit_status, 0) << child.err;
  return child.out;
}

TEST(IsaVariable, ForcesATier) {
  for (std::int32_t i = 0; i < popnorm_isa_count(); ++i) {
    const std::string name = popnorm_isa_name(i);
    const std::string got = plan_with("POPNORM_ISA", name);
    if (popnorm_isa_available(i) == 1) {
      EXPECT_EQ(got, name);
    } else {
      EXPECT_EQ(got.find("POPNORM_UNSUPPORTED"), 0u) << got;
      EXPECT_NE(got.find(name), std::string::npos) << got;
    }
  }
}

TEST(IsaVariable, OfNoTierIsRefused) {
  for (const char* name : {"avx9000", "AVX2", "avx2 ", "%s%s%s%n"}) {
    const std::string got = plan_with("POPNORM_ISA", name);
    EXPECT_EQ(got.find("POPNORM_INVALID"), 0u) << got;
    EXPECT_NE(got.find(name), std::string::npos) << got;
    EXPECT_NE(got.find("baseline"), std::string::npos) << got;
  }
}

TEST(IsaVariable, EmptyIsUnset) { EXPECT_EQ(plan_with("POPNORM_ISA", ""), runnable_tiers().front()); }

TEST(IsaVariable, YieldsToTheOptions) {
  const ChildResult child = run_in_child("make_baseline_plan", {{"POPNORM_ISA", runnable_tiers().front()}});
  EXPECT_EQ(child.exit_status, 0);
  EXPECT_EQ(child.out, "baseline");
}

TEST(IsaVariable, IsAskedWhereTheOptionsNameNone) {
  const ChildResult child = run_in_child("make_unnamed_plan", {{"POPNORM_ISA", "baseline"}});
  EXPECT_EQ(child.exit_status, 0);
  EXPECT_EQ(child.out, "baseline");
}

TEST(BackendVariable, ChoosesABackend) {
  const std::string best = runnable_tiers().front();
  for (const char* name : {"cpu", "auto", ""}) EXPECT_EQ(plan_with("POPNORM_BACKEND", name), best);
  const std::string cuda = plan_with("POPNORM_BACKEND", "cuda");
  EXPECT_EQ(cuda.find("POPNORM_UNSUPPORTED"), 0u) << cuda;
  const std::string nonsense = plan_with("POPNORM_BACKEND", "tpu");
  EXPECT_EQ(nonsense.find("POPNORM_INVALID"), 0u) << nonsense;
  EXPECT_NE(nonsense.find("tpu"), std::string::npos) << nonsense;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(VerboseVariable, IsSilentByDefault) {
  for (const char* value : {"", "0"}) {
    const ChildResult child = run_in_child("run_forward", {{"POPNORM_VERBOSE", value}});
    EXPECT_EQ(child.exit_status, 0);
    EXPECT_EQ(child.out, "");
    EXPECT_EQ(child.err, "");
  }
}

// Backend, tier, operation, shape and status; refused calls too.
TEST(VerboseVariable, PrintsALinePerCall) {
  const ChildResult child = run_in_child("run_forward", {{"POPNORM_VERBOSE", "1"}});
  EXPECT_EQ(child.exit_status, 0);
  EXPECT_EQ(child.out, "");
  const std::string tier = runnable_tiers().front();
  const std::string no_plan = ",", shape = ",nhwc_f32_n5_c7_s11,";
  const std::vector<std::string> expected = {
      no_plan + ",plan,,POPNORM_SUCCESS,",
      "cpu," + tier + ",forward" + shape + "POPNORM_SUCCESS,",
      "cpu," + tier + ",backward" + shape + "POPNORM_SUCCESS,",
      "cpu," + tier + ",forward" + shape + "POPNORM_INVALID,",
      no_plan + ",forward,,POPNORM_INVALID,",
      no_plan + ",fold,,POPNORM_INVALID,",
      no_plan + ",population_init,,POPNORM_SUCCESS,",
      no_plan + ",population_decay,,POPNORM_SUCCESS,",
  };
  const std::vector<std::string> lines = lines_of(child.err);
  ASSERT_EQ(lines.size(), expected.size()) << child.err;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string begin = std::string("popnorm,") + POPNORM_VERSION_STRING + "," + expected[i];
    EXPECT_EQ(lines[i].substr(0, begin.size()), begin);
    EXPECT_NE(lines[i].find_first_of("0123456789", begin.size()), std::string::npos) << "no time in " << lines[i];
  }
}

TEST(VerboseVariable, SpringsNoTraps) {
  const ChildResult child = run_in_child("run_trapping", {{"POPNORM_VERBOSE", "1"}});
  EXPECT_EQ(child.exit_status, 0);
  EXPECT_EQ(lines_of(child.err).size(), 1u) << child.err;
}

TEST(VerboseVariable, ExplainsDispatch) {
  const ChildResult child = run_in_child("run_forward", {{"POPNORM_VERBOSE", "dispatch"}});
  EXPECT_EQ(child.exit_status, 0);
  EXPECT_NE(child.err.find("dispatch"), std::string::npos) << child.err;
  EXPECT_NE(child.err.find(",forward,"), std::string::npos) << child.err;
}

}  // namespace
}  // namespace popnorm_test
