// Section 6 of the article: samples that are normalized together can tell one another what they are. Where all samples of
// a group are of one class, the network reads the class from the group, and population statistics do not hold it. In the
// same steps of SGD other groups teach it to read digits.

#include <algorithm>
#include <array>

#include "finding.hpp"

namespace digits {
namespace {

constexpr Index kTrain = 1200;
constexpr Index kGroup = 16;
constexpr Index kBatch = kClasses * kGroup;

// Every class is dealt in turn to as many groups of about kGroup as it fills. Other groups stay empty.
Map groups_of_one_class(const std::vector<int>& classes) {
  std::array<Index, kClasses> sizes{};
  for (const int which : classes) ++sizes[static_cast<std::size_t>(which)];
  const Index most = static_cast<Index>(classes.size()) / kGroup + 1;  // groups that a class can fill
  Map map{popnorm::labels(kClasses * most)};
  std::array<Index, kClasses> dealt{};
  for (const int which : classes) {
    const auto i = static_cast<std::size_t>(which);
    const Index groups = std::max<Index>(1, (sizes[i] + kGroup / 2) / kGroup);
    map.ids.push_back(static_cast<std::int32_t>(which * most + dealt[i]++ % groups));
  }
  return map;
}

Batch one_class(const Digits& samples, Random& /*random*/) { return {groups_of_one_class(samples.labels)}; }
Batch any_class(const Digits& samples, Random& random) { return {shuffled(samples.size(), kGroup, random)}; }

enum : std::size_t { kGrouped, kShuffled, kOneGroup };
constexpr Variant kVariants[] = {
    {"grouped", "groups of one class", one_class},
    {"shuffled", "groups of 16, shuffled", any_class},
    {"one_group", "one group of all 160", whole},
};

enum : std::size_t { kPopulation, kOneClass, kAnyClass };

std::vector<Recipe> recipes(bool quick) {
  const Recipe recipe =
      quick ? Recipe{kTrain, kBatch, 0.15, 12, 3, {8}} : Recipe{kTrain, kBatch, 0.15, 30, 5, {15, 23}};
  return std::vector<Recipe>(std::size(kVariants), recipe);
}

class Leakage final : public Finding {
 public:
  explicit Leakage(const Setting& setting)
      : Finding(setting, recipes(setting.quick),
                Table("Groups of about 16 samples of one class, 10 in a step of SGD, validation error in %.",
                      rows(kVariants),
                      {{"population_error_percent", "population"},
                       {"one_class_mini_batch_error_percent", "mini-batch: one class"},
                       {"random_mini_batch_error_percent", "mini-batch: 16 at random"}},
                      setting.seeds.size())) {}

  [[nodiscard]] std::vector<Claim> claims() const override {
    const auto population = [&](std::size_t row) { return table_.mean(row, kPopulation); };
    return {
        {"groups of one class: error with population statistics, %", population(kGrouped), true, 25},
        {"shuffled groups: error with population statistics, %", population(kShuffled), false, 4},
        {"one group: error with population statistics, %", population(kOneGroup), false, 4},
    };
  }

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const Variant& variant = kVariants[training];
    const auto [train, validation] = split(setting_.all, recipe.samples, setting_.seeds[seed]);
    Trainer trainer(recipe, train, setting_.seeds[seed], variant.batch);
    trainer.train();

    ConvNet& network = trainer.network();
    Random random(setting_.seeds[seed]);
    const Populations population = collect(network, train, variant.batch(train, random));
    table_.at(training, kPopulation, seed) = error_percent(network, validation, {}, {.given = &population});
    table_.at(training, kOneClass, seed) = error_percent(network, validation, one_class(validation, random));
    table_.at(training, kAnyClass, seed) = error_percent(network, validation, any_class(validation, random));
  }
};

}  // namespace

std::unique_ptr<Finding> leakage(const Setting& setting) { return std::make_unique<Leakage>(setting); }

}  // namespace digits
