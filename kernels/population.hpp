// A population's arrays, how a batch joins them and what they say (popnorm.h documents the layout and the rules).
#ifndef POPNORM_KERNELS_POPULATION_HPP
#define POPNORM_KERNELS_POPULATION_HPP

#include <popnorm/popnorm.h>

#include <cmath>
#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/moments.hpp"

namespace popnorm {

inline constexpr std::int64_t kPopulationArrays = 8;

// The arrays that follow a population's header.
template <class Double>
struct PopulationArrays {
  Double* weight;
  Double* mean;
  Double* m2;
  Double* m2_within;
  Double* var_sum;
  Double* var_weight;
  Double* batches;
  Double* nonfinite;

  POPNORM_INLINE PopulationArrays(Double* first, std::int64_t count)
      : weight(first),
        mean(weight + count),
        m2(mean + count),
        m2_within(m2 + count),
        var_sum(m2_within + count),
        var_weight(var_sum + count),
        batches(var_weight + count),
        nonfinite(batches + count) {}
};

POPNORM_INLINE bool is_finite(const Moments& m) {
  return std::isfinite(m.weight) && std::isfinite(m.mean) && std::isfinite(m.m2);
}

// One entry of popnorm_population_feed, of a batch that has elements there.
POPNORM_INLINE void feed_entry(const PopulationArrays<double>& a, std::int64_t i, popnorm_feed feed, double momentum,
                               const Moments& batch) {
  const Moments before{a.weight[i], a.mean[i], a.m2[i]};
  Moments after;
  // The sums of batch variances are in units of the population's weight, so that whatever fed them, they can be pooled.
  double share = 0;    // of this batch in averages of batches
  double rescale = 1;  // how the weight of what has been accumulated changes
  double added;        // weight of this batch's variance
  double within;
  if (feed == POPNORM_FEED_MERGE) {
    after = combine(before, batch);
    added = batch.weight;
    within = a.m2_within[i] + batch.m2;
  } else {
    share = before.weight == 0 ? 1 : feed == POPNORM_FEED_CUMULATIVE ? 1 / (a.batches[i] + 1) : momentum;
    after = share == 1 ? batch : mix(before, batch, share);
    rescale = before.weight == 0 ? 0 : after.weight / before.weight;
    added = share * after.weight;
    // Within-batch variance is averaged like the mean; kept as an m2 of the population's weight.
    const double average =
        (1 - share) * biased_variance({before.weight, 0, a.m2_within[i]}) + share * biased_variance(batch);
    within = average * after.weight;
  }
  // A batch of one element has no unbiased variance and takes no share.
  const bool varies = batch.weight > 1;
  const double kept = varies ? (1 - share) * rescale : rescale;
  a.weight[i] = after.weight;
  a.mean[i] = after.mean;
  a.m2[i] = after.m2;
  a.m2_within[i] = within;
  a.var_sum[i] = kept * a.var_sum[i] + (varies ? added * unbiased_variance(batch) : 0);
  a.var_weight[i] = kept * a.var_weight[i] + (varies ? added : 0);
  a.batches[i] += 1;
}

// Mean and variance of entry i under an estimator.
POPNORM_INLINE MeanVariance population_statistics(const PopulationArrays<const double>& a, std::int64_t i,
                                                  popnorm_estimator estimator) {
  const Moments m{a.weight[i], a.mean[i], a.m2[i]};
  if (m.weight == 0) return {0, 1};
  if (estimator == POPNORM_UNBIASED) return {m.mean, unbiased_variance(m)};
  if (estimator == POPNORM_MEAN_OF_BATCH_VARIANCES && a.var_weight[i] > 0)
    return {m.mean, a.var_sum[i] / a.var_weight[i]};
  return {m.mean, biased_variance(m)};
}

}  // namespace popnorm

#endif
