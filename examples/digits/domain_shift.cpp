// Section 5 of the article (table 4): a network that fails on images of another domain may only lack their statistics.
// Those of 300 unlabelled images, weights unchanged, help as far as normalization can undo the change: contrast, mostly;
// noise, hardly; not an inversion, whose edges all point the other way.

#include <algorithm>

#include "finding.hpp"

namespace digits {
namespace {

constexpr Index kTrain = 1200;
constexpr Index kTargetImages =
    300;  // unlabelled; their statistics are taken, the other validation images are evaluated

constexpr float kLowContrast = 0.25F;
constexpr float kNoise = 0.25F;  // standard deviation
constexpr Index kBlur = 1;       // pixels to either side

void keep(Digits& /*samples*/, Random& /*random*/) {}

void lower_contrast(Digits& samples, Random& /*random*/) { light(samples, 0, samples.size(), kLowContrast); }

void invert(Digits& samples, Random& /*random*/) { light(samples, 0, samples.size(), -1); }

// Every pixel becomes the mean of its neighbourhood; what lies outside is as the border.
void blur(Digits& samples, Random& /*random*/) {
  constexpr Index kWidth = 2 * kBlur + 1;
  const auto inside = [](Index at) { return std::clamp<Index>(at, 0, kSide - 1); };
  const Tensor sharp = samples.images;
  for (Index i = 0; i < sharp.rows(); ++i) {
    const float* image = sharp.row(i - i % kPixels);
    const Index y = i % kPixels / kSide;
    const Index x = i % kSide;
    float sum = 0;
    for (Index dy = -kBlur; dy <= kBlur; ++dy) {
      for (Index dx = -kBlur; dx <= kBlur; ++dx) sum += image[inside(y + dy) * kSide + inside(x + dx)];
    }
    *samples.images.row(i) = sum / (kWidth * kWidth);
  }
}

void add_noise(Digits& samples, Random& random) {
  std::normal_distribution<float> noise(0, kNoise);
  std::for_each_n(samples.images.data(), samples.images.rows(), [&](float& pixel) { pixel += noise(random); });
}

struct Domain {
  const char* key;
  void (*change)(Digits& samples, Random& random);
};

constexpr Domain kDomains[] = {
    {"clean", keep}, {"contrast", lower_contrast}, {"blur", blur}, {"noise", add_noise}, {"inversion", invert},
};
constexpr std::size_t kClean = 0;
constexpr std::size_t kContrastDomain = 1;
// A row for every domain, and one for clean images with the statistics of low contrast.
constexpr std::size_t kCleanAsContrast = std::size(kDomains);

enum : std::size_t { kTrained, kTarget };

std::vector<Recipe> recipes(bool quick) {
  return {quick ? Recipe{kTrain, 40, 0.05, 12, 3, {8}} : Recipe{kTrain, 40, 0.05, 30, 5, {15, 23}}};
}

std::vector<Row> rows() {
  std::vector<Row> all;
  for (const Domain& domain : kDomains)
    all.push_back({domain.key, {{"images", domain.key}, {"statistics", domain.key}}});
  all.push_back({"clean, statistics of contrast", {{"images", "clean"}, {"statistics", "contrast"}}});
  return all;
}

class DomainShift final : public Finding {
 public:
  explicit DomainShift(const Setting& setting)
      : Finding(setting, recipes(setting.quick),
                Table("A network trained on clean images, on images of other domains, error in %.\n"
                      "Statistics: of the training set, and of " +
                          std::to_string(kTargetImages) + " unlabelled images of the domain.",
                      rows(),
                      {{"training_statistics_error_percent", "of the training set"},
                       {"target_statistics_error_percent", "of the domain"}},
                      setting.seeds.size())) {}

  [[nodiscard]] std::vector<Claim> claims() const override {
    return {
        {"low contrast: error with the training set's statistics, %", table_.mean(kContrastDomain, kTrained), true, 60},
        {"low contrast: error with its own statistics, %", table_.mean(kContrastDomain, kTarget), false, 12},
    };
  }

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const auto [train, validation] = split(setting_.all, recipe.samples, setting_.seeds[seed]);
    Trainer trainer(recipe, train, setting_.seeds[seed]);
    trainer.train();

    ConvNet& network = trainer.network();
    const Populations trained = collect(network, train, {});
    Random random(setting_.seeds[seed]);
    const auto [clean_unlabelled, clean] = split(validation, kTargetImages, setting_.seeds[seed]);
    for (std::size_t i = 0; i < std::size(kDomains); ++i) {
      Digits unlabelled = clean_unlabelled;
      Digits evaluated = clean;
      kDomains[i].change(unlabelled, random);
      kDomains[i].change(evaluated, random);
      const Populations target = collect(network, unlabelled, {});
      table_.at(i, kTrained, seed) = error_percent(network, evaluated, {}, {.given = &trained});
      table_.at(i, kTarget, seed) = error_percent(network, evaluated, {}, {.given = &target});
      if (i == kContrastDomain) {
        table_.at(kCleanAsContrast, kTarget, seed) = error_percent(network, clean, {}, {.given = &target});
      }
    }
    table_.at(kCleanAsContrast, kTrained, seed) = table_.at(kClean, kTrained, seed);
  }

  void add_details(nlohmann::json& report) const override { report["target_images"] = kTargetImages; }
};

}  // namespace

std::unique_ptr<Finding> domain_shift(const Setting& setting) { return std::make_unique<DomainShift>(setting); }

}  // namespace digits
