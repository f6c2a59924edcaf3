// Batch normalization through the C++ header: a training step that feeds a population, and inference from that
// population.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <popnorm/popnorm.hpp>
#include <vector>

namespace {

constexpr std::int64_t kSamples = 8, kChannels = 4, kPositions = 25;

int run() {
  std::vector<float> x(kSamples * kPositions * kChannels), y(x.size()), dy(x.size()), dx(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = 1000.0f + std::sin(0.7f * static_cast<float>(i));
    dy[i] = std::cos(0.3f * static_cast<float>(i));
  }
  const std::vector<float> scale(kChannels, 2.0f), shift(kChannels, 0.5f);
  std::vector<float> dscale(kChannels), dshift(kChannels);

  const popnorm::plan plan(popnorm::problem_nhwc(kSamples, kChannels, kPositions));
  popnorm::buffer workspace = plan.make_workspace();
  popnorm::buffer reserve = plan.make_reserve();
  popnorm::population population(1, kChannels);

  popnorm_forward_args training = popnorm::forward_args(workspace, reserve);
  training.x = x.data();
  training.y = y.data();
  training.scale = scale.data();
  training.shift = shift.data();
  training.update.population = population.data();
  training.update.population_bytes = population.size();
  training.update.feed = POPNORM_FEED_MERGE;
  plan.forward(training);

  popnorm_backward_args gradient = popnorm::backward_args(workspace, reserve);
  gradient.x = x.data();
  gradient.dy = dy.data();
  gradient.dx = dx.data();
  gradient.dscale = dscale.data();
  gradient.dshift = dshift.data();
  plan.backward(gradient);

  // The population has seen this one batch, so that inference from it repeats the training output.
  std::vector<float> inferred(x.size());
  popnorm_forward_args inference = popnorm::forward_args(workspace);
  inference.x = x.data();
  inference.y = inferred.data();
  inference.scale = scale.data();
  inference.shift = shift.data();
  inference.source.statistics = POPNORM_GIVEN;
  inference.source.population = population.data();
  inference.source.population_bytes = population.size();
  plan.forward(inference);

  double difference = 0, sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference = std::fmax(difference, std::fabs(y[i] - inferred[i]));
    sum += dx[i];
  }
  std::printf("tier %s: training against inference %.1e, sum(dx) %.1e, dscale[0] %.4f, dshift[0] %.4f\n",
              plan.info().isa, difference, sum, dscale[0], dshift[0]);
  return difference < 1e-5 && std::fabs(sum) < 1e-3 ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
