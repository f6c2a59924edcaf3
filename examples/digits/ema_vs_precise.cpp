// Section 3 of the article: the running averages that training keeps (EMA) belong to weights that are gone. PreciseBN,
// the exact statistics of the weights as they are, does not lag. It matters at large batches, before the rate falls.

#include <algorithm>
#include <numeric>

#include "finding.hpp"

namespace digits {
namespace {

using nlohmann::json;

constexpr Index kTrain = 1200;
constexpr Index kPreciseBatch = 200;
constexpr Index kBatches[] = {40, 600};  // a training each

enum Statistic : std::size_t { kEma, kPrecise, kStatistics };
constexpr const char* kStatisticKeys[] = {"ema", "precise"};
constexpr const char* kStatisticNames[] = {"EMA", "PreciseBN"};

enum : std::size_t { kMeanError, kMeanErrorWithWarmup, kWorstError, kFinalError, kMeanDrift };
const std::vector<Column> kColumns = {
    {"mean_error_percent", "mean error, %"}, {"mean_error_with_warmup_percent", "with warm-up"},
    {"worst_error_percent", "worst"},        {"final_error_percent", "final"},
    {"mean_drift", "drift of the means", 5},
};

std::vector<Recipe> recipes(bool quick) {
  if (quick) return {{kTrain, kBatches[0], 0.05, 16, 5, {12}}, {kTrain, kBatches[1], 0.75, 40, 5, {30}}};
  return {{kTrain, kBatches[0], 0.05, 30, 5, {15, 23}}, {kTrain, kBatches[1], 0.75, 60, 5, {30, 45}}};
}

std::size_t row(std::size_t training, Statistic which) { return training * kStatistics + which; }

std::vector<Row> rows() {
  std::vector<Row> all;
  for (const Index batch : kBatches) {
    for (const Statistic which : {kEma, kPrecise}) {
      all.push_back({"batch " + std::to_string(batch) + ", " + kStatisticNames[which],
                     {{"batch", batch}, {"statistics", kStatisticKeys[which]}}});
    }
  }
  return all;
}

// One kind of population statistics, measured after every epoch.
struct Curve {
  std::vector<double> error;  // per cent of the validation samples
  std::vector<double> drift;
};

struct Run {
  std::vector<double> train_loss;
  Curve curves[kStatistics];
};

json to_json(const Curve& c) { return {{"error_percent", c.error}, {"drift", c.drift}}; }

double mean(const std::vector<double>& curve, int first, int last) {
  return std::accumulate(curve.begin() + first, curve.begin() + last, 0.0) / (last - first);
}

class EmaVsPrecise final : public Finding {
 public:
  explicit EmaVsPrecise(const Setting& setting)
      : Finding(setting, recipes(setting.quick),
                Table("EMA against PreciseBN statistics of the same weights, validation error in %.\n"
                      "Mean, worst and drift are over the epochs between warm-up and the first decay of the rate.",
                      rows(), kColumns, setting.seeds.size())),
        runs_(recipes_.size(), std::vector<Run>(setting.seeds.size())) {}

  [[nodiscard]] std::vector<Claim> claims() const override {
    const auto figure = [&](std::size_t training, Statistic which, std::size_t column) {
      return table_.mean(row(training, which), column);
    };
    const auto ratio = [&](std::size_t column) { return figure(1, kEma, column) / figure(1, kPrecise, column); };
    return {
        {"batch 600: error of EMA / error of PreciseBN", ratio(kMeanError), true, 2},
        {"batch 600: the same with the epochs of warm-up", ratio(kMeanErrorWithWarmup), true, 2},
        {"batch 600: drift of EMA", figure(1, kEma, kMeanDrift), true, 0.03},
        {"batch 600: drift of EMA / drift of PreciseBN", ratio(kMeanDrift), true, 5},
        {"batch 600: final error of PreciseBN, %", figure(1, kPrecise, kFinalError), false, 3},
        {"batch 40: error of EMA, %", figure(0, kEma, kMeanError), false, 4},
    };
  }

 private:
  void run(std::size_t training, std::size_t seed) override {
    const Recipe& recipe = recipes_[training];
    const auto [train, validation] = split(setting_.all, recipe.samples, setting_.seeds[seed]);
    Trainer trainer(recipe, train, setting_.seeds[seed]);
    ConvNet& network = trainer.network();
    Run& run = runs_[training][seed];
    for (int epoch = 0; epoch < recipe.epochs; ++epoch) {
      run.train_loss.push_back(trainer.epoch());
      const Populations precise = collect(network, train, {neighbours(kPreciseBatch)});
      const Populations reference = collect(network, train, {});
      const auto measure = [&](const Populations& populations, Curve& curve) {
        curve.error.push_back(error_percent(network, validation, {}, {.given = &populations}));
        curve.drift.push_back(drift(populations, reference));
      };
      measure(trainer.ema(), run.curves[kEma]);
      measure(precise, run.curves[kPrecise]);
    }
    for (const Statistic which : {kEma, kPrecise}) summarize(run.curves[which], recipe, row(training, which), seed);
  }

  // Before the first decay the rate is at its highest and the weights move fastest.
  void summarize(const Curve& curve, const Recipe& recipe, std::size_t row, std::size_t seed) {
    const int decay = recipe.decays.front();
    table_.at(row, kMeanError, seed) = mean(curve.error, recipe.warmup, decay);
    table_.at(row, kMeanErrorWithWarmup, seed) = mean(curve.error, 0, decay);
    table_.at(row, kWorstError, seed) =
        *std::max_element(curve.error.begin() + recipe.warmup, curve.error.begin() + decay);
    table_.at(row, kFinalError, seed) = curve.error.back();
    table_.at(row, kMeanDrift, seed) = mean(curve.drift, recipe.warmup, decay);
  }

  void add_details(json& report) const override {
    for (std::size_t training = 0; training < runs_.size(); ++training) {
      json curves = json::array();
      for (std::size_t seed = 0; seed < runs_[training].size(); ++seed) {
        const Run& run = runs_[training][seed];
        json& here = curves.emplace_back(json{{"seed", setting_.seeds[seed]}, {"train_loss", run.train_loss}});
        for (const Statistic which : {kEma, kPrecise}) here[kStatisticKeys[which]] = to_json(run.curves[which]);
      }
      report["curves"].push_back({{"recipe", to_json(recipes_[training])}, {"runs", std::move(curves)}});
    }
  }

  std::vector<std::vector<Run>> runs_;  // [training][seed]
};

}  // namespace

std::unique_ptr<Finding> ema_vs_precise(const Setting& setting) { return std::make_unique<EmaVsPrecise>(setting); }

}  // namespace digits
