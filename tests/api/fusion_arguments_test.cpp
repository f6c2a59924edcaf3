// Bad input to calls of problems with an activation or a residual, and what such a reserve may be used for.
#include <gtest/gtest.h>

#include "api/refusals.hpp"

namespace popnorm_test {
namespace {

TEST(Fusion, NeedsAResidualWhereTheProblemAddsOneAndNoneElsewhere) {
  Scene with(fused(POPNORM_RELU, true)), without(fused(POPNORM_RELU, false));
  const auto refuse = [&]<class Args>(const char* name, Args (Scene::*args)(), Entry<Args> entry) {
    expect_refusals<Args>(with, name, (with.*args)(), entry,
                          {{"no residual", [](Args& a) { a.residual = nullptr; }, {"residual", "null"}},
                           {"unaligned", [](Args& a) { a.residual = misaligned(a.residual); }, {"residual", "align"}}});
    expect_refusals<Args>(
        without, name, (without.*args)(), entry,
        {{"a residual", [&](Args& a) { a.residual = without.residual.data(); }, {"residual", "adds_residual is 0"}}});
  };
  refuse("forward", &Scene::forward_batch, Entry<popnorm_forward_args>(popnorm_forward));
  refuse("normalize", &Scene::normalize, Entry<popnorm_normalize_args>(popnorm_normalize));
  const auto refuse_gradient = [&]<class Args>(const char* name, Args (Scene::*args)(), Entry<Args> entry) {
    expect_refusals<Args>(
        with, name, (with.*args)(), entry,
        {{"unaligned", [](Args& a) { a.dresidual = misaligned(a.dresidual); }, {"dresidual", "align"}}});
    expect_refusals<Args>(
        without, name, (without.*args)(), entry,
        {{"dresidual", [&](Args& a) { a.dresidual = without.dresidual.data(); }, {"dresidual", "adds_residual is 0"}}});
  };
  refuse_gradient("backward", &Scene::backward, Entry<popnorm_backward_args>(popnorm_backward));
  refuse_gradient("backward_apply", &Scene::backward_apply, Entry<popnorm_backward_apply_args>(popnorm_backward_apply));
}

// Either gradient may be asked for alone, with the same bits.
TEST(Fusion, GivesEveryGradientAlone) {
  for (const popnorm_activation activation : {POPNORM_IDENTITY, POPNORM_RELU, POPNORM_LEAKY_RELU})
    for (const bool given : {false, true}) {
      Scene scene(fused(activation, true));
      const popnorm_forward_args forward = given ? scene.forward_given() : scene.forward_batch();
      ASSERT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &forward, nullptr)));
      popnorm_backward_args args = scene.backward();
      ASSERT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &args, nullptr)));
      const auto dx = scene.dx.by_channel(), dresidual = scene.dresidual.by_channel(), dscale = scene.dscale.values();
      const auto dy = scene.dy.by_channel(), y = scene.y.by_channel();
      for (std::size_t i = 0; i < dy.size(); ++i) {
        const double slope = activation == POPNORM_RELU         ? 0
                             : activation == POPNORM_LEAKY_RELU ? stored(POPNORM_F32, 0.01)
                                                                : 1;
        EXPECT_EQ(dresidual[i], y[i] > 0 ? dy[i] : stored(POPNORM_F32, slope * dy[i]));
      }
      for (Tensor* output : {&scene.dx, &scene.dresidual}) output->buffer().poison();
      args.dx = args.dscale = args.dshift = nullptr;
      ASSERT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &args, nullptr)));
      EXPECT_EQ(scene.dresidual.by_channel(), dresidual);
      scene.dresidual.buffer().poison();
      args.dscale = scene.dscale.data();
      ASSERT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &args, nullptr)));
      EXPECT_EQ(scene.dresidual.by_channel(), dresidual);
      EXPECT_EQ(scene.dscale.values(), dscale);
      args = scene.backward();
      args.dresidual = nullptr;
      ASSERT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &args, nullptr)));
      EXPECT_EQ(scene.dx.by_channel(), dx);
      args.dx = args.dscale = args.dshift = nullptr;
      EXPECT_TRUE(refused(popnorm_backward(scene.plan.get(), &args, nullptr), POPNORM_INVALID, {"dx", "dresidual"}));
    }
}

// x may be overwritten by dx or dresidual, dy likewise, and the residual by y.
TEST(Fusion, WorksInPlace) {
  Scene expected(fused(POPNORM_LEAKY_RELU, true));
  popnorm_backward_args all = expected.backward();
  ASSERT_TRUE(succeeded(popnorm_backward(expected.plan.get(), &all, nullptr)));
  const auto y = expected.y.by_channel(), dx = expected.dx.by_channel(), dresidual = expected.dresidual.by_channel();
  for (const bool crossed : {false, true}) {
    Scene scene(expected.problem);
    popnorm_backward_args args = scene.backward();
    args.dx = crossed ? scene.dy.data() : scene.x.data();
    args.dresidual = crossed ? scene.x.data() : scene.dy.data();
    ASSERT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &args, nullptr)));
    EXPECT_EQ((crossed ? scene.dy : scene.x).by_channel(), dx);
    EXPECT_EQ((crossed ? scene.x : scene.dy).by_channel(), dresidual);
  }
  Scene scene(expected.problem);
  popnorm_forward_args args = scene.forward_inputs();
  args.y = scene.residual.data();
  ASSERT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
  EXPECT_EQ(scene.residual.by_channel(), y);
}

// A reserve says what followed normalization; without its mask backward would be wrong.
TEST(Fusion, RefusesTheReserveOfAnotherProblem) {
  popnorm_problem problem = fused(POPNORM_LEAKY_RELU, true);
  problem.s = problem.c;
  std::vector<popnorm_problem> others(6, problem);
  others[5].layout = problem.layout == POPNORM_NCHW ? POPNORM_NHWC : POPNORM_NCHW;
  others[0].activation = POPNORM_RELU;
  others[1].slope = 0.02;
  others[2].adds_residual = 0;
  others[3].n = 4;
  others[4].activation = POPNORM_IDENTITY;
  for (const popnorm_problem& other : others) {
    Scene scene(problem), foreign(other);
    GuardedBuffer reserve(std::max(scene.reserve.size(), foreign.reserve.size()), 64, Placement::ends_at_guard);
    std::memcpy(reserve.data(), foreign.reserve.data(), foreign.reserve.size());
    expect_refusals<popnorm_backward_args>(scene, "backward", scene.backward(), popnorm_backward,
                                           {{"another problem's",
                                             [&](popnorm_backward_args& a) {
                                               a.reserve = reserve.data();
                                               a.reserve_bytes = reserve.size();
                                             },
                                             {"reserve"}}});
  }
}

TEST(Fusion, RefusesAReserveThatNormalizeHasNotCompleted) {
  Scene scene(fused(POPNORM_RELU, true));
  const popnorm_finalize_args finalize = scene.finalize();
  ASSERT_TRUE(succeeded(popnorm_finalize(scene.plan.get(), &finalize, nullptr)));
  const popnorm_backward_args backward = scene.backward();
  const popnorm_backward_reduce_args reduce = scene.backward_reduce();
  const popnorm_backward_apply_args apply = scene.backward_apply();
  const std::vector<std::string> words = {"reserve", "normalize"};
  EXPECT_TRUE(refused(popnorm_backward(scene.plan.get(), &backward, nullptr), POPNORM_INVALID, words));
  EXPECT_TRUE(refused(popnorm_backward_reduce(scene.plan.get(), &reduce, nullptr), POPNORM_INVALID, words));
  EXPECT_TRUE(refused(popnorm_backward_apply(scene.plan.get(), &apply, nullptr), POPNORM_INVALID, words));
  const popnorm_normalize_args normalize = scene.normalize();
  ASSERT_TRUE(succeeded(popnorm_normalize(scene.plan.get(), &normalize, nullptr)));
  EXPECT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &backward, nullptr)));
}

TEST(Fusion, IsUnsupportedWhereAReserveOrAFirstDerivativeIsMissing) {
  for (const bool residual : {false, true}) {
    Scene scene(fused(POPNORM_RELU, residual));
    const popnorm_backward_args saved = scene.backward_saved();
    EXPECT_TRUE(refused(popnorm_backward(scene.plan.get(), &saved, nullptr), POPNORM_UNSUPPORTED,
                        {"saved_mean", "activation"}));
    const popnorm_double_backward_args twice = scene.double_backward();
    EXPECT_TRUE(refused(popnorm_double_backward(scene.plan.get(), &twice, nullptr), POPNORM_UNSUPPORTED,
                        {residual ? "residual" : "activation"}));
  }
  Scene scene(fused(POPNORM_IDENTITY, true));
  const popnorm_backward_args saved = scene.backward_saved();
  EXPECT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &saved, nullptr)));
}

// A bit an element, rows padded to bytes, only where backward cannot recompute.
TEST(Fusion, ReservesABitAnElementOnlyWithAResidual) {
  const auto bytes = [](popnorm_activation activation, bool residual) {
    popnorm_problem p = popnorm::problem_nchw(32, 64, 196);
    p.activation = activation;
    p.adds_residual = residual ? 1 : 0;
    return popnorm::plan(p).info().reserve_bytes;
  };
  const std::size_t plain = bytes(POPNORM_IDENTITY, false);
  EXPECT_EQ(bytes(POPNORM_RELU, false), plain);
  EXPECT_EQ(bytes(POPNORM_IDENTITY, true), plain);
  EXPECT_LE(bytes(POPNORM_LEAKY_RELU, true), plain + 32 * 64 * 25 + 64 + 8);
  EXPECT_GE(bytes(POPNORM_LEAKY_RELU, true), plain + 32 * 64 * 25);
}

}  // namespace
}  // namespace popnorm_test
