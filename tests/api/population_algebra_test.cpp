// The algebra of populations: combined, taken apart, decayed, judged, written to bytes and rolled back.
#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <span>
#include <string>

#include "api/populations.hpp"
#include "support/guarded_buffer.hpp"

namespace popnorm_test {
namespace {

namespace reference = popnorm::reference;
using reference::Real;

constexpr Real kUnit = 0x1p-53L;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

Batch batch_of(std::span<const double> x) {
  const reference::Moments m = reference::moments_of(x);
  return {{static_cast<double>(m.weight)}, {static_cast<double>(m.mean)}, {static_cast<double>(m.m2)}};
}

popnorm::population merged(const std::vector<Batch>& batches, std::int64_t c = 1) {
  popnorm::population p(1, c);
  for (const Batch& b : batches) feed(p, b, POPNORM_FEED_MERGE);
  return p;
}

void expect_near(double got, Real exact, Real bound, const char* what) {
  EXPECT_LE(std::fabs(got - exact), bound) << what << ": got " << got << ", exact " << static_cast<double>(exact);
}

bool same(const popnorm::population& a, const popnorm::population& b) { return bytes_of(a) == bytes_of(b); }

// ---------------------------------------------------------------------------------------------------- combine

class PopulationCombine : public ::testing::Test {
 protected:
  static constexpr std::size_t kElements = 5000;

  // Elements of several domains, far from zero.
  Values drawn_elements() {
    Values x(kElements);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = 1000 + 5 * static_cast<double>(i * 7 / x.size()) + random_.normal();
    return x;
  }

  // A split into `parts` neighbouring pieces of random sizes, some of them empty.
  std::vector<Batch> split(const Values& x, int parts) {
    std::vector<std::int64_t> cuts = {0, static_cast<std::int64_t>(x.size())};
    for (int i = 1; i < parts; ++i) cuts.push_back(random_.below(static_cast<std::int64_t>(x.size()) + 1));
    std::sort(cuts.begin(), cuts.end());
    std::vector<Batch> batches;
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
      batches.push_back(batch_of({x.data() + cuts[i], static_cast<std::size_t>(cuts[i + 1] - cuts[i])}));
    return batches;
  }

  struct Tree {
    popnorm::population root;
    int depth;
  };

  // The batches, one population each, joined two at a time as `order` draws them.
  static Tree joined(const std::vector<Batch>& batches, Random order) {
    std::vector<Tree> trees;
    for (const Batch& b : batches) trees.push_back({merged({b}), 1});
    while (trees.size() > 1) {
      const auto pick = [&] {
        const auto i = order.below(static_cast<std::int64_t>(trees.size()));
        Tree tree = std::move(trees[static_cast<std::size_t>(i)]);
        trees.erase(trees.begin() + i);
        return tree;
      };
      Tree a = pick(), b = pick();
      a.root.combine(b.root);
      a.depth = std::max(a.depth, b.depth) + 1;
      trees.push_back(std::move(a));
    }
    return std::move(trees.front());
  }

  Random random_{"PopulationCombine"};
};

TEST_F(PopulationCombine, OfAnySplitInAnyTreeIsTheWhole) {
  for (int i = 0; i < 60; ++i) {
    SCOPED_TRACE(i);
    const Values x = drawn_elements();
    const reference::Moments whole = reference::moments_of(x);
    const std::vector<Batch> batches = split(x, static_cast<int>(1 + random_.below(64)));
    const Random order("tree " + std::to_string(i));
    const Tree tree = joined(batches, order);
    const Arrays a(tree.root);
    EXPECT_EQ(a.weight[0], static_cast<double>(kElements));
    // Per level a few roundings of the mean and of m2, in which rounded means put the distances between them off; a level
    // more for the batches.
    const Real levels = tree.depth + 1, mean = std::fabs(whole.mean);
    expect_near(a.mean[0], whole.mean, 4 * levels * kUnit * mean, "mean");
    expect_near(a.m2[0], whole.m2,
                8 * levels * kUnit * whole.m2 + 4 * levels * kUnit * mean * std::sqrt(whole.weight * whole.m2), "m2");
    Real within = 0, unbiased = 0, unbiased_weight = 0, taken = 0;
    for (const Batch& b : batches) {
      within += b.m2[0];
      taken += b.weight[0] > 0;
      if (b.weight[0] <= 1) continue;
      unbiased += b.weight[0] * (b.m2[0] / (static_cast<Real>(b.weight[0]) - 1));
      unbiased_weight += b.weight[0];
    }
    expect_near(a.m2_within[0], within, 2 * levels * kUnit * within, "m2_within");
    expect_near(finalized(tree.root, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], unbiased / unbiased_weight,
                8 * levels * kUnit * unbiased / unbiased_weight, "mean of batch variances");
    EXPECT_EQ(a.batches[0], static_cast<double>(taken));
    EXPECT_EQ(tree.root.header().steps, static_cast<std::int64_t>(taken));
    EXPECT_TRUE(same(joined(batches, order).root, tree.root)) << "the same tree once more";
  }
}

TEST_F(PopulationCombine, IsCommutativeToTheBit) {
  for (const double ratio : {1.0, 3.0, 1e6}) {
    const popnorm::population a = merged({drawn(random_, 7, 1e6 / ratio), drawn(random_, 7, 20)}, 7);
    const popnorm::population b = merged({drawn(random_, 7, 1e6)}, 7);
    popnorm::population ab = a.copy(), ba = b.copy();
    ab.combine(b);
    ba.combine(a);
    EXPECT_TRUE(same(ab, ba));
  }
}

TEST_F(PopulationCombine, WithNothingChangesNothing) {
  const popnorm::population a = merged({drawn(random_, 5, 30), drawn(random_, 5, 7)}, 5), nothing(1, 5);
  popnorm::population left = a.copy(), right(1, 5);
  left.combine(nothing);
  right.combine(a);
  EXPECT_TRUE(same(left, a));
  EXPECT_TRUE(same(right, a));
}

// A feed by merging is a combine with a population of that batch.
TEST_F(PopulationCombine, IsWhatMergingFeeds) {
  popnorm::population fed(1, 3), combined(1, 3);
  for (int i = 0; i < 9; ++i) {
    const Batch b = drawn(random_, 3, static_cast<double>(1 + random_.below(50)));
    feed(fed, b, POPNORM_FEED_MERGE);
    combined.combine(merged({b}, 3));
  }
  EXPECT_TRUE(same(fed, combined));
}

TEST_F(PopulationCombine, KeepsSlotsApart) {
  const auto of_slots = [&](std::vector<popnorm::population>& alone) {
    popnorm::population p(2, 3);
    for (int i = 0; i < 3; ++i) {
      const Batch b = drawn(random_, 6, 40);
      feed(p, b, POPNORM_FEED_MERGE);
      for (std::size_t slot = 0; slot < 2; ++slot) {
        const auto part = [&](const Values& v) { return Values(v.begin() + 3 * slot, v.begin() + 3 * slot + 3); };
        feed(alone[slot], {part(b.weight), part(b.mean), part(b.m2)}, POPNORM_FEED_MERGE);
      }
    }
    return p;
  };
  const auto fresh = [] {
    std::vector<popnorm::population> alone;
    alone.emplace_back(1, 3);
    alone.emplace_back(1, 3);
    return alone;
  };
  std::vector<popnorm::population> a_alone = fresh(), b_alone = fresh();
  popnorm::population a = of_slots(a_alone);
  a.combine(of_slots(b_alone));
  const Arrays both(a);
  for (std::size_t slot = 0; slot < 2; ++slot) {
    a_alone[slot].combine(b_alone[slot]);
    const Arrays one(a_alone[slot]);
    for (std::size_t c = 0; c < 3; ++c) {
      EXPECT_EQ(both.weight[3 * slot + c], one.weight[c]);
      EXPECT_EQ(both.mean[3 * slot + c], one.mean[c]);
      EXPECT_EQ(both.m2[3 * slot + c], one.m2[c]);
    }
  }
}

TEST_F(PopulationCombine, CountsWhatWasNotFinite) {
  popnorm::population a(1, 2), b(1, 2);
  feed(a, {{2, 2}, {1, kNaN}, {1, 1}}, POPNORM_FEED_MERGE);
  feed(b, {{2, 2}, {kInfinity, kNaN}, {1, 1}}, POPNORM_FEED_MERGE);
  a.combine(b);
  EXPECT_EQ(Arrays(a).nonfinite, (Values{1, 2}));
  EXPECT_EQ(Arrays(a).weight, (Values{0, 0}));
}

// Ten batches of 256 and one of 2, each of one of two domains: what averages batches, or their variances, is far off.
TEST_F(PopulationCombine, IsRightWhereAveragesOfBatchesAreNot) {
  Values all;
  popnorm::population pooled(1, 1), cumulative(1, 1);
  for (int i = 0; i < 11; ++i) {
    Values x(i < 10 ? 256 : 2);
    for (double& v : x) v = (i == 10 ? 60 : i % 2 == 0 ? -3 : 3) + random_.normal();
    all.insert(all.end(), x.begin(), x.end());
    feed(pooled, batch_of(x), POPNORM_FEED_MERGE);
    feed(cumulative, batch_of(x), POPNORM_FEED_CUMULATIVE);
  }
  const reference::Moments whole = reference::moments_of(all);
  const Real variance = whole.m2 / whole.weight;
  const Statistics exact = finalized(pooled, POPNORM_BIASED);
  expect_near(exact.mean[0], whole.mean, 64 * kUnit * 60, "mean");
  expect_near(exact.variance[0], variance, 64 * kUnit * variance, "variance");
  // Domains that are 6 apart have a variance of 9 between them, beside 1 inside.
  EXPECT_LT(finalized(pooled, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], 0.2 * static_cast<double>(variance));
  EXPECT_GT(std::fabs(finalized(cumulative, POPNORM_BIASED).mean[0] - whole.mean), 1) << "every batch counts the same";
}

// ---------------------------------------------------------------------------------------------------- subtract

class PopulationSubtract : public ::testing::Test {
 protected:
  // What is left of `target`, against what went in, by the header's bound.
  static void expect_left(const popnorm::population& target, const popnorm::population& got, const Batch& left) {
    const Arrays before(target), after(got);
    for (std::size_t c = 0; c < left.weight.size(); ++c) {
      const Real weight = before.weight[c], w = left.weight[c], m2 = before.m2[c];
      const Real e = kUnit * std::fabs(static_cast<Real>(before.mean[c])) * weight / w;
      EXPECT_EQ(after.weight[c], left.weight[c]);
      expect_near(after.mean[c], left.mean[c], 4 * (e + kUnit * std::sqrt(m2 / weight) * weight / w), "mean");
      expect_near(after.m2[c], left.m2[c], 8 * (kUnit * m2 + e * (std::sqrt(w * m2) + e * w)), "m2");
      EXPECT_GE(after.m2[c], 0);
    }
  }

  Random random_{"PopulationSubtract"};
};

TEST_F(PopulationSubtract, UndoesCombine) {
  for (const double ratio : {1e-6, 1e-3, 1.0, 1e3, 1e6}) {
    SCOPED_TRACE(ratio);
    const double weight = ratio < 1 ? 8 : 8 * ratio;
    const Batch kept = drawn(random_, 20, weight), more = drawn(random_, 20, weight / ratio);
    const popnorm::population a = merged({kept}, 20), b = merged({more}, 20);
    popnorm::population both = a.copy();
    both.combine(b);
    popnorm::population left = both.copy();
    left.subtract(b);
    expect_left(both, left, kept);
    const Arrays before(both), after(left), alone(a);
    for (std::size_t c = 0; c < 20; ++c) {
      expect_near(after.m2_within[c], alone.m2_within[c], 2 * kUnit * before.m2_within[c], "m2_within");
      expect_near(after.var_sum[c], alone.var_sum[c], 2 * kUnit * before.var_sum[c], "var_sum");
      EXPECT_EQ(after.var_weight[c], alone.var_weight[c]);
    }
    EXPECT_EQ(after.batches, alone.batches);
    EXPECT_EQ(left.header().steps, 1);
  }
}

// A few light batches taken out of many, the rest as if they had never been there.
TEST_F(PopulationSubtract, TakesOutOneWorkerOfMany) {
  Values others, worker;
  for (int i = 0; i < 4000; ++i) others.push_back(random_.normal());
  for (int i = 0; i < 300; ++i) worker.push_back(40 + 7 * random_.normal());
  popnorm::population p = merged({batch_of(others), batch_of(worker)});
  const popnorm::population target = p.copy();
  p.subtract(merged({batch_of(worker)}));
  expect_left(target, p, batch_of(others));
}

TEST_F(PopulationSubtract, OfEverythingLeavesNothing) {
  std::vector<Batch> batches;
  for (int i = 0; i < 5; ++i) batches.push_back(drawn(random_, 6, static_cast<double>(3 + random_.below(1000))));
  popnorm::population p = merged(batches, 6);
  feed(p, {Values(6, 1), {1, 2, kNaN, 4, 5, 6}, Values(6, 0)}, POPNORM_FEED_MERGE);
  const popnorm::population all = p.copy();
  p.subtract(all);
  EXPECT_TRUE(same(p, popnorm::population(1, 6)));
  // Batch by batch, in another order: nothing is left of rounding either.
  popnorm::population q = merged(batches, 6);
  for (const std::size_t i : {3, 0, 4, 1, 2}) q.subtract(merged({batches[i]}, 6));
  EXPECT_TRUE(same(q, popnorm::population(1, 6)));
}

TEST_F(PopulationSubtract, OfNothingChangesNothing) {
  popnorm::population p = merged({drawn(random_, 6, 30)}, 6);
  const popnorm::population before = p.copy();
  p.subtract(popnorm::population(1, 6));
  EXPECT_TRUE(same(p, before));
}

TEST_F(PopulationSubtract, OfMoreThanWasAddedIsRefused) {
  const Batch light = {{4, 4}, {1, 2}, {3, 4}}, heavy = {{4, 5}, {1, 2}, {3, 4}};
  const auto refuse = [](const popnorm::population& from, const popnorm::population& what,
                         const std::vector<std::string>& words) {
    popnorm::population p = from.copy();
    EXPECT_TRUE(
        refused(popnorm_population_subtract(p.data(), p.size(), what.data(), what.size()), POPNORM_INVALID, words));
    EXPECT_TRUE(same(p, from));
  };
  const std::string op = "^population_subtract:";
  refuse(merged({light}, 2), merged({heavy}, 2), {op, "weight 5 in entry 1", "target 4"});
  refuse(merged({light}, 2), merged({light, {{0, 0}, {0, 0}, {0, 0}}, light}, 2), {op, "other has 2 steps, target 1"});
  // As many steps and as much weight, but more batches in a channel: that of the first slot was not taken.
  popnorm::population fewer(2, 1), more(2, 1);
  feed(fewer, {{9, 9}, {1, 1}, {1, 1}}, POPNORM_FEED_MERGE);
  feed(fewer, {{0, 9}, {0, 1}, {0, 1}}, POPNORM_FEED_MERGE);
  feed(more, {{3, 3}, {1, 1}, {1, 1}}, POPNORM_FEED_MERGE);
  feed(more, {{3, 3}, {1, 1}, {1, 1}}, POPNORM_FEED_MERGE);
  refuse(fewer, more, {op, "batches 2 in entry 0", "target 1"});
  popnorm::population spoiled = merged({light}, 2);
  feed(spoiled, {{4, 4}, {1, kNaN}, {3, 4}}, POPNORM_FEED_MERGE);
  refuse(merged({light}, 2), spoiled, {op, "nonfinite 1 in entry 1", "target 0"});
}

// ---------------------------------------------------------------------------------------------------- decay

TEST(PopulationDecay, ThenMergeIsAnEmaByWeight) {
  Random random("PopulationDecay");
  for (const double momentum : {0.01, 0.1, 0.5, 1.0}) {
    SCOPED_TRACE(momentum);
    constexpr int kSteps = 30;
    popnorm::population p(1, 1);
    std::vector<Batch> batches;
    for (int i = 0; i < kSteps; ++i) {
      batches.push_back(drawn(random, 1, static_cast<double>(2 + random.below(40))));
      if (i > 0) p.decay(1 - momentum);
      feed(p, batches.back(), POPNORM_FEED_MERGE);
    }
    Real weight = 0, mean = 0, second = 0, within = 0, unbiased = 0;
    const auto factor = [&](int i) { return std::pow(static_cast<Real>(1 - momentum), kSteps - 1 - i); };
    for (int i = 0; i < kSteps; ++i) {
      const Batch& b = batches[static_cast<std::size_t>(i)];
      weight += factor(i) * b.weight[0];
      mean += factor(i) * b.weight[0] * b.mean[0];
    }
    mean /= weight;
    for (int i = 0; i < kSteps; ++i) {
      const Batch& b = batches[static_cast<std::size_t>(i)];
      const Real apart = b.mean[0] - mean;
      second += factor(i) * (b.m2[0] + b.weight[0] * apart * apart);
      within += factor(i) * b.m2[0];
      unbiased += factor(i) * b.weight[0] * (b.m2[0] / (static_cast<Real>(b.weight[0]) - 1));
    }
    const Arrays a(p);
    // Every step rounds a few times.
    constexpr int kRoundings = 8 * kSteps;
    expect_close(a.weight[0], weight, kRoundings);
    expect_close(a.mean[0], mean, kRoundings);
    expect_close(a.m2_within[0], within, kRoundings);
    expect_close(finalized(p, POPNORM_BIASED).variance[0], second / weight, kRoundings);
    expect_close(finalized(p, POPNORM_UNBIASED).variance[0], second / (weight - 1), kRoundings);
    expect_close(finalized(p, POPNORM_MEAN_OF_BATCH_VARIANCES).variance[0], unbiased / weight, kRoundings);
    EXPECT_EQ(a.batches[0], momentum == 1.0 ? 1 : kSteps) << "counts stay, but where everything is forgotten";
  }
}

// Batches of one weight, from the weight on at which the share of a new one is the momentum: FEED_EMA.
TEST(PopulationDecay, OfBatchesOfOneWeightIsTheEma) {
  Random random("PopulationDecay equals EMA");
  constexpr double kMomentum = 0.125, kWeight = 24;
  popnorm::population decayed(1, 4), ema(1, 4);
  const Batch first = drawn(random, 4, kWeight / kMomentum);
  feed(decayed, first, POPNORM_FEED_MERGE);
  feed(ema, first, POPNORM_FEED_EMA);
  for (int i = 0; i < 20; ++i) {
    const Batch b = drawn(random, 4, kWeight);
    decayed.decay(1 - kMomentum);
    feed(decayed, b, POPNORM_FEED_MERGE);
    feed(ema, b, POPNORM_FEED_EMA, kMomentum);
    const Statistics a = finalized(decayed, POPNORM_BIASED), e = finalized(ema, POPNORM_BIASED);
    for (std::size_t c = 0; c < 4; ++c) {
      expect_close(a.mean[c], e.mean[c], 16 * (i + 1));
      expect_close(a.variance[c], e.variance[c], 16 * (i + 1));
    }
  }
}

TEST(PopulationDecay, KeepsMeanAndVariance) {
  Random random("PopulationDecay keeps");
  popnorm::population p = merged({drawn(random, 5, 30), drawn(random, 5, 900)}, 5);
  const popnorm::population before = p.copy();
  p.decay(1);
  EXPECT_TRUE(same(p, before));
  p.decay(0.3);
  EXPECT_EQ(Arrays(p).mean, Arrays(before).mean);
  EXPECT_EQ(Arrays(p).batches, Arrays(before).batches);
  for (const popnorm_estimator e : {POPNORM_BIASED, POPNORM_MEAN_OF_BATCH_VARIANCES})
    for (std::size_t c = 0; c < 5; ++c) expect_close(finalized(p, e).variance[c], finalized(before, e).variance[c], 4);
  EXPECT_EQ(p.header().steps, 2);
  p.decay(0);
  EXPECT_TRUE(same(p, popnorm::population(1, 5)));
}

TEST(PopulationDecay, RefusesBadFactors) {
  popnorm::population p(1, 2);
  const popnorm::population before = p.copy();
  for (const double factor : {-0.1, 1.1, kNaN, kInfinity, -kInfinity})
    EXPECT_TRUE(refused(popnorm_population_decay(p.data(), p.size(), factor), POPNORM_INVALID,
                        {"^population_decay: factor is ", "\\[0, 1\\]"}));
  EXPECT_TRUE(same(p, before));
}

// ---------------------------------------------------------------------------------------------------- standard error

TEST(StandardError, IsTheFormulaOverBatchMeans) {
  Random random("StandardError");
  for (const int count : {2, 3, 10, 200}) {
    Values means;
    Real within = 0;
    popnorm::population p(1, 1);
    for (int i = 0; i < count; ++i) {
      const Batch b = drawn(random, 1, 32);
      means.push_back(b.mean[0]);
      within += b.m2[0];
      feed(p, b, POPNORM_FEED_MERGE);
    }
    const reference::Moments of_means = reference::moments_of(means);
    const Real variance = (within + 32 * of_means.m2) / (32 * count);
    const Real exact = std::sqrt(of_means.m2 / (count - 1) / count / variance);
    // between is a difference of sums of `count` roundings each.
    const Real lost = 4 * count * kUnit * variance / (of_means.m2 / count);
    expect_near(p.standard_error()[0], exact, exact * (8 * kUnit + lost), "standard error");
  }
}

// The spread of the means of many populations, each of batches whose elements share an effect, is what each one says of itself.
TEST(StandardError, IsTheSpreadOfTheMean) {
  Random random("StandardError by simulation");
  constexpr int kPopulations = 2000, kBatches = 40, kElements = 4;
  Values means;
  Real squared = 0;
  for (int i = 0; i < kPopulations; ++i) {
    popnorm::population p(1, 1);
    for (int b = 0; b < kBatches; ++b) {
      Values x(kElements);
      const double shared = random.normal();
      for (double& v : x) v = shared + random.normal();
      feed(p, batch_of(x), POPNORM_FEED_MERGE);
    }
    const double error = p.standard_error()[0];
    squared += static_cast<Real>(error) * error * finalized(p, POPNORM_BIASED).variance[0];
    means.push_back(Arrays(p).mean[0]);
  }
  const reference::Moments spread = reference::moments_of(means);
  const Real ratio = squared / kPopulations / (spread.m2 / (spread.weight - 1));
  // Four deviations of a variance of kPopulations values, which is nearly all there is to either side's error.
  EXPECT_NEAR(static_cast<double>(ratio), 1, 4 * std::sqrt(2.0 / kPopulations));
}

TEST(StandardError, HasValuesAtTheEdges) {
  popnorm::population p(2, 2);
  EXPECT_EQ(p.standard_error(), Values(4, kInfinity)) << "no batches";
  feed(p, {Values(4, 5), {1, 2, 3, 4}, {1, 1, 0, 1}}, POPNORM_FEED_MERGE);
  EXPECT_EQ(p.standard_error(), Values(4, kInfinity)) << "one batch";
  feed(p, {Values(4, 5), {1, 2, 3, 5}, {1, 1, 0, 1}}, POPNORM_FEED_MERGE);
  const Values error = p.standard_error();
  EXPECT_EQ(error[0], 0) << "batches that agree";
  EXPECT_EQ(error[2], 0) << "a constant channel";
  EXPECT_GT(error[3], 0);
  EXPECT_TRUE(std::isfinite(error[3]));
}

// ---------------------------------------------------------------------------------------------------- drift

TEST(Drift, IsTheFormula) {
  Random random("Drift");
  constexpr std::size_t kCount = 12;
  popnorm::population a(2, 6), b(2, 6);
  for (int i = 0; i < 5; ++i) {
    feed(a, drawn(random, kCount, 20), POPNORM_FEED_EMA, 0.3);
    feed(b, drawn(random, kCount, 20), POPNORM_FEED_MERGE);
  }
  for (const popnorm_estimator e : {POPNORM_BIASED, POPNORM_UNBIASED, POPNORM_MEAN_OF_BATCH_VARIANCES})
    for (const popnorm_estimator r : {POPNORM_BIASED, POPNORM_UNBIASED, POPNORM_MEAN_OF_BATCH_VARIANCES}) {
      popnorm_drift drift = POPNORM_DRIFT_INIT;
      drift.estimator = e;
      drift.reference_estimator = r;
      popnorm::check(popnorm_population_drift(a.data(), a.size(), b.data(), b.size(), &drift));
      const Statistics p = finalized(a, e), q = finalized(b, r);
      Real shift = 0, shift_max = 0, ratio = 0, ratio_max = 0;
      for (std::size_t i = 0; i < kCount; ++i) {
        const Real s =
            std::fabs(static_cast<Real>(p.mean[i]) - q.mean[i]) / std::sqrt(static_cast<Real>(q.variance[i]));
        const Real l = std::fabs(std::log2(static_cast<Real>(p.variance[i]) / q.variance[i]));
        shift += s * s;
        ratio += l * l;
        shift_max = std::max(shift_max, s);
        ratio_max = std::max(ratio_max, l);
      }
      // Differences of means and logarithms near 0 cancel: their errors are those of a mean of 5 and a ratio of 1.
      const double slack = 64 * 0x1p-53 * 10;
      EXPECT_EQ(drift.channels, 12);
      EXPECT_NEAR(drift.mean_rms, static_cast<double>(std::sqrt(shift / kCount)), slack);
      EXPECT_NEAR(drift.mean_max, static_cast<double>(shift_max), slack);
      EXPECT_NEAR(drift.log2_variance_rms, static_cast<double>(std::sqrt(ratio / kCount)), slack);
      EXPECT_NEAR(drift.log2_variance_max, static_cast<double>(ratio_max), slack);
    }
  const popnorm_drift none = a.drift_from(a);
  EXPECT_EQ(none.channels, 12);
  EXPECT_EQ(none.mean_max + none.mean_rms + none.log2_variance_max + none.log2_variance_rms, 0);
}

// Channels that either has not fed, or whose reference is constant, say nothing.
TEST(Drift, LeavesOutWhatCannotBeCompared) {
  popnorm::population a(1, 4), b(1, 4);
  EXPECT_EQ(a.drift_from(b).channels, 0);
  EXPECT_EQ(a.drift_from(b).mean_rms, 0);
  feed(a, {{4, 0, 4, 4}, {1, 0, 7, 1}, {4, 0, 4, 0}}, POPNORM_FEED_MERGE);
  feed(b, {{4, 4, 4, 4}, {3, 9, 7, 1}, {16, 4, 0, 4}}, POPNORM_FEED_MERGE);
  const popnorm_drift drift = a.drift_from(b);
  EXPECT_EQ(drift.channels, 2) << "the first and the last";
  EXPECT_EQ(drift.mean_max, 1);
  EXPECT_EQ(drift.mean_rms, std::sqrt(0.5));
  EXPECT_EQ(drift.log2_variance_max, kInfinity) << "a variance of 0 against one above 0";
  EXPECT_EQ(drift.log2_variance_rms, kInfinity);
}

TEST(Drift, RefusesBadArguments) {
  popnorm::population a(1, 2);
  popnorm_drift drift = POPNORM_DRIFT_INIT;
  const auto refuse = [&](popnorm_drift spoiled, const std::vector<std::string>& words) {
    const popnorm_drift before = spoiled;
    EXPECT_TRUE(
        refused(popnorm_population_drift(a.data(), a.size(), a.data(), a.size(), &spoiled), POPNORM_INVALID, words));
    EXPECT_EQ(std::memcmp(&before, &spoiled, sizeof(before)), 0);
  };
  EXPECT_TRUE(refused(popnorm_population_drift(a.data(), a.size(), a.data(), a.size(), nullptr), POPNORM_INVALID,
                      {"^population_drift:", "null"}));
  drift.estimator = static_cast<popnorm_estimator>(3);
  refuse(drift, {"^population_drift:", "estimator is 3"});
  drift = POPNORM_DRIFT_INIT;
  drift.reference_estimator = static_cast<popnorm_estimator>(-1);
  refuse(drift, {"^population_drift:", "estimator is -1"});
  drift = POPNORM_DRIFT_INIT;
  drift.size = 8;
  refuse(drift, {"^population_drift:", "size", "\\b8\\b"});
}

// ---------------------------------------------------------------------------------------------------- bytes

// CRC-64/XZ bit by bit, as the catalogue of parametrised CRCs gives it.
std::uint64_t crc64_xz(std::span<const std::byte> bytes, std::uint64_t before = 0) {
  std::uint64_t crc = ~before;
  for (const std::byte b : bytes) {
    crc ^= static_cast<std::uint64_t>(b);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xC96C5795D7870F42U : crc >> 1;
  }
  return ~crc;
}

constexpr std::size_t kChecksumAt = 48;

std::uint64_t checksum_of(const std::vector<std::byte>& serialized) {
  const std::span<const std::byte> all(serialized);
  return crc64_xz(all.subspan(kChecksumAt + 8), crc64_xz(all.first(kChecksumAt)));
}

popnorm::population ordinary(std::int64_t slots = 2, std::int64_t c = 3) {
  Random random("bytes");
  popnorm::population p(slots, c);
  const auto count = static_cast<std::size_t>(slots * c);
  for (int i = 0; i < 3; ++i) feed(p, drawn(random, count, 10), i == 0 ? POPNORM_FEED_MERGE : POPNORM_FEED_EMA);
  Batch bad = drawn(random, count, 10);
  bad.mean[1] = kNaN;
  feed(p, bad, POPNORM_FEED_MERGE);
  return p;
}

// The bytes are refused, and the population that was to receive them is as it was.
void expect_refused(const std::vector<std::byte>& bytes, const popnorm::population& original,
                    const std::vector<std::string>& words, popnorm_status status = POPNORM_INVALID) {
  popnorm::population p = original.copy();
  std::vector<std::string> all = words;
  all.push_back("^population_deserialize:");
  ASSERT_TRUE(refused(popnorm_population_deserialize(bytes.data(), bytes.size(), p.data(), p.size()), status, all));
  ASSERT_TRUE(same(p, original));
}

TEST(Bytes, ComeBackBitForBit) {
  for (const auto& [slots, c] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {2, 3}, {7, 129}}) {
    const popnorm::population p = ordinary(slots, c * 2);
    popnorm::population q(slots, c * 2);
    const std::vector<std::byte> bytes = p.serialize();
    q.deserialize(bytes);
    EXPECT_TRUE(same(p, q));
    EXPECT_EQ(q.serialize(), bytes);
    // From any address.
    std::vector<std::byte> shifted(bytes.size() + 3);
    std::copy(bytes.begin(), bytes.end(), shifted.begin() + 3);
    popnorm::population r(slots, c * 2);
    EXPECT_TRUE(succeeded(popnorm_population_deserialize(shifted.data() + 3, bytes.size(), r.data(), r.size())));
    EXPECT_TRUE(same(p, r));
  }
}

// One channel, fed {weight 2, mean 1/2, m2 1/2}. Every byte is what the header says, least significant first.
TEST(Bytes, AreThoseOfTheFormat) {
  std::vector<unsigned char> golden(192, 0);
  const auto put = [&](std::size_t at, std::initializer_list<unsigned char> bytes) {
    std::copy(bytes.begin(), bytes.end(), golden.begin() + static_cast<std::ptrdiff_t>(at));
  };
  put(0, {'P', 'O', 'P', 'N', 'O', 'R', 'M', 0});
  put(8, {1});                                                // version
  put(12, {4, 3, 2, 1});                                      // byte order
  put(16, {1});                                               // slots
  put(24, {1});                                               // c
  put(32, {1});                                               // steps
  put(40, {192});                                             // bytes
  put(48, {0xD0, 0xC2, 0xFF, 0xE1, 0x9F, 0xFC, 0xA9, 0xC7});  // CRC-64/XZ, computed elsewhere
  put(128 + 7, {0x40});                                       // weight 2
  put(136 + 6, {0xE0, 0x3F});                                 // mean 0.5
  put(144 + 6, {0xE0, 0x3F});                                 // m2 0.5
  put(152 + 6, {0xE0, 0x3F});                                 // m2_within
  put(160 + 6, {0xF0, 0x3F});                                 // var_sum 2 * 0.5
  put(168 + 7, {0x40});                                       // var_weight 2
  put(176 + 6, {0xF0, 0x3F});                                 // batches 1
  const std::vector<std::byte> bytes = merged({{{2}, {0.5}, {0.5}}}).serialize();
  ASSERT_EQ(bytes.size(), golden.size());
  for (std::size_t i = 0; i < bytes.size(); ++i)
    EXPECT_EQ(static_cast<unsigned>(bytes[i]), static_cast<unsigned>(golden[i])) << "byte " << i;
}

TEST(Bytes, CarryTheirCrc) {
  const char* digits = "123456789";
  ASSERT_EQ(crc64_xz({reinterpret_cast<const std::byte*>(digits), 9}), 0x995DC9BBDF1939FAU)
      << "the published check value";
  const std::vector<std::byte> bytes = ordinary().serialize();
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + kChecksumAt, sizeof(stored));
  EXPECT_EQ(stored, checksum_of(bytes));
  EXPECT_EQ(ordinary().header().checksum, 0u) << "0 in memory";
}

TEST(Bytes, WithAnyBitFlippedAreRefused) {
  const popnorm::population p = ordinary();
  const std::vector<std::byte> bytes = p.serialize();
  for (std::size_t i = 0; i < bytes.size(); ++i)
    for (int flip = 0; flip < 9; ++flip) {
      std::vector<std::byte> damaged = bytes;
      damaged[i] ^= flip < 8 ? std::byte{1} << flip : std::byte{0xFF};
      // A damaged version reads as a later one.
      const bool version = i >= 8 && i < 12;
      expect_refused(damaged, p, {"from"}, version ? POPNORM_UNSUPPORTED : POPNORM_INVALID);
      if (HasFatalFailure()) FAIL() << "byte " << i << ", flip " << flip;
    }
}

TEST(Bytes, TruncatedAreRefused) {
  const popnorm::population p = ordinary();
  const std::vector<std::byte> bytes = p.serialize();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    // Exactly at a guard: nothing beyond is read.
    GuardedBuffer cut(size, 1, Placement::ends_at_guard);
    std::copy_n(bytes.begin(), size, cut.data());
    popnorm::population q = p.copy();
    ASSERT_TRUE(refused(popnorm_population_deserialize(cut.data(), size, q.data(), q.size()), POPNORM_INVALID,
                        {"^population_deserialize: from has " + std::to_string(size) + " bytes"}));
    ASSERT_TRUE(same(q, p));
  }
}

// Wrong in spite of a checksum that is right.
TEST(Bytes, OfAnotherFormatAreRefused) {
  const popnorm::population p = ordinary();
  const auto with = [&](const std::function<void(popnorm_population_header&)>& change) {
    std::vector<std::byte> bytes = p.serialize();
    popnorm_population_header header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    change(header);
    std::memcpy(bytes.data(), &header, sizeof(header));
    const std::uint64_t checksum = checksum_of(bytes);
    std::memcpy(bytes.data() + kChecksumAt, &checksum, sizeof(checksum));
    return bytes;
  };
  using Header = popnorm_population_header;
  expect_refused(with([](Header& h) { h.magic[0] = 'p'; }), p, {"header"});
  expect_refused(with([](Header& h) { h.byte_order = 0x04030201; }), p, {"byte order"});
  expect_refused(with([](Header& h) { h.version = 2; }), p, {"version 2"}, POPNORM_UNSUPPORTED);
  expect_refused(with([](Header& h) { h.slots = 3; }), p, {"corrupted", "slots 3"});
  expect_refused(with([](Header& h) { h.c = -3; }), p, {"corrupted"});
  expect_refused(with([](Header& h) { h.steps = -1; }), p, {"corrupted"});
  expect_refused(with([](Header& h) { h.bytes += 8; }), p, {"corrupted"});
  expect_refused(with([](Header& h) { h.room[0] = 1; }), p, {"corrupted"});
  popnorm::population q = p.copy();
  q.deserialize(with([](Header&) {}));
  EXPECT_TRUE(same(p, q));
}

TEST(Bytes, NeedRoomAndAlignment) {
  const popnorm::population p = ordinary();
  const std::vector<std::byte> bytes = p.serialize();
  std::vector<std::byte> to(bytes.size(), std::byte{7});
  const std::vector<std::byte> before = to;
  const auto serialize = [&](void* target, std::size_t room) {
    return popnorm_population_serialize(p.data(), p.size(), target, room);
  };
  EXPECT_TRUE(refused(serialize(nullptr, to.size()), POPNORM_INVALID, {"^population_serialize: to is null"}));
  EXPECT_TRUE(refused(serialize(to.data(), to.size() - 1), POPNORM_INVALID,
                      {"^population_serialize: to has " + std::to_string(to.size() - 1)}));
  EXPECT_TRUE(to == before);
  popnorm::population q = p.copy();
  EXPECT_TRUE(refused(popnorm_population_serialize(q.data(), q.size(), static_cast<char*>(q.data()) + 8, q.size()),
                      POPNORM_INVALID, {"^population_serialize: to overlaps population"}));
  EXPECT_TRUE(refused(popnorm_population_deserialize(nullptr, bytes.size(), q.data(), q.size()), POPNORM_INVALID,
                      {"^population_deserialize: from is null"}));
  EXPECT_TRUE(refused(popnorm_population_deserialize(bytes.data(), bytes.size(), nullptr, q.size()), POPNORM_INVALID,
                      {"^population_deserialize: population"}));
  EXPECT_TRUE(refused(
      popnorm_population_deserialize(bytes.data(), bytes.size(), static_cast<char*>(q.data()) + 4, q.size() - 8),
      POPNORM_INVALID, {"^population_deserialize: population", "align"}));
  EXPECT_TRUE(refused(popnorm_population_deserialize(bytes.data(), bytes.size(), q.data(), q.size() - 1),
                      POPNORM_INVALID, {"^population_deserialize: population has " + std::to_string(q.size() - 1)}));
  EXPECT_TRUE(same(p, q));
}

// The C++ wrapper's populations keep their shape.
TEST(Bytes, OfAnotherShapeAreRefusedByTheWrapper) {
  const std::vector<std::byte> small = ordinary(1, 2).serialize(), large = ordinary(3, 4).serialize(),
                               turned = ordinary(3, 2).serialize();
  popnorm::population p = ordinary(2, 3);
  const popnorm::population before = p.copy();
  for (const std::vector<std::byte>& bytes : {small, large, turned}) {
    try {
      p.deserialize(bytes);
      ADD_FAILURE() << "not thrown";
    } catch (const popnorm::error& e) {
      EXPECT_EQ(e.status(), POPNORM_INVALID);
    }
    EXPECT_TRUE(same(p, before));
  }
}

// ---------------------------------------------------------------------------------------------------- every entry

// Every entry that takes one population or two refuses what is none, of another shape, or in the same place.
TEST(Populations, ThatAreNoneAreRefusedByEveryEntry) {
  const popnorm::population good = ordinary();
  GuardedBuffer bytes(good.size(), 8, Placement::ends_at_guard);
  std::vector<double> error(6);
  popnorm_drift drift = POPNORM_DRIFT_INIT;
  struct Call {
    const char* operation;
    const char* name;  // of the population in question
    std::function<popnorm_status(void*, std::size_t)> run;
  };
  popnorm::population partner = good.copy();
  std::vector<std::byte> to(good.size());
  const std::vector<Call> calls = {
      {"population_combine", "target",
       [&](void* p, std::size_t n) { return popnorm_population_combine(p, n, partner.data(), partner.size()); }},
      {"population_combine", "other",
       [&](void* p, std::size_t n) { return popnorm_population_combine(partner.data(), partner.size(), p, n); }},
      {"population_subtract", "target",
       [&](void* p, std::size_t n) { return popnorm_population_subtract(p, n, partner.data(), partner.size()); }},
      {"population_subtract", "other",
       [&](void* p, std::size_t n) { return popnorm_population_subtract(partner.data(), partner.size(), p, n); }},
      {"population_drift", "population",
       [&](void* p, std::size_t n) { return popnorm_population_drift(p, n, partner.data(), partner.size(), &drift); }},
      {"population_drift", "reference",
       [&](void* p, std::size_t n) { return popnorm_population_drift(partner.data(), partner.size(), p, n, &drift); }},
      {"population_decay", "population", [&](void* p, std::size_t n) { return popnorm_population_decay(p, n, 0.5); }},
      {"population_standard_error", "population",
       [&](void* p, std::size_t n) { return popnorm_population_standard_error(p, n, error.data()); }},
      {"population_serialize", "population",
       [&](void* p, std::size_t n) { return popnorm_population_serialize(p, n, to.data(), to.size()); }},
  };
  for (const Call& call : calls) {
    SCOPED_TRACE(std::string(call.operation) + " " + call.name);
    const std::string op = "^" + std::string(call.operation) + ": " + call.name;
    const auto refuse = [&](void* p, std::size_t n, const std::string& word, popnorm_status status = POPNORM_INVALID) {
      const std::vector<std::byte> before = bytes.snapshot(), output = to;
      const std::vector<double> error_before = error;
      const popnorm_drift drift_before = drift;
      EXPECT_TRUE(refused(call.run(p, n), status, {op, word}));
      EXPECT_TRUE(bytes.snapshot() == before && to == output && error == error_before && same(partner, good));
      EXPECT_EQ(std::memcmp(&drift, &drift_before, sizeof(drift)), 0);
    };
    std::memcpy(bytes.data(), good.data(), good.size());
    auto& header = *reinterpret_cast<popnorm_population_header*>(bytes.data());
    refuse(nullptr, bytes.size(), "null");
    refuse(bytes.data() + 4, bytes.size() - 4, "align");
    refuse(bytes.data(), 127, "127 bytes");
    refuse(bytes.data(), bytes.size() - 1, std::to_string(bytes.size() - 1) + " bytes");
    header.magic[6] = 'm';
    refuse(bytes.data(), bytes.size(), "header");
    header.magic[6] = 'M';
    header.version = 7;
    refuse(bytes.data(), bytes.size(), "version 7", POPNORM_UNSUPPORTED);
    header.version = 1;
    header.checksum = 1;
    refuse(bytes.data(), bytes.size(), "corrupted");
    header.checksum = 0;
    EXPECT_TRUE(succeeded(call.run(bytes.data(), bytes.size())));
    std::memcpy(partner.data(), good.data(), good.size());
  }
}

TEST(Populations, OfAnotherShapeCannotBeJoined) {
  popnorm::population p = ordinary();
  const popnorm::population before = p.copy();
  popnorm_drift drift = POPNORM_DRIFT_INIT;
  for (const auto& [slots, c] : {std::pair<std::int64_t, std::int64_t>{2, 2}, {1, 3}, {3, 2}, {1, 6}}) {
    const popnorm::population other = ordinary(slots, c);
    const std::vector<std::string> words = {"\\b2 slots x 3 channels",
                                            std::to_string(slots) + " x " + std::to_string(c) + ","};
    EXPECT_TRUE(
        refused(popnorm_population_combine(p.data(), p.size(), other.data(), other.size()), POPNORM_INVALID, words));
    EXPECT_TRUE(
        refused(popnorm_population_subtract(p.data(), p.size(), other.data(), other.size()), POPNORM_INVALID, words));
    EXPECT_TRUE(refused(popnorm_population_drift(p.data(), p.size(), other.data(), other.size(), &drift),
                        POPNORM_INVALID, words));
  }
  EXPECT_TRUE(
      refused(popnorm_population_combine(p.data(), p.size(), p.data(), p.size()), POPNORM_INVALID, {"overlap"}));
  EXPECT_TRUE(
      refused(popnorm_population_subtract(p.data(), p.size(), p.data(), p.size()), POPNORM_INVALID, {"overlap"}));
  EXPECT_TRUE(
      refused(popnorm_population_standard_error(p.data(), p.size(), nullptr), POPNORM_INVALID, {"error", "null"}));
  alignas(double) std::byte room[64 * sizeof(double)];
  auto* const between = reinterpret_cast<double*>(room + 4);
  EXPECT_TRUE(
      refused(popnorm_population_standard_error(p.data(), p.size(), between), POPNORM_INVALID, {"error", "aligned"}));
  auto* inside = reinterpret_cast<double*>(static_cast<std::byte*>(p.data()) + p.size() - 8);
  EXPECT_TRUE(refused(popnorm_population_standard_error(p.data(), p.size(), inside), POPNORM_INVALID, {"overlap"}));
  EXPECT_TRUE(same(p, before));
}

// ---------------------------------------------------------------------------------------------------- transactions

class Transaction : public ::testing::Test {
 protected:
  void feed_something(popnorm_feed how = POPNORM_FEED_EMA) { feed(population_, drawn(random_, 3, 8), how); }

  Random random_{"Transaction"};
  popnorm::population population_ = merged({drawn(random_, 3, 8)}, 3);
  const std::vector<char> before_ = bytes_of(population_);
};

TEST_F(Transaction, KeepsWhatIsCommitted) {
  popnorm::population expected = population_.copy();
  const Batch b = drawn(random_, 3, 8);
  feed(expected, b, POPNORM_FEED_EMA);
  {
    popnorm::population_transaction transaction(population_);
    feed(population_, b, POPNORM_FEED_EMA);
    transaction.commit();
  }
  EXPECT_TRUE(same(population_, expected));
}

TEST_F(Transaction, RollsBackWhatIsNot) {
  {
    const popnorm::population_transaction transaction(population_);
    feed_something();
    feed_something(POPNORM_FEED_MERGE);
    population_.decay(0.5);
    EXPECT_FALSE(bytes_of(population_) == before_);
  }
  EXPECT_TRUE(bytes_of(population_) == before_);
}

TEST_F(Transaction, RollsBackByException) {
  const auto step = [&] {
    popnorm::population_transaction transaction(population_);
    feed_something();
    popnorm_population_feed_args bad = POPNORM_POPULATION_FEED_ARGS_INIT;
    bad.momentum = -1;
    population_.feed(bad);
    transaction.commit();
  };
  EXPECT_THROW(step(), popnorm::error);
  EXPECT_TRUE(bytes_of(population_) == before_);
}

TEST_F(Transaction, RollsBackAPopulationThatWasReplaced) {
  {
    const popnorm::population_transaction transaction(population_);
    population_ = popnorm::population(1, 1);
  }
  EXPECT_TRUE(bytes_of(population_) == before_);
  {
    const popnorm::population_transaction transaction(population_);
    const popnorm::population elsewhere = std::move(population_);
  }
  EXPECT_TRUE(bytes_of(population_) == before_);
}

TEST_F(Transaction, OfTheInnerDoesNotOutliveTheOuter) {
  {
    popnorm::population_transaction outer(population_);
    feed_something();
    {
      popnorm::population_transaction inner(population_);
      feed_something();
      inner.commit();
    }
    EXPECT_EQ(population_.header().steps, 3);
  }
  EXPECT_TRUE(bytes_of(population_) == before_);
}

// A training step whose loss is not finite must leave no trace, though a batch of finite moments has been taken by then; a batch
// that is not finite is not taken in the first place, and only counted.
TEST_F(Transaction, SkipsStepsThatAreNotFinite) {
  const popnorm::plan plan(popnorm::problem_nchw(2, 3, 4));
  popnorm::buffer workspace = plan.make_workspace();
  std::vector<float> x(24), y(24);
  popnorm_forward_args args = popnorm::forward_args(workspace);
  args.x = x.data();
  args.y = y.data();
  args.update.population = population_.data();
  args.update.population_bytes = population_.size();
  const auto step = [&](bool finite_loss, bool finite_batch) {
    for (float& v : x) v = static_cast<float>(random_.normal());
    if (!finite_batch) x[5] = std::numeric_limits<float>::infinity();
    const double nonfinite = Arrays(population_).nonfinite[1];
    popnorm::population_transaction transaction(population_);
    plan.forward(args);
    if (finite_loss && Arrays(population_).nonfinite[1] == nonfinite) transaction.commit();
  };
  step(false, true);
  EXPECT_TRUE(bytes_of(population_) == before_);
  step(true, false);
  EXPECT_TRUE(bytes_of(population_) == before_);
  step(true, true);
  EXPECT_EQ(population_.header().steps, 2);
  plan.forward(args);
  x[5] = std::numeric_limits<float>::quiet_NaN();
  plan.forward(args);
  EXPECT_EQ(population_.header().steps, 3);
  EXPECT_EQ(Arrays(population_).nonfinite, (Values{0, 1, 0}));
}

}  // namespace
}  // namespace popnorm_test
