// From statistics to the coefficient rows that kernels read. T is the arithmetic type: float, or double for f64
// storage. Forward and backward go through the same functions, so that what backward recomputes has forward's bits.
#ifndef POPNORM_KERNELS_AFFINE_HPP
#define POPNORM_KERNELS_AFFINE_HPP

#include <cmath>
#include <limits>

#include "kernels/inline.hpp"
#include "kernels/moments.hpp"

namespace popnorm {

// A double rounded to T; beyond its range it is infinite, unless saturated.
template <class T>
POPNORM_INLINE T round_to(double value) {
  return static_cast<T>(value);
}

template <class T>
inline constexpr double kLargest = static_cast<double>(std::numeric_limits<T>::max());

template <class T>
POPNORM_INLINE T round_saturated(double value) {
  return static_cast<T>(value > kLargest<T> ? kLargest<T> : value);
}

POPNORM_INLINE double clamped(double value, double least, double most) {
  return value < least ? least : value > most ? most : value;
}

struct MeanVariance {
  double mean;
  double variance;
};

// What normalizes a row, and how its gradient goes through it. xhat = (x - mean)*invstd, and with S = sum(dy),
// Q = sum(dy*xhat) over `weight`:   dx ~ dy - (A + B*xhat)/weight,  B = (Q - d*S)*r2,  A = S - d*B.
// Plain statistics have d = 0, r2 = 1; weight 0 says that they are constants.
struct Statistics {
  double mean;
  double variance;  // of the batch where it is renormalized
  double invstd;
  double weight;
  double d = 0;
  double r2 = 1;
};

// invstd is 0 where variance + epsilon is 0 (then y is exactly shift).
POPNORM_INLINE double inverse_std(double variance, double epsilon) {
  const double sum = variance + epsilon;
  const double inverse = 1 / std::sqrt(sum);
  return sum == 0 ? 0 : inverse;
}

POPNORM_INLINE Statistics batch_statistics(const Moments& batch, double epsilon) {
  const double variance = biased_variance(batch);
  return {batch.mean, variance, inverse_std(variance, epsilon), batch.weight};
}

POPNORM_INLINE Statistics given_statistics(const MeanVariance& given, double epsilon) {
  return {given.mean, given.variance, inverse_std(given.variance, epsilon), 0};
}

// The mixture (1-share)*batch + share*given. x - mean is then (x - m_b) + share*(m_b - m_g), and the derivatives of mean and
// variance by x are (1-share)/W and (1-share)/W * 2(x - mean): BATCH's with W/(1-share).
POPNORM_INLINE Statistics blended_statistics(const Moments& batch, const MeanVariance& given, double share,
                                             double epsilon) {
  if (batch.weight == 0 || share == 1) return given_statistics(given, epsilon);
  const Moments both =
      mix({batch.weight, batch.mean, batch.m2}, {batch.weight, given.mean, given.variance * batch.weight}, share);
  const double variance = biased_variance(both);
  return {both.mean, variance, inverse_std(variance, epsilon), batch.weight / (1 - share)};
}

// xhat = r*(x - m_b)*invstd_b + d = (x - (m_b - d/(r*invstd_b)))*(r*invstd_b).
POPNORM_INLINE Statistics renormalized_statistics(const Moments& batch, const MeanVariance& given, double r_max,
                                                  double d_max, double epsilon) {
  if (batch.weight == 0) return given_statistics(given, epsilon);
  const Statistics s = batch_statistics(batch, epsilon);
  const double given_invstd = inverse_std(given.variance, epsilon);
  if (s.invstd == 0) return s;  // a constant channel without epsilon: y is shift
  const double distance = batch.mean - given.mean;
  double r = clamped(given_invstd / s.invstd, 1 / r_max, r_max);
  double d = clamped(distance * given_invstd, -d_max, d_max);
  if (given_invstd == 0) {  // the given channel is constant: what both go to as its variance goes to 0
    r = r_max;
    d = distance > 0 ? d_max : distance < 0 ? -d_max : 0;
    if (std::isinf(r) || std::isinf(d)) return {batch.mean, s.variance, 0, batch.weight};
  }
  const double invstd = r * s.invstd;
  return {batch.mean - d / invstd, s.variance, invstd, batch.weight, d, 1 / (r * r)};
}

// Statistics of a row: mean = hi + lo to twice the precision of T, so that |mean| >> std costs no accuracy.
template <class T>
struct StatisticsRow {
  T hi;
  T lo;
  T invstd;
};

template <class T>
POPNORM_INLINE StatisticsRow<T> statistics_row(double mean, double invstd) {
  const T hi = round_to<T>(mean);
  return {hi, round_to<T>(mean - static_cast<double>(hi)), round_saturated<T>(invstd)};
}

// y = (x - hi)*s + b. The low part of the mean is folded into b: it costs nothing per element.
template <class T>
struct NormalizeRow {
  T hi;
  T s;
  T b;
};

template <class T>
POPNORM_INLINE T gain(T scale, T invstd) {
  const T product = round_to<T>(static_cast<double>(scale) * static_cast<double>(invstd));
  // Saturated as invstd is: infinity would make NaN of a constant channel. What is infinite in `scale` stays so.
  constexpr T kMost = static_cast<T>(kLargest<T>);
  const T most = std::fabs(scale) <= kMost ? kMost : std::fabs(scale);
  return product > most ? most : product < -most ? -most : product;
}

template <class T>
POPNORM_INLINE NormalizeRow<T> normalize_row(const StatisticsRow<T>& row, T scale, T shift) {
  const T s = gain(scale, row.invstd);
  const double b = static_cast<double>(shift) - static_cast<double>(row.lo) * static_cast<double>(s);
  return {row.hi, s, round_to<T>(b)};
}

// sum(dy*xhat) from the kernels' sum(dy*(x-hi)).
template <class T>
POPNORM_INLINE double sum_dy_xhat(const StatisticsRow<T>& row, double sum_dy, double sum_dy_d) {
  return static_cast<double>(row.invstd) * (sum_dy_d - static_cast<double>(row.lo) * sum_dy);
}

// dx = (a*dy - k1) - ((x - hi)*invstd)*k2, with lo folded into k1. p1 and p2 are A/W and B/W. Where they are not `scaled`,
// of sums of scale*dy, the gain that multiplies dy multiplies them too: equal gradients then cancel exactly.
template <class T>
struct GradientRow {
  T a;
  T k1;
  T k2;
};

template <class T>
POPNORM_INLINE GradientRow<T> gradient_row(const StatisticsRow<T>& row, T scale, bool scaled, double p1, double p2) {
  const double invstd = static_cast<double>(row.invstd);
  const T a = gain(scale, row.invstd);
  const double factor = scaled ? invstd : static_cast<double>(a);
  const double k2 = factor * p2;
  const double k1 = factor * p1 - static_cast<double>(row.lo) * invstd * k2;
  return {a, round_to<T>(k1), round_to<T>(k2)};
}

}  // namespace popnorm

#endif
