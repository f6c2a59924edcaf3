// Plans shared between threads, messages kept apart, and executors of the caller's that do not do their work.
#include <gtest/gtest.h>
#include <tbb/parallel_for.h>
#include <tbb/task_group.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <thread>

#include "support/executors.hpp"
#include "support/layer.hpp"

namespace popnorm_test {
namespace {

Configuration large() {
  Configuration k;
  k.n = 6;
  k.c = 10;
  k.s = 5000;
  return k;
}

// One plan, four threads at a time, each with buffers of its own: the bits of a single caller.
TEST(Sharing, OnePlanServesManyThreads) {
  const Configuration k = large();
  Random random("OnePlanServesManyThreads");
  const Layer layer(k, random);
  const popnorm::plan plan(layer.problem());
  const auto run = [&] {
    popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
    Tensor y(layer.x.shape(), k.storage, k.where), dx(layer.x.shape(), k.storage, k.where);
    popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
    forward.x = layer.x.data();
    forward.y = y.data();
    plan.forward(forward);
    popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
    backward.x = layer.x.data();
    backward.dy = layer.dy.data();
    backward.dx = dx.data();
    plan.backward(backward);
    std::vector<double> both = y.by_channel();
    const std::vector<double> gradient = dx.by_channel();
    both.insert(both.end(), gradient.begin(), gradient.end());
    return both;
  };
  const std::vector<double> expected = run();
  constexpr int kThreads = 4;
  std::barrier start(kThreads);
  std::vector<std::vector<double>> results(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      start.arrive_and_wait();
      for (int i = 0; i < 3; ++i) results[static_cast<std::size_t>(t)] = run();
    });
  }
  for (std::thread& t : threads) t.join();
  for (const std::vector<double>& result : results) EXPECT_TRUE(same_bits(result, expected));
}

TEST(Sharing, MessagesBelongToTheirThread) {
  popnorm_problem problem = popnorm::problem_nchw(-11, 1, 1);
  popnorm_plan* plan = nullptr;
  EXPECT_TRUE(refused(popnorm_plan_create(&problem, nullptr, &plan), POPNORM_INVALID, {"n is -11"}));
  std::string at_first = "not read", after_failure;
  std::thread other([&] {
    at_first = popnorm_last_error();
    popnorm_problem bad = popnorm::problem_nchw(-22, 1, 1);
    popnorm_plan* none = nullptr;
    popnorm_plan_create(&bad, nullptr, &none);
    after_failure = popnorm_last_error();
  });
  other.join();
  EXPECT_EQ(at_first, "");
  EXPECT_NE(after_failure.find("n is -22"), std::string::npos);
  EXPECT_NE(std::string(popnorm_last_error()).find("n is -11"), std::string::npos);
}

class Executors : public ::testing::TestWithParam<int> {};

TEST_P(Executors, AnyThreadsInAnyOrderGiveTheSameBits) {
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC}) {
    Configuration k = large();
    k.layout = layout;
    Random random("Executors");
    const Layer layer(k, random);
    Runner by_tbb(layer, {});
    const Forward f = by_tbb.forward(POPNORM_BATCH);
    const Backward b = by_tbb.backward();
    ShuffledExecutor shuffled(GetParam());
    const popnorm_executor executor = shuffled.interface();
    Runner runner(layer, {.executor = &executor});
    EXPECT_TRUE(same_bits(runner.forward(POPNORM_BATCH).y, f.y));
    EXPECT_TRUE(same_bits(runner.backward().dx, b.dx));
    EXPECT_EQ(shuffled.most_threads(), std::min<std::int64_t>(GetParam(), shuffled.most_tasks()));
    EXPECT_TRUE(GetParam() == 1 || shuffled.most_tasks() > 1) << "the work was not divided";
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Executors, ::testing::Values(1, 2, 3, 7, 16));

// The options' executor is copied: the caller's struct may go.
TEST(Executor, IsCopiedIntoThePlan) {
  const Configuration k = large();
  Random random("IsCopiedIntoThePlan");
  const Layer layer(k, random);
  ShuffledExecutor shuffled(2);
  popnorm_executor executor = shuffled.interface();
  Runner runner(layer, {.executor = &executor});
  executor = POPNORM_EXECUTOR_INIT;
  runner.forward(POPNORM_BATCH);
  EXPECT_GT(shuffled.calls(), 0);
}

// As many as there may be: cutting tasks for them takes no time of its own. Where it took as many steps it was 12 s, otherwise milliseconds.
TEST(Executor, MayHaveAnyConcurrency) {
  popnorm_executor executor = POPNORM_EXECUTOR_INIT;
  executor.concurrency = std::numeric_limits<std::int32_t>::max();
  executor.parallel_for = [](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
    for (std::int64_t i = 0; i < count; ++i) task(argument, i);
  };
  Configuration k = large();
  k.n = 3;
  k.c = 64;
  k.s = 4096;
  Random random("MayHaveAnyConcurrency");
  const Layer layer(k, random);
  Runner by_tbb(layer, {}), runner(layer, {.executor = &executor});
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(same_bits(runner.forward(POPNORM_BATCH).y, by_tbb.forward(POPNORM_BATCH).y));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
}

// Whoever cancels the caller's tasks does not cancel the library's.
TEST(Tbb, ACallInACancelledTaskIsWhole) {
  const Configuration k = large();
  Random random("ACallInACancelledTaskIsWhole");
  const Layer layer(k, random);
  Runner runner(layer, {});
  const Forward expected = runner.forward(POPNORM_BATCH);
  Forward cancelled;
  tbb::task_group_context context;
  tbb::parallel_for(
      0, 1,
      [&](int) {
        context.cancel_group_execution();
        cancelled = runner.forward(POPNORM_BATCH);
      },
      context);
  EXPECT_TRUE(same_bits(cancelled.y, expected.y));
}

popnorm_status forward_with(void (*parallel_for)(void*, std::int64_t, void (*)(void*, std::int64_t), void*)) {
  const Configuration k = large();
  popnorm_executor executor = POPNORM_EXECUTOR_INIT;
  executor.concurrency = 4;
  executor.parallel_for = parallel_for;
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.executor = &executor;
  const popnorm::plan plan(popnorm::problem_nchw(k.n, k.c, k.s), options);
  popnorm::buffer space = plan.make_workspace();
  std::vector<float> x(static_cast<std::size_t>(k.n * k.c * k.s), 1.0f), y(x.size());
  popnorm_forward_args args = popnorm::forward_args(space);
  args.x = x.data();
  args.y = y.data();
  return popnorm_forward(plan.get(), &args, nullptr);
}

TEST(Executor, ThatRunsNothingIsReported) {
  EXPECT_TRUE(refused(forward_with([](void*, std::int64_t, void (*)(void*, std::int64_t), void*) {}), POPNORM_INTERNAL,
                      {"^forward:", "executor"}));
}

TEST(Executor, ThatSkipsATaskIsReported) {
  EXPECT_TRUE(refused(forward_with([](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
                        for (std::int64_t i = 1; i < count; ++i) task(argument, i);
                      }),
                      POPNORM_INTERNAL, {"^forward:", "executor"}));
}

// As many as there are, but not each.
TEST(Executor, ThatRunsATaskTwiceAndSkipsAnotherIsReported) {
  EXPECT_TRUE(refused(forward_with([](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
                        for (std::int64_t i = 0; i < count; ++i) task(argument, std::max<std::int64_t>(i, 1));
                      }),
                      POPNORM_INTERNAL, {"^forward:", "executor"}));
}

TEST(Executor, ThatThrowsIsReported) {
  EXPECT_TRUE(refused(forward_with([](void*, std::int64_t, void (*)(void*, std::int64_t), void*) {
                        throw std::runtime_error("no threads today");
                      }),
                      POPNORM_INTERNAL, {"^forward:", "no threads today"}));
}

// Of a forward that did not end, the reserve is none: not that of the forward before either.
TEST(Executor, ThatFailsLeavesNoReserve) {
  struct Pool {
    bool works = true;
    static void parallel_for(void* context, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
      const std::int64_t end = static_cast<Pool*>(context)->works ? count : count - 1;
      for (std::int64_t i = 0; i < end; ++i) task(argument, i);
    }
  } pool;
  const Configuration k = large();
  popnorm_executor executor = POPNORM_EXECUTOR_INIT;
  executor.context = &pool;
  executor.concurrency = 4;
  executor.parallel_for = Pool::parallel_for;
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.executor = &executor;
  popnorm_problem problem = popnorm::problem_nchw(k.n, k.c, k.s);
  problem.activation = POPNORM_RELU;
  problem.adds_residual = 1;
  const popnorm::plan plan(problem, options);
  popnorm::buffer space = plan.make_workspace(), reserve = plan.make_reserve();
  std::vector<float> x(static_cast<std::size_t>(k.n * k.c * k.s), 1.0f), y(x.size()), dx(x.size()), dresidual(x.size());
  popnorm_forward_args forward = popnorm::forward_args(space, reserve);
  forward.x = x.data();
  forward.residual = x.data();
  forward.y = y.data();
  popnorm_normalize_args normalize = POPNORM_NORMALIZE_ARGS_INIT;
  normalize.x = x.data();
  normalize.residual = x.data();
  normalize.y = y.data();
  normalize.reserve = reserve.data();
  normalize.reserve_bytes = reserve.size();
  normalize.workspace = space.data();
  normalize.workspace_bytes = space.size();
  popnorm_backward_args backward = popnorm::backward_args(space, reserve);
  backward.x = x.data();
  backward.dy = y.data();
  backward.dx = dx.data();
  backward.dresidual = dresidual.data();

  ASSERT_EQ(popnorm_forward(plan.get(), &forward, nullptr), POPNORM_SUCCESS) << popnorm_last_error();
  ASSERT_EQ(popnorm_backward(plan.get(), &backward, nullptr), POPNORM_SUCCESS) << popnorm_last_error();
  pool.works = false;
  ASSERT_EQ(popnorm_normalize(plan.get(), &normalize, nullptr), POPNORM_INTERNAL);
  pool.works = true;
  EXPECT_TRUE(refused(popnorm_backward(plan.get(), &backward, nullptr), POPNORM_INVALID, {"^backward:", "normalize"}));
  ASSERT_EQ(popnorm_normalize(plan.get(), &normalize, nullptr), POPNORM_SUCCESS) << popnorm_last_error();
  EXPECT_EQ(popnorm_backward(plan.get(), &backward, nullptr), POPNORM_SUCCESS) << popnorm_last_error();
  pool.works = false;
  ASSERT_EQ(popnorm_forward(plan.get(), &forward, nullptr), POPNORM_INTERNAL);
  pool.works = true;
  EXPECT_TRUE(refused(popnorm_backward(plan.get(), &backward, nullptr), POPNORM_INVALID, {"^backward:", "reserve"}));
  EXPECT_TRUE(refused(popnorm_normalize(plan.get(), &normalize, nullptr), POPNORM_INVALID, {"^normalize:", "reserve"}));
}

}  // namespace
}  // namespace popnorm_test
