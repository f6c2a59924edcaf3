// What the batch is, as an argument: random maps, weights and sources of statistics against an oracle that loops group by
// group; the same bits by every route; groups that know nothing of one another.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "maps/case.hpp"
#include "support/executors.hpp"

namespace popnorm_test {

namespace reference = popnorm::reference;

namespace {

TEST(Maps, AgreeWithTheOracleAndWithThemselvesByEveryRoute) {
  for (int i = 0; i < 250 * effort(); ++i) {
    Random random("Maps " + std::to_string(i));
    const Configuration k = random_configuration(random);
    const MapSet maps = random_maps(random, k.n);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << testing::PrintToString(k) << ", " << maps);
    MapCase c(k, maps, needs_one_slot(maps), random);
    const MapForward f = c.forward({});
    const MapBackward b = c.backward({});
    c.expect_promises(f, b);
    c.expect_same_by_every_route(f, b, random);
    if (HasFailure()) return;
  }
}

// Enough samples that groups have many slots and work is run in parallel, on k threads in any order.
class LargeMaps : public testing::TestWithParam<std::tuple<popnorm_layout, popnorm_map>> {};

TEST_P(LargeMaps, HaveTheSameBitsOnAnyThreads) {
  Configuration k;
  k.layout = std::get<0>(GetParam());
  k.n = 6000;
  k.c = 24;
  k.s = 1;
  MapSet maps;
  maps.group = std::get<1>(GetParam());
  maps.affine = {POPNORM_LABELS, 3};
  Random random("LargeMaps");
  MapCase c(k, maps, false, random);
  const MapForward f = c.forward({"baseline", POPNORM_PHASES, POPNORM_STORES_ORDINARY, nullptr});
  const MapBackward b = c.backward({"baseline", POPNORM_PHASES, POPNORM_STORES_ORDINARY, nullptr});
  c.expect_promises(f, b);
  for (const Route& forced : forced_routes())
    for (const int threads : {1, 3, 16}) {
      ShuffledExecutor executor(threads);
      const popnorm_executor interface = executor.interface();
      Route route = forced;
      if (!on_cuda()) route.executor = &interface;
      SCOPED_TRACE(testing::Message() << route << " on " << threads << " threads");
      expect_same(c.forward(route), f);
      expect_same(c.backward(route), b);
      if (threads > 1 && !on_cuda()) {
        EXPECT_GE(executor.most_threads(), 2);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Groups, LargeMaps,
    testing::Combine(testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                     testing::Values(popnorm_map{POPNORM_WHOLE, 0}, popnorm_map{POPNORM_CONTIGUOUS, 700},
                                     popnorm_map{POPNORM_STRIDED, 8}, popnorm_map{POPNORM_PER_SAMPLE, 0},
                                     popnorm_map{POPNORM_LABELS, 8}, popnorm_map{POPNORM_LABELS, 300})));

// One label for all is plain batch normalization, to the bit; so is one group of contiguous samples, or one dealt.
TEST(Maps, OneGroupInAnyFormIsPlainBatchNormalization) {
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
    for (const std::int64_t s : {1, 49, 6000}) {
      Configuration k;
      k.layout = layout;
      k.n = 40;
      k.c = 6;
      k.s = s;
      Random plain_random("one group");
      MapCase plain(k, {}, false, plain_random);
      const MapForward f = plain.forward({});
      const MapBackward b = plain.backward({});
      for (const popnorm_map map : {popnorm_map{POPNORM_LABELS, 1}, popnorm_map{POPNORM_CONTIGUOUS, 40},
                                    popnorm_map{POPNORM_CONTIGUOUS, 1000}, popnorm_map{POPNORM_STRIDED, 1}}) {
        MapSet maps;
        maps.group = map;
        SCOPED_TRACE(testing::Message() << maps << " S " << s);
        Random random("one group");
        MapCase c(k, maps, false, random);
        expect_same(c.forward({}), f);
        expect_same(c.backward({}), b);
      }
    }
}

// y, moments and dx of group 1 with everything else replaced.
TEST(Maps, AGroupsBitsDependOnItsOwnSamplesAlone) {
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
    for (const popnorm_map map : {popnorm_map{POPNORM_CONTIGUOUS, 30}, popnorm_map{POPNORM_STRIDED, 5},
                                  popnorm_map{POPNORM_LABELS, 4}, popnorm_map{POPNORM_LABELS, 60}})
      for (const std::int64_t s : {1, 49, 5000}) {
        Configuration k;
        k.layout = layout;
        k.n = s > 1000 ? 12 : 150;
        k.c = 5;
        k.s = s;
        MapSet maps;
        maps.group = map;
        SCOPED_TRACE(testing::Message() << maps << " S " << s);
        Random random("own samples");
        MapCase c(k, maps, false, random);
        const std::int32_t group = c.group[1];
        const MapForward f = c.forward({});
        const MapBackward b = c.backward({});
        c.x.buffer().make_writable();
        c.dy.buffer().make_writable();
        std::vector<double> x = c.x_values, dy = c.dy_values;
        const auto each = [&](const auto& visit) {
          for (std::int64_t ch = 0; ch < k.c; ++ch)
            for (std::int64_t n = 0; n < k.n; ++n)
              for (std::int64_t p = 0; p < k.s; ++p)
                visit(c.oracle().at(ch, n, p), c.group[static_cast<std::size_t>(n)] == group);
        };
        each([&](std::size_t i, bool own) {
          if (!own) x[i] = 1e3 * random.normal(), dy[i] = random.normal();
        });
        c.x.assign_by_channel(x);
        c.dy.assign_by_channel(dy);
        const MapForward g = c.forward({});
        const MapBackward d = c.backward({});
        each([&](std::size_t i, bool own) {
          if (!own) return;
          ASSERT_TRUE(same_bits(f.y[i], g.y[i]));
          ASSERT_TRUE(same_bits(b.dx[i], d.dx[i]));
        });
        for (std::int64_t ch = 0; ch < k.c; ++ch) {
          const auto i = static_cast<std::size_t>(group * k.c + ch);
          EXPECT_TRUE(same_bits(f.mean[i], g.mean[i]) && same_bits(f.m2[i], g.m2[i]));
        }
      }
}

// ShuffleBN on one device: permuted ids give what permuted data would, though no data moves.
TEST(Maps, PermutedGroupsAreGroupsOfPermutedData) {
  Configuration k;
  k.layout = POPNORM_NHWC;
  k.n = 64;
  k.c = 9;
  k.s = 25;
  MapSet contiguous, labels;
  contiguous.group = {POPNORM_CONTIGUOUS, 16};
  labels.group = {POPNORM_LABELS, 4};
  Random random("permuted");
  MapCase ordered(k, contiguous, false, random);
  std::vector<std::int64_t> to(64);
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = static_cast<std::int64_t>(i);
  random.shuffle(to);
  MapCase dealt(k, labels, false, random);
  std::vector<double> x(dealt.x_values.size());
  for (std::int64_t c = 0; c < k.c; ++c)
    for (std::int64_t n = 0; n < k.n; ++n)
      for (std::int64_t s = 0; s < k.s; ++s)
        x[dealt.oracle().at(c, to[static_cast<std::size_t>(n)], s)] = ordered.x_values[ordered.oracle().at(c, n, s)];
  for (std::int64_t n = 0; n < k.n; ++n)
    dealt.group[static_cast<std::size_t>(to[static_cast<std::size_t>(n)])] = static_cast<std::int32_t>(n / 16);
  dealt.x.buffer().make_writable();
  dealt.x.assign_by_channel(x);
  for (Array* parameter : {&dealt.scale, &dealt.shift}) parameter->buffer().make_writable();
  dealt.scale.assign(ordered.scale.values());
  dealt.shift.assign(ordered.shift.values());
  const MapForward f = ordered.forward({}), g = dealt.forward({});
  for (std::int64_t c = 0; c < k.c; ++c)
    for (std::int64_t n = 0; n < k.n; ++n)
      for (std::int64_t s = 0; s < k.s; ++s) {
        const Exact y = ordered.oracle().y(c, n, s);
        EXPECT_NEAR(f.y[ordered.oracle().at(c, n, s)], g.y[dealt.oracle().at(c, to[static_cast<std::size_t>(n)], s)],
                    static_cast<double>(2 * reference::rounded(y.bound, y.value, reference::kF32)));
      }
}

// Weights that are all 1 mean what no weights mean, and a weight of 3 is three times the sample.
TEST(Weights, CountHowOftenAnElementIsThere) {
  Configuration k;
  k.n = 12;
  k.c = 4;
  k.s = 10;
  Random random("weights");
  MapSet weighted;
  weighted.weights = POPNORM_WEIGHTS_PER_SAMPLE;
  MapCase once(k, weighted, false, random);
  // The samples of weight w are w samples.
  std::vector<std::int64_t> copies;
  for (std::size_t n = 0; n < 12; ++n) {
    once.weights[n] = static_cast<float>(n % 4);
    for (std::size_t i = 0; i < n % 4; ++i) copies.push_back(static_cast<std::int64_t>(n));
  }
  Configuration repeated = k;
  repeated.n = static_cast<std::int64_t>(copies.size());
  MapCase often(repeated, {}, false, random);
  once.x.buffer().make_writable();
  std::vector<double> x(once.x_values.size()), y(often.x_values.size());
  for (double& v : x) v = stored(POPNORM_F32, random.normal());
  for (std::int64_t c = 0; c < k.c; ++c)
    for (std::int64_t n = 0; n < repeated.n; ++n)
      for (std::int64_t s = 0; s < k.s; ++s)
        y[often.oracle().at(c, n, s)] = x[once.oracle().at(c, copies[static_cast<std::size_t>(n)], s)];
  once.x.assign_by_channel(x);
  often.x.buffer().make_writable();
  often.x.assign_by_channel(y);
  const MapForward f = once.forward({}), g = often.forward({});
  for (std::size_t c = 0; c < 4; ++c) {
    EXPECT_EQ(f.weight[c], g.weight[c]);
    EXPECT_NEAR(f.mean[c], g.mean[c], 16 * 0x1p-24);
    EXPECT_NEAR(f.m2[c] / g.m2[c], 1, 16 * 0x1p-24);
  }
}

// Gradients of a loss by differences in f64, for every kind of weights and source: the oracle shares popnorm's formulas,
// this does not.
TEST(Weights, GradientsAreThoseOfDifferences) {
  for (const popnorm_weights weights :
       {POPNORM_UNWEIGHTED, POPNORM_WEIGHTS_PER_SAMPLE, POPNORM_WEIGHTS_PER_POSITION, POPNORM_LENGTHS})
    for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN, POPNORM_BLEND}) {
      Configuration k;
      k.n = 6;
      k.c = 2;
      k.s = 5;
      k.epsilon = 1e-3;
      k.storage = k.parameters = k.statistics = POPNORM_F64;
      MapSet maps;
      maps.group = {POPNORM_CONTIGUOUS, 4};
      maps.affine = {POPNORM_STRIDED, 2};
      maps.weights = weights;
      maps.statistics = statistics;
      SCOPED_TRACE(testing::Message() << maps);
      Random random("differences");
      MapCase c(k, maps, true, random);
      (void)c.forward({});
      const MapBackward b = c.backward({});
      c.x.buffer().make_writable();
      const std::vector<double> x = c.x_values;
      const auto loss = [&](std::size_t i, double step) {
        std::vector<double> moved = x;
        moved[i] += step;
        c.x.assign_by_channel(moved);
        const MapForward f = c.forward({});
        double sum = 0;
        for (std::size_t j = 0; j < f.y.size(); ++j)
          if (!std::isnan(c.dy_values[j])) sum += f.y[j] * c.dy_values[j];
        return sum;
      };
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) {
          EXPECT_EQ(b.dx[i], 0);
          continue;
        }
        constexpr double kStep = 1e-5;
        // A central difference is off by step^2 times a third derivative, and by rounding of the loss over the step.
        EXPECT_NEAR(b.dx[i], (loss(i, kStep) - loss(i, -kStep)) / (2 * kStep), 1e-7 * (1 + std::fabs(b.dx[i]))) << i;
      }
    }
}

// One call feeds every slot what its groups hold together, once.
TEST(Populations, AreFedTheGroupsOfTheirSlotAsOneBatch) {
  for (const popnorm_map map : {popnorm_map{POPNORM_CONTIGUOUS, 7}, popnorm_map{POPNORM_LABELS, 9}}) {
    Configuration k;
    k.n = 50;
    k.c = 6;
    k.s = 9;
    MapSet maps;
    maps.group = map;
    maps.slot = map.kind == POPNORM_LABELS ? popnorm_map{POPNORM_LABELS, 3} : popnorm_map{POPNORM_CONTIGUOUS, 21};
    Random random("fed slots");
    MapCase c(k, maps, true, random);
    popnorm::population fed(c.meaning().slots, k.c);
    const MapForward f = c.forward({}, &fed);
    std::vector<double> weight(static_cast<std::size_t>(c.meaning().slots * k.c)), mean = weight, m2 = weight;
    for (std::int64_t g = 0; g < c.meaning().groups; ++g) {
      std::int64_t slot = -1;
      for (std::size_t n = 0; n < c.group.size(); ++n)
        if (c.group[n] == g) slot = c.slot[n];
      for (std::int64_t ch = 0; slot >= 0 && ch < k.c; ++ch) {
        const auto from = static_cast<std::size_t>(g * k.c + ch), to = static_cast<std::size_t>(slot * k.c + ch);
        const reference::Moments both =
            reference::combine({weight[to], mean[to], m2[to]}, {f.weight[from], f.mean[from], f.m2[from]});
        weight[to] = static_cast<double>(both.weight);
        mean[to] = static_cast<double>(both.mean);
        m2[to] = static_cast<double>(both.m2);
      }
    }
    EXPECT_EQ(fed.header().steps, 1);
    const auto* arrays = reinterpret_cast<const double*>(&fed.header() + 1);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      EXPECT_EQ(arrays[i], weight[i]);
      EXPECT_NEAR(arrays[weight.size() + i], mean[i], 1e-13 * (1 + std::fabs(mean[i])));
      EXPECT_NEAR(arrays[2 * weight.size() + i], m2[i], 1e-13 * m2[i]);
      EXPECT_EQ(arrays[6 * weight.size() + i], 1) << "batches of a slot";
    }
  }
}

// More channels than are merged at once, several groups to a slot.
TEST(Populations, AreFedBySynchronizedStatisticsAsByForward) {
  constexpr std::int64_t n = 10, c = 300, s = 2, slots = 3;
  Random random("synchronized");
  std::vector<float> x(n * c * s), y(x.size());
  for (float& value : x) value = static_cast<float>(random.normal());
  popnorm_problem problem = popnorm::problem_nhwc(n, c, s);
  problem.norm_group = popnorm::contiguous(2);
  problem.population_slot = popnorm::contiguous(4);
  const popnorm::plan plan(problem);
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  std::vector<double> moments(std::size_t{3} * 5 * c);
  popnorm::population population[2] = {{slots, c}, {slots, c}};
  std::vector<float> running_mean[2], running_variance[2];
  for (int k = 0; k < 2; ++k) {
    running_mean[k].assign(slots * c, 0.f);
    running_variance[k].assign(slots * c, 1.f);
  }
  const auto update = [&](int k) {
    popnorm_update u = POPNORM_UPDATE_INIT;
    u.running_mean = running_mean[k].data();
    u.running_variance = running_variance[k].data();
    u.population = population[k].data();
    u.population_bytes = population[k].size();
    return u;
  };
  popnorm_forward_args f = popnorm::forward_args(workspace);
  f.x = x.data();
  f.y = y.data();
  f.update = update(0);
  f.moments = {moments.data(), moments.data() + 5 * c, moments.data() + 10 * c};
  plan.forward(f);
  popnorm_finalize_args a = POPNORM_FINALIZE_ARGS_INIT;
  const std::vector<std::int32_t> group_slot = {0, 0, 1, 1, 2};
  a.moments = f.moments;
  a.update = update(1);
  a.group_slot = group_slot.data();
  a.reserve = reserve.data();
  a.reserve_bytes = reserve.size();
  plan.finalize(a);
  EXPECT_EQ(running_mean[0], running_mean[1]);
  EXPECT_EQ(running_variance[0], running_variance[1]);
  EXPECT_EQ(population[0].serialize(), population[1].serialize());
}

// Training by blends or batch renormalization feeds the very population that it normalizes by.
TEST(Populations, MayBeFedByTheCallThatTheyNormalize) {
  constexpr std::int64_t n = 12, c = 5, s = 7, slots = 3;
  Random random("fed and used");
  std::vector<float> x(n * c * s), y[2] = {x, x}, mean, variance;
  for (float& value : x) value = static_cast<float>(random.normal());
  for (std::int64_t i = 0; i < slots * c; ++i) {
    mean.push_back(static_cast<float>(random.uniform(-1, 1)));
    variance.push_back(static_cast<float>(random.uniform(0.5, 2)));
  }
  popnorm_problem problem = popnorm::problem_nhwc(n, c, s);
  problem.norm_group = popnorm::contiguous(2);
  problem.population_slot = popnorm::contiguous(4);
  const popnorm::plan plan(problem);
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM}) {
    std::vector<float> running_mean[2] = {mean, mean}, running_variance[2] = {variance, variance};
    popnorm::population population[2] = {{slots, c}, {slots, c}};
    const popnorm::population before = population[0].copy();
    for (const bool arrays : {true, false})
      for (const int own : {0, 1}) {
        popnorm::buffer workspace = plan.make_workspace();
        popnorm_forward_args a = popnorm::forward_args(workspace);
        a.x = x.data();
        a.y = y[own].data();
        a.source.statistics = statistics;
        if (arrays) {
          a.update.running_mean = running_mean[own].data();
          a.update.running_variance = running_variance[own].data();
          a.source.mean = own ? a.update.running_mean : mean.data();
          a.source.variance = own ? a.update.running_variance : variance.data();
        } else {
          a.update.population = population[own].data();
          a.source.population = own ? a.update.population : before.data();
          a.update.population_bytes = a.source.population_bytes = before.size();
        }
        plan.forward(a);
      }
    EXPECT_EQ(y[0], y[1]);
    EXPECT_EQ(running_mean[0], running_mean[1]);
    EXPECT_EQ(running_variance[0], running_variance[1]);
    EXPECT_NE(running_mean[0], mean) << "nothing was fed";
    EXPECT_EQ(population[0].serialize(), population[1].serialize());
    EXPECT_NE(population[0].serialize(), before.serialize()) << "nothing was fed";
  }
}

// Without epsilon: xhat is r*(x-m_b)/s_b + d with r = s_b/s_g, where s_g is 0 in every other channel. Without a bound that is shift, with one
// r and d are at it, as they are where s_g is next to nothing.
TEST(Renormalization, ByConstantChannelsIsAtTheBoundsAndWithoutThemShift) {
  constexpr std::int64_t n = 6, c = 4, s = 5;
  Random random("constant channels");
  std::vector<float> x(n * c * s), dy(x.size()), y(x.size()), dx(x.size());
  for (std::vector<float>* data : {&x, &dy})
    for (float& value : *data) value = static_cast<float>(random.normal());
  const std::vector<float> mean(c, 3.f), variance{0.f, 2.f, 0.f, 2.f}, scale(c, 1.5f), shift{1.f, 2.f, 3.f, 4.f};
  for (const bool bounded : {false, true}) {
    const popnorm::plan plan(popnorm::problem_nhwc(n, c, s, 0));
    popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
    popnorm_forward_args f = popnorm::forward_args(workspace, reserve);
    f.x = x.data();
    f.y = y.data();
    f.scale = scale.data();
    f.shift = shift.data();
    f.source.statistics = POPNORM_RENORM;
    f.source.mean = mean.data();
    f.source.variance = variance.data();
    f.source.renorm_r = bounded ? 3 : std::numeric_limits<double>::infinity();
    plan.forward(f);
    popnorm_backward_args b = popnorm::backward_args(workspace, reserve);
    b.x = x.data();
    b.dy = dy.data();
    b.dx = dx.data();
    plan.backward(b);
    if (bounded) {
      const std::vector<float> next_to_nothing{1e-30f, 2.f, 1e-30f, 2.f};
      std::vector<float> y_next(y.size());
      f.source.variance = next_to_nothing.data();
      f.y = y_next.data();
      plan.forward(f);
      EXPECT_EQ(y, y_next);
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool constant = !bounded && variance[i % c] == 0;
      ASSERT_TRUE(std::isfinite(y[i]) && std::isfinite(dx[i])) << i;
      ASSERT_EQ(constant, y[i] == shift[i % c]) << i;
      ASSERT_EQ(constant, dx[i] == 0) << i;
    }
  }
}

}  // namespace
}  // namespace popnorm_test
