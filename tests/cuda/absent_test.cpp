// What a plan for CUDA is answered where it cannot be made. The module is opened once per process: each answer is a test of its
// own for CTest, with POPNORM_CUDA_MODULE naming what there is and POPNORM_TEST_EXPECT a part of the message.
#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <cstdlib>
#include <string>

namespace {

popnorm_status make_plan(popnorm_backend backend, popnorm_plan** plan) {
  popnorm_problem problem = POPNORM_PROBLEM_INIT;
  problem.n = problem.c = problem.s = 2;
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = backend;
  return popnorm_plan_create(&problem, &options, plan);
}

TEST(CudaIsAbsent, AndThePlanSaysWhatIsMissing) {
  const char* expected = std::getenv("POPNORM_TEST_EXPECT");
  ASSERT_NE(expected, nullptr);
  // A driver is the machine's business: where there is one, the module's own answers cannot be had.
  if (std::string(expected) == "no NVIDIA driver" && popnorm_backend_available(POPNORM_CUDA) == 1)
    GTEST_SKIP() << "SKIP: this machine has a CUDA device";
  for (int i = 0; i < 2; ++i) {
    popnorm_plan* plan = nullptr;
    EXPECT_EQ(make_plan(POPNORM_CUDA, &plan), POPNORM_UNSUPPORTED);
    EXPECT_EQ(plan, nullptr);
    EXPECT_NE(std::string(popnorm_last_error()).find(expected), std::string::npos) << popnorm_last_error();
    EXPECT_EQ(popnorm_backend_available(POPNORM_CUDA), 0);
  }
}

TEST(CudaIsAbsent, AndTheCpuServesWhoeverDidNotInsist) {
  popnorm_plan* plan = nullptr;
  ASSERT_EQ(make_plan(POPNORM_BACKEND_AUTO, &plan), POPNORM_SUCCESS);
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  ASSERT_EQ(popnorm_plan_query(plan, &info), POPNORM_SUCCESS);
  EXPECT_EQ(info.backend, POPNORM_CPU);
  popnorm_plan_destroy(plan);
}

TEST(CudaIsAbsent, AndNoMemoryIsADevices) {
  popnorm_problem problem = POPNORM_PROBLEM_INIT;
  problem.n = problem.c = problem.s = 2;
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.memory = &problem;
  popnorm_plan* plan = nullptr;
  ASSERT_EQ(popnorm_plan_create(&problem, &options, &plan), POPNORM_SUCCESS);
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  ASSERT_EQ(popnorm_plan_query(plan, &info), POPNORM_SUCCESS);
  EXPECT_EQ(info.backend, POPNORM_CPU);
  popnorm_plan_destroy(plan);
}

}  // namespace
