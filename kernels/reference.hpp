// The oracle: batch normalization as the formulas say it, in long double, one element after the other.
//
// It is dumb by decree. Nothing here is shared with the kernels, nothing is vectorized, and every sum is corrected by a
// second pass, so that its own error is far below the bounds at the end of this file, which are the library's promise
// (docs/numerics.md derives them). One channel at a time: `x` and `dy` are the channel's elements in any fixed order,
// in double, which holds every storage type exactly.
#ifndef POPNORM_KERNELS_REFERENCE_HPP
#define POPNORM_KERNELS_REFERENCE_HPP

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

namespace popnorm::reference {

using Real = long double;

// ---------------------------------------------------------------------------------------------------- arithmetic

// A commutative monoid under combine(); weight 0 is its zero.
struct Moments {
  Real weight = 0;
  Real mean = 0;
  Real m2 = 0;
};

// What normalizes: of the batch, or given.
struct Statistics {
  Real mean = 0;
  Real variance = 0;
  Real invstd = 0;
};

struct Affine {
  Real scale = 1;
  Real shift = 0;
};

// The sums of backward, and the sums of absolute values that bound their error.
struct Sums {
  Real dy = 0;
  Real dy_xhat = 0;
  Real abs_dy = 0;
  Real abs_dy_xhat = 0;
};

inline Moments moments_of(std::span<const double> x) {
  Moments result;
  if (x.empty()) return result;
  result.weight = static_cast<Real>(x.size());
  Real sum = 0;
  for (const double value : x) sum += value;
  const Real first = sum / result.weight;
  Real residual = 0;
  for (const double value : x) residual += value - first;
  result.mean = first + residual / result.weight;
  for (const double value : x) {
    const Real deviation = value - result.mean;
    result.m2 += deviation * deviation;
  }
  return result;
}

inline Moments combine(const Moments& a, const Moments& b) {
  if (a.weight == 0) return b;
  if (b.weight == 0) return a;
  const Real weight = a.weight + b.weight;
  const Real delta = b.mean - a.mean;
  return {weight, a.mean + delta * (b.weight / weight), a.m2 + b.m2 + delta * delta * (a.weight * b.weight / weight)};
}

// epsilon = 0 and variance = 0 have invstd 0.
inline Statistics statistics_of(Real mean, Real variance, Real epsilon) {
  const Real shifted = variance + epsilon;
  return {mean, variance, shifted == 0 ? 0 : 1 / std::sqrt(shifted)};
}

inline Statistics statistics_of(const Moments& m, Real epsilon) {
  return statistics_of(m.mean, m.weight == 0 ? 0 : m.m2 / m.weight, epsilon);
}

inline Real normalized(Real x, const Statistics& s) { return (x - s.mean) * s.invstd; }

inline std::vector<Real> forward(std::span<const double> x, const Statistics& s, const Affine& a) {
  std::vector<Real> y;
  y.reserve(x.size());
  for (const double value : x) y.push_back(a.scale * normalized(value, s) + a.shift);
  return y;
}

inline Sums sums_of(std::span<const double> x, std::span<const double> dy, const Statistics& s) {
  Sums result;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Real product = dy[i] * normalized(x[i], s);
    result.dy += dy[i];
    result.dy_xhat += product;
    result.abs_dy += std::fabs(dy[i]);
    result.abs_dy_xhat += std::fabs(product);
  }
  return result;
}

// Through the batch statistics. `weight` and `of_all` belong to everything that shared the statistics (several ranks
// when synchronized), `x` and `dy` may be a part of it.
inline std::vector<Real> backward_batch(std::span<const double> x, std::span<const double> dy, const Statistics& s,
                                        Real scale, const Sums& of_all, Real weight) {
  std::vector<Real> dx;
  dx.reserve(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Real through_mean = of_all.dy / weight;
    const Real through_variance = normalized(x[i], s) * (of_all.dy_xhat / weight);
    dx.push_back(scale * s.invstd * (dy[i] - through_mean - through_variance));
  }
  return dx;
}

// With given statistics, which are constants.
inline std::vector<Real> backward_given(std::span<const double> dy, const Statistics& s, Real scale) {
  std::vector<Real> dx;
  dx.reserve(dy.size());
  for (const double value : dy) dx.push_back(scale * s.invstd * value);
  return dx;
}

// ---------------------------------------------------------------------------------------------------- bounds

// A binary floating-point format: `unit` is half the distance from 1 to the next number, `tiny` half the smallest
// subnormal.
struct Format {
  Real unit = 0;
  Real tiny = 0;
  Real largest = 0;
};

template <class Float>
constexpr Format format_of() {
  using limits = std::numeric_limits<Float>;
  return {static_cast<Real>(limits::epsilon()) / 2, static_cast<Real>(limits::denorm_min()) / 2,
          static_cast<Real>(limits::max())};
}
inline constexpr Format kF32 = format_of<float>();
inline constexpr Format kF64 = format_of<double>();

// `error`, widened by one rounding to `output` of a value that is within `error` of `exact`: the "+ r" of the bounds.
inline Real rounded(Real error, Real exact, const Format& output) {
  return error + output.unit * (std::fabs(exact) + error) + output.tiny;
}

// The promise for one channel. With given statistics sigma is the root of the given variance. `xhat_error` is how far
// the statistics that backward was handed put each xhat off: u*|mean|*invstd where the mean has been rounded to u.
class Bounds {
 public:
  Bounds(const Format& storage, const Statistics& s, const Affine& a, Real xhat_error = 0)
      : u_(storage.unit), s_(s), a_(a), sigma_(std::sqrt(s.variance)), xhat_error_(xhat_error) {
    if (storage.unit == kF64.unit) {
      growth_ = 2048 * (sigma_ > 0 ? 1 + std::fabs(s.mean) / sigma_ : 1);
      // growth_ * sigma_, but finite and right for a constant channel.
      grown_sigma_ = 2048 * (sigma_ > 0 ? sigma_ + std::fabs(s.mean) : 0);
    } else {
      grown_sigma_ = sigma_;
    }
  }

  [[nodiscard]] Real mean(const Format& output) const { return rounded(16 * u_ * grown_sigma_, s_.mean, output); }

  // Of variance, m2 and invstd alike: relative.
  [[nodiscard]] Real relative(Real exact, const Format& output) const {
    return rounded(8 * u_ * growth_ * std::fabs(exact), exact, output);
  }

  [[nodiscard]] Real y(Real x, const Format& output) const {
    const Real scaled = a_.scale * normalized(x, s_);
    // 2^-40 for f32 storage: what the mean in two floats leaves. In two doubles it leaves as much less as u is smaller.
    const Real of_row = 0x1p-16L * u_ * std::fabs(a_.scale * s_.mean) * s_.invstd;
    const Real error = 8 * u_ * (std::fabs(scaled) + std::fabs(a_.shift)) + 16 * u_ * std::fabs(a_.scale) + of_row;
    return rounded(growth_ * error, scaled + a_.shift, output);
  }

  [[nodiscard]] Real dx(Real x, Real dy, Real exact, const Sums& all, Real weight, const Format& output) const {
    const Real k1 = all.abs_dy / weight;
    const Real k2 = all.abs_dy_xhat / weight;
    const Real xhat = std::fabs(normalized(x, s_));
    const Real spread = std::fabs(dy) + k1 + (1 + xhat) * k2;
    const Real moved = xhat_error_ * (k2 + (xhat + xhat_error_) * k1);
    return rounded(std::fabs(a_.scale) * s_.invstd * (24 * u_ * growth_ * spread + moved), exact, output);
  }

  // With given statistics only the product is rounded: the same bound without the terms of the sums.
  [[nodiscard]] Real dx_given(Real dy, Real exact, const Format& output) const {
    return dx(s_.mean, dy, exact, Sums{}, 1, output);
  }

  // `before` is what the sum is accumulated onto.
  [[nodiscard]] Real dshift(const Sums& all, Real before, const Format& output) const {
    return rounded(8 * u_ * growth_ * all.abs_dy, before + all.dy, output);
  }

  [[nodiscard]] Real dscale(const Sums& all, Real before, const Format& output) const {
    const Real moved = xhat_error_ * all.abs_dy;
    return rounded(8 * u_ * growth_ * (all.abs_dy_xhat + all.abs_dy) + moved, before + all.dy_xhat, output);
  }

 private:
  Real u_;
  Statistics s_;
  Affine a_;
  Real sigma_;
  Real xhat_error_;
  Real growth_ = 1;
  Real grown_sigma_ = 0;
};

}  // namespace popnorm::reference

#endif
