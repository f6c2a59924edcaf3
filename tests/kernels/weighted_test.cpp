// The kernels with weights: of a sample, of a position, or a length per sample. Absent elements hold NaN here: they may never
// reach a result.
#include <limits>

#include "kernels/drawn_weights.hpp"
#include "kernels/kernel_case.hpp"

namespace popnorm_test {
namespace {

// Each kind in turn; x and dy with NaN where elements are absent.
class WeightedKernels : public KernelCase {
 protected:
  template <class Body>
  void with_each_kind(const Body& body) {
    for (const DrawnWeights::Kind kind : DrawnWeights::kKinds) {
      SCOPED_TRACE(testing::Message() << "kind " << static_cast<int>(kind));
      const DrawnWeights drawn(kind, all_, c_.positions, random_);
      x_of_kind_ = tensor();
      dy_of_kind_ = tensor();
      for (std::int64_t n = 0; n < all_; ++n)
        for (std::int64_t s = 0; s < c_.positions; ++s)
          for (std::int64_t c = 0; c < c_.channels; ++c) {
            const Place p{0, n, s, c};
            const double absent = std::numeric_limits<double>::quiet_NaN();
            x_of_kind_.set(at(p), drawn.of(p) != 0 ? x_.get(at(p)) : absent);
            dy_of_kind_.set(at(p), drawn.of(p) != 0 ? dy_.get(at(p)) : absent);
          }
      body(drawn);
    }
  }

  // Calls visit(place, weight) for the present elements of a channel.
  template <class Visit>
  void each_present(const DrawnWeights& drawn, std::int64_t channel, const Visit& visit) const {
    each_of(channel, [&](const Place& p) {
      if (drawn.of(p) != 0) visit(p, static_cast<Real>(drawn.of(p)));
    });
  }
  // The roundings of a sum in f64 of a block's elements, and of a few operations on it.
  Real slack() const { return static_cast<Real>(c_.samples * c_.positions + 8) * 0x1p-53L; }

  Array x_of_kind_, dy_of_kind_;
};

TEST_P(WeightedKernels, Moments) {
  with_each_kind([&](const DrawnWeights& drawn) {
    expect_same_on_every_tier([&](const KernelTable& table) {
      Array weight = doubles(), mean = doubles(), m2 = doubles();
      kernels(table).weighted_moments(
          {{block(), input(x_of_kind_), mean.doubles(), m2.doubles()}, drawn.weights, weight.doubles()});
      for (std::int64_t c = 0; c < c_.channels; ++c) {
        Real w = 0, sum = 0, squares = 0, size = 0;
        each_present(drawn, c, [&](const Place& p, Real of_p) {
          w += of_p;
          sum += of_p * x_.get(at(p));
        });
        const Real exact = w > 0 ? sum / w : 0;
        each_present(drawn, c, [&](const Place& p, Real of_p) {
          const Real d = x_.get(at(p)) - exact;
          squares += of_p * d * d;
          size = std::max(size, std::fabs(d));
        });
        // The mean is that of differences from a mean that was nearly right, which is one of the elements to begin with;
        // being off by e it adds w*e^2 to m2.
        const Real e = slack() * (std::fabs(exact) + size);
        EXPECT_LE(std::fabs(weight.get(c) - w), slack() * w) << "channel " << c;
        EXPECT_LE(std::fabs(mean.get(c) - exact), e) << "channel " << c;
        EXPECT_LE(std::fabs(m2.get(c) - squares), 2 * slack() * squares + w * e * e) << "channel " << c;
        EXPECT_GE(m2.get(c), 0);
      }
      std::vector<double> result = weight.values();
      for (const Array* more : {&mean, &m2})
        for (const double v : more->values()) result.push_back(v);
      return result;
    });
  });
}

// Sums over what is present, in which weights do not multiply.
TEST_P(WeightedKernels, BackwardReduce) {
  with_each_kind([&](const DrawnWeights& drawn) {
    expect_same_on_every_tier([&](const KernelTable& table) {
      Array sum = doubles(), dot = doubles();
      kernels(table).weighted_backward_reduce(
          {{{block(), input(x_of_kind_), input(dy_of_kind_), hi_.data(), sum.doubles(), dot.doubles()}},
           drawn.weights});
      for (std::int64_t c = 0; c < c_.channels; ++c) {
        Real exact_sum = 0, exact_dot = 0, size_sum = 0, size_dot = 0;
        each_present(drawn, c, [&](const Place& p, Real) {
          const Real dy = dy_.get(at(p)), product = dy * (static_cast<Real>(x_.get(at(p))) - hi_.get(c));
          exact_sum += dy;
          exact_dot += product;
          size_sum += std::fabs(dy);
          size_dot += std::fabs(product);
        });
        EXPECT_LE(std::fabs(sum.get(c) - exact_sum), slack() * size_sum) << "channel " << c;
        EXPECT_LE(std::fabs(dot.get(c) - exact_dot), slack() * size_dot) << "channel " << c;
      }
      std::vector<double> result = sum.values();
      for (const double v : dot.values()) result.push_back(v);
      return result;
    });
  });
}

TEST_P(WeightedKernels, NormalizeIsTheScalarExpressionAndZeroWhereAbsent) {
  for (const bool chosen : {false, true})
    with_each_kind([&](const DrawnWeights& drawn) {
      with_type([&]<class T>(T) {
        expect_elements(
            {Stores::ordinary},
            [&](const Kernels& k, Array& y, Stores stores) {
              k.weighted_normalize(
                  {{{block(), input(x_of_kind_), output(y), hi_.data(), a_.data(), k1_.data(), stores, choice(chosen)}},
                   drawn.weights});
            },
            [&](const Place& p) {
              const std::int64_t r = coefficient(p, chosen);
              const T d = static_cast<T>(x_.get(at(p))) - static_cast<T>(hi_.get(r));
              const T product = d * static_cast<T>(a_.get(r));
              return drawn.of(p) != 0 ? product + static_cast<T>(k1_.get(r)) : T(0);
            });
      });
    });
}

TEST_P(WeightedKernels, BackwardApplyIsTheScalarExpressionAndZeroWhereAbsent) {
  for (const bool chosen : {false, true})
    with_each_kind([&](const DrawnWeights& drawn) {
      with_type([&]<class T>(T) {
        expect_elements(
            {Stores::ordinary},
            [&](const Kernels& k, Array& dx, Stores stores) {
              k.weighted_backward_apply({{{block(), input(x_of_kind_), input(dy_of_kind_), output(dx), hi_.data(),
                                           invstd_.data(), a_.data(), k1_.data(), k2_.data(), stores, choice(chosen)}},
                                         drawn.weights});
            },
            [&](const Place& p) {
              const std::int64_t r = coefficient(p, chosen);
              const T w = static_cast<T>(drawn.of(p));
              const T gradient = static_cast<T>(a_.get(r)) * static_cast<T>(dy_.get(at(p)));
              const T of_mean = w * static_cast<T>(k1_.get(r)), of_variance = w * static_cast<T>(k2_.get(r));
              const T centred = gradient - of_mean;
              const T d = static_cast<T>(x_.get(at(p))) - static_cast<T>(hi_.get(r));
              const T xhat = d * static_cast<T>(invstd_.get(r));
              const T pull = xhat * of_variance;
              return w != 0 ? centred - pull : T(0);
            });
      });
    });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int storage = 0; storage < kStorages; ++storage)
    for (const bool scattered : {true, false}) {
      for (const std::int64_t positions : {1, 7, 16, 33, 130}) all.push_back({0, storage, 6, positions, 3, scattered});
      for (const std::int64_t channels : {1, 5, 16, 33})
        for (const std::int64_t positions : {1, 12}) all.push_back({1, storage, 6, positions, channels, scattered});
    }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Shapes, WeightedKernels, testing::ValuesIn(cases()));

}  // namespace
}  // namespace popnorm_test
