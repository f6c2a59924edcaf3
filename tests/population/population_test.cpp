// What a population must do, against plain arithmetic written out here: its three feeds, its three estimators, what it
// refuses, and running statistics beside it.
#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <popnorm/popnorm.hpp>
#include <span>
#include <utility>
#include <vector>

#include "support/check.hpp"
#include "support/random.hpp"

namespace popnorm_test {
namespace {

using Real = long double;
using Values = std::vector<double>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr popnorm_feed kFeeds[] = {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE};
constexpr popnorm_estimator kEstimators[] = {POPNORM_BIASED, POPNORM_UNBIASED, POPNORM_MEAN_OF_BATCH_VARIANCES};

struct Moments {
  Values weight, mean, m2;

  [[nodiscard]] std::size_t count() const { return weight.size(); }
  [[nodiscard]] popnorm_moment_arrays arrays() { return {weight.data(), mean.data(), m2.data()}; }
};

// Of one channel.
Moments moments_of(std::span<const double> x) {
  Real sum = 0, m2 = 0;
  for (const double v : x) sum += v;
  const Real mean = sum / static_cast<Real>(x.size());
  for (const double v : x) m2 += (v - mean) * (v - mean);
  return {{static_cast<double>(x.size())}, {static_cast<double>(mean)}, {static_cast<double>(m2)}};
}

Moments drawn(Random& random, std::size_t count, double weight) {
  Moments m = {Values(count, weight), Values(count), Values(count)};
  for (std::size_t i = 0; i < count; ++i) {
    m.mean[i] = -4 + 2 * random.normal();
    m.m2[i] = weight * random.uniform(0.25, 3);
  }
  return m;
}

void feed(popnorm::population& p, Moments m, popnorm_feed how, double momentum = 0.1) {
  popnorm_population_feed_args args = POPNORM_POPULATION_FEED_ARGS_INIT;
  args.moments = m.arrays();
  args.feed = how;
  args.momentum = momentum;
  p.feed(args);
}

enum Part { kWeight, kMean, kM2, kWithin, kVarSum, kVarWeight, kBatches, kNonFinite };

// One of the arrays behind the header.
Values part(const popnorm::population& p, Part which) {
  const auto count = static_cast<std::size_t>(p.header().slots * p.header().c);
  Values values(count);
  std::memcpy(values.data(),
              static_cast<const std::byte*>(p.data()) + sizeof(popnorm_population_header) +
                  static_cast<std::size_t>(which) * count * sizeof(double),
              count * sizeof(double));
  return values;
}

struct Estimate {
  Values mean, variance;
};

Estimate estimate(const popnorm::population& p, popnorm_estimator estimator) {
  const auto count = static_cast<std::size_t>(p.header().slots * p.header().c);
  Estimate e = {Values(count, kNaN), Values(count, kNaN)};
  popnorm_population_finalize_args args = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
  args.estimator = estimator;
  args.type = POPNORM_F64;
  args.mean = e.mean.data();
  args.variance = e.variance.data();
  p.finalize(args);
  return e;
}

std::vector<std::byte> bytes_of(const popnorm::population& p) {
  const auto* first = static_cast<const std::byte*>(p.data());
  return {first, first + p.size()};
}

// Relative to `scale`: some tens of roundings in double.
void expect_near(double got, Real exact, Real scale) {
  EXPECT_NEAR(got, static_cast<double>(exact), static_cast<double>(64 * 0x1p-53L * scale));
}
void expect_near(double got, Real exact) { expect_near(got, exact, std::fabs(exact)); }

// ---------------------------------------------------------------------------------------------------- the three feeds

// A weighted set of batches, each of which counts with its share: what all three feeds come to.
struct Mixture {
  Real mean = 0, variance = 0, within = 0, weight = 0;

  Mixture(const std::vector<Moments>& batches, const std::vector<Real>& shares) {
    for (std::size_t i = 0; i < batches.size(); ++i) {
      mean += shares[i] * batches[i].mean[0];
      weight += shares[i] * batches[i].weight[0];
      within += shares[i] * (static_cast<Real>(batches[i].m2[0]) / batches[i].weight[0]);
    }
    variance = within;
    for (std::size_t i = 0; i < batches.size(); ++i) {
      variance += shares[i] * (batches[i].mean[0] - mean) * (batches[i].mean[0] - mean);
    }
  }
};

// The variance is near that of the mixture to some roundings of the second moment, not to its own.
void expect_mixture(const popnorm::population& p, const Mixture& m) {
  const Estimate e = estimate(p, POPNORM_BIASED);
  const Real magnitude = 10 + std::fabs(m.mean);
  expect_near(e.mean[0], m.mean, magnitude);
  expect_near(e.variance[0], m.variance, m.variance + magnitude * std::sqrt(m.variance));
}

std::vector<Moments> some_batches(const char* stream, bool equal) {
  Random random(stream);
  std::vector<Moments> batches;
  for (int i = 0; i < 12; ++i) {
    batches.push_back(drawn(random, 1, equal ? 32 : static_cast<double>(2 + random.below(200))));
  }
  return batches;
}

TEST(Feed, EmaWeighsOlderBatchesGeometrically) {
  for (const double momentum : {0.01, 0.1, 0.75}) {
    SCOPED_TRACE(momentum);
    const std::vector<Moments> batches = some_batches("Ema", false);
    popnorm::population p(1, 1);
    std::vector<Real> shares;
    for (const Moments& b : batches) {
      feed(p, b, POPNORM_FEED_EMA, momentum);
      for (Real& share : shares) share *= 1 - static_cast<Real>(momentum);
      shares.push_back(shares.empty() ? 1 : static_cast<Real>(momentum));
    }
    const Mixture m(batches, shares);
    expect_mixture(p, m);
    expect_near(part(p, kWeight)[0], m.weight);
  }
}

// With batches of one size the mean is nothing but mean = (1-m)*mean + m*batch, and the weight stays that size.
TEST(Feed, EmaOfEqualBatchesIsTheRecurrenceOfTheMean) {
  constexpr double kMomentum = 0.2;
  popnorm::population p(1, 1);
  Real mean = 0;
  bool first = true;
  for (const Moments& b : some_batches("EmaOfEqualBatches", true)) {
    feed(p, b, POPNORM_FEED_EMA, kMomentum);
    mean = first ? static_cast<Real>(b.mean[0]) : (1 - static_cast<Real>(kMomentum)) * mean + kMomentum * b.mean[0];
    first = false;
    expect_near(part(p, kMean)[0], mean, 10);
    expect_near(part(p, kWeight)[0], 32);
  }
}

TEST(Feed, EmaAtTheEndsOfMomentum) {
  const std::vector<Moments> batches = some_batches("Ends", false);
  popnorm::population kept(1, 1), replaced(1, 1);
  for (const Moments& b : batches) {
    feed(kept, b, POPNORM_FEED_EMA, 0);
    feed(replaced, b, POPNORM_FEED_EMA, 1);
  }
  for (const auto& [p, b] : {std::pair{&kept, &batches.front()}, std::pair{&replaced, &batches.back()}}) {
    EXPECT_EQ(part(*p, kWeight), b->weight);
    EXPECT_EQ(part(*p, kMean), b->mean);
    EXPECT_EQ(part(*p, kM2), b->m2);
  }
}

TEST(Feed, CumulativeCountsEveryBatchTheSame) {
  const std::vector<Moments> batches = some_batches("Cumulative", false);
  popnorm::population p(1, 1);
  for (const Moments& b : batches) feed(p, b, POPNORM_FEED_CUMULATIVE);
  expect_mixture(p, Mixture(batches, std::vector<Real>(batches.size(), 1 / static_cast<Real>(batches.size()))));
  EXPECT_EQ(part(p, kBatches)[0], static_cast<double>(batches.size()));
}

TEST(Feed, MergeCountsEveryElementTheSame) {
  const std::vector<Moments> batches = some_batches("Merge", false);
  popnorm::population p(1, 1);
  Real weight = 0;
  for (const Moments& b : batches) {
    feed(p, b, POPNORM_FEED_MERGE);
    weight += b.weight[0];
  }
  std::vector<Real> shares;
  for (const Moments& b : batches) shares.push_back(b.weight[0] / weight);
  expect_mixture(p, Mixture(batches, shares));
  EXPECT_EQ(part(p, kWeight)[0], static_cast<double>(weight));
}

TEST(Feed, MergeOfAnySplitIsTheWhole) {
  Random random("Split");
  Values x(900);
  for (double& v : x) v = 50 + 3 * random.normal();
  const Moments whole = moments_of(x);
  for (int split = 0; split < 20; ++split) {
    popnorm::population p(1, 1);
    for (std::size_t first = 0; first < x.size();) {
      const std::size_t wanted = static_cast<std::size_t>(random.below(random.coin() ? 4 : 300)) + 1;
      const std::size_t size = std::min(wanted, x.size() - first);
      feed(p, moments_of({x.data() + first, size}), POPNORM_FEED_MERGE);
      first += size;
    }
    EXPECT_EQ(part(p, kWeight), whole.weight);
    // Up to 900 merges, each with a few roundings of the mean.
    EXPECT_NEAR(part(p, kMean)[0], whole.mean[0], 900 * 4 * 0x1p-53 * 60);
    EXPECT_NEAR(part(p, kM2)[0], whole.m2[0], 900 * 8 * 0x1p-53 * whole.m2[0] * 20);
  }
}

// ---------------------------------------------------------------------------------------------------- what is not taken

TEST(Feed, NonFiniteBatchIsCountedAndNotTaken) {
  for (const popnorm_feed how : kFeeds) {
    for (const double intruder : {kNaN, kInfinity, -kInfinity}) {
      for (const bool in_mean : {true, false}) {
        if (!in_mean && intruder == -kInfinity) continue;  // a negative m2 is refused
        Random random("NonFinite");
        popnorm::population p(1, 3), healthy(1, 3);
        const Moments a = drawn(random, 3, 8), b = drawn(random, 3, 8);
        Moments sick = drawn(random, 3, 8);
        (in_mean ? sick.mean : sick.m2)[1] = intruder;
        feed(healthy, a, how);
        feed(healthy, b, how);
        feed(p, a, how);
        feed(p, sick, how);
        EXPECT_EQ(part(p, kNonFinite), (Values{0, 1, 0}));
        EXPECT_EQ(part(p, kBatches), Values(3, 1));
        EXPECT_EQ(p.header().steps, 1);
        feed(p, b, how);
        for (const Part which : {kWeight, kMean, kM2, kWithin, kVarSum, kVarWeight, kBatches}) {
          EXPECT_TRUE(same_bits(part(p, which), part(healthy, which))) << which;
        }
      }
    }
  }
}

TEST(Feed, BatchWithoutWeightChangesNothing) {
  for (const popnorm_feed how : kFeeds) {
    Random random("NoWeight");
    popnorm::population p(1, 2);
    const std::vector<std::byte> empty = bytes_of(p);
    feed(p, {{0, 0}, {3, -3}, {0, 0}}, how, 1);
    EXPECT_TRUE(bytes_of(p) == empty);
    feed(p, drawn(random, 2, 5), how);
    const std::vector<std::byte> before = bytes_of(p);
    feed(p, {{0, 0}, {3, -3}, {0, 0}}, how, 1);
    EXPECT_TRUE(bytes_of(p) == before);
  }
}

struct Spoiled {
  const char* what;
  std::function<void(popnorm_population_header&)> spoil;
};

// Foreign memory and corrupted headers; neither the population nor any output is written.
TEST(Refused, HeadersThatAreNotAPopulations) {
  constexpr std::int64_t kC = 3;
  const Spoiled cases[] = {
      {"zeros", [](popnorm_population_header& h) { std::memset(&h, 0, sizeof(h)); }},
      {"foreign", [](popnorm_population_header& h) { std::memset(&h, 0x5A, sizeof(h)); }},
      {"magic", [](popnorm_population_header& h) { h.magic[0] = 'p'; }},
      {"magic's end", [](popnorm_population_header& h) { h.magic[7] = '!'; }},
      {"byte order", [](popnorm_population_header& h) { h.byte_order = 0x04030201; }},
      {"slots", [](popnorm_population_header& h) { h.slots = 2; }},
      {"no slots", [](popnorm_population_header& h) { h.slots = 0; }},
      {"channels", [](popnorm_population_header& h) { h.c = kC - 1; }},
      {"steps", [](popnorm_population_header& h) { h.steps = -1; }},
      {"bytes", [](popnorm_population_header& h) { h.bytes += 8; }},
  };
  const popnorm::plan plan(popnorm::problem_nchw(2, kC, 4));
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  Random random("Refused");
  for (const Spoiled& tested : cases) {
    SCOPED_TRACE(tested.what);
    popnorm::population p(1, kC);
    feed(p, drawn(random, kC, 6), POPNORM_FEED_MERGE);
    tested.spoil(*static_cast<popnorm_population_header*>(p.data()));
    const std::vector<std::byte> before = bytes_of(p);

    Moments batch = drawn(random, kC, 6);
    popnorm_population_feed_args feeding = POPNORM_POPULATION_FEED_ARGS_INIT;
    feeding.moments = batch.arrays();
    EXPECT_EQ(popnorm_population_feed(p.data(), p.size(), &feeding), POPNORM_INVALID);

    Values mean(kC, 7), variance(kC, 7);
    popnorm_population_finalize_args finalizing = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
    finalizing.type = POPNORM_F64;
    finalizing.mean = mean.data();
    finalizing.variance = variance.data();
    EXPECT_EQ(popnorm_population_finalize(p.data(), p.size(), &finalizing), POPNORM_INVALID);
    EXPECT_EQ(mean, Values(kC, 7));
    EXPECT_EQ(variance, Values(kC, 7));

    const std::vector<float> x(2 * kC * 4, 1), untouched(x.size(), 7);
    std::vector<float> y = untouched, running(kC, 7);
    popnorm_forward_args args = popnorm::forward_args(workspace, reserve);
    args.x = x.data();
    args.y = y.data();
    args.running_mean = running.data();
    args.population = p.data();
    args.population_bytes = p.size();
    EXPECT_EQ(popnorm_forward(plan.get(), &args, nullptr), POPNORM_INVALID);
    args = popnorm::forward_args(workspace, reserve);
    args.x = x.data();
    args.y = y.data();
    args.statistics = POPNORM_GIVEN;
    args.given_population = p.data();
    args.given_population_bytes = p.size();
    EXPECT_EQ(popnorm_forward(plan.get(), &args, nullptr), POPNORM_INVALID);
    EXPECT_EQ(y, untouched);
    EXPECT_EQ(running, std::vector<float>(kC, 7));
    EXPECT_TRUE(bytes_of(p) == before);
  }
}

// ---------------------------------------------------------------------------------------------------- estimators

// Two far batches: the pooled variance sees the distance between them, the mean of batch variances does not.
TEST(Estimators, MeanOfBatchVariancesLosesTheVarianceBetweenBatches) {
  const Values low = {-11, -10, -9}, high = {9, 10, 11};
  for (const popnorm_feed how : {POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE}) {
    popnorm::population p(1, 1);
    feed(p, moments_of(low), how);
    feed(p, moments_of(high), how);
    const double weight = how == POPNORM_FEED_MERGE ? 6 : 3;
    const double biased = 2.0 / 3 + 100;
    for (const popnorm_estimator e : kEstimators) EXPECT_EQ(estimate(p, e).mean[0], 0);
    expect_near(estimate(p, POPNORM_BIASED).variance[0], biased);
    expect_near(estimate(p, POPNORM_UNBIASED).variance[0], biased * weight / (weight - 1));
    expect_near(estimate(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], 1);
  }
}

TEST(Estimators, OfOneBatchDifferByTheBiasOnly) {
  Random random("OneBatch");
  for (const popnorm_feed how : kFeeds) {
    popnorm::population p(1, 4);
    const Moments b = drawn(random, 4, 20);
    feed(p, b, how);
    for (std::size_t c = 0; c < b.count(); ++c) {
      expect_near(estimate(p, POPNORM_BIASED).variance[c], static_cast<Real>(b.m2[c]) / 20);
      expect_near(estimate(p, POPNORM_UNBIASED).variance[c], static_cast<Real>(b.m2[c]) / 19);
      expect_near(estimate(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[c], static_cast<Real>(b.m2[c]) / 19);
    }
  }
}

// ---------------------------------------------------------------------------------------------------- through forward

// Random f32 batches of a shape, forward over them, and the moments that popnorm_moments finds.
class Forwarding : public ::testing::TestWithParam<popnorm_layout> {
 protected:
  Forwarding() : Forwarding(7, 30) {}
  Forwarding(std::int64_t n, std::int64_t s) : plan_(f64_problem(GetParam(), n, s)), x_(size(n, s)), y_(x_) {}

  static constexpr std::int64_t kC = 5;
  static popnorm_problem f64_problem(popnorm_layout layout, std::int64_t n, std::int64_t s) {
    popnorm_problem p = popnorm::problem(layout, n, kC, s);
    p.statistics = POPNORM_F64;
    return p;
  }
  static std::size_t size(std::int64_t n, std::int64_t s) { return static_cast<std::size_t>(n * kC * s); }

  void draw() {
    for (float& v : x_) v = static_cast<float>(random_.normal() * 2 - 1);
  }

  Moments moments() {
    Moments m = {Values(kC), Values(kC), Values(kC)};
    popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
    args.x = x_.data();
    args.moments = m.arrays();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    plan_.moments(args);
    return m;
  }

  popnorm_forward_args args() {
    popnorm_forward_args a = popnorm::forward_args(workspace_);
    a.x = x_.data();
    a.y = y_.data();
    return a;
  }

  Random random_{"Forwarding"};
  popnorm::plan plan_;
  std::vector<float> x_, y_;
  popnorm::buffer workspace_ = plan_.make_workspace();
};

TEST_P(Forwarding, FeedsWhatMomentsAndFeedDo) {
  for (const popnorm_feed how : kFeeds) {
    popnorm::population by_forward(1, kC), by_hand(1, kC);
    for (int step = 0; step < 5; ++step) {
      draw();
      if (step == 3) x_[11] = std::numeric_limits<float>::infinity();
      popnorm_forward_args a = args();
      a.population = by_forward.data();
      a.population_bytes = by_forward.size();
      a.feed = how;
      a.momentum = 0.3;
      plan_.forward(a);
      feed(by_hand, moments(), how, 0.3);
      EXPECT_TRUE(bytes_of(by_forward) == bytes_of(by_hand)) << "step " << step;
    }
    EXPECT_EQ(by_forward.header().steps, 4);
  }
}

TEST_P(Forwarding, GivenPopulationIsItsMeanAndVariance) {
  popnorm::population p(1, kC);
  for (int i = 0; i < 4; ++i) feed(p, drawn(random_, kC, 16), POPNORM_FEED_EMA, 0.4);
  draw();
  const std::vector<std::byte> before = bytes_of(p);
  for (const popnorm_estimator e : kEstimators) {
    popnorm_forward_args a = args();
    a.statistics = POPNORM_GIVEN;
    a.given_population = p.data();
    a.given_population_bytes = p.size();
    a.given_estimator = e;
    plan_.forward(a);
    const std::vector<float> y = y_;
    const Estimate s = estimate(p, e);
    a = args();
    a.statistics = POPNORM_GIVEN;
    a.mean = s.mean.data();
    a.variance = s.variance.data();
    plan_.forward(a);
    EXPECT_EQ(y, y_);
  }
  EXPECT_TRUE(bytes_of(p) == before);
}

// Of either type of statistics, to the bit: in double, and rounded once.
template <class Float>
void expect_running_rule(popnorm_layout layout, std::int64_t n, std::int64_t s) {
  constexpr std::int64_t kC = 4;
  popnorm_problem problem = popnorm::problem(layout, n, kC, s);
  problem.statistics = sizeof(Float) == 8 ? POPNORM_F64 : POPNORM_F32;
  const popnorm::plan plan(problem);
  popnorm::buffer workspace = plan.make_workspace();
  Random random("Running");
  for (const double momentum : {0.0, 0.1, 0.3, 1.0}) {
    SCOPED_TRACE(momentum);
    std::vector<Float> mean = {Float(0), Float(0.1), Float(-7.3), Float(1e6)};
    std::vector<Float> variance = {Float(1), Float(0.1), Float(3.3), Float(1e-6)};
    for (int step = 0; step < 8; ++step) {
      std::vector<float> x(static_cast<std::size_t>(n * kC * s)), y(x);
      for (float& v : x) v = static_cast<float>(1 + random.normal());
      Moments m = {Values(kC), Values(kC), Values(kC)};
      std::vector<Float> expected_mean = mean, expected_variance = variance;
      popnorm_forward_args args = popnorm::forward_args(workspace);
      args.x = x.data();
      args.y = y.data();
      args.running_mean = mean.data();
      args.running_variance = variance.data();
      args.momentum = momentum;
      args.moments = m.arrays();
      plan.forward(args);
      for (std::size_t c = 0; c < kC; ++c) {
        const auto mixed = [&](Float before, double now) {
          return static_cast<Float>((1 - momentum) * static_cast<double>(before) + momentum * now);
        };
        if (n * s > 0) expected_mean[c] = mixed(expected_mean[c], m.mean[c]);
        if (n * s > 1) expected_variance[c] = mixed(expected_variance[c], m.m2[c] / (m.weight[c] - 1));
      }
      EXPECT_EQ(mean, expected_mean) << "step " << step;
      EXPECT_EQ(variance, expected_variance) << "step " << step;
    }
  }
}

class Running : public ::testing::TestWithParam<popnorm_layout> {};

TEST_P(Running, FollowsPyTorchsRuleExactly) {
  expect_running_rule<float>(GetParam(), 3, 50);
  expect_running_rule<double>(GetParam(), 3, 50);
  expect_running_rule<float>(GetParam(), 2, 1);
  expect_running_rule<double>(GetParam(), 2, 1);
}

TEST_P(Running, OneElementLeavesTheVariance) {
  expect_running_rule<float>(GetParam(), 1, 1);
  expect_running_rule<double>(GetParam(), 1, 1);
}

TEST_P(Running, NoElementChangesNothing) {
  expect_running_rule<float>(GetParam(), 0, 9);
  expect_running_rule<double>(GetParam(), 9, 0);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Forwarding, ::testing::Values(POPNORM_NCHW, POPNORM_NHWC));
INSTANTIATE_TEST_SUITE_P(Layouts, Running, ::testing::Values(POPNORM_NCHW, POPNORM_NHWC));

}  // namespace
}  // namespace popnorm_test
