// Section 5 of the article (table 5): with two domains there are three choices to make, one domain or both at a time, and
// each is a map of popnorm: norm_group for the batches of SGD, population_slot for the population, affine_slot for scale
// and shift. SGD and the population have to agree; scale and shift hardly matter.

#include "finding.hpp"

namespace digits {
namespace {

constexpr Index kTrain = 1200;
constexpr Index kDomains = 2;
constexpr int kFirstOfDomain1 = 5;  // digits 5 to 9 are domain 1

// Domain 1 is shown inverted and at low contrast. Contents differ too, as they do between the levels of a pyramid.
constexpr float kContrastOfDomain1 = -0.2F;

void show_domains(Digits& samples) {
  for (Index n = 0; n < samples.size(); ++n) {
    if (samples.labels[static_cast<std::size_t>(n)] >= kFirstOfDomain1) light(samples, n, 1, kContrastOfDomain1);
  }
}

Map by_domain(const Digits& samples) {
  Map map{popnorm::labels(kDomains)};
  for (const int label : samples.labels) map.ids.push_back(label < kFirstOfDomain1 ? 0 : 1);
  return map;
}

Map shared_or_by_domain(bool by, const Digits& samples) { return by ? by_domain(samples) : Map{}; }

// What is specific to a domain, else shared by both.
struct Training {
  bool sgd;
  bool affine;
};
constexpr Training kTrainings[] = {{false, false}, {true, false}, {true, true}};

// Every training is evaluated with both populations: a row each, in the article's order.
constexpr std::size_t kPopulations = 2;
std::size_t row(std::size_t training, bool specific_population) {
  return training * kPopulations + specific_population;
}
enum : std::size_t { kError };

std::vector<Recipe> recipes(bool quick) {
  const Recipe recipe = quick ? Recipe{kTrain, 80, 0.1, 10, 3, {7}} : Recipe{kTrain, 80, 0.1, 24, 5, {12, 18}};
  return std::vector<Recipe>(std::size(kTrainings), recipe);
}

std::vector<Row> rows() {
  const auto word = [](bool specific) { return specific ? "specific" : "shared"; };
  std::vector<Row> all;
  for (const Training training : kTrainings) {
    for (const bool population : {false, true}) {
      const std::string name = std::string("SGD ") + word(training.sgd) + ", population " + word(population) +
                               ", affine " + word(training.affine);
      all.push_back({name,
                     {{"sgd", word(training.sgd)},
                      {"population", word(population)},
                      {"affine", word(training.affine)},
                      {"consistent", training.sgd == population}}});
    }
  }
  return all;
}

class DomainSpecific final : public Finding {
 public:
  explicit DomainSpecific(const Setting& setting)
      : Finding(setting, recipes(setting.quick),
                Table("Two domains, digits 0-4 as they are and 5-9 inverted at low contrast, validation error in %.",
                      rows(), {{"error_percent", "error"}}, setting.seeds.size())) {}

  [[nodiscard]] std::vector<Claim> claims() const override {
    std::vector<Claim> all;
    for (std::size_t training = 0; training < std::size(kTrainings); ++training) {
      for (const bool population : {false, true}) {
        const bool consistent = kTrainings[training].sgd == population;
        all.push_back({(consistent ? "consistent row " : "inconsistent row ") +
                           std::to_string(row(training, population) + 1) + ": error, %",
                       table_.mean(row(training, population), kError), !consistent, consistent ? 2.0 : 4.0});
      }
    }
    return all;
  }

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const Training specific = kTrainings[training];
    auto [train, validation] = split(setting_.all, recipe.samples, setting_.seeds[seed]);
    show_domains(train);
    show_domains(validation);
    const auto batch_of = [&](const Digits& samples, bool groups, bool populations) {
      return Batch{shared_or_by_domain(groups, samples), shared_or_by_domain(populations, samples),
                   shared_or_by_domain(specific.affine, samples)};
    };
    Trainer trainer(
        recipe, train, setting_.seeds[seed], [&](Digits& step, Random&) { return batch_of(step, specific.sgd, false); },
        specific.affine ? kDomains : 1);
    trainer.train();

    ConvNet& network = trainer.network();
    for (const bool population : {false, true}) {
      // A group feeds one slot: populations of a domain are those of groups of a domain.
      const Populations given =
          collect(network, train, batch_of(train, specific.sgd || population, population), population ? kDomains : 1);
      table_.at(row(training, population), kError, seed) =
          error_percent(network, validation, batch_of(validation, false, population), {.given = &given});
    }
  }
};

}  // namespace

std::unique_ptr<Finding> domain_specific(const Setting& setting) { return std::make_unique<DomainSpecific>(setting); }

}  // namespace digits
