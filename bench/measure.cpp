#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>
#include <thread>

namespace popnorm_bench {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

std::vector<std::vector<double>> interleave(const std::vector<Contender>& contenders, std::size_t sets,
                                            const Protocol& protocol) {
  using namespace std::chrono_literals;
  constexpr std::size_t kMostRuns = 64;
  std::vector<std::vector<double>> times(contenders.size());
  std::vector<std::size_t> order(contenders.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::mt19937 engine(20210517);
  std::size_t set = 0;
  bool spinning = false;

  const auto run = [&](const Contender& contender) {
    const Clock::time_point start = Clock::now();
    contender.run(set++ % sets);
    return milliseconds_since(start);
  };
  const Clock::time_point start = Clock::now();
  for (std::size_t round = 0; round < protocol.limit; ++round) {
    if (round >= protocol.rounds && milliseconds_since(start) > protocol.seconds * 1000) break;
    std::shuffle(order.begin(), order.end(), engine);
    for (const std::size_t i : order) {
      std::this_thread::sleep_for(spinning ? 8ms : 1ms);
      const double discarded = run(contenders[i]);
      const double wanted = protocol.block_ms / std::max(discarded, 1e-3);
      std::vector<double> block(std::clamp<std::size_t>(static_cast<std::size_t>(wanted), 1, kMostRuns));
      for (double& time : block) time = run(contenders[i]);
      times[i].push_back(median(std::move(block)));
      spinning = contenders[i].spins;
    }
  }
  if (spinning) std::this_thread::sleep_for(8ms);
  return times;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

double geometric_mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += std::log(value);
  return std::exp(sum / static_cast<double>(values.size()));
}

Estimate paired_ratio(std::span<const double> numerator, std::span<const double> denominator) {
  constexpr std::size_t kResamples = 2000;
  std::vector<double> ratios(numerator.size());
  std::transform(numerator.begin(), numerator.end(), denominator.begin(), ratios.begin(), std::divides<>());
  std::mt19937 engine(1);
  std::uniform_int_distribution<std::size_t> pick(0, ratios.size() - 1);
  std::vector<double> medians(kResamples);
  std::vector<double> sample(ratios.size());
  for (double& value : medians) {
    for (double& ratio : sample) ratio = ratios[pick(engine)];
    value = median(sample);
  }
  std::sort(medians.begin(), medians.end());
  return {median(ratios), medians[kResamples / 40], medians[kResamples - 1 - kResamples / 40]};
}

}  // namespace popnorm_bench
