// Populations under test: batches to feed them, and what they hold.
#ifndef POPNORM_TESTS_API_POPULATIONS_HPP
#define POPNORM_TESTS_API_POPULATIONS_HPP

#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <cmath>
#include <popnorm/popnorm.hpp>
#include <vector>

#include "kernels/reference.hpp"
#include "support/check.hpp"
#include "support/random.hpp"

namespace popnorm_test {

using Values = std::vector<double>;

// Moments of slots x channels.
struct Batch {
  Values weight, mean, m2;

  [[nodiscard]] popnorm_moment_arrays arrays() { return {weight.data(), mean.data(), m2.data()}; }
  [[nodiscard]] popnorm::reference::Moments at(std::size_t i) const { return {weight[i], mean[i], m2[i]}; }
};

inline Batch drawn(Random& random, std::size_t count, double weight) {
  Batch b = {Values(count, weight), Values(count), Values(count)};
  for (std::size_t i = 0; i < count; ++i) {
    b.mean[i] = 5 + random.normal();
    b.m2[i] = weight * (0.5 + random.unit());
  }
  return b;
}

inline void feed(popnorm::population& population, Batch batch, popnorm_feed how, double momentum = 0.1) {
  popnorm_population_feed_args args = POPNORM_POPULATION_FEED_ARGS_INIT;
  args.moments = batch.arrays();
  args.feed = how;
  args.momentum = momentum;
  population.feed(args);
}

// The arrays behind the header, by name.
struct Arrays {
  Values weight, mean, m2, m2_within, var_sum, var_weight, batches, nonfinite;

  explicit Arrays(const popnorm::population& p) {
    const auto count = static_cast<std::size_t>(p.header().slots * p.header().c);
    const auto* next = reinterpret_cast<const double*>(&p.header() + 1);
    for (Values* a : {&weight, &mean, &m2, &m2_within, &var_sum, &var_weight, &batches, &nonfinite}) {
      a->assign(next, next + count);
      next += count;
    }
  }
};

struct Statistics {
  Values mean, variance;
};

inline Statistics finalized(const popnorm::population& p, popnorm_estimator estimator) {
  const auto count = static_cast<std::size_t>(p.header().slots * p.header().c);
  Statistics s = {Values(count), Values(count)};
  popnorm_population_finalize_args args = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
  args.estimator = estimator;
  args.type = POPNORM_F64;
  args.mean = s.mean.data();
  args.variance = s.variance.data();
  p.finalize(args);
  return s;
}

inline std::vector<char> bytes_of(const popnorm::population& p) {
  const auto* first = static_cast<const char*>(p.data());
  return {first, first + p.size()};
}

// A few roundings.
inline void expect_close(double got, popnorm::reference::Real exact, int roundings = 16) {
  EXPECT_NEAR(got, static_cast<double>(exact), static_cast<double>(roundings * 0x1p-53L * std::fabs(exact)));
}

}  // namespace popnorm_test

#endif
