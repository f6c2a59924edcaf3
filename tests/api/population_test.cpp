// Populations and running statistics: the arithmetic of every way of feeding them, against formulas written out here.
#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "api/populations.hpp"

namespace popnorm_test {
namespace {

namespace reference = popnorm::reference;
using reference::Real;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Population, BeginsEmpty) {
  const popnorm::population p(2, 3);
  EXPECT_EQ(p.size(), 128u + 8 * 8 * 6);
  EXPECT_EQ(std::memcmp(p.header().magic, "POPNORM", 8), 0);
  EXPECT_EQ(p.header().version, 1u);
  EXPECT_EQ(p.header().byte_order, 0x01020304u);
  EXPECT_EQ(p.header().slots, 2);
  EXPECT_EQ(p.header().c, 3);
  EXPECT_EQ(p.header().steps, 0);
  EXPECT_EQ(p.header().bytes, p.size());
  for (const std::uint8_t b : p.header().room) EXPECT_EQ(b, 0);
  const Arrays a(p);
  for (const Values* v :
       {&a.weight, &a.mean, &a.m2, &a.m2_within, &a.var_sum, &a.var_weight, &a.batches, &a.nonfinite}) {
    EXPECT_EQ(*v, Values(6, 0));
  }
  // What frameworks initialize running statistics with.
  for (const popnorm_estimator e : {POPNORM_BIASED, POPNORM_UNBIASED, POPNORM_MEAN_OF_BATCH_VARIANCES}) {
    EXPECT_EQ(finalized(p, e).mean, Values(6, 0));
    EXPECT_EQ(finalized(p, e).variance, Values(6, 1));
  }
}

TEST(Population, MergePoolsExactly) {
  Random random("MergePoolsExactly");
  popnorm::population p(1, 4);
  Values variance_sum(4, 0);
  std::vector<reference::Moments> pooled(4);
  Real within = 0, weight = 0;
  for (const double w : {50.0, 2.0, 300.0, 7.0, 1e9}) {
    const Batch b = drawn(random, 4, w);
    for (std::size_t c = 0; c < 4; ++c) pooled[c] = reference::combine(pooled[c], b.at(c));
    variance_sum[0] += w * (b.m2[0] / (w - 1));
    within += b.m2[0];
    weight += w;
    feed(p, b, POPNORM_FEED_MERGE);
  }
  const Arrays a(p);
  const Statistics biased = finalized(p, POPNORM_BIASED), unbiased = finalized(p, POPNORM_UNBIASED);
  for (std::size_t c = 0; c < 4; ++c) {
    EXPECT_EQ(a.weight[c], static_cast<double>(pooled[c].weight));
    EXPECT_EQ(a.batches[c], 5);
    expect_close(a.mean[c], pooled[c].mean);
    expect_close(a.m2[c], pooled[c].m2);
    expect_close(biased.variance[c], pooled[c].m2 / pooled[c].weight);
    expect_close(unbiased.variance[c], pooled[c].m2 / (pooled[c].weight - 1));
    EXPECT_EQ(biased.mean[c], a.mean[c]);
  }
  expect_close(a.m2_within[0], within);
  expect_close(finalized(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], variance_sum[0] / weight);
  EXPECT_EQ(p.header().steps, 5);
}

// Any split of the same elements pools to the same population.
TEST(Population, MergeDoesNotSeeTheSplit) {
  Random random("MergeDoesNotSeeTheSplit");
  Values x(1200);
  for (double& v : x) v = 1000 + random.normal();
  const auto population_of = [&](std::vector<std::size_t> sizes) {
    popnorm::population p(1, 1);
    std::size_t first = 0;
    for (std::size_t i = 0; first < x.size(); ++i) {
      const std::size_t size = std::min(sizes[i % sizes.size()], x.size() - first);
      const reference::Moments m = reference::moments_of({x.data() + first, size});
      feed(p, {{static_cast<double>(m.weight)}, {static_cast<double>(m.mean)}, {static_cast<double>(m.m2)}},
           POPNORM_FEED_MERGE);
      first += size;
    }
    return p;
  };
  const reference::Moments whole = reference::moments_of(x);
  for (const std::vector<std::size_t>& sizes :
       std::vector<std::vector<std::size_t>>{{1200}, {1}, {2}, {600}, {3, 500, 1}, {7, 64}}) {
    const Arrays a(population_of(sizes));
    EXPECT_EQ(a.weight[0], 1200);
    EXPECT_NEAR(a.mean[0], static_cast<double>(whole.mean), 1000 * 0x1p-48);
    EXPECT_NEAR(a.m2[0] / static_cast<double>(whole.m2), 1, 1000 * 0x1p-45);
  }
}

// The mean of batch variances, too, counts what averages have fed by its effective number of elements: whatever comes next, a
// merge, another average or another population.
TEST(Population, MeanOfBatchVariancesIsByWeightWhateverFedIt) {
  Random random("MeanOfBatchVariancesIsByWeightWhateverFedIt");
  const auto variance_of = [](const Batch& b) { return static_cast<Real>(b.m2[0]) / (b.weight[0] - 1); };
  const auto mean_of_variances = [](const popnorm::population& p) {
    return finalized(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0];
  };
  for (const popnorm_feed average : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE}) {
    SCOPED_TRACE(average);
    popnorm::population averaged(1, 1);
    Real mean = 0, weight = 0;
    for (int step = 0; step < 4; ++step) {
      const Batch b = drawn(random, 1, 10.0 * (step + 1));
      const Real share = step == 0 ? 1 : average == POPNORM_FEED_EMA ? 0.25L : 1.0L / (step + 1);
      mean = (1 - share) * mean + share * variance_of(b);
      weight = (1 - share) * weight + share * b.weight[0];
      feed(averaged, b, average, 0.25);
    }
    expect_close(mean_of_variances(averaged), mean, 64);

    const Batch one = {{1}, {3}, {0}};  // has no variance
    const Batch next = drawn(random, 1, 70);
    popnorm::population then_merged = averaged.copy();
    feed(then_merged, next, POPNORM_FEED_MERGE);
    feed(then_merged, one, POPNORM_FEED_MERGE);
    expect_close(mean_of_variances(then_merged), (weight * mean + 70 * variance_of(next)) / (weight + 70), 64);

    popnorm::population merged_first(1, 1);
    feed(merged_first, next, POPNORM_FEED_MERGE);
    popnorm::population pooled = averaged.copy();
    pooled.combine(merged_first);
    expect_close(mean_of_variances(pooled), (weight * mean + 70 * variance_of(next)) / (weight + 70), 64);

    const Batch last = drawn(random, 1, 20);
    feed(merged_first, one, average, 0.25);
    expect_close(mean_of_variances(merged_first), variance_of(next), 64);
    feed(merged_first, last, average, 0.25);
    const Real share = average == POPNORM_FEED_EMA ? 0.25L : 1.0L / 3;
    expect_close(mean_of_variances(merged_first), (1 - share) * variance_of(next) + share * variance_of(last), 64);
  }
}

// EMA: the distribution (1-m)*P + m*B, so that mean and weight are averaged, and the variance is that of the mixture.
TEST(Population, EmaMixesDistributions) {
  Random random("EmaMixesDistributions");
  for (const double m : {0.0, 0.1, 0.5, 1.0}) {
    SCOPED_TRACE(m);
    popnorm::population p(1, 1);
    Real weight = 0, mean = 0, variance = 0, within = 0, unbiased = 0;
    for (int step = 0; step < 6; ++step) {
      const Batch b = drawn(random, 1, 10.0 * (step + 1));
      const Real bm = b.mean[0], bv = static_cast<Real>(b.m2[0]) / b.weight[0];
      const Real bu = static_cast<Real>(b.m2[0]) / (b.weight[0] - 1);
      const Real share = step == 0 ? 1 : m;
      variance = (1 - share) * variance + share * bv + share * (1 - share) * (bm - mean) * (bm - mean);
      weight = (1 - share) * weight + share * b.weight[0];
      mean = (1 - share) * mean + share * bm;
      within = (1 - share) * within + share * bv;
      unbiased = (1 - share) * unbiased + share * bu;
      feed(p, b, POPNORM_FEED_EMA, m);
    }
    const Arrays a(p);
    expect_close(a.weight[0], weight, 32);
    expect_close(a.mean[0], mean, 32);
    expect_close(finalized(p, POPNORM_BIASED).variance[0], variance, 64);
    expect_close(finalized(p, POPNORM_UNBIASED).variance[0], variance * weight / (weight - 1), 64);
    expect_close(a.m2_within[0] / a.weight[0], within, 64);
    expect_close(finalized(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], unbiased, 64);
    EXPECT_EQ(a.batches[0], 6);
    EXPECT_EQ(p.header().steps, 6);
  }
}

// Cumulative: every batch counts the same, whatever its size.
TEST(Population, CumulativeIsTheMeanOverBatches) {
  Random random("CumulativeIsTheMeanOverBatches");
  popnorm::population p(1, 1);
  std::vector<Batch> batches;
  for (int i = 0; i < 9; ++i) {
    batches.push_back(drawn(random, 1, static_cast<double>(random.below(100) + 2)));
    feed(p, batches.back(), POPNORM_FEED_CUMULATIVE, 0.77);  // momentum is not read
  }
  Real mean = 0, weight = 0, second = 0, unbiased = 0;
  for (const Batch& b : batches) {
    mean += b.mean[0] / 9.0L;
    weight += b.weight[0] / 9.0L;
    unbiased += b.m2[0] / (b.weight[0] - 1) / 9.0L;
  }
  for (const Batch& b : batches) second += (b.m2[0] / b.weight[0] + (b.mean[0] - mean) * (b.mean[0] - mean)) / 9;
  const Arrays a(p);
  expect_close(a.mean[0], mean, 64);
  expect_close(a.weight[0], weight, 64);
  expect_close(finalized(p, POPNORM_BIASED).variance[0], second, 64);
  expect_close(finalized(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], unbiased, 64);
}

TEST(Population, FirstBatchIsTakenAsItIs) {
  for (const popnorm_feed how : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE}) {
    popnorm::population p(1, 2);
    const Batch b = {{3, 3}, {0.1, -0.2}, {0.7, 0.3}};
    feed(p, b, how, 0.01);
    const Arrays a(p);
    EXPECT_EQ(a.weight, b.weight);
    EXPECT_EQ(a.mean, b.mean);
    EXPECT_EQ(a.m2, b.m2);
  }
}

TEST(Population, BatchesWithoutElementsChangeNothing) {
  for (const popnorm_feed how : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE}) {
    popnorm::population p(1, 2);
    feed(p, {{3, 3}, {0.1, -0.2}, {0.7, 0.3}}, how);
    const std::vector<char> before = bytes_of(p);
    feed(p, {{0, 0}, {0, 0}, {0, 0}}, how);
    EXPECT_TRUE(bytes_of(p) == before);
  }
}

// ... nor do they where other channels have some.
TEST(Population, ChannelsWithoutElementsDoNotChange) {
  for (const popnorm_feed how : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE})
    for (const std::size_t absent : {0, 1}) {
      popnorm::population p(1, 2), whole(1, 2);
      const Batch first = {{3, 3}, {0.1, -0.2}, {0.7, 0.3}}, second = {{4, 4}, {5, 6}, {7, 8}};
      feed(p, first, how);
      feed(whole, first, how);
      Batch partial = second;
      partial.weight[absent] = partial.mean[absent] = partial.m2[absent] = 0;
      feed(p, partial, how);
      feed(whole, second, how);
      const Arrays a(p), b(whole);
      const std::size_t present = 1 - absent;
      EXPECT_EQ(a.weight[absent], first.weight[absent]);
      EXPECT_EQ(a.mean[absent], first.mean[absent]);
      EXPECT_EQ(a.m2[absent], first.m2[absent]);
      EXPECT_EQ(a.batches[absent], 1);
      EXPECT_EQ(a.mean[present], b.mean[present]);
      EXPECT_EQ(a.m2[present], b.m2[present]);
      EXPECT_EQ(a.batches[present], 2);
      EXPECT_EQ(p.header().steps, 2);
    }
}

// A batch is taken whole or not at all, slot by slot; the channel that spoiled it is counted.
TEST(Population, NonFiniteBatchesAreNotTaken) {
  for (const popnorm_feed how : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE}) {
    for (const double spoiler : {kNaN, kInfinity}) {
      popnorm::population p(2, 3);
      const Batch good = {Values(6, 4), {1, 2, 3, 4, 5, 6}, Values(6, 2)};
      feed(p, good, how);
      const Arrays before(p);
      Batch bad = good;
      bad.mean = {7, spoiler, 9, 10, 11, 12};  // the first slot, its second channel
      feed(p, bad, how, 0.5);
      Arrays after(p);
      EXPECT_EQ(after.nonfinite, (Values{0, 1, 0, 0, 0, 0}));
      EXPECT_EQ(after.batches, (Values{1, 1, 1, 2, 2, 2}));
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(after.mean[i], before.mean[i]);
        EXPECT_EQ(after.m2[i], before.m2[i]);
        EXPECT_EQ(after.var_sum[i], before.var_sum[i]);
        EXPECT_NE(after.mean[i + 3], before.mean[i + 3]) << "the other slot is taken";
      }
      bad = good;
      bad.m2 = {kInfinity, 1, kInfinity, 1, 1, kNaN};
      const std::int64_t steps = p.header().steps;
      feed(p, bad, how);
      EXPECT_EQ(p.header().steps, steps);
      EXPECT_EQ(Arrays(p).nonfinite, (Values{1, 1, 1, 0, 0, 1}));
      EXPECT_EQ(Arrays(p).mean, after.mean);
    }
  }
}

TEST(Population, SingleElementsHaveNoUnbiasedVariance) {
  popnorm::population p(1, 1);
  feed(p, {{1}, {3}, {0}}, POPNORM_FEED_MERGE);
  EXPECT_EQ(finalized(p, POPNORM_UNBIASED).variance[0], 0) << "weight <= 1: as biased";
  EXPECT_TRUE(std::isfinite(finalized(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0]));
}

TEST(Population, FinalizesInEitherTypeAndInParts) {
  popnorm::population p(1, 3);
  feed(p, {{8, 8, 8}, {0.1, 1e30, -2}, {1, 1e61, 0}}, POPNORM_FEED_MERGE);
  const Statistics doubles = finalized(p, POPNORM_BIASED);
  std::vector<float> mean(3), variance(3);
  popnorm_population_finalize_args args = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
  args.mean = mean.data();
  p.finalize(args);
  EXPECT_EQ(variance, std::vector<float>(3));
  args.variance = variance.data();
  p.finalize(args);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(mean[i], static_cast<float>(doubles.mean[i]));
    EXPECT_EQ(variance[i], static_cast<float>(doubles.variance[i])) << "+Inf where f32 overflows";
  }
  EXPECT_EQ(variance[1], std::numeric_limits<float>::infinity());
}

TEST(Population, IsPlainMemory) {
  popnorm::population p(1, 2), copy(1, 2);
  feed(p, {{3, 3}, {0.1, -0.2}, {0.7, 0.3}}, POPNORM_FEED_MERGE);
  std::memcpy(copy.data(), p.data(), p.size());
  feed(p, {{3, 3}, {0.5, -0.9}, {0.4, 0.1}}, POPNORM_FEED_EMA);
  feed(copy, {{3, 3}, {0.5, -0.9}, {0.4, 0.1}}, POPNORM_FEED_EMA);
  EXPECT_TRUE(bytes_of(p) == bytes_of(copy));
  p.reset();
  EXPECT_TRUE(bytes_of(p) == bytes_of(popnorm::population(1, 2)));
}

// ---------------------------------------------------------------------------------------------------- fed by forward

class Fed : public ::testing::TestWithParam<popnorm_type> {
 protected:
  static constexpr std::int64_t kN = 6, kC = 5, kS = 40;

  popnorm_problem problem(std::int64_t n = kN, std::int64_t s = kS) const {
    popnorm_problem p = popnorm::problem_nchw(n, kC, s);
    p.statistics = GetParam();
    return p;
  }

  std::vector<float> drawn_x(std::size_t count) {
    std::vector<float> x(count);
    for (float& v : x) v = static_cast<float>(2 + 3 * random_.normal());
    return x;
  }

  [[nodiscard]] std::size_t width() const { return GetParam() == POPNORM_F64 ? 8 : 4; }
  [[nodiscard]] double get(const std::vector<std::byte>& from, std::size_t i) const {
    if (GetParam() == POPNORM_F64) return reinterpret_cast<const double*>(from.data())[i];
    return static_cast<double>(reinterpret_cast<const float*>(from.data())[i]);
  }
  void set(std::vector<std::byte>& to, std::size_t i, double value) const {
    if (GetParam() == POPNORM_F64)
      reinterpret_cast<double*>(to.data())[i] = value;
    else
      reinterpret_cast<float*>(to.data())[i] = static_cast<float>(value);
  }

  Random random_{"Fed"};
};

TEST_P(Fed, ForwardFeedsAsFeedDoes) {
  const popnorm::plan plan(problem());
  popnorm::buffer space = plan.make_workspace();
  for (const popnorm_feed how : {POPNORM_FEED_EMA, POPNORM_FEED_CUMULATIVE, POPNORM_FEED_MERGE}) {
    popnorm::population by_forward(1, kC), by_feed(1, kC);
    for (int step = 0; step < 4; ++step) {
      const std::vector<float> x = drawn_x(kN * kC * kS);
      std::vector<float> y(x.size());
      Batch moments = {Values(kC), Values(kC), Values(kC)};
      popnorm_forward_args args = popnorm::forward_args(space);
      args.x = x.data();
      args.y = y.data();
      args.update.population = by_forward.data();
      args.update.population_bytes = by_forward.size();
      args.update.feed = how;
      args.update.momentum = 0.3;
      args.moments = moments.arrays();
      plan.forward(args);
      feed(by_feed, moments, how, 0.3);
      EXPECT_TRUE(bytes_of(by_forward) == bytes_of(by_feed));
    }
  }
}

TEST_P(Fed, NonFiniteBatchIsNotTakenByForward) {
  const popnorm::plan plan(problem());
  popnorm::buffer space = plan.make_workspace();
  popnorm::population p(1, kC);
  std::vector<float> x = drawn_x(kN * kC * kS), y(x.size());
  popnorm_forward_args args = popnorm::forward_args(space);
  args.x = x.data();
  args.y = y.data();
  args.update.population = p.data();
  args.update.population_bytes = p.size();
  plan.forward(args);
  const Arrays before(p);
  x[2 * kS] = std::numeric_limits<float>::infinity();  // channel 2 of the first sample
  plan.forward(args);
  EXPECT_EQ(Arrays(p).mean, before.mean);
  EXPECT_EQ(Arrays(p).nonfinite, (Values{0, 0, 1, 0, 0}));
  EXPECT_EQ(p.header().steps, 1);
}

TEST_P(Fed, GivenPopulationIsItsFinalizedStatistics) {
  popnorm_problem f64_statistics = problem();
  f64_statistics.statistics = POPNORM_F64;
  const popnorm::plan plan(f64_statistics);
  popnorm::buffer space = plan.make_workspace();
  popnorm::population p(1, kC);
  for (int i = 0; i < 3; ++i) feed(p, drawn(random_, kC, 20), POPNORM_FEED_MERGE);
  const std::vector<float> x = drawn_x(kN * kC * kS);
  for (const popnorm_estimator e : {POPNORM_BIASED, POPNORM_UNBIASED, POPNORM_MEAN_OF_BATCH_VARIANCES}) {
    const Statistics s = finalized(p, e);
    std::vector<float> from_population(x.size()), from_arrays(x.size());
    popnorm_forward_args args = popnorm::forward_args(space);
    args.x = x.data();
    args.source.statistics = POPNORM_GIVEN;
    args.y = from_population.data();
    args.source.population = p.data();
    args.source.population_bytes = p.size();
    args.source.estimator = e;
    const std::vector<char> before = bytes_of(p);
    plan.forward(args);
    EXPECT_TRUE(bytes_of(p) == before);
    args.source.population = nullptr;
    args.source.population_bytes = 0;
    args.y = from_arrays.data();
    args.source.mean = s.mean.data();
    args.source.variance = s.variance.data();
    plan.forward(args);
    EXPECT_EQ(from_population, from_arrays);
  }
}

// PyTorch's rule: (1-momentum)*running + momentum*new in double, the new variance unbiased, rounded once.
TEST_P(Fed, RunningStatisticsFollowPyTorchsRule) {
  const popnorm::plan plan(problem());
  popnorm::buffer space = plan.make_workspace();
  for (const double momentum : {0.0, 0.1, 0.37, 1.0}) {
    std::vector<std::byte> mean(kC * width()), variance(kC * width());
    for (std::size_t c = 0; c < kC; ++c) {
      set(mean, c, 0.5);
      set(variance, c, 1.25);
    }
    for (int step = 0; step < 5; ++step) {
      const std::vector<float> x = drawn_x(kN * kC * kS);
      std::vector<float> y(x.size());
      Batch moments = {Values(kC), Values(kC), Values(kC)};
      std::vector<std::byte> mean_before = mean, variance_before = variance;
      popnorm_forward_args args = popnorm::forward_args(space);
      args.x = x.data();
      args.y = y.data();
      args.update.running_mean = mean.data();
      args.update.running_variance = variance.data();
      args.update.momentum = momentum;
      args.moments = moments.arrays();
      plan.forward(args);
      for (std::size_t c = 0; c < kC; ++c) {
        const double unbiased = moments.m2[c] / (moments.weight[c] - 1);
        const double new_mean = (1 - momentum) * get(mean_before, c) + momentum * moments.mean[c];
        const double new_variance = (1 - momentum) * get(variance_before, c) + momentum * unbiased;
        if (GetParam() == POPNORM_F32) {
          EXPECT_EQ(get(mean, c), static_cast<double>(static_cast<float>(new_mean)));
          EXPECT_EQ(get(variance, c), static_cast<double>(static_cast<float>(new_variance)));
        } else {
          expect_close(get(mean, c), new_mean, 4);
          expect_close(get(variance, c), new_variance, 4);
        }
      }
    }
  }
}

TEST_P(Fed, EitherRunningArrayMayBeNull) {
  const popnorm::plan plan(problem());
  popnorm::buffer space = plan.make_workspace();
  const std::vector<float> x = drawn_x(kN * kC * kS);
  std::vector<float> y(x.size());
  std::vector<std::byte> both_mean(kC * width()), both_variance = both_mean, mean = both_mean, variance = both_mean;
  const auto run = [&](void* running_mean, void* running_variance) {
    popnorm_forward_args args = popnorm::forward_args(space);
    args.x = x.data();
    args.y = y.data();
    args.update.running_mean = running_mean;
    args.update.running_variance = running_variance;
    plan.forward(args);
  };
  run(both_mean.data(), both_variance.data());
  run(mean.data(), nullptr);
  run(nullptr, variance.data());
  EXPECT_TRUE(mean == both_mean);
  EXPECT_TRUE(variance == both_variance);
}

// One element per channel: the unbiased variance is undefined and the running one untouched.
TEST_P(Fed, SingleElementLeavesRunningVariance) {
  const popnorm::plan plan(problem(1, 1));
  popnorm::buffer space = plan.make_workspace();
  const std::vector<float> x = drawn_x(kC);
  std::vector<float> y(kC);
  std::vector<std::byte> mean(kC * width()), variance(kC * width());
  for (std::size_t c = 0; c < kC; ++c) set(variance, c, 0.75 + static_cast<double>(c));
  const std::vector<std::byte> before = variance;
  popnorm_forward_args args = popnorm::forward_args(space);
  args.x = x.data();
  args.y = y.data();
  args.update.running_mean = mean.data();
  args.update.running_variance = variance.data();
  args.update.momentum = 1;
  plan.forward(args);
  EXPECT_TRUE(variance == before);
  for (std::size_t c = 0; c < kC; ++c) EXPECT_EQ(get(mean, c), static_cast<double>(x[c]));
}

INSTANTIATE_TEST_SUITE_P(Statistics, Fed, ::testing::Values(POPNORM_F32, POPNORM_F64));

}  // namespace
}  // namespace popnorm_test
