#include <algorithm>
#include <boost/timer/progress_display.hpp>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <mutex>
#include <numeric>
#include <utility>

#include "finding.hpp"
#include "jobs.hpp"
#include "training.hpp"

namespace digits {
namespace {

using nlohmann::json;

constexpr Index kTrain = 1200;
constexpr Index kPreciseBatch = 200;

// One kind of population statistics, measured after every epoch.
struct Curve {
  std::vector<double> error;  // per cent of the validation samples
  std::vector<double> drift;
};

struct Run {
  std::vector<double> train_loss;
  Curve ema;
  Curve precise;
};

// A figure over the seeds.
struct Summary {
  explicit Summary(std::vector<double> of) : values(std::move(of)) {
    const auto n = static_cast<double>(values.size());
    mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
    double squares = 0;
    for (const double v : values) squares += (v - mean) * (v - mean);
    if (values.size() > 1) deviation = std::sqrt(squares / (n - 1));
  }
  std::vector<double> values;
  double mean;
  double deviation = 0;
};

// One kind of statistics over the runs of one batch size. Mean, worst and drift are over the epochs between warm-up and
// the first decay: there the rate is at its highest and the weights move fastest.
struct Series {
  Series(const std::vector<Run>& runs, Curve Run::*which, const Recipe& recipe)
      : mean_error(over(runs, [&](const Run& run) { return mean((run.*which).error, recipe.warmup, recipe); })),
        mean_error_with_warmup(over(runs, [&](const Run& run) { return mean((run.*which).error, 0, recipe); })),
        worst_error(over(runs,
                         [&](const Run& run) {
                           const std::vector<double>& error = (run.*which).error;
                           return *std::max_element(error.begin() + recipe.warmup,
                                                    error.begin() + recipe.decays.front());
                         })),
        final_error(over(runs, [&](const Run& run) { return (run.*which).error.back(); })),
        mean_drift(over(runs, [&](const Run& run) { return mean((run.*which).drift, recipe.warmup, recipe); })) {}

  Summary mean_error;
  Summary mean_error_with_warmup;
  Summary worst_error;
  Summary final_error;
  Summary mean_drift;

 private:
  template <class Figure>
  static Summary over(const std::vector<Run>& runs, Figure figure) {
    std::vector<double> values;
    std::transform(runs.begin(), runs.end(), std::back_inserter(values), figure);
    return Summary(std::move(values));
  }
  // From epoch `first` to the first decay.
  static double mean(const std::vector<double>& curve, int first, const Recipe& recipe) {
    const int last = recipe.decays.front();
    return std::accumulate(curve.begin() + first, curve.begin() + last, 0.0) / (last - first);
  }
};

struct Row {
  Recipe recipe;
  Series ema;
  Series precise;
};

std::vector<Recipe> recipes(bool quick) {
  if (quick) return {{40, 0.05, 16, 5, {12}}, {600, 0.75, 40, 5, {30}}};
  return {{40, 0.05, 30, 5, {15, 23}}, {600, 0.75, 60, 5, {30, 45}}};
}

template <class Tick>
Run train(const Recipe& recipe, const Digits& all, std::uint64_t seed, Tick tick) {
  const Split parts = split(all, kTrain, seed);
  Trainer trainer(recipe, parts.train, seed);
  Run run;
  for (int epoch = 0; epoch < recipe.epochs; ++epoch) {
    run.train_loss.push_back(trainer.epoch());
    ConvNet& network = trainer.network();
    const Populations precise = collect(network, parts.train, kPreciseBatch);
    const Populations whole = collect(network, parts.train, kTrain);
    const auto measure = [&](const Populations& populations, Curve& curve) {
      curve.error.push_back(100 * error(network, parts.validation, populations));
      curve.drift.push_back(drift(populations, whole));
    };
    measure(trainer.ema(), run.ema);
    measure(precise, run.precise);
    tick();
  }
  return run;
}

json to_json(const Summary& s) { return {{"values", s.values}, {"mean", s.mean}, {"deviation", s.deviation}}; }

json to_json(const Series& s) {
  return {{"mean_error_percent", to_json(s.mean_error)},
          {"mean_error_with_warmup_percent", to_json(s.mean_error_with_warmup)},
          {"worst_error_percent", to_json(s.worst_error)},
          {"final_error_percent", to_json(s.final_error)},
          {"mean_drift", to_json(s.mean_drift)}};
}

json to_json(const Curve& c) { return {{"error_percent", c.error}, {"drift", c.drift}}; }

json to_json(const Recipe& r) {
  return {{"batch", r.batch},
          {"rate", r.rate},
          {"epochs", r.epochs},
          {"warmup", r.warmup},
          {"decays", r.decays},
          {"momentum", r.momentum},
          {"weight_decay", r.weight_decay},
          {"ema_momentum", r.ema_momentum},
          {"precise_batch", kPreciseBatch},
          {"train_samples", kTrain}};
}

std::string cell(const Summary& s, int places) {
  char text[48];
  if (s.values.size() > 1) {
    std::snprintf(text, sizeof text, "%9.*f ± %-7.*f", places, s.mean, places, s.deviation);
  } else {
    std::snprintf(text, sizeof text, "%9.*f%10s", places, s.mean, "");
  }
  return text;
}

std::string draw_table(const std::vector<Row>& rows, std::size_t seeds) {
  std::string table =
      "EMA against PreciseBN statistics of the same weights: validation error in % and drift of the means.\n"
      "Mean, worst and drift are over the epochs between warm-up and the first decay of the learning rate" +
      (seeds > 1 ? ";\n± is the standard deviation over " + std::to_string(seeds) + " seeds.\n\n" : ".\n\n") +
      "  batch  statistics   mean error         worst error        final error        drift\n";
  for (const Row& row : rows) {
    for (const auto& [name, series] : {std::pair("EMA", &row.ema), std::pair("PreciseBN", &row.precise)}) {
      char head[32];
      std::snprintf(head, sizeof head, "%7d  %-9s ", static_cast<int>(row.recipe.batch), name);
      table += head + cell(series->mean_error, 2) + cell(series->worst_error, 2) + cell(series->final_error, 2) +
               cell(series->mean_drift, 5);
      table.resize(table.find_last_not_of(' ') + 1);
      table += '\n';
    }
  }
  return table;
}

// Before the first decay; errors after warm-up unless said otherwise.
std::vector<Claim> claims(const Row& small, const Row& large) {
  const auto ratio = [](const Summary& ema, const Summary& precise) { return ema.mean / precise.mean; };
  return {
      {"batch 600: error of EMA / error of PreciseBN", ratio(large.ema.mean_error, large.precise.mean_error), true, 2},
      {"batch 600: the same with the epochs of warm-up",
       ratio(large.ema.mean_error_with_warmup, large.precise.mean_error_with_warmup), true, 2},
      {"batch 600: drift of EMA", large.ema.mean_drift.mean, true, 0.03},
      {"batch 600: drift of EMA / drift of PreciseBN", ratio(large.ema.mean_drift, large.precise.mean_drift), true, 5},
      {"batch 600: final error of PreciseBN, %", large.precise.final_error.mean, false, 3},
      {"batch 40: error of EMA, %", small.ema.mean_error.mean, false, 4},
  };
}

}  // namespace

Finding ema_vs_precise(const Setting& setting) {
  const std::vector<Recipe> all = recipes(setting.quick);
  const std::size_t seeds = setting.seeds.size();
  std::vector<std::vector<Run>> runs(all.size(), std::vector<Run>(seeds));

  int epochs = 0;
  for (const Recipe& recipe : all) epochs += recipe.epochs * static_cast<int>(seeds);
  boost::timer::progress_display progress(static_cast<unsigned long>(epochs), std::cerr);
  std::mutex progress_lock;
  const auto tick = [&] {
    const std::lock_guard lock(progress_lock);
    ++progress;
  };
  // The last recipe takes longest, so its runs start first.
  run_jobs(static_cast<int>(all.size() * seeds), setting.threads, [&](int job) {
    const std::size_t recipe = all.size() - 1 - static_cast<std::size_t>(job) / seeds;
    const std::size_t seed = static_cast<std::size_t>(job) % seeds;
    runs[recipe][seed] = train(all[recipe], setting.all, setting.seeds[seed], tick);
  });

  Finding finding;
  std::vector<Row> rows;
  json json_rows = json::array();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Row& row =
        rows.emplace_back(Row{all[i], Series(runs[i], &Run::ema, all[i]), Series(runs[i], &Run::precise, all[i])});
    json curves = json::array();
    for (std::size_t seed = 0; seed < seeds; ++seed) {
      const Run& run = runs[i][seed];
      curves.push_back({{"seed", setting.seeds[seed]},
                        {"train_loss", run.train_loss},
                        {"ema", to_json(run.ema)},
                        {"precise", to_json(run.precise)}});
    }
    json_rows.push_back({{"batch", row.recipe.batch},
                         {"recipe", to_json(row.recipe)},
                         {"ema", to_json(row.ema)},
                         {"precise", to_json(row.precise)},
                         {"curves", std::move(curves)}});
  }
  if (!setting.quick) finding.claims = claims(rows.front(), rows.back());
  finding.report = {{"rows", std::move(json_rows)}};
  finding.table = draw_table(rows, seeds);
  return finding;
}

}  // namespace digits
