// Two domains mixed in one batch: each is normalized by its own statistics, feeds its own population and has its own scale and
// shift, in one call and without moving data. Inference then serves both from their populations.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <popnorm/popnorm.hpp>
#include <vector>

namespace {

constexpr std::int64_t kSamples = 8, kChannels = 4, kPositions = 25, kDomains = 2;

int run() {
  const std::vector<std::int32_t> domain = {0, 1, 1, 0, 1, 0, 1, 1};
  std::vector<float> x(kSamples * kPositions * kChannels), y(x.size()), inferred(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const bool bright = domain[i / (kPositions * kChannels)] == 1;
    x[i] = (bright ? 500.0f : 0.0f) + std::sin(0.7f * static_cast<float>(i));
  }
  const std::vector<float> scale(kDomains * kChannels, 1.0f), shift(kDomains * kChannels, 0.0f);
  popnorm::population population(kDomains, kChannels);

  popnorm_problem problem = popnorm::problem_nhwc(kSamples, kChannels, kPositions);
  problem.norm_group = problem.population_slot = problem.affine_slot = popnorm::labels(kDomains);
  const popnorm::plan plan(problem);
  popnorm::buffer workspace = plan.make_workspace();

  popnorm_forward_args args = popnorm::forward_args(workspace);
  args.x = x.data();
  args.y = y.data();
  args.scale = scale.data();  // [kDomains][kChannels], as shift
  args.shift = shift.data();
  args.batch.norm_group = args.batch.population_slot = args.batch.affine_slot = domain.data();
  args.update.population = population.data();
  args.update.population_bytes = population.size();
  args.update.feed = POPNORM_FEED_MERGE;
  plan.forward(args);

  args.y = inferred.data();
  args.update = popnorm_update{};
  args.source.statistics = POPNORM_GIVEN;
  args.source.population = population.data();
  args.source.population_bytes = population.size();
  plan.forward(args);

  // Each domain is centred by itself, and its population has seen just this batch.
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    largest = std::fmax(largest, std::fabs(y[i]));
    difference = std::fmax(difference, std::fabs(y[i] - inferred[i]));
  }
  std::printf("largest |y| %.2f, training against inference %.1e\n", largest, difference);
  return largest < 3 && difference < 1e-5 ? 0 : 1;
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
