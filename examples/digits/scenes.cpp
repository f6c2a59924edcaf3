// Sections 4 and 6 of the article (tables 3 and 6): where the samples of a normalization batch have something in common
// (regions of one image; here images of one scene, under the same light), a network learns to rely on the batch to take
// it out, which population statistics do not. So inference uses batches too, or training gets batches that share nothing,
// or learns in its last part to do with a population.

#include <algorithm>

#include "finding.hpp"

namespace digits {
namespace {

using nlohmann::json;

constexpr Index kScene = 16;
constexpr Index kScenesPerStep = 8;
constexpr Index kTrain = 72 * kScene;

constexpr float kLeastContrast = 0.2F;
constexpr float kMostBrightness = 1.0F;  // over or under grey

// FrozenBN
constexpr double kFrozenRateFactor = 0.05;  // at the full rate training diverges
int frozen_from(const Recipe& recipe) { return recipe.epochs * 2 / 3; }

// Neighbours share one light, drawn at random, of either polarity.
void light_scenes(Digits& samples, Random& random) {
  std::uniform_real_distribution<float> contrast(kLeastContrast, 1);
  std::uniform_real_distribution<float> brightness(-kMostBrightness, kMostBrightness);
  std::bernoulli_distribution inverted;
  for (Index first = 0; first < samples.size(); first += kScene) {
    const float polarity = inverted(random) ? -1.0F : 1.0F;
    const float slope = polarity * contrast(random);
    light(samples, first, std::min(kScene, samples.size() - first), slope, kGrey + brightness(random));
  }
}

Batch one_scene(const Digits& /*samples*/, Random& /*random*/) { return {neighbours(kScene)}; }
Batch two_scenes(const Digits& /*samples*/, Random& /*random*/) { return {neighbours(2 * kScene)}; }
Batch unrelated(const Digits& samples, Random& random) { return {shuffled(samples.size(), kScene, random)}; }

// One group is what SyncBN computes over workers of a scene each.
enum : std::size_t { kOneScene, kTwoScenes, kShuffled, kOneGroup, kFrozen };
constexpr Variant kVariants[] = {
    {"one_scene", "groups of one scene", one_scene},   {"two_scenes", "groups of two scenes", two_scenes},
    {"shuffled", "groups of 16, shuffled", unrelated}, {"one_group", "one group of all 128", whole},
    {"frozen", "one scene, then FrozenBN", one_scene},
};

enum : std::size_t { kPopulation, kMiniBatch, kUnrelated };

std::vector<Recipe> recipes(bool quick) {
  constexpr Index kBatch = kScenesPerStep * kScene;
  const Recipe recipe =
      quick ? Recipe{kTrain, kBatch, 0.15, 15, 3, {10}} : Recipe{kTrain, kBatch, 0.15, 45, 5, {30, 40}};
  return std::vector<Recipe>(std::size(kVariants), recipe);
}

class Scenes final : public Finding {
 public:
  explicit Scenes(const Setting& setting)
      : Finding(setting, recipes(setting.quick),
                Table("Scenes of 16 images under the same light, 8 scenes a step of SGD, validation error in %.",
                      rows(kVariants),
                      {{"population_error_percent", "population"},
                       {"mini_batch_error_percent", "mini-batch: a scene"},
                       {"random_mini_batch_error_percent", "mini-batch: 16 at random"}},
                      setting.seeds.size())) {}

  [[nodiscard]] std::vector<Claim> claims() const override {
    const auto population = [&](std::size_t row) { return table_.mean(row, kPopulation); };
    return {
        {"groups of one scene: error with population statistics, %", population(kOneScene), true, 40},
        {"groups of one scene: error with mini-batch statistics, %", table_.mean(kOneScene, kMiniBatch), false, 6},
        {"shuffled groups: error with population statistics, %", population(kShuffled), false, 6},
        {"one group: error with population statistics, %", population(kOneGroup), false, 6},
        {"FrozenBN: error / error of groups of one scene, population", population(kFrozen) / population(kOneScene),
         false, 1.0 / 3},
    };
  }

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const Variant& variant = kVariants[training];
    const auto [train, clean_validation] = split(setting_.all, recipe.samples, setting_.seeds[seed]);
    Random random(setting_.seeds[seed]);
    Digits lit = train;
    Digits validation = clean_validation;
    light_scenes(lit, random);
    light_scenes(validation, random);

    Trainer trainer(recipe, train, setting_.seeds[seed], [&](Digits& step, Random& draws) {
      light_scenes(step, draws);
      return variant.batch(step, draws);
    });
    ConvNet& network = trainer.network();
    const auto collect_now = [&] { return collect(network, lit, variant.batch(lit, random)); };
    Populations population;
    if (training == kFrozen) {
      trainer.train_to(frozen_from(recipe));
      population = collect_now();
      trainer.freeze(population, kFrozenRateFactor);
      trainer.train();
    } else {
      trainer.train();
      population = collect_now();
    }

    table_.at(training, kPopulation, seed) = error_percent(network, validation, {}, {.given = &population});
    table_.at(training, kMiniBatch, seed) = error_percent(network, validation, one_scene(validation, random));
    table_.at(training, kUnrelated, seed) = error_percent(network, validation, unrelated(validation, random));
  }

  void add_details(json& report) const override {
    report["images_in_a_scene"] = kScene;
    report["frozen"] = {{"from_epoch", frozen_from(recipes_[kFrozen])}, {"rate_factor", kFrozenRateFactor}};
  }
};

}  // namespace

std::unique_ptr<Finding> scenes(const Setting& setting) { return std::make_unique<Scenes>(setting); }

}  // namespace digits
