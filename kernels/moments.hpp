// The moments monoid {weight, mean, m2}: the only way statistics are combined, from lanes to populations.
// Chan, Golub & LeVeque 1983; weights are frequency weights (Pebay 2008).
#ifndef POPNORM_KERNELS_MOMENTS_HPP
#define POPNORM_KERNELS_MOMENTS_HPP

namespace popnorm {

struct Moments {
  double weight = 0;
  double mean = 0;
  double m2 = 0;
};

// Merges two disjoint sets. Commutative to the bit: the heavier side (at equal weight the one of smaller mean) is the
// base, which also keeps the correction small. Equal means merge exactly; weight 0 is the identity.
constexpr Moments combine(const Moments& p, const Moments& q) {
  if (p.weight == 0) return q;
  if (q.weight == 0) return p;
  const bool p_is_base = p.weight > q.weight || (p.weight == q.weight && p.mean <= q.mean);
  const Moments& a = p_is_base ? p : q;
  const Moments& b = p_is_base ? q : p;
  const double weight = a.weight + b.weight;
  const double share = b.weight / weight;
  const double delta = b.mean - a.mean;
  return {weight, a.mean + delta * share, (a.m2 + b.m2) + (delta * delta) * (a.weight * share)};
}

// What is left of a when its subset b is taken out: combine(result, b) is a. b.weight <= a.weight. Digits cancel: the errors of
// m2 and of weight*mean are of the size of a's.
constexpr Moments subtract(const Moments& a, const Moments& b) {
  if (b.weight == 0) return a;
  const double weight = a.weight - b.weight;
  if (weight <= 0) return {};
  const double delta = a.mean - b.mean;
  const double m2 = (a.m2 - b.m2) - (delta * delta) * (a.weight * (b.weight / weight));
  return {weight, a.mean + delta * (b.weight / weight), m2 > 0 ? m2 : 0};
}

// The distribution (1-share)*p + share*q by weight fractions instead of weights: what an exponential or cumulative
// average does to moments. The weight, an effective number of elements, is mixed like the mean.
constexpr Moments mix(const Moments& p, const Moments& q, double share) {
  const Moments unit = combine({1 - share, p.mean, p.weight > 0 ? p.m2 / p.weight * (1 - share) : 0},
                               {share, q.mean, q.weight > 0 ? q.m2 / q.weight * share : 0});
  const double weight = (1 - share) * p.weight + share * q.weight;
  return {weight, unit.mean, unit.weight > 0 ? unit.m2 / unit.weight * weight : 0};
}

constexpr double biased_variance(const Moments& m) { return m.weight > 0 ? m.m2 / m.weight : 0; }

// As the biased variance where the unbiased one is undefined.
constexpr double unbiased_variance(const Moments& m) {
  return m.weight > 1 ? m.m2 / (m.weight - 1) : biased_variance(m);
}

}  // namespace popnorm

#endif
