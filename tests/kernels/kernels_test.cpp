// Kernels through the table that dispatch uses: every tier that runs here, both forms, both storage types. Tiers must agree to
// the bit, and with the oracle in bounds.
#include <limits>

#include "kernels/kernel_case.hpp"
#include "kernels/moments.hpp"

namespace popnorm_test {
namespace {

TEST_P(KernelCase, Moments) {
  expect_same_on_every_tier([&](const KernelTable& table) {
    Array mean = doubles(), m2 = doubles();
    kernels(table).moments({block(), input(x_), mean.doubles(), m2.doubles()});
    for (std::int64_t c = 0; c < c_.channels; ++c) {
      std::vector<double> x;
      each_of(c, [&](const Place& p) { x.push_back(x_.get(at(p))); });
      const auto exact = popnorm::reference::moments_of(x);
      const Real sigma = std::sqrt(exact.m2 / exact.weight);
      // A leaf's own bounds (docs/numerics.md). Around a pivot that is within the guard 3u and 6u; on top come roundings of
      // results, which are f64, of n terms at most. Wide columns: f64 sums of deviations up to 4 times as large.
      const Real n = exact.weight, slack = n * 0x1p-53L;
      const bool wide = c_.form == 1 && (type() == POPNORM_F64 || n < 64);
      EXPECT_LE(std::fabs(mean.get(c) - exact.mean),
                (wide ? 4 * slack : 3.3L * unit() + slack) * sigma + slack * std::fabs(exact.mean))
          << "channel " << c;
      EXPECT_LE(std::fabs(m2.get(c) - exact.m2), (wide ? 16 * (n / 4 + 6) * 0x1p-53L : 6 * unit() + slack) * exact.m2 +
                                                     slack * slack * exact.mean * exact.mean)
          << "channel " << c;
    }
    std::vector<double> result = mean.values();
    for (const double v : m2.values()) result.push_back(v);
    return result;
  });
}

TEST_P(KernelCase, BackwardReduce) {
  expect_same_on_every_tier([&](const KernelTable& table) {
    Array sum = doubles(), dot = doubles();
    kernels(table).backward_reduce({block(), input(x_), input(dy_), hi_.data(), sum.doubles(), dot.doubles()});
    for (std::int64_t c = 0; c < c_.channels; ++c) {
      Real exact_sum = 0, exact_dot = 0, size_sum = 0, size_dot = 0, count = 0;
      each_of(c, [&](const Place& p) {
        const Real dy = dy_.get(at(p)), product = dy * (static_cast<Real>(x_.get(at(p))) - hi_.get(c));
        exact_sum += dy;
        exact_dot += product;
        size_sum += std::fabs(dy);
        size_dot += std::fabs(product);
        count += 1;
      });
      // 2 roundings of the pairwise sum; 2 more of the product. f64 sums on top: n 2^-53 at most.
      const Real slack = count * 0x1p-53L;
      EXPECT_LE(std::fabs(sum.get(c) - exact_sum), (2 * unit() + slack) * size_sum) << "channel " << c;
      EXPECT_LE(std::fabs(dot.get(c) - exact_dot), (4 * unit() + slack) * size_dot) << "channel " << c;
    }
    std::vector<double> result = sum.values();
    for (const double v : dot.values()) result.push_back(v);
    return result;
  });
}

const std::vector<Stores> kEveryKindOfStores = {Stores::ordinary, Stores::streaming, Stores::four_streams};

TEST_P(KernelCase, NormalizeIsTheScalarExpressionToTheBit) {
  for (const bool chosen : {false, true})
    with_type([&]<class T>(T) {
      expect_elements(
          kEveryKindOfStores,
          [&](const Kernels& k, Array& y, Stores stores) {
            k.normalize({block(), input(x_), output(y), hi_.data(), a_.data(), k1_.data(), stores, choice(chosen)});
          },
          [&](const Place& p) {
            const std::int64_t r = coefficient(p, chosen);
            const T d = static_cast<T>(x_.get(at(p))) - static_cast<T>(hi_.get(r));
            const T product = d * static_cast<T>(a_.get(r));
            return product + static_cast<T>(k1_.get(r));
          });
    });
}

TEST_P(KernelCase, BackwardApplyIsTheScalarExpressionToTheBit) {
  for (const bool chosen : {false, true})
    with_type([&]<class T>(T) {
      expect_elements(
          kEveryKindOfStores,
          [&](const Kernels& k, Array& dx, Stores stores) {
            k.backward_apply({block(), input(x_), input(dy_), output(dx), hi_.data(), invstd_.data(), a_.data(),
                              k1_.data(), k2_.data(), stores, choice(chosen)});
          },
          [&](const Place& p) {
            const std::int64_t r = coefficient(p, chosen);
            const T gradient = static_cast<T>(a_.get(r)) * static_cast<T>(dy_.get(at(p)));
            const T centred = gradient - static_cast<T>(k1_.get(r));
            const T d = static_cast<T>(x_.get(at(p))) - static_cast<T>(hi_.get(r));
            const T xhat = d * static_cast<T>(invstd_.get(r));
            const T pull = xhat * static_cast<T>(k2_.get(r));
            return centred - pull;
          });
    });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int storage = 0; storage < kStorages; ++storage)
    for (const bool scattered : {true, false}) {
      const auto add = [&](int form, std::int64_t samples, std::int64_t positions, std::int64_t channels) {
        all.push_back({form, storage, samples, positions, channels, scattered});
      };
      // Positions around every vector count of the rows form's switch; channels around every vector width of the columns
      // form.
      for (const std::int64_t positions :
           {1, 5, 15, 16, 17, 31, 33, 48, 49, 64, 79, 81, 97, 113, 127, 128, 129, 143, 144, 200, 300, 1031})
        add(0, 5, positions, 3);
      for (const std::int64_t samples : {1, 2, 3, 7, 8, 9, 17}) add(0, samples, 7, 2);
      for (const std::int64_t channels : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 33, 64})
        for (const std::int64_t positions : {1, 3, 10}) add(1, 3, positions, channels);
      // More positions and channels than the columns form takes at a time, rows longer than it walks end to end, and runs
      // of more than four pages.
      for (const std::int64_t channels : {5, 512, 515, 2065}) add(1, 2, 37, channels);
      // Positions around those from which a pivot is drawn, in one sample and across many.
      for (const std::int64_t positions : {63, 64, 65, 200}) add(1, 1, positions, 19);
      for (const std::int64_t samples : {63, 64, 65, 200}) add(1, samples, 1, 19);
      add(0, 2, 1500, 5);
    }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Shapes, KernelCase, testing::ValuesIn(cases()));

// Two groups' partial moments of one tile, combined, are the whole tile's.
TEST(KernelGroups, TwoInterleavedGroupsCombineToTheWhole) {
  const std::int64_t samples = 14, positions = 49, channels = 5;
  Random random("groups");
  Array x(POPNORM_F32, samples * positions * channels, Placement::ends_at_guard);
  for (std::int64_t i = 0; i < x.count(); ++i) x.set(i, 100 + random.normal());
  std::vector<std::int32_t> members[2];
  for (std::int32_t n = 0; n < samples; ++n) members[n % 3 == 0].push_back(n);
  for (int form = 0; form < kForms; ++form) {
    const Input view{x.data(), positions * channels, form == 0 ? positions : channels};
    const Kernels& kernels = runnable_tables().front()->kernels[0][form];
    const auto moments = [&](std::int64_t count, const std::int32_t* index) {
      std::vector<double> mean(channels), m2(channels);
      kernels.moments({{count, positions, channels, index}, view, mean.data(), m2.data()});
      std::vector<popnorm::Moments> result;
      for (std::size_t c = 0; c < channels; ++c)
        result.push_back({static_cast<double>(count * positions), mean[c], m2[c]});
      return result;
    };
    const auto whole = moments(samples, nullptr);
    const auto first = moments(static_cast<std::int64_t>(members[0].size()), members[0].data());
    const auto second = moments(static_cast<std::int64_t>(members[1].size()), members[1].data());
    for (std::size_t c = 0; c < channels; ++c) {
      const popnorm::Moments both = combine(first[c], second[c]);
      EXPECT_EQ(both.weight, whole[c].weight);
      EXPECT_NEAR(both.mean, whole[c].mean, 16 * 0x1p-24);
      EXPECT_NEAR(both.m2 / whole[c].m2, 1, 16 * 0x1p-24);
    }
  }
}

// Squares of deviations around 2^-73 are subnormal in f32 and lose their digits one by one; the variance may not.
TEST(KernelRange, SquaresThatUnderflowKeepTheirVariance) {
  const std::int64_t positions = 300;
  Random random("underflow");
  Array x(POPNORM_F32, positions, Placement::ends_at_guard);
  for (std::int64_t i = 0; i < positions; ++i) x.set(i, 1e-22 * random.normal());
  const auto exact = popnorm::reference::moments_of(x.values());
  for (const KernelTable* table : runnable_tables()) {
    for (int form = 0; form < kForms; ++form) {
      double mean = 0, m2 = 0;
      table->kernels[0][form].moments(
          {{1, positions, 1, nullptr}, {x.data(), positions, form == 0 ? positions : 1}, &mean, &m2});
      EXPECT_LE(std::fabs(m2 - exact.m2), 8 * 0x1p-24L * exact.m2) << table->isa << " form " << form;
    }
  }
}

// What the pivot is drawn from, every 32nd vector of a block of 256 or every 64th position, stands apart from the rest: the pivot
// is as wrong as it can be, and the values make every square round the same way, so that errors add up instead of averaging
// out.
TEST(KernelRange, PivotOffTheMeanKeepsTheVariance) {
  const std::int64_t positions = 4096;
  for (int form = 0; form < kForms; ++form) {
    Array x(POPNORM_F32, positions, Placement::ends_at_guard);
    for (std::int64_t i = 0; i < positions; ++i) x.set(i, (form == 0 ? i / 16 % 32 : i % 64) == 0 ? 1 + 0x1p-12 : 0);
    const auto exact = popnorm::reference::moments_of(x.values());
    for (const KernelTable* table : runnable_tables()) {
      double mean = 0, m2 = 0;
      table->kernels[0][form].moments(
          {{1, positions, 1, nullptr}, {x.data(), positions, form == 0 ? positions : 1}, &mean, &m2});
      EXPECT_LE(std::fabs(m2 - exact.m2), 8 * 0x1p-24L * exact.m2) << table->isa << " form " << form;
    }
  }
}

// Channels whose pivot fails, each in its own way, beside channels whose pivot holds: every channel has the moments that it has
// alone, to the bit.
TEST(KernelRange, ChannelsThatFailTheirPivotLeaveOthersAlone) {
  const std::int64_t positions = 130, channels = 150;
  Random random("failing pivots");
  Array x(POPNORM_F32, positions * channels, Placement::ends_at_guard);
  const auto value = [&](std::int64_t i, std::int64_t c) {
    switch (c % 40) {
      case 3:
        return 0.1;  // constant
      case 11:
        return i == 0 ? 1e4 : random.normal();  // an outlier in the pivot
      case 12:
        return 1e-25 * random.normal();  // squares underflow
      case 27:
        return 1e25 * random.normal();  // squares overflow
      case 38:
        return i == 64 ? std::numeric_limits<double>::quiet_NaN() : random.normal();
      default:
        return 5 + random.normal();
    }
  };
  for (std::int64_t i = 0; i < positions; ++i)
    for (std::int64_t c = 0; c < channels; ++c) x.set(i * channels + c, value(i, c));
  for (const KernelTable* table : runnable_tables()) {
    const Kernels& kernels = table->kernels[0][1];
    std::vector<double> mean(channels), m2(channels);
    kernels.moments(
        {{1, positions, channels, nullptr}, {x.data(), positions * channels, channels}, mean.data(), m2.data()});
    for (std::int64_t c = 0; c < channels; ++c) {
      SCOPED_TRACE(std::string(table->isa) + " channel " + std::to_string(c));
      const auto at = static_cast<std::size_t>(c);
      double alone[2];
      kernels.moments({{1, positions, 1, nullptr},
                       {static_cast<const float*>(x.data()) + c, positions * channels, channels},
                       &alone[0],
                       &alone[1]});
      EXPECT_TRUE(same_bits(mean[at], alone[0]) && same_bits(m2[at], alone[1]));
      if (c % 40 == 38) {
        EXPECT_TRUE(std::isnan(m2[at]));
        continue;
      }
      std::vector<double> values;
      for (std::int64_t i = 0; i < positions; ++i) values.push_back(x.get(i * channels + c));
      const auto exact = popnorm::reference::moments_of(values);
      EXPECT_LE(std::fabs(m2[at] - exact.m2), 8 * 0x1p-24L * exact.m2);
      if (c % 40 == 3) {
        EXPECT_EQ(m2[at], 0);
        EXPECT_EQ(mean[at], values.front());
      }
    }
  }
}

}  // namespace
}  // namespace popnorm_test
