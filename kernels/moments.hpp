// The moments monoid {weight, mean, m2}: the only way statistics are combined, from lanes to populations.
// Chan, Golub & LeVeque 1983; weights are frequency weights (Pebay 2008).
#ifndef POPNORM_KERNELS_MOMENTS_HPP
#define POPNORM_KERNELS_MOMENTS_HPP

#include "kernels/inline.hpp"

namespace popnorm {

struct Moments {
  double weight = 0;
  double mean = 0;
  double m2 = 0;
};

// Merges two disjoint sets. Commutative to the bit: the heavier side (at equal weight the one of smaller mean) is the
// base, which also keeps the correction small. Equal means merge exactly; weight 0 is the identity.
POPNORM_INLINE constexpr Moments combine(const Moments& p, const Moments& q) {
  if (p.weight == 0) return q;
  if (q.weight == 0) return p;
  // Selected value by value, so that many channels can be merged side by side.
  const bool p_is_base = p.weight > q.weight || (p.weight == q.weight && p.mean <= q.mean);
  const double base = p_is_base ? p.mean : q.mean;
  const double delta = (p_is_base ? q.mean : p.mean) - base;
  const double base_weight = p_is_base ? p.weight : q.weight;
  const double weight = p.weight + q.weight;
  const double share = (p_is_base ? q.weight : p.weight) / weight;
  return {weight, base + delta * share, (p.m2 + q.m2) + (delta * delta) * (base_weight * share)};
}

// What is left of a when its subset b is taken out: combine(result, b) is a. b.weight <= a.weight. Digits cancel: the errors of
// m2 and of weight*mean are of the size of a's.
POPNORM_INLINE constexpr Moments subtract(const Moments& a, const Moments& b) {
  if (b.weight == 0) return a;
  const double weight = a.weight - b.weight;
  if (weight <= 0) return {};
  const double delta = a.mean - b.mean;
  const double m2 = (a.m2 - b.m2) - (delta * delta) * (a.weight * (b.weight / weight));
  return {weight, a.mean + delta * (b.weight / weight), m2 > 0 ? m2 : 0};
}

// The distribution (1-share)*p + share*q by weight fractions instead of weights: what an exponential or cumulative
// average does to moments. The weight, an effective number of elements, is mixed like the mean.
POPNORM_INLINE constexpr Moments mix(const Moments& p, const Moments& q, double share) {
  const Moments unit = combine({1 - share, p.mean, p.weight > 0 ? p.m2 / p.weight * (1 - share) : 0},
                               {share, q.mean, q.weight > 0 ? q.m2 / q.weight * share : 0});
  const double weight = (1 - share) * p.weight + share * q.weight;
  return {weight, unit.mean, unit.weight > 0 ? unit.m2 / unit.weight * weight : 0};
}

POPNORM_INLINE constexpr double biased_variance(const Moments& m) { return m.weight > 0 ? m.m2 / m.weight : 0; }

// As the biased variance where the unbiased one is undefined.
POPNORM_INLINE constexpr double unbiased_variance(const Moments& m) {
  return m.weight > 1 ? m.m2 / (m.weight - 1) : biased_variance(m);
}

}  // namespace popnorm

#endif
