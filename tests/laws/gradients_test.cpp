// What the gradient must satisfy as a gradient: it is the derivative of forward, and it is orthogonal to what the
// normalization removes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "support/layer.hpp"

namespace popnorm_test {
namespace {

using popnorm::reference::Real;
using Values = std::vector<double>;

class GradientLaws : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type, double>> {};

// sum(dx) = 0 and sum(dx*xhat) = scale*invstd * epsilon/(variance+epsilon) * sum(dy*xhat), up to the sum of the bounds
// of the summands.
TEST_P(GradientLaws, OrthogonalToWhatNormalizationRemoves) {
  const auto& [layout, storage, epsilon] = GetParam();
  Configuration k;
  k.layout = layout;
  k.storage = storage;
  k.parameters = k.statistics = arithmetic_type(storage);
  k.n = 30;
  k.c = 11;
  k.s = 81;
  k.epsilon = epsilon;
  Random random("GradientLaws");
  const Layer layer(k, random);
  const Promises& p = layer.promises(POPNORM_BATCH);
  const Values x = layer.x.by_channel();
  const auto count = static_cast<std::size_t>(layer.count());
  for (const char* isa : runnable_tiers()) {
    SCOPED_TRACE(isa);
    Runner runner(layer, {.isa = isa});
    runner.forward(POPNORM_BATCH);
    const Backward b = runner.backward();
    for (std::size_t c = 0; c < static_cast<std::size_t>(k.c); ++c) {
      Real sum = 0, bound = 0, product = 0, product_bound = 0;
      const Real mean = p.exact_mean.exact[c], invstd = p.invstd.exact[c], variance = p.variance.exact[c];
      for (std::size_t i = c * count; i < (c + 1) * count; ++i) {
        const Real xhat = (x[i] - mean) * invstd;
        sum += b.dx[i];
        bound += p.dx.bound[i];
        product += b.dx[i] * xhat;
        product_bound += p.dx.bound[i] * std::fabs(xhat);
      }
      EXPECT_LE(std::fabs(sum), bound) << "sum(dx), channel " << c;
      const Real scale = layer.scale.get(static_cast<std::int64_t>(c));
      const Real expected = scale * invstd * (epsilon / (variance + epsilon)) * p.dscale.exact[c];
      EXPECT_LE(std::fabs(product - expected), product_bound) << "sum(dx*xhat), channel " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, GradientLaws,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes), ::testing::Values(0.0, 1e-5, 0.5)));

// dx, dscale, dshift and dresidual are the derivatives of sum(dy*y), by central differences of the library's own forward in f64.
class FiniteDifferences
    : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_statistics, popnorm_activation, bool>> {
 protected:
  static constexpr std::int64_t kN = 3, kC = 4, kS = 7;
  static constexpr double kStep = 1e-5;

  FiniteDifferences() {
    std::tie(problem_.layout, source_.statistics, std::ignore, std::ignore) = GetParam();
    if (source_.statistics == POPNORM_GIVEN) {
      source_.mean = mean_.data();
      source_.variance = variance_.data();
    }
    problem_.storage = POPNORM_F64;
    problem_.adds_residual = std::get<3>(GetParam()) ? 1 : 0;
    // An activation has a kink at z = 0, which no difference may straddle: z moves by less than a hundred times a step.
    Values z;
    do {
      for (Values* values : {&x_, &dy_, &scale_, &shift_, &residual_})
        for (double& v : *values) v = random_.normal();
      z = y();
    } while (std::any_of(z.begin(), z.end(), [](double v) { return std::fabs(v) < 100 * kStep; }));
    problem_.activation = std::get<2>(GetParam());
    problem_.slope = 0.25;
  }

  // Of a call in training if there is a reserve.
  Values y(popnorm::buffer* reserve = nullptr) const {
    const popnorm::plan plan(problem_);
    popnorm::buffer space = plan.make_workspace();
    if (reserve != nullptr) *reserve = plan.make_reserve();
    popnorm_forward_args args =
        reserve != nullptr ? popnorm::forward_args(space, *reserve) : popnorm::forward_args(space);
    Values result(x_.size());
    args.x = x_.data();
    args.y = result.data();
    args.scale = scale_.data();
    args.shift = shift_.data();
    args.source = source_;
    if (problem_.adds_residual == 1) args.residual = residual_.data();
    plan.forward(args);
    return result;
  }

  // sum(dy*y).
  double objective() const {
    const Values values = y();
    Real sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += static_cast<Real>(dy_[i]) * values[i];
    return static_cast<double>(sum);
  }

  void expect_derivatives(Values& argument, const Values& gradient, const char* what) const {
    for (std::size_t i = 0; i < argument.size(); ++i) {
      const double before = argument[i];
      argument[i] = before + kStep;
      const double above = objective();
      argument[i] = before - kStep;
      const double below = objective();
      argument[i] = before;
      // A central difference is off by step^2/6 times the third derivative; what y is rounded by, over a step, is less.
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 100 * kStep * kStep) << what << '[' << i << ']';
    }
  }

  popnorm_problem problem_ = popnorm::problem(POPNORM_NCHW, kN, kC, kS, 0.1);
  popnorm_source source_ = POPNORM_SOURCE_INIT;
  const Values mean_ = {0.1, -0.2, 0.3, 0.4}, variance_ = {1, 2, 0.5, 0.25};
  Random random_{"FiniteDifferences"};
  Values x_ = Values(kN * kC * kS), dy_ = x_, residual_ = x_, scale_ = Values(kC), shift_ = scale_;
};

TEST_P(FiniteDifferences, AreTheGradient) {
  popnorm::buffer reserve;
  (void)y(&reserve);
  const popnorm::plan plan(problem_);
  popnorm::buffer space = plan.make_workspace();
  Values dx(x_.size()), dresidual(x_.size()), dscale(kC), dshift(kC);
  popnorm_backward_args backward = popnorm::backward_args(space, reserve);
  backward.x = x_.data();
  backward.dy = dy_.data();
  backward.dx = dx.data();
  backward.dscale = dscale.data();
  backward.dshift = dshift.data();
  if (problem_.adds_residual == 1) backward.dresidual = dresidual.data();
  plan.backward(backward);

  expect_derivatives(x_, dx, "dx");
  expect_derivatives(scale_, dscale, "dscale");
  expect_derivatives(shift_, dshift, "dshift");
  if (problem_.adds_residual == 1) expect_derivatives(residual_, dresidual, "dresidual");
}

INSTANTIATE_TEST_SUITE_P(Sources, FiniteDifferences,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(POPNORM_BATCH, POPNORM_GIVEN),
                                            ::testing::Values(POPNORM_IDENTITY, POPNORM_RELU, POPNORM_LEAKY_RELU),
                                            ::testing::Bool()));

}  // namespace
}  // namespace popnorm_test
