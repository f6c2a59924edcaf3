// Batch normalization under any maps, weights and source of statistics, as the formulas of popnorm.h say it: group by group,
// element by element, in long double. Nothing is shared with the library.
#ifndef POPNORM_TESTS_MAPS_ORACLE_HPP
#define POPNORM_TESTS_MAPS_ORACLE_HPP

#include <popnorm/popnorm.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/reference.hpp"

namespace popnorm_test {

using popnorm::reference::Real;

// What the samples of a call are. Tensors are in channel order: element (c, n, s) at (c*n_samples + n)*positions + s.
struct Meaning {
  std::int64_t n = 0, c = 0, s = 0;
  std::int64_t groups = 1, slots = 1, affine_slots = 1;
  std::vector<std::int32_t> group, slot, affine;  // [n]
  std::vector<double> weight;                     // [n][s]
  popnorm_statistics statistics = POPNORM_BATCH;
  double share = 0.5, renorm_r = 3, renorm_d = 5, epsilon = 1e-5;
  std::vector<double> given_mean, given_variance;  // [slots][c]
  std::vector<double> scale, shift;                // [affine_slots][c]
  popnorm::reference::Format storage;              // what it is computed in

  std::int64_t rows() const { return statistics == POPNORM_GIVEN ? slots : groups; }
  std::int64_t row(std::int64_t sample) const {
    return (statistics == POPNORM_GIVEN ? slot : group)[static_cast<std::size_t>(sample)];
  }
};

struct Exact {
  Real value;
  Real bound;
};

// What the oracle says, with how far the library may be off, before rounding to the output's type.
class Oracle {
 public:
  struct Row {
    Real weight = 0, mean = 0, m2 = 0;          // of the batch
    Real center = 0, variance = 0, invstd = 0;  // what normalizes
    Real pull = 0;                              // W, W/(1-share); 0: constants
    Real d = 0, r = 1;
    Real ratio = 1;                           // r before it is clipped
    Real a = 0, b = 0, abs_a = 0, abs_b = 0;  // sums of scale*dy and scale*dy*xhat, and of their sizes
  };

  Oracle(const Meaning& m, const std::vector<double>& x, const std::vector<double>& dy) : m_(m), x_(x), dy_(dy) {
    rows_.resize(size(m.rows() * m.c));
    groups_.resize(size(m.groups * m.c));
    dscale_.resize(size(m.affine_slots * m.c), {0, 0});
    dshift_ = dscale_;
    for (std::int64_t c = 0; c < m.c; ++c) {
      moments(c);
      for (std::int64_t row = 0; row < m.rows(); ++row) normalize_by(row, c);
      sums(c);
    }
  }

  const Row& group(std::int64_t g, std::int64_t c) const { return groups_[size(g * m_.c + c)]; }
  const Row& row(std::int64_t r, std::int64_t c) const { return rows_[size(r * m_.c + c)]; }

  Exact y(std::int64_t c, std::int64_t n, std::int64_t s) const {
    if (absent(n, s)) return {0, 0};
    const Row& r = row(m_.row(n), c);
    const Real scale = m_.scale[affine(n, c)], shift = m_.shift[affine(n, c)];
    const Real xhat = xhat_of(c, n, s);
    const popnorm::reference::Statistics statistics{r.center, r.variance, r.invstd};
    const popnorm::reference::Bounds bounds(m_.storage, statistics, {scale, shift});
    // The statistics' part of the bound is 16u|scale| + 8u|scale*xhat|: a mean and a variance that are made of the batch's
    // and given ones carry up to three times the batch's relative errors (blend: 8u + 16u for the variance), and
    // renormalization adds an xhat of d, which is the mean over the given standard deviation.
    return {scale * xhat + shift, made_of() * (1 + r.ratio + std::fabs(r.d)) * bounds.y(x_[at(c, n, s)], none())};
  }

  Exact dx(std::int64_t c, std::int64_t n, std::int64_t s) const {
    if (absent(n, s)) return {0, 0};
    const Row& r = row(m_.row(n), c);
    const Real scale = m_.scale[affine(n, c)];
    const Real gradient = scale * dy_[at(c, n, s)];
    const Real xhat = xhat_of(c, n, s);
    const Real w = m_.weight[size(n * m_.s + s)];
    Real value = r.invstd * gradient;
    Real spread = std::fabs(gradient);
    if (r.pull > 0) {
      const Real r2 = 1 / (r.r * r.r);
      const Real b = (r.b - r.d * r.a) * r2, abs_b = (r.abs_b + std::fabs(r.d) * r.abs_a) * r2;
      const Real a = r.a - r.d * b, abs_a = r.abs_a + std::fabs(r.d) * abs_b;
      value -= r.invstd * (w / r.pull) * (a + xhat * b);
      spread += w / r.pull * (abs_a + (1 + std::fabs(xhat)) * abs_b);
    }
    return {value, made_of() * 24 * unit(c, n) * r.invstd * spread};
  }

  // Per affine slot.
  Exact dscale(std::int64_t slot, std::int64_t c) const { return dscale_[size(slot * m_.c + c)]; }
  Exact dshift(std::int64_t slot, std::int64_t c) const { return dshift_[size(slot * m_.c + c)]; }

  bool absent(std::int64_t n, std::int64_t s) const { return m_.weight[size(n * m_.s + s)] == 0; }
  std::size_t at(std::int64_t c, std::int64_t n, std::int64_t s) const { return size((c * m_.n + n) * m_.s + s); }

  std::size_t affine(std::int64_t n, std::int64_t c) const { return size(m_.affine[size(n)] * m_.c + c); }
  // u, with the growth that f64 storage is allowed.
  Real unit(std::int64_t c, std::int64_t n) const {
    const Row& r = row(m_.row(n), c);
    const Real sigma = std::sqrt(r.variance);
    return m_.storage.unit == popnorm::reference::kF64.unit
               ? m_.storage.unit * 2048 * (sigma > 0 ? 1 + std::fabs(r.center) / sigma : 1)
               : m_.storage.unit;
  }

  Real xhat_of(std::int64_t c, std::int64_t n, std::int64_t s) const {
    const Row& r = row(m_.row(n), c);
    return (x_[at(c, n, s)] - r.center) * r.invstd;
  }

 private:
  static std::size_t size(std::int64_t i) { return static_cast<std::size_t>(i); }
  static popnorm::reference::Format none() { return {0, 0, 0}; }
  Real made_of() const { return m_.statistics == POPNORM_BATCH || m_.statistics == POPNORM_GIVEN ? 1 : 3; }

  template <class Visit>
  void for_each_present(std::int64_t c, const Visit& visit) const {
    for (std::int64_t n = 0; n < m_.n; ++n)
      for (std::int64_t s = 0; s < m_.s; ++s)
        if (!absent(n, s)) visit(n, at(c, n, s), static_cast<Real>(m_.weight[size(n * m_.s + s)]));
  }

  void moments(std::int64_t c) {
    const auto of = [&](std::int64_t n) -> Row& { return groups_[size(m_.group[size(n)] * m_.c + c)]; };
    for_each_present(c, [&](std::int64_t n, std::size_t i, Real w) {
      of(n).weight += w;
      of(n).mean += w * x_[i];
    });
    for (std::int64_t g = 0; g < m_.groups; ++g) {
      Row& row = groups_[size(g * m_.c + c)];
      row.mean = row.weight > 0 ? row.mean / row.weight : 0;
    }
    for_each_present(c, [&](std::int64_t n, std::size_t i, Real w) {
      const Real d = x_[i] - of(n).mean;
      of(n).m2 += w * d * d;
    });
  }

  // The slot that a group's samples have.
  std::int64_t slot_of(std::int64_t g) const {
    for (std::int64_t n = 0; n < m_.n; ++n)
      if (m_.group[size(n)] == g) return m_.slot[size(n)];
    return 0;
  }

  void normalize_by(std::int64_t index, std::int64_t c) {
    Row& r = rows_[size(index * m_.c + c)];
    if (m_.statistics != POPNORM_GIVEN) r = groups_[size(index * m_.c + c)];
    const std::int64_t slot = m_.statistics == POPNORM_GIVEN ? index : slot_of(index);
    const Real batch_variance = r.weight > 0 ? r.m2 / r.weight : 0;
    const Real epsilon = m_.epsilon;
    const auto given = [&](const std::vector<double>& values) {
      return values.empty() ? Real(0) : Real(values[size(slot * m_.c + c)]);
    };
    const auto inverse = [&](Real variance) {
      return variance + epsilon == 0 ? Real(0) : 1 / std::sqrt(variance + epsilon);
    };
    const Real share = m_.share;
    r.center = given(m_.given_mean);
    r.variance = given(m_.given_variance);
    r.invstd = inverse(r.variance);
    if (m_.statistics == POPNORM_GIVEN || (m_.statistics != POPNORM_BATCH && r.weight == 0)) return;
    if (m_.statistics == POPNORM_BATCH) {
      r.center = r.mean;
      r.variance = batch_variance;
      r.invstd = inverse(r.variance);
      r.pull = r.weight;
    } else if (m_.statistics == POPNORM_BLEND) {
      const Real apart = r.mean - r.center;
      r.center = (1 - share) * r.mean + share * r.center;
      r.variance = (1 - share) * batch_variance + share * r.variance + share * (1 - share) * apart * apart;
      r.invstd = inverse(r.variance);
      r.pull = share < 1 ? r.weight / (1 - share) : 0;
    } else {
      const Real invstd = inverse(batch_variance), given_invstd = r.invstd;
      const Real r_max = m_.renorm_r, d_max = m_.renorm_d;
      r.ratio = given_invstd / invstd;
      r.r = std::clamp(r.ratio, 1 / r_max, r_max);
      r.d = std::clamp((r.mean - r.center) * given_invstd, -d_max, d_max);
      r.invstd = r.r * invstd;
      r.center = r.mean - r.d / r.invstd;
      r.variance = batch_variance;
      r.pull = r.weight;
    }
  }

  void sums(std::int64_t c) {
    struct Slot {
      Real dy = 0, dy_xhat = 0, abs_dy = 0, abs_dy_xhat = 0, unit = 0;
    };
    std::vector<Slot> slots(size(m_.affine_slots));
    for_each_present(c, [&](std::int64_t n, std::size_t i, Real) {
      Row& r = rows_[size(m_.row(n) * m_.c + c)];
      const Real xhat = (x_[i] - r.center) * r.invstd;
      const Real scaled = m_.scale[affine(n, c)] * dy_[i];
      r.a += scaled;
      r.b += scaled * xhat;
      r.abs_a += std::fabs(scaled);
      r.abs_b += std::fabs(scaled * xhat);
      Slot& slot = slots[size(m_.affine[size(n)])];
      slot.dy += dy_[i];
      slot.dy_xhat += dy_[i] * xhat;
      slot.abs_dy += std::fabs(dy_[i]);
      slot.abs_dy_xhat += std::fabs(dy_[i] * xhat);
      slot.unit = std::max(slot.unit, unit(c, n) * (r.r + std::fabs(r.d)));
    });
    for (std::int64_t a = 0; a < m_.affine_slots; ++a) {
      const Slot& slot = slots[size(a)];
      dscale_[size(a * m_.c + c)] = {slot.dy_xhat, made_of() * 8 * slot.unit * (slot.abs_dy_xhat + slot.abs_dy)};
      dshift_[size(a * m_.c + c)] = {slot.dy, 8 * slot.unit * slot.abs_dy};
    }
  }

  const Meaning& m_;
  const std::vector<double>& x_;
  const std::vector<double>& dy_;
  std::vector<Row> rows_, groups_;
  std::vector<Exact> dscale_, dshift_;
};

}  // namespace popnorm_test

#endif
