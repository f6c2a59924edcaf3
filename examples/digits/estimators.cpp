// Section 3.2 of the article: how the variances of many batches become that of a population. Averaging them leaves out
// what lies between batches; E[mu^2 + var] - mu^2 does not, but cancels where the mean is large. popnorm pools moments,
// which does neither.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <popnorm/popnorm.hpp>

#include "finding.hpp"

namespace digits {
namespace {

constexpr Index kTrain = 1200;
constexpr Index kBatches[] = {2, 8, 64, kTrain};  // images per batch
constexpr Index kImagesWhereMeansGrow = 64;
constexpr double kMeansOverStd[] = {10, 100, 1000, 10000};
constexpr Index kNormalBatches = 4096;
constexpr Index kNormalBatch = 256;

enum Estimator : std::size_t { kPooled, kMeanOfVariances, kTextbook, kEstimators };

// Samples of one BN layer's input.
struct Features {
  Index samples;
  Index channels;
  Index positions;
  std::vector<float> values;  // [samples][positions][channels]
};

using Variances = std::vector<double>;  // per channel

// In double, by two passes.
Variances exact_variances(const Features& x) {
  const auto channels = static_cast<std::size_t>(x.channels);
  std::vector<double> mean(channels);
  Variances variance(channels);
  const double count = static_cast<double>(x.samples * x.positions);
  for (std::size_t i = 0; i < x.values.size(); ++i) mean[i % channels] += x.values[i];
  for (double& m : mean) m /= count;
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    const double d = x.values[i] - mean[i % channels];
    variance[i % channels] += d * d;
  }
  for (double& v : variance) v /= count;
  return variance;
}

// Per batch and channel.
struct Moments {
  explicit Moments(std::size_t size) : weight(size), mean(size), m2(size) {}
  [[nodiscard]] popnorm_moment_arrays from(std::size_t offset) {
    return {weight.data() + offset, mean.data() + offset, m2.data() + offset};
  }
  std::vector<double> weight;
  std::vector<double> mean;
  std::vector<double> m2;
};

// E[mu^2 + var] - mu^2 with running averages in float, as fvcore's update_bn_stats has it.
double textbook_variance(const Moments& batches, std::size_t channel, std::size_t channels) {
  float total = 0;
  float mean = 0;
  float square = 0;
  for (std::size_t i = channel; i < batches.weight.size(); i += channels) {
    const auto weight = static_cast<float>(batches.weight[i]);
    const auto batch_mean = static_cast<float>(batches.mean[i]);
    const auto batch_variance = static_cast<float>(batches.m2[i] / batches.weight[i]);
    total += weight;
    mean += (batch_mean - mean) * (weight / total);
    square += (batch_mean * batch_mean + batch_variance - square) * (weight / total);
  }
  return square - mean * mean;
}

Variances variances(const popnorm::population& population, popnorm_estimator estimator) {
  Variances variance(static_cast<std::size_t>(population.header().c));
  popnorm_population_finalize_args args = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
  args.estimator = estimator;
  args.type = POPNORM_F64;
  args.variance = variance.data();
  population.finalize(args);
  return variance;
}

// Root mean square over channels of (estimate - exact) / exact, for batches of `batch` samples.
std::array<double, kEstimators> relative_errors(const Features& x, Index batch) {
  popnorm_problem problem = popnorm::problem_nhwc(x.samples, x.channels, x.positions);
  problem.norm_group = popnorm::contiguous(batch);
  const popnorm::plan plan = make_plan(problem);
  popnorm::buffer workspace = plan.make_workspace();
  const auto channels = static_cast<std::size_t>(x.channels);
  Moments batches(static_cast<std::size_t>(plan.info().groups) * channels);
  popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
  args.x = x.values.data();
  args.moments = batches.from(0);
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  plan.moments(args);

  popnorm::population population(1, x.channels);
  for (std::size_t i = 0; i < batches.weight.size(); i += channels) {
    popnorm_population_feed_args feed = POPNORM_POPULATION_FEED_ARGS_INIT;
    feed.moments = batches.from(i);
    feed.feed = POPNORM_FEED_MERGE;
    population.feed(feed);
  }

  std::array<Variances, kEstimators> estimates;
  estimates[kPooled] = variances(population, POPNORM_BIASED);
  estimates[kMeanOfVariances] = variances(population, POPNORM_MEAN_OF_BATCH_VARIANCES);
  for (std::size_t c = 0; c < channels; ++c) estimates[kTextbook].push_back(textbook_variance(batches, c, channels));

  const Variances exact = exact_variances(x);
  std::array<double, kEstimators> errors;
  for (std::size_t e = 0; e < kEstimators; ++e) {
    double squares = 0;
    for (std::size_t c = 0; c < channels; ++c) squares += std::pow(estimates[e][c] / exact[c] - 1, 2);
    errors[e] = std::sqrt(squares / static_cast<double>(channels));
  }
  return errors;
}

// The same features with their means moved to `ratio` standard deviations.
Features with_means(Features x, double ratio) {
  const Variances variance = exact_variances(x);
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    x.values[i] = static_cast<float>(x.values[i] + ratio * std::sqrt(variance[i % variance.size()]));
  }
  return x;
}

Features normal(double mean, std::uint64_t seed) {
  Features x{kNormalBatches * kNormalBatch, 1, 1, {}};
  Random random(seed);
  std::normal_distribution<double> value(mean, 1);
  std::generate_n(std::back_inserter(x.values), x.samples, [&] { return static_cast<float>(value(random)); });
  return x;
}

std::vector<Recipe> recipes(bool quick) {
  return {quick ? Recipe{kTrain, 40, 0.05, 4, 2, {}} : Recipe{kTrain, 40, 0.05, 15, 5, {10}}};
}

std::vector<Row> rows() {
  std::vector<Row> all;
  for (const Index batch : kBatches) {
    all.push_back({"activations, batches of " + std::to_string(batch), {{"values", "activations"}, {"batch", batch}}});
  }
  const auto add_means = [&](const char* values, Index batch) {
    for (const double ratio : kMeansOverStd) {
      char name[64];
      std::snprintf(name, sizeof name, "%s, mean/std %g", values, ratio);
      all.push_back({name, {{"values", values}, {"batch", batch}, {"mean_over_std", ratio}}});
    }
  };
  add_means("activations", kImagesWhereMeansGrow);
  add_means("normal", kNormalBatch);
  return all;
}

class Estimators final : public Finding {
 public:
  explicit Estimators(const Setting& setting)
      : Finding(setting, recipes(setting.quick),
                Table("Variance of a population from its batches, relative error.\n"
                      "Activations: what the last BN layer of a trained network normalizes, " +
                          std::to_string(kTrain) + " images, in batches of " + std::to_string(kImagesWhereMeansGrow) +
                          " where means grow.\nNormal: " + std::to_string(kNormalBatches) + " batches of " +
                          std::to_string(kNormalBatch) + " normal values.",
                      rows(),
                      {{"pooled_relative_error", "pooled", 1, true},
                       {"mean_of_variances_relative_error", "mean of variances", 1, true},
                       {"textbook_relative_error", "E[mu^2+var]-mu^2, float", 1, true}},
                      setting.seeds.size())) {}

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const Digits train = split(setting_.all, recipe.samples, setting_.seeds[seed]).train;
    Trainer trainer(recipe, train, setting_.seeds[seed]);
    trainer.train();
    trainer.network().forward(train.images, {}, {});
    const Tensor& highest = trainer.network().highest_features();
    const Features activations{kTrain,
                               highest.cols(),
                               highest.rows() / kTrain,
                               {highest.data(), highest.data() + highest.rows() * highest.cols()}};

    std::size_t row = 0;
    const auto fill = [&](const Features& x, Index batch) {
      const std::array<double, kEstimators> errors = relative_errors(x, batch);
      for (std::size_t e = 0; e < kEstimators; ++e) table_.at(row, e, seed) = errors[e];
      ++row;
    };
    for (const Index batch : kBatches) fill(activations, batch);
    for (const double ratio : kMeansOverStd) fill(with_means(activations, ratio), kImagesWhereMeansGrow);
    for (const double ratio : kMeansOverStd) fill(normal(ratio, setting_.seeds[seed]), kNormalBatch);
  }
};

}  // namespace

std::unique_ptr<Finding> estimators(const Setting& setting) { return std::make_unique<Estimators>(setting); }

}  // namespace digits
