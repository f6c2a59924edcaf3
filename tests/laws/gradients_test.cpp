// What the gradient must satisfy as a gradient: it is the derivative of forward, and it is orthogonal to what the
// normalization removes.
#include <gtest/gtest.h>

#include <cmath>

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
  k.storage = k.parameters = k.statistics = storage;
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
                                            ::testing::Values(POPNORM_F32, POPNORM_F64),
                                            ::testing::Values(0.0, 1e-5, 0.5)));

// dx, dscale and dshift are the derivatives of sum(dy*y), by central differences of the library's own forward in f64.
class FiniteDifferences : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_statistics>> {
 protected:
  static constexpr std::int64_t kN = 3, kC = 4, kS = 7;

  // sum(dy*y).
  double objective(const Values& x, const Values& scale, const Values& shift, const Values& dy) const {
    popnorm::buffer space = plan_.make_workspace();
    popnorm_forward_args args = popnorm::forward_args(space);
    Values y(x.size());
    args.x = x.data();
    args.y = y.data();
    args.scale = scale.data();
    args.shift = shift.data();
    args.source.statistics = std::get<1>(GetParam());
    if (args.source.statistics == POPNORM_GIVEN) {
      args.source.mean = mean_.data();
      args.source.variance = variance_.data();
    }
    plan_.forward(args);
    Real sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += static_cast<Real>(dy[i]) * y[i];
    return static_cast<double>(sum);
  }

  static popnorm_problem problem() {
    popnorm_problem p = popnorm::problem(std::get<0>(GetParam()), kN, kC, kS, 0.1);
    p.storage = POPNORM_F64;
    return p;
  }

  const popnorm::plan plan_{problem()};
  const Values mean_ = {0.1, -0.2, 0.3, 0.4}, variance_ = {1, 2, 0.5, 0.25};
};

TEST_P(FiniteDifferences, AreTheGradient) {
  Random random("FiniteDifferences");
  const auto drawn = [&](std::int64_t count) {
    Values values(static_cast<std::size_t>(count));
    for (double& v : values) v = random.normal();
    return values;
  };
  Values x = drawn(kN * kC * kS), dy = drawn(kN * kC * kS), scale = drawn(kC), shift = drawn(kC);
  Values dx(x.size()), dscale(scale.size()), dshift(shift.size());

  popnorm::buffer space = plan_.make_workspace(), reserve = plan_.make_reserve();
  Values y(x.size());
  popnorm_forward_args forward = popnorm::forward_args(space, reserve);
  forward.x = x.data();
  forward.y = y.data();
  forward.scale = scale.data();
  forward.shift = shift.data();
  forward.source.statistics = std::get<1>(GetParam());
  if (forward.source.statistics == POPNORM_GIVEN) {
    forward.source.mean = mean_.data();
    forward.source.variance = variance_.data();
  }
  plan_.forward(forward);
  popnorm_backward_args backward = popnorm::backward_args(space, reserve);
  backward.x = x.data();
  backward.dy = dy.data();
  backward.dx = dx.data();
  backward.dscale = dscale.data();
  backward.dshift = dshift.data();
  plan_.backward(backward);

  const auto expect_derivatives = [&](Values& argument, const Values& gradient, const char* what) {
    constexpr double step = 1e-5;
    for (std::size_t i = 0; i < argument.size(); ++i) {
      const double before = argument[i];
      argument[i] = before + step;
      const double above = objective(x, scale, shift, dy);
      argument[i] = before - step;
      const double below = objective(x, scale, shift, dy);
      argument[i] = before;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * step), 1e-8) << what << '[' << i << ']';
    }
  };
  expect_derivatives(x, dx, "dx");
  expect_derivatives(scale, dscale, "dscale");
  expect_derivatives(shift, dshift, "dshift");
}

INSTANTIATE_TEST_SUITE_P(Sources, FiniteDifferences,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::Values(POPNORM_BATCH, POPNORM_GIVEN)));

}  // namespace
}  // namespace popnorm_test
