// From statistics to the coefficient rows that kernels read. T is the arithmetic type: float, or double for f64
// storage. Forward and backward go through the same functions, so that what backward recomputes has forward's bits.
#ifndef POPNORM_KERNELS_AFFINE_HPP
#define POPNORM_KERNELS_AFFINE_HPP

#include <cmath>
#include <limits>

namespace popnorm {

// A double rounded to T; finite values saturate instead of becoming infinite where `saturate` asks for it.
template <class T>
inline T round_to(double value) {
  return static_cast<T>(value);
}

template <class T>
inline T round_saturated(double value) {
  constexpr double limit = static_cast<double>(std::numeric_limits<T>::max());
  return static_cast<T>(value > limit ? limit : value);
}

// Statistics of a row: mean = hi + lo to twice the precision of T, so that |mean| >> std costs no accuracy.
template <class T>
struct StatisticsRow {
  T hi;
  T lo;
  T invstd;
};

// invstd is 0 where variance + epsilon is 0 (then y is exactly shift), and at most the largest finite T.
inline double inverse_std(double variance, double epsilon) {
  const double sum = variance + epsilon;
  return sum == 0 ? 0 : 1 / std::sqrt(sum);
}

template <class T>
inline StatisticsRow<T> statistics_row(double mean, double variance, double epsilon) {
  const T hi = round_to<T>(mean);
  return {hi, round_to<T>(mean - static_cast<double>(hi)), round_saturated<T>(inverse_std(variance, epsilon))};
}

// y = (x - hi)*s + b. The low part of the mean is folded into b: it costs nothing per element.
template <class T>
struct NormalizeRow {
  T hi;
  T s;
  T b;
};

template <class T>
inline T gain(T scale, T invstd) {
  return round_to<T>(static_cast<double>(scale) * static_cast<double>(invstd));
}

template <class T>
inline NormalizeRow<T> normalize_row(const StatisticsRow<T>& row, T scale, T shift) {
  const T s = gain(scale, row.invstd);
  const double b = static_cast<double>(shift) - static_cast<double>(row.lo) * static_cast<double>(s);
  return {row.hi, s, round_to<T>(b)};
}

// sum(dy*xhat) from the kernels' sum(dy*(x-hi)).
template <class T>
inline double sum_dy_xhat(const StatisticsRow<T>& row, double sum_dy, double sum_dy_d) {
  return static_cast<double>(row.invstd) * (sum_dy_d - static_cast<double>(row.lo) * sum_dy);
}

// dx = a*((dy - k1) - ((x - hi)*invstd)*k2), with lo folded into k1.
template <class T>
struct GradientRow {
  T a;
  T k1;
  T k2;
};

template <class T>
inline GradientRow<T> gradient_row(const StatisticsRow<T>& row, T scale, double weight, double sum_dy,
                                   double sum_dy_xhat) {
  if (!(weight > 0)) return {gain(scale, row.invstd), T(0), T(0)};
  const double k2 = sum_dy_xhat / weight;
  const double k1 = sum_dy / weight - static_cast<double>(row.lo) * static_cast<double>(row.invstd) * k2;
  return {gain(scale, row.invstd), round_to<T>(k1), round_to<T>(k2)};
}

}  // namespace popnorm

#endif
