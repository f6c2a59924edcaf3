// The kernels between the sweeps: partial results merged along trees, statistics and coefficients made, for channels side by
// side. Against the formulas in long double, and with the same bits on every tier.
#include <algorithm>
#include <limits>

#include "core/tiling.hpp"
#include "kernels/kernel_case.hpp"
#include "kernels/moments.hpp"

namespace popnorm_test {
namespace {

constexpr Real kRounding = 0x1p-53L;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class Coefficients : public testing::TestWithParam<std::tuple<int, int, std::int64_t>> {
 protected:
  // Positive values where `low` is.
  Array drawn(popnorm_type type, double low, double high, std::int64_t count) {
    Array a(type, count, Placement::ends_at_guard);
    for (std::int64_t i = 0; i < count; ++i) a.set(i, random_.uniform(low, high));
    return a;
  }
  Array drawn(double low, double high) { return drawn(type_, low, high, channels_); }
  Array result() const { return {type_, channels_, Placement::ends_at_guard}; }
  Array doubles() const { return {POPNORM_F64, channels_, Placement::ends_at_guard}; }
  const Kernels& kernels(const KernelTable& table) const { return table.kernels[storage_][std::get<0>(GetParam())]; }

  static std::vector<double> all_of(std::initializer_list<const Array*> arrays) {
    std::vector<double> all;
    for (const Array* a : arrays)
      for (const double v : a->values()) all.push_back(v);
    return all;
  }
  // A value of T made in double by a few operations on terms of that size.
  void expect_rounded(double got, Real exact, Real size, std::int64_t c, const char* what) const {
    EXPECT_LE(std::fabs(got - exact), popnorm::reference::rounded(8 * kRounding * size, exact, format_of(type_)))
        << what << ", channel " << c;
  }

  const int storage_ = std::get<1>(GetParam());
  const popnorm_type type_ = storage_ == 0 ? POPNORM_F32 : POPNORM_F64;
  const std::int64_t channels_ = std::get<2>(GetParam());
  Random random_{"Coefficients"};
};

// Slots that lie among those of others, further apart than they have channels.
struct Slots {
  SlotList list;
  std::int64_t entries;

  Slots(std::int64_t count, std::int64_t channels)
      : list{count, 2, 3, channels + 5}, entries((2 + 3 * std::max<std::int64_t>(count, 1)) * list.pitch) {}
  std::int64_t at(std::int64_t i, std::int64_t c) const { return (list.first + i * list.stride) * list.pitch + c; }
  // Of the tree that merges them, and of two roundings more.
  Real levels() const { return std::ceil(std::log2(static_cast<double>(list.count) + 1)) + 2; }
};

constexpr std::int64_t kCounts[] = {0, 1, 2, 3, 5, 8, 13, 64, 100};

TEST_P(Coefficients, MergeMomentsAlongTheTree) {
  for (const std::int64_t count : kCounts) {
    SCOPED_TRACE(count);
    const Slots slots(count, channels_);
    constexpr std::int64_t kPitch = 2;
    Array weight = drawn(POPNORM_F64, 1, 50, (2 + 3 * count) * kPitch + 1);
    Array mean = drawn(POPNORM_F64, 90, 110, slots.entries), m2 = drawn(POPNORM_F64, 0, 40, slots.entries);
    // What lies in a slot of weight 0 does not matter.
    for (std::int64_t i = 0; i < count; ++i) {
      if (random_.below(4) != 0) continue;
      weight.set((2 + 3 * i) * kPitch, 0);
      for (std::int64_t c = 0; c < channels_; ++c) {
        mean.set(slots.at(i, c), kNaN);
        m2.set(slots.at(i, c), kNaN);
      }
    }
    const auto slot = [&](std::int64_t i, std::int64_t c) {
      const double w = weight.get((2 + 3 * i) * kPitch);
      return popnorm::Moments{w, w == 0 ? 0 : mean.get(slots.at(i, c)), w == 0 ? 0 : m2.get(slots.at(i, c))};
    };
    expect_same_on_every_tier([&](const KernelTable& table) {
      double all = kNaN;
      Array to_mean = doubles(), to_m2 = doubles();
      kernels(table).merge_moments({slots.list, channels_, weight.doubles(), kPitch, mean.doubles(), m2.doubles(), &all,
                                    to_mean.doubles(), to_m2.doubles()});
      for (std::int64_t c = 0; c < channels_; ++c) {
        popnorm::reference::Moments exact;
        for (std::int64_t i = 0; i < count; ++i) {
          const popnorm::Moments m = slot(i, c);
          exact = popnorm::reference::combine(exact, {m.weight, m.mean, m.m2});
        }
        // Rounded means put the distances between them off.
        const Real e = slots.levels() * kRounding;
        EXPECT_LE(std::fabs(all - exact.weight), e * exact.weight);
        EXPECT_LE(std::fabs(to_mean.get(c) - exact.mean), 4 * e * exact.mean) << "channel " << c;
        EXPECT_LE(std::fabs(to_m2.get(c) - exact.m2),
                  8 * e * exact.m2 + 4 * e * exact.mean * std::sqrt(exact.weight * exact.m2))
            << "channel " << c;
        if (count == 0) continue;
        const popnorm::Moments scalar = popnorm::balanced_tree(
            count, [&](std::int64_t i) { return slot(i, c); },
            [](const popnorm::Moments& p, const popnorm::Moments& q) { return popnorm::combine(p, q); });
        EXPECT_TRUE(same_bits({all, to_mean.get(c), to_m2.get(c)}, {scalar.weight, scalar.mean, scalar.m2}))
            << "channel " << c;
      }
      std::vector<double> result = all_of({&to_mean, &to_m2});
      result.push_back(all);
      return result;
    });
  }
}

TEST_P(Coefficients, MergeSumsAlongTheTree) {
  for (const std::int64_t count : kCounts) {
    SCOPED_TRACE(count);
    const Slots slots(count, channels_);
    Array dy = drawn(POPNORM_F64, -3, 5, slots.entries), dy_d = drawn(POPNORM_F64, -30, 20, slots.entries);
    Array lo = drawn(-1e-5, 1e-5), invstd = drawn(0.1, 4);
    expect_same_on_every_tier([&](const KernelTable& table) {
      Array to_dy = doubles(), to_dy_xhat = doubles();
      kernels(table).merge_sums({slots.list, channels_, dy.doubles(), dy_d.doubles(), lo.data(), invstd.data(),
                                 to_dy.doubles(), to_dy_xhat.doubles()});
      for (std::int64_t c = 0; c < channels_; ++c) {
        Real sum = 0, dot = 0, size_sum = 0, size_dot = 0;
        for (std::int64_t i = 0; i < count; ++i) {
          const double a = dy.get(slots.at(i, c)), b = dy_d.get(slots.at(i, c));
          sum += a;
          dot += b;
          size_sum += std::fabs(a);
          size_dot += std::fabs(b);
        }
        const Real e = slots.levels() * kRounding;
        EXPECT_LE(std::fabs(to_dy.get(c) - sum), e * size_sum) << "channel " << c;
        EXPECT_LE(std::fabs(to_dy_xhat.get(c) - invstd.get(c) * (dot - lo.get(c) * sum)),
                  2 * e * invstd.get(c) * (size_dot + std::fabs(lo.get(c)) * size_sum))
            << "channel " << c;
      }
      return all_of({&to_dy, &to_dy_xhat});
    });
  }
}

// The mean in two parts, of which the first is the nearest.
TEST_P(Coefficients, Statistics) {
  Array mean = drawn(POPNORM_F64, -1e4, 1e4, channels_), m2 = drawn(POPNORM_F64, 0, 500, channels_);
  m2.set(0, 0);
  for (const double epsilon : {0.0, 1e-5})
    for (const double weight : {0.0, 1.0, 77.0}) {
      SCOPED_TRACE(testing::Message() << "epsilon " << epsilon << " weight " << weight);
      expect_same_on_every_tier([&](const KernelTable& table) {
        Array exact_invstd = doubles(), hi = result(), lo = result(), invstd = result();
        kernels(table).statistics({channels_, epsilon, weight, mean.doubles(), m2.doubles(), exact_invstd.doubles(),
                                   hi.data(), lo.data(), invstd.data()});
        for (std::int64_t c = 0; c < channels_; ++c) {
          const auto exact = popnorm::reference::statistics_of({weight, mean.get(c), m2.get(c)}, epsilon);
          EXPECT_EQ(hi.get(c), stored(type_, mean.get(c)));
          EXPECT_EQ(lo.get(c), stored(type_, mean.get(c) - hi.get(c)));
          EXPECT_LE(std::fabs(exact_invstd.get(c) - exact.invstd), 4 * kRounding * exact.invstd) << "channel " << c;
          EXPECT_EQ(invstd.get(c), stored(type_, exact_invstd.get(c)));
        }
        return all_of({&exact_invstd, &hi, &lo, &invstd});
      });
    }
}

TEST_P(Coefficients, NormalizeRow) {
  Array hi = drawn(-50, 50), lo = drawn(-1e-5, 1e-5), invstd = drawn(0.1, 4);
  for (const bool wide : {false, true}) {
    const popnorm_type parameters = wide ? POPNORM_F64 : POPNORM_F32;
    Array scale = drawn(parameters, -2, 2, channels_), shift = drawn(parameters, -2, 2, channels_);
    for (const bool scaled : {false, true})
      for (const bool shifted : {false, true}) {
        SCOPED_TRACE(testing::Message() << "wide " << wide << " scale " << scaled << " shift " << shifted);
        expect_same_on_every_tier([&](const KernelTable& table) {
          Array out_hi = result(), s = result(), b = result();
          kernels(table).normalize_row({channels_, hi.data(), lo.data(), invstd.data(), scaled ? scale.data() : nullptr,
                                        shifted ? shift.data() : nullptr, wide, out_hi.data(), s.data(), b.data()});
          for (std::int64_t c = 0; c < channels_; ++c) {
            // Parameters are first rounded to the type.
            const double of_scale = scaled ? stored(type_, scale.get(c)) : 1;
            const double of_shift = shifted ? stored(type_, shift.get(c)) : 0;
            EXPECT_EQ(out_hi.get(c), hi.get(c));
            EXPECT_EQ(s.get(c), stored(type_, of_scale * invstd.get(c)));
            const Real low = static_cast<Real>(lo.get(c)) * s.get(c);
            expect_rounded(b.get(c), of_shift - low, std::fabs(of_shift) + std::fabs(low), c, "b");
          }
          return all_of({&out_hi, &s, &b});
        });
      }
  }
}

// dx = (a*dy - k1) - ((x - hi)*invstd)*k2 from the sums of a row, under every way to have them.
TEST_P(Coefficients, GradientRow) {
  Array hi = drawn(-50, 50), lo = drawn(-1e-5, 1e-5), invstd = drawn(0.1, 4), scale = drawn(-2, 2);
  Array d = drawn(-3, 3), r2 = drawn(0.1, 2);
  Array weight = drawn(POPNORM_F64, 1, 90, channels_), sum_dy = drawn(POPNORM_F64, -40, 60, channels_),
        sum_dy_xhat = drawn(POPNORM_F64, -40, 60, channels_);
  weight.set(channels_ / 2, 0);
  for (int ways = 0; ways < 16; ++ways) {
    const bool scaled = (ways & 1) != 0, constant = (ways & 2) != 0, renormalized = (ways & 4) != 0,
               own_weights = (ways & 8) != 0;
    SCOPED_TRACE(testing::Message() << "scaled " << scaled << " constant " << constant << " renormalized "
                                    << renormalized << " own weights " << own_weights);
    constexpr double kWeightOfAll = 30;
    expect_same_on_every_tier([&](const KernelTable& table) {
      Array out_hi = result(), out_invstd = result(), a = result(), k1 = result(), k2 = result();
      kernels(table).gradient_row(
          {channels_, hi.data(), lo.data(), invstd.data(), scale.data(), own_weights ? weight.doubles() : nullptr,
           kWeightOfAll, renormalized ? d.data() : nullptr, renormalized ? r2.data() : nullptr, sum_dy.doubles(),
           sum_dy_xhat.doubles(), scaled, constant, out_hi.data(), out_invstd.data(), a.data(), k1.data(), k2.data()});
      for (std::int64_t c = 0; c < channels_; ++c) {
        EXPECT_EQ(out_hi.get(c), hi.get(c));
        EXPECT_EQ(out_invstd.get(c), invstd.get(c));
        EXPECT_EQ(a.get(c), stored(type_, scale.get(c) * invstd.get(c)));
        const Real w = own_weights ? weight.get(c) : kWeightOfAll;
        const Real of_d = renormalized ? d.get(c) : 0, of_r2 = renormalized ? r2.get(c) : 1;
        const Real sum = sum_dy.get(c), dot = sum_dy_xhat.get(c), low = lo.get(c), of_invstd = invstd.get(c);
        const Real factor = scaled ? of_invstd : a.get(c);
        const bool through = !constant && w > 0;
        const Real pull = through ? (dot - of_d * sum) * of_r2 / w : 0;
        const Real pull_size = through ? (std::fabs(dot) + std::fabs(of_d * sum)) * of_r2 / w : 0;
        const Real push = through ? sum / w - of_d * pull : 0;
        const Real push_size = through ? std::fabs(sum) / w + std::fabs(of_d) * pull_size : 0;
        expect_rounded(k2.get(c), factor * pull, std::fabs(factor) * pull_size, c, "k2");
        expect_rounded(k1.get(c), factor * push - low * of_invstd * factor * pull,
                       std::fabs(factor) * (push_size + std::fabs(low) * of_invstd * pull_size), c, "k1");
      }
      return all_of({&out_hi, &out_invstd, &a, &k1, &k2});
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, Coefficients,
                         testing::Combine(testing::Range(0, kForms), testing::Range(0, 2),
                                          testing::Values<std::int64_t>(1, 3, 7, 8, 9, 15, 16, 17, 33, 64, 70)));

}  // namespace
}  // namespace popnorm_test
