// popnorm_accuracy: how far popnorm, the textbook formulas and oneDNN are from the truth, in units of the bounds that
// popnorm promises (docs/numerics.md). Fails if popnorm breaks a bound anywhere, and if a textbook formula breaks none
// anywhere: then the table would prove nothing.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <kernels/reference.hpp>
#include <limits>
#include <optional>
#include <popnorm/popnorm.hpp>
#include <random>
#include <string>
#include <vector>

#include "arena.hpp"
#include "layer.hpp"
#include "measure.hpp"
#include "peers/onednn.hpp"
#include "textbook.hpp"

namespace popnorm_bench {
namespace {

namespace reference = popnorm::reference;
using reference::Real;

// N*S = 156,800; C is what oneDNN's vectorized NHWC kernels ask for.
const Layer kLayer = {.n = 50, .c = 16, .h = 56, .w = 56, .network = "accuracy", .count = 1};
const std::size_t kWeight = static_cast<std::size_t>(kLayer.n * kLayer.s());

// ------------------------------------------------------------------------------------------------------------ samples

// One channel's elements, samples one after the other.
using Channel = std::vector<float>;

struct Kind {
  std::string name;
  std::function<Channel(std::mt19937&)> draw;
};

Channel normal(std::mt19937& engine, double mean, double deviation) {
  std::normal_distribution<double> distribution(mean, deviation);
  Channel x(kWeight);
  for (float& value : x) value = static_cast<float>(distribution(engine));
  return x;
}

Channel sorted(Channel x) {
  std::sort(x.begin(), x.end());
  return x;
}

Channel with_outliers(Channel x, float outlier, std::size_t distance) {
  for (std::size_t i = 0; i < x.size(); i += distance) x[i] = outlier;
  return x;
}

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  for (int power = 0; power <= 6; ++power) {
    all.push_back({"mean/std 1e" + std::to_string(power),
                   [power](std::mt19937& engine) { return normal(engine, std::pow(10.0, power), 1); }});
  }
  const auto add = [&all](const char* name, std::function<Channel(std::mt19937&)> draw) {
    all.push_back({name, std::move(draw)});
  };
  add("outlier 1e4 std first", [](auto& engine) { return with_outliers(normal(engine, 0, 1), 1e4F, kWeight); });
  add("outlier 1e6 std first", [](auto& engine) { return with_outliers(normal(engine, 0, 1), 1e6F, kWeight); });
  add("outlier every 1024", [](auto& engine) { return with_outliers(normal(engine, 3, 1), 1e4F, 1024); });
  add("outlier at sample starts",
      [](auto& engine) { return with_outliers(normal(engine, 3, 1), 1e4F, static_cast<std::size_t>(kLayer.s())); });
  add("sorted", [](auto& engine) { return sorted(normal(engine, 0, 1)); });
  add("sorted, mean/std 1e4", [](auto& engine) { return sorted(normal(engine, 1e4, 1)); });
  add("two halves 2e6 std apart", [](auto& engine) {
    Channel x = normal(engine, 1e6, 1);
    for (std::size_t i = 0; i < kWeight / 2; ++i) x[i] -= 2e6F;
    return x;
  });
  add("constant 0.1", [](auto&) { return Channel(kWeight, 0.1F); });
  add("constant 1e6/3", [](auto&) { return Channel(kWeight, 1e6F / 3); });
  add("subnormal", [](auto& engine) { return normal(engine, 3e-39, 1e-39); });
  add("1e30", [](auto& engine) { return normal(engine, 1e30, 1e30); });
  return all;
}

struct Batch {
  std::vector<Channel> x, dy;
  std::vector<float> scale, shift;
};

Batch draw(const Kind& kind, std::uint32_t seed) {
  Batch batch;
  for (std::size_t c = 0; c < kLayer.channels(); ++c) {
    std::mt19937 engine(seed + static_cast<std::uint32_t>(c));
    batch.x.push_back(kind.draw(engine));
    batch.dy.push_back(normal(engine, 0.5, 1));
    batch.scale.push_back(0.5F + 0.125F * static_cast<float>(c));
    batch.shift.push_back(0.25F * static_cast<float>(c) - 2);
  }
  return batch;
}

// Where element i of channel c lies in a tensor.
std::size_t place(popnorm_layout layout, std::size_t c, std::size_t i) {
  const auto s = static_cast<std::size_t>(kLayer.s());
  return layout == POPNORM_NCHW ? (i / s * kLayer.channels() + c) * s + i % s : i * kLayer.channels() + c;
}

std::vector<float> pack(const std::vector<Channel>& channels, popnorm_layout layout) {
  std::vector<float> tensor(kLayer.elements());
  for (std::size_t c = 0; c < channels.size(); ++c) {
    for (std::size_t i = 0; i < kWeight; ++i) tensor[place(layout, c, i)] = channels[c][i];
  }
  return tensor;
}

std::vector<Channel> unpack(const std::vector<float>& tensor, popnorm_layout layout) {
  std::vector<Channel> channels(kLayer.channels(), Channel(kWeight));
  for (std::size_t c = 0; c < channels.size(); ++c) {
    for (std::size_t i = 0; i < kWeight; ++i) channels[c][i] = tensor[place(layout, c, i)];
  }
  return channels;
}

// ------------------------------------------------------------------------------------------------------------ methods

// What a method says, and the format of its statistics.
struct Answer {
  std::vector<double> mean, variance;
  reference::Format format = reference::kF32;
  std::vector<float> invstd;  // f32 statistics besides those in f64; empty for none
  std::vector<float> rounded_mean;
  std::vector<Channel> y, dx;
};

struct Method {
  std::string name;
  std::function<Answer(const Batch&)> run;
};

Answer run_popnorm(const Batch& batch, popnorm_layout layout) {
  const popnorm::plan plan(popnorm::problem(layout, kLayer.n, kLayer.c, kLayer.s(), kEpsilon));
  popnorm::buffer workspace = plan.make_workspace();
  popnorm::buffer reserve = plan.make_reserve();
  const std::vector<float> x = pack(batch.x, layout);
  const std::vector<float> dy = pack(batch.dy, layout);
  std::vector<float> out(x.size());
  Answer answer;
  answer.format = reference::kF64;
  answer.invstd.resize(kLayer.channels());
  answer.rounded_mean.resize(kLayer.channels());
  std::vector<double> weight(kLayer.channels()), mean(kLayer.channels()), m2(kLayer.channels());

  popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
  forward.x = x.data();
  forward.y = out.data();
  forward.scale = batch.scale.data();
  forward.shift = batch.shift.data();
  forward.saved_mean = answer.rounded_mean.data();
  forward.saved_invstd = answer.invstd.data();
  forward.moments = {weight.data(), mean.data(), m2.data()};
  plan.forward(forward);
  answer.y = unpack(out, layout);
  answer.mean = mean;
  for (std::size_t c = 0; c < m2.size(); ++c) answer.variance.push_back(m2[c] / weight[c]);

  popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
  backward.x = x.data();
  backward.dy = dy.data();
  backward.dx = out.data();
  plan.backward(backward);
  answer.dx = unpack(out, layout);
  return answer;
}

Answer run_onednn(const Batch& batch, popnorm_layout layout, int threads) {
  std::vector<float> x = pack(batch.x, layout);
  std::vector<float> dy = pack(batch.dy, layout);
  std::vector<float> out(x.size());
  ChannelArrays arrays(kLayer.channels());
  arrays.scale = batch.scale;
  arrays.shift = batch.shift;
  const auto run = [&](Operation operation) {
    const Task task = {operation, layout, kLayer, {{x.data(), dy.data(), out.data()}}};
    make_onednn(task, arrays, threads, PeerLayout::plain).run(0);
    return unpack(out, layout);
  };
  Answer answer;
  answer.y = run(Operation::forward_training);
  answer.mean.assign(arrays.mean.begin(), arrays.mean.end());
  answer.variance.assign(arrays.variance.begin(), arrays.variance.end());
  answer.dx = run(Operation::backward);
  return answer;
}

Answer run_textbook(const Batch& batch, textbook::Statistics (*statistics)(std::span<const float>)) {
  Answer answer;
  for (std::size_t c = 0; c < batch.x.size(); ++c) {
    const textbook::Statistics s = statistics(batch.x[c]);
    answer.mean.push_back(s.mean);
    answer.variance.push_back(s.variance);
    Channel out(kWeight);
    textbook::normalize(batch.x[c], s, kEpsilon, batch.scale[c], batch.shift[c], out);
    answer.y.push_back(out);
    textbook::backward(batch.x[c], batch.dy[c], s, kEpsilon, batch.scale[c], out);
    answer.dx.push_back(std::move(out));
  }
  return answer;
}

// ------------------------------------------------------------------------------------------------------------ verdict

enum Quantity : std::size_t { kMean, kVariance, kY, kDx, kQuantities };
constexpr const char* kQuantityNames[kQuantities] = {"mean", "variance", "y", "dx"};

// Largest error per quantity, in units of the bound.
struct Errors {
  double worst[kQuantities] = {};

  void take(Quantity quantity, Real value, Real exact, Real bound) {
    const Real error = std::fabs(value - exact);
    Real units = bound > 0 ? error / bound : std::numeric_limits<Real>::infinity();
    if (error == 0) units = 0;
    if (std::isnan(units)) units = std::numeric_limits<Real>::infinity();
    worst[quantity] = std::max(worst[quantity], static_cast<double>(units));
  }
};

// The truth about one channel, kept while all methods are judged by it.
struct Truth {
  Truth(const Channel& x_, const Channel& dy_, float scale, float shift)
      : x(x_.begin(), x_.end()),
        dy(dy_.begin(), dy_.end()),
        affine{scale, shift},
        moments(reference::moments_of(x)),
        statistics(reference::statistics_of(moments, kEpsilon)),
        sums(reference::sums_of(x, dy, statistics)),
        y(reference::forward(x, statistics, affine)),
        dx(reference::backward_batch(x, dy, statistics, affine.scale, sums, moments.weight)),
        bounds(reference::kF32, statistics, affine) {}

  std::vector<double> x, dy;
  reference::Affine affine;
  reference::Moments moments;
  reference::Statistics statistics;
  reference::Sums sums;
  std::vector<Real> y, dx;
  reference::Bounds bounds;
};

void judge(const Truth& truth, const Answer& answer, std::size_t c, Errors& errors) {
  using reference::kF32;
  const reference::Bounds& bounds = truth.bounds;
  const reference::Statistics& s = truth.statistics;
  errors.take(kMean, answer.mean[c], s.mean, bounds.mean(answer.format));
  // A variance beyond the format is infinite: what it should be.
  if (s.variance <= answer.format.largest || std::isfinite(answer.variance[c])) {
    errors.take(kVariance, answer.variance[c], s.variance, bounds.relative(s.variance, answer.format));
  }
  if (!answer.rounded_mean.empty()) errors.take(kMean, answer.rounded_mean[c], s.mean, bounds.mean(kF32));
  if (!answer.invstd.empty()) errors.take(kVariance, answer.invstd[c], s.invstd, bounds.relative(s.invstd, kF32));
  for (std::size_t i = 0; i < kWeight; ++i) {
    errors.take(kY, answer.y[c][i], truth.y[i], bounds.y(truth.x[i], kF32));
    errors.take(kDx, answer.dx[c][i], truth.dx[i],
                bounds.dx(truth.x[i], truth.dy[i], truth.dx[i], truth.sums, truth.moments.weight, kF32));
  }
}

std::string text_of(double units) {
  char text[32];
  std::snprintf(text, sizeof(text), units == 0 ? "0" : units < 0.01 ? "<.01" : units < 100 ? "%.2f" : "%.1e", units);
  return text;
}

int run() {
  constexpr int kThreads = 2;
  std::vector<Method> methods = {
      {"popnorm NCHW", [](const Batch& batch) { return run_popnorm(batch, POPNORM_NCHW); }},
      {"popnorm NHWC", [](const Batch& batch) { return run_popnorm(batch, POPNORM_NHWC); }},
      {"Welford f32", [](const Batch& batch) { return run_textbook(batch, textbook::welford); }},
      {"E[x2]-E[x]2", [](const Batch& batch) { return run_textbook(batch, textbook::square_of_means); }},
      {"two-pass f32", [](const Batch& batch) { return run_textbook(batch, textbook::two_pass); }},
  };
  constexpr std::size_t kOurs = 2;
  constexpr std::size_t kTextbook = 5;
  std::string why;
  const std::optional<PeerFacts> peer = onednn_facts(why);
  if (peer) {
    methods.push_back({"oneDNN NCHW", [](const Batch& batch) { return run_onednn(batch, POPNORM_NCHW, kThreads); }});
    methods.push_back({"oneDNN NHWC", [](const Batch& batch) { return run_onednn(batch, POPNORM_NHWC, kThreads); }});
  }

  const bool interactive = isatty(STDERR_FILENO) != 0;
  const std::vector<Kind> rows = kinds();
  std::vector<std::vector<Errors>> errors(rows.size(), std::vector<Errors>(methods.size()));
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (interactive) std::fprintf(stderr, "[%2zu/%zu] %-40s\r", row + 1, rows.size(), rows[row].name.c_str());
    const Batch batch = draw(rows[row], static_cast<std::uint32_t>(1000 * row));
    std::vector<Answer> answers;
    for (const Method& method : methods) answers.push_back(method.run(batch));
    for (std::size_t c = 0; c < kLayer.channels(); ++c) {
      const Truth truth(batch.x[c], batch.dy[c], batch.scale[c], batch.shift[c]);
      for (std::size_t m = 0; m < methods.size(); ++m) judge(truth, answers[m], c, errors[row][m]);
    }
  }
  if (interactive) std::fprintf(stderr, "%60s\r", "");

  std::printf("Largest error in units of popnorm's bound (< 1 keeps it): f32, N*S = %zu, %lld channels.\n", kWeight,
              static_cast<long long>(kLayer.c));
  std::printf("popnorm %s; %s\n", popnorm::plan(popnorm::problem_nchw(1, 1, 1)).info().isa,
              peer ? ("oneDNN " + peer->version + " (" + peer->threading + ")").c_str() : why.c_str());
  for (std::size_t quantity = 0; quantity < kQuantities; ++quantity) {
    std::printf("\n%-26s", kQuantityNames[quantity]);
    for (const Method& method : methods) std::printf(" %12s", method.name.c_str());
    std::printf("\n");
    for (std::size_t row = 0; row < rows.size(); ++row) {
      std::printf("%-26s", rows[row].name.c_str());
      for (const Errors& e : errors[row]) std::printf(" %12s", text_of(e.worst[quantity]).c_str());
      std::printf("\n");
    }
  }

  int failures = 0;
  const auto broken = [&](std::size_t row, std::size_t method) {
    const auto& worst = errors[row][method].worst;
    return std::any_of(std::begin(worst), std::end(worst), [](double units) { return !(units < 1); });
  };
  std::printf("\n");
  for (std::size_t m = 0; m < kOurs; ++m) {
    for (std::size_t row = 0; row < rows.size(); ++row) {
      if (!broken(row, m)) continue;
      ++failures;
      std::printf("FAILED: %s breaks its bound on \"%s\"\n", methods[m].name.c_str(), rows[row].name.c_str());
    }
  }
  for (std::size_t m = kOurs; m < kTextbook; ++m) {
    std::size_t count = 0;
    for (std::size_t row = 0; row < rows.size(); ++row) count += broken(row, m) ? 1 : 0;
    std::printf("%s breaks a bound on %zu of %zu rows\n", methods[m].name.c_str(), count, rows.size());
    if (count > 0) continue;
    ++failures;
    std::printf("FAILED: the table does not tell %s from popnorm\n", methods[m].name.c_str());
  }
  if (failures == 0) std::printf("popnorm keeps every bound.\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace popnorm_bench

int main() {
  try {
    return popnorm_bench::run();
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
