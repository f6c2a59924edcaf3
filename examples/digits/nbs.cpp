// Section 4 of the article: how many samples are normalized together (the normalization batch size, NBS) is one thing, how
// many make a step of SGD another. The fewer, the more noise: training samples are no longer told apart without error.

#include "finding.hpp"

namespace digits {
namespace {

constexpr Index kTrain = 1200;
constexpr Index kBatch = 64;
constexpr Index kSizes[] = {2, 4, 8, 16, 32, 64};  // NBS; a training and a row each

enum : std::size_t { kTrainMiniBatch, kMiniBatch, kPopulation };

std::vector<Recipe> recipes(bool quick) {
  const Recipe recipe =
      quick ? Recipe{kTrain, kBatch, 0.08, 10, 3, {7}} : Recipe{kTrain, kBatch, 0.08, 24, 5, {12, 18}};
  return std::vector<Recipe>(std::size(kSizes), recipe);
}

std::vector<Row> rows() {
  std::vector<Row> all;
  for (const Index size : kSizes) all.push_back({"NBS " + std::to_string(size), {{"nbs", size}}});
  return all;
}

class Nbs final : public Finding {
 public:
  explicit Nbs(const Setting& setting)
      : Finding(
            setting, recipes(setting.quick),
            Table("Samples normalized together (NBS) in steps of " + std::to_string(kBatch) + " samples, error in %.",
                  rows(),
                  {{"train_mini_batch_error_percent", "training set, mini-batch"},
                   {"mini_batch_error_percent", "validation, mini-batch"},
                   {"population_error_percent", "validation, population"}},
                  setting.seeds.size())) {}

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const auto [train, validation] = split(setting_.all, recipe.samples, setting_.seeds[seed]);
    const Batch batch{neighbours(kSizes[training])};
    Trainer trainer(recipe, train, setting_.seeds[seed], [&](Digits&, Random&) { return batch; });
    trainer.train();

    ConvNet& network = trainer.network();
    const Populations population = collect(network, train, batch);
    table_.at(training, kTrainMiniBatch, seed) = error_percent(network, train, batch);
    table_.at(training, kMiniBatch, seed) = error_percent(network, validation, batch);
    table_.at(training, kPopulation, seed) = error_percent(network, validation, {}, {.given = &population});
  }
};

}  // namespace

std::unique_ptr<Finding> nbs(const Setting& setting) { return std::make_unique<Nbs>(setting); }

}  // namespace digits
