// Kernels through the table that dispatch uses: every tier that runs here, both forms, both storage types, blocks of
// every awkward size, the samples of one group among those of another. Tiers must agree to the bit, and with the oracle
// in bounds.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "kernels/moments.hpp"
#include "kernels/reference.hpp"
#include "support/check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random.hpp"
#include "support/skips.hpp"
#include "support/tensor.hpp"

namespace {

using namespace popnorm::cpu;
using popnorm::reference::Real;
using popnorm_test::Array;
using popnorm_test::Placement;
using popnorm_test::Random;

std::vector<const KernelTable*> runnable_tables() {
  std::vector<const KernelTable*> tables;
  for (int i = 0; i < tier_count(); ++i) {
    if (tier(i).available())
      tables.push_back(tier(i).table);
    else
      popnorm_test::skip(std::string("tier ") + tier(i).table->isa, tier(i).needs);
  }
  return tables;
}

struct Case {
  int form;
  int storage;
  std::int64_t samples, positions, channels;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << (c.form == 0 ? "rows" : "columns") << (c.storage == 0 ? " f32 " : " f64 ") << c.samples << " samples x "
       << c.positions << " positions x " << c.channels << " channels";
}

// Packed tensors of one case. In memory there are twice the samples: the case's are at `index`, another group's in
// between.
class KernelCase : public testing::TestWithParam<Case> {
 protected:
  KernelCase() : random_("kernels") {
    for (std::int64_t k = 0, at = 0; k < c_.samples; ++k, at += 1 + random_.below(2))
      index_.push_back(static_cast<std::int32_t>(at));
    all_ = index_.back() + 1;
    x_ = tensor();
    dy_ = tensor();
    for (std::int64_t i = 0; i < x_.count(); ++i) {
      x_.set(i, 3 + random_.normal());
      dy_.set(i, 0.2 + random_.normal());
    }
    for (Array* row : {&hi_, &invstd_, &a_, &k1_, &k2_}) {
      *row = Array(type(), c_.channels, Placement::ends_at_guard);
      for (std::int64_t i = 0; i < c_.channels; ++i) row->set(i, random_.uniform(0.5, 3));
    }
  }

  popnorm_type type() const { return c_.storage == 0 ? POPNORM_F32 : POPNORM_F64; }
  Array tensor() const { return Array(type(), all_ * c_.positions * c_.channels, Placement::ends_at_guard); }
  Block block() const { return {c_.samples, c_.positions, c_.channels, index_.data()}; }
  const Kernels& kernels(const KernelTable& table) const { return table.kernels[c_.form][c_.storage]; }

  std::int64_t row_stride() const { return c_.form == 0 ? c_.positions : c_.channels; }
  Input input(const Array& a) const { return {a.data(), c_.positions * c_.channels, row_stride()}; }
  Output output(Array& a) const { return {a.data(), c_.positions * c_.channels, row_stride()}; }

  std::int64_t at(std::int64_t sample, std::int64_t position, std::int64_t channel) const {
    return c_.form == 0 ? (sample * c_.channels + channel) * c_.positions + position
                        : (sample * c_.positions + position) * c_.channels + channel;
  }

  std::vector<double> channel(const Array& a, std::int64_t c) const {
    std::vector<double> values;
    for (const std::int32_t sample : index_)
      for (std::int64_t s = 0; s < c_.positions; ++s) values.push_back(a.get(at(sample, s, c)));
    return values;
  }

  Real unit() const { return c_.storage == 0 ? 0x1p-24L : 0x1p-53L; }

  const Case& c_ = GetParam();
  Random random_;
  std::vector<std::int32_t> index_;
  std::int64_t all_ = 0;
  Array x_, dy_, hi_, invstd_, a_, k1_, k2_;
};

TEST_P(KernelCase, Moments) {
  std::vector<std::vector<double>> results;
  for (const KernelTable* table : runnable_tables()) {
    Array mean(POPNORM_F64, c_.channels, Placement::ends_at_guard),
        m2(POPNORM_F64, c_.channels, Placement::ends_at_guard);
    kernels(*table).moments({block(), input(x_), mean.doubles(), m2.doubles()});
    for (std::int64_t c = 0; c < c_.channels; ++c) {
      const auto exact = popnorm::reference::moments_of(channel(x_, c));
      const Real sigma = std::sqrt(exact.m2 / exact.weight);
      // A leaf's own bounds (docs/numerics.md): 3u and 6u of sums around a pivot that is within the guard. Results are
      // f64: on top comes their rounding, of n terms at most.
      const Real slack = static_cast<Real>(exact.weight) * 0x1p-53L;
      EXPECT_LE(std::fabs(mean.get(c) - exact.mean), 3.3L * unit() * sigma + slack * (std::fabs(exact.mean) + sigma))
          << table->isa << " channel " << c;
      EXPECT_LE(std::fabs(m2.get(c) - exact.m2),
                6 * unit() * exact.m2 + slack * (exact.m2 + slack * exact.mean * exact.mean))
          << table->isa << " channel " << c;
    }
    std::vector<double> result = mean.values();
    for (const double v : m2.values()) result.push_back(v);
    results.push_back(result);
  }
  for (const auto& result : results) EXPECT_TRUE(popnorm_test::same_bits(result, results.front()));
}

TEST_P(KernelCase, BackwardReduce) {
  std::vector<std::vector<double>> results;
  for (const KernelTable* table : runnable_tables()) {
    Array sum(POPNORM_F64, c_.channels, Placement::ends_at_guard),
        dot(POPNORM_F64, c_.channels, Placement::ends_at_guard);
    kernels(*table).backward_reduce({block(), input(x_), input(dy_), hi_.data(), sum.doubles(), dot.doubles()});
    for (std::int64_t c = 0; c < c_.channels; ++c) {
      const std::vector<double> x = channel(x_, c), dy = channel(dy_, c);
      Real exact_sum = 0, exact_dot = 0, size_sum = 0, size_dot = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const Real product = dy[i] * (static_cast<Real>(x[i]) - hi_.get(c));
        exact_sum += dy[i];
        exact_dot += product;
        size_sum += std::fabs(dy[i]);
        size_dot += std::fabs(product);
      }
      // 2 roundings of the pairwise sum; 2 more of the product. f64 sums on top: n 2^-53 at most.
      const Real slack = static_cast<Real>(x.size()) * 0x1p-53L;
      EXPECT_LE(std::fabs(sum.get(c) - exact_sum), (2 * unit() + slack) * size_sum) << table->isa << " channel " << c;
      EXPECT_LE(std::fabs(dot.get(c) - exact_dot), (4 * unit() + slack) * size_dot) << table->isa << " channel " << c;
    }
    std::vector<double> result = sum.values();
    for (const double v : dot.values()) result.push_back(v);
    results.push_back(result);
  }
  for (const auto& result : results) EXPECT_TRUE(popnorm_test::same_bits(result, results.front()));
}

// Runs an elementwise kernel with every kind of stores at several alignments of its output.
template <class T, class Run, class Value>
void check_elementwise(const Case& c, const std::vector<std::int32_t>& index, std::int64_t all,
                       const std::function<std::int64_t(std::int64_t, std::int64_t, std::int64_t)>& at, const Run& run,
                       const Value& value) {
  for (const KernelTable* table : runnable_tables()) {
    for (const Stores stores : {Stores::ordinary, Stores::streaming, Stores::streaming_pages}) {
      for (const std::int64_t offset : {0, 1, 3}) {
        const Placement where = offset == 0 ? Placement::ends_at_guard : Placement::begins_at_guard;
        Array out(c.storage == 0 ? POPNORM_F32 : POPNORM_F64, all * c.positions * c.channels, where, offset);
        const auto before = out.values();
        run(table->kernels[c.form][c.storage], out, stores);
        std::vector<bool> written(before.size());
        for (const std::int32_t sample : index) {
          for (std::int64_t s = 0; s < c.positions; ++s) {
            for (std::int64_t ch = 0; ch < c.channels; ++ch) {
              const std::int64_t e = at(sample, s, ch);
              written[static_cast<std::size_t>(e)] = true;
              ASSERT_TRUE(popnorm_test::same_bits(out.get(e), static_cast<double>(value(e, ch))))
                  << table->isa << " stores " << static_cast<int>(stores) << " offset " << offset << " sample "
                  << sample << " position " << s << " channel " << ch;
            }
          }
        }
        for (std::size_t e = 0; e < written.size(); ++e) {
          ASSERT_TRUE(written[e] || std::isnan(out.get(static_cast<std::int64_t>(e)))) << "the other group was written";
        }
        EXPECT_TRUE(out.buffer().margins_intact());
      }
    }
  }
}

template <class T>
void check_normalize(const Case& c, const std::vector<std::int32_t>& index, std::int64_t all, const Array& x,
                     const Array& hi, const Array& s, const Array& b, const Input& view, const Block& block,
                     const std::function<std::int64_t(std::int64_t, std::int64_t, std::int64_t)>& at) {
  check_elementwise<T>(
      c, index, all, at,
      [&](const Kernels& k, Array& out, Stores stores) {
        k.normalize({block, view, {out.data(), view.sample, view.row}, hi.data(), s.data(), b.data(), stores});
      },
      [&](std::int64_t e, std::int64_t ch) {
        const T d = static_cast<T>(x.get(e)) - static_cast<T>(hi.get(ch));
        const T product = d * static_cast<T>(s.get(ch));
        return product + static_cast<T>(b.get(ch));
      });
}

TEST_P(KernelCase, NormalizeIsTheScalarExpressionToTheBit) {
  const auto where = [this](std::int64_t n, std::int64_t s, std::int64_t c) { return at(n, s, c); };
  const auto view_x = input(x_);
  if (c_.storage == 0)
    check_normalize<float>(c_, index_, all_, x_, hi_, a_, k1_, view_x, block(), where);
  else
    check_normalize<double>(c_, index_, all_, x_, hi_, a_, k1_, view_x, block(), where);
}

template <class T>
T scalar_dx(T x, T dy, T hi, T invstd, T a, T k1, T k2) {
  const T gradient = a * dy;
  const T centred = gradient - k1;
  const T d = x - hi;
  const T xhat = d * invstd;
  const T pull = xhat * k2;
  return centred - pull;
}

TEST_P(KernelCase, BackwardApplyIsTheScalarExpressionToTheBit) {
  const auto where = [this](std::int64_t n, std::int64_t s, std::int64_t c) { return at(n, s, c); };
  const auto run = [&](const Kernels& k, Array& out, Stores stores) {
    k.backward_apply({block(), input(x_), input(dy_), output(out), hi_.data(), invstd_.data(), a_.data(), k1_.data(),
                      k2_.data(), stores});
  };
  const auto value = [&](auto zero, std::int64_t e, std::int64_t c) {
    using T = decltype(zero);
    return scalar_dx<T>(static_cast<T>(x_.get(e)), static_cast<T>(dy_.get(e)), static_cast<T>(hi_.get(c)),
                        static_cast<T>(invstd_.get(c)), static_cast<T>(a_.get(c)), static_cast<T>(k1_.get(c)),
                        static_cast<T>(k2_.get(c)));
  };
  if (c_.storage == 0)
    check_elementwise<float>(c_, index_, all_, where, run,
                             [&](std::int64_t e, std::int64_t c) { return value(0.F, e, c); });
  else
    check_elementwise<double>(c_, index_, all_, where, run,
                              [&](std::int64_t e, std::int64_t c) { return value(0.0, e, c); });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  // Positions around every vector count of the rows form's switch; channels around every vector width of the columns
  // form.
  for (int storage = 0; storage < kStorages; ++storage) {
    for (const std::int64_t positions :
         {1, 5, 15, 16, 17, 31, 33, 48, 49, 64, 79, 81, 97, 113, 127, 128, 129, 143, 144, 200, 300, 1031})
      all.push_back({0, storage, 5, positions, 3});
    for (const std::int64_t samples : {1, 2, 3, 7, 8, 9, 17}) all.push_back({0, storage, samples, 7, 2});
    for (const std::int64_t channels : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 33, 64})
      for (const std::int64_t positions : {1, 3, 10}) all.push_back({1, storage, 3, positions, channels});
    // More positions and channels than the columns form takes at a time, rows longer than it walks end to end, and runs of
    // more than four pages.
    for (const std::int64_t channels : {5, 512, 515, 1040}) all.push_back({1, storage, 2, 37, channels});
    all.push_back({0, storage, 2, 1500, 5});
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
    const Kernels& kernels = runnable_tables().front()->kernels[form][0];
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
      table->kernels[form][0].moments(
          {{1, positions, 1, nullptr}, {x.data(), positions, form == 0 ? positions : 1}, &mean, &m2});
      EXPECT_LE(std::fabs(m2 - exact.m2), 8 * 0x1p-24L * exact.m2) << table->isa << " form " << form;
    }
  }
}

// Every 32nd vector of a block of 256, those the pivot is drawn from, stands apart from the rest: the pivot is as wrong as
// it can be, and the values make every square round the same way, so that errors add up instead of averaging out.
TEST(KernelRange, PivotOffTheMeanKeepsTheVariance) {
  const std::int64_t positions = 4096;
  Array x(POPNORM_F32, positions, Placement::ends_at_guard);
  for (std::int64_t i = 0; i < positions; ++i) x.set(i, i / 16 % 32 == 0 ? 1 + 0x1p-12 : 0);
  const auto exact = popnorm::reference::moments_of(x.values());
  for (const KernelTable* table : runnable_tables()) {
    double mean = 0, m2 = 0;
    table->kernels[0][0].moments({{1, positions, 1, nullptr}, {x.data(), positions, positions}, &mean, &m2});
    EXPECT_LE(std::fabs(m2 - exact.m2), 8 * 0x1p-24L * exact.m2) << table->isa;
  }
}

}  // namespace
