// Kernels with a residual, an activation and its mask: to the bit what the scalar expressions say, element by element, whatever
// the width, the alignment and the kind of stores; masks of rows that end anywhere, with bytes that lie beside those of others.
#include <cstring>

#include "kernels/activation.hpp"
#include "kernels/drawn_weights.hpp"
#include "kernels/kernel_case.hpp"

namespace popnorm_test {
namespace {

using popnorm::Activation;

constexpr Activation kActivations[] = {{1, false}, {-1.5, true}};

class FusedKernels : public KernelCase {
 protected:
  FusedKernels() {
    residual_ = tensor();
    for (std::int64_t i = 0; i < residual_.count(); ++i)
      residual_.set(i, random_.below(9) == 0 ? -std::numeric_limits<double>::infinity() : random_.normal() - 3);
    for (const double special : {0.0, -0.0, std::numeric_limits<double>::quiet_NaN()})
      dy_.set(random_.below(dy_.count()), special);
    // z is NaN somewhere, and exactly 0 at the first element, by whichever row.
    x_.set(random_.below(x_.count()), std::numeric_limits<double>::quiet_NaN());
    x_.set(0, 2.5);
    residual_.set(0, 0);
    for (std::int64_t r = 0; r < kRows; ++r) {
      hi_.set(r * pitch(), 2.5);
      k1_.set(r * pitch(), 0);
    }
  }

  std::int64_t rows() const { return c_.form == 0 ? c_.channels : c_.positions; }
  std::int64_t row_bytes() const { return (row_stride() + 7) / 8; }

  // Bits of every element of the tensor, rows padded to bytes, and 4 bytes that may be read.
  static constexpr std::size_t kSlack = 4;
  GuardedBuffer mask() const {
    return {static_cast<std::size_t>(all_ * rows() * row_bytes()) + kSlack, 1, Placement::ends_at_guard};
  }
  Output mask_output(GuardedBuffer& m) const { return {m.data(), rows() * row_bytes(), row_bytes()}; }
  Input mask_input(const GuardedBuffer& m) const { return {m.data(), rows() * row_bytes(), row_bytes()}; }
  std::int64_t byte_of(const Place& p) const {
    const std::int64_t row = c_.form == 0 ? p.channel : p.position, i = c_.form == 0 ? p.position : p.channel;
    return (p.sample * rows() + row) * row_bytes() + i / 8;
  }
  int bit_of(const Place& p) const { return static_cast<int>((c_.form == 0 ? p.position : p.channel) % 8); }
  bool bit(const GuardedBuffer& m, const Place& p) const {
    return (std::to_integer<int>(m.data()[byte_of(p)]) >> bit_of(p) & 1) != 0;
  }

  template <class T>
  T z_of(const Place& p, bool chosen, bool adds) const {
    const std::int64_t r = coefficient(p, chosen);
    const T d = static_cast<T>(x_.get(at(p))) - static_cast<T>(hi_.get(r));
    const T product = d * static_cast<T>(a_.get(r));
    const T normalized = product - static_cast<T>(k1_.get(r));
    return adds ? normalized + static_cast<T>(residual_.get(at(p))) : normalized;
  }

  template <class T>
  static T activated(const Activation& activation, bool stopped, T value) {
    if (!stopped) return value;
    return activation.keeps ? static_cast<T>(activation.slope) * value : T(0);
  }

  // dx of an element of weight w.
  template <class T>
  T dx_of(const Place& p, bool chosen, T gradient, bool constant, T w = 1) const {
    const std::int64_t r = coefficient(p, chosen);
    const T g = static_cast<T>(a_.get(r)) * gradient;
    const T of_mean = w * static_cast<T>(k1_.get(r)), of_variance = w * static_cast<T>(k2_.get(r));
    const T centred = g - of_mean;
    const T d = static_cast<T>(x_.get(at(p))) - static_cast<T>(hi_.get(r));
    const T xhat = d * static_cast<T>(invstd_.get(r));
    const T pull = xhat * of_variance;
    return constant ? centred : centred - pull;
  }

  Array minus_k1() const {
    Array negative(arithmetic(), k1_.count(), Placement::ends_at_guard);
    for (std::int64_t i = 0; i < k1_.count(); ++i) negative.set(i, -k1_.get(i));
    return negative;
  }

  // Where the gradient's sign comes from.
  enum class Sign { none, mask, recomputed };
  template <class T>
  T gradient_of(const Place& p, bool chosen, const Activation& activation, Sign sign, const GuardedBuffer& m) const {
    const bool stopped = sign == Sign::mask         ? !bit(m, p)
                         : sign == Sign::recomputed ? z_of<T>(p, chosen, false) <= 0
                                                    : false;
    return activated(activation, stopped, static_cast<T>(dy_.get(at(p))));
  }
  GradientArgs gradient_args(const Activation& activation, Sign sign, const GuardedBuffer& m, const Array& b) const {
    GradientArgs args{activation};
    if (sign == Sign::mask) args.mask = mask_input(m);
    if (sign == Sign::recomputed) {
      args.s = a_.data();
      args.b = b.data();
    }
    return args;
  }
  GuardedBuffer random_mask() {
    GuardedBuffer m = mask();
    for (std::size_t i = 0; i < m.size(); ++i) m.data()[i] = static_cast<std::byte>(random_.below(256));
    return m;
  }

  Array residual_;
};

TEST_P(FusedKernels, NormalizeAndItsMaskAreTheScalarExpressionToTheBit) {
  const Array b = minus_k1();
  for (const Activation& activation : kActivations)
    for (const bool chosen : {false, true})
      for (const bool adds : {false, true})
        with_type([&]<class T>(T) {
          const auto run = [&](const Kernels& k, Array& y, Stores stores, Output mask) {
            k.fused_normalize({{block(), input(x_), output(y), hi_.data(), a_.data(), b.data(), stores, choice(chosen)},
                               activation,
                               adds ? input(residual_) : Input{},
                               mask});
          };
          const auto value = [&](const Place& p) {
            const T z = z_of<T>(p, chosen, adds);
            return activated(activation, z <= 0, z);
          };
          const auto masked = [&](const Kernels& k, Array& y, Stores stores) {
            GuardedBuffer m = mask();
            const auto before = m.snapshot();
            run(k, y, stores, mask_output(m));
            std::vector<int> expected(m.size(), -1);
            each([&](const Place& p) {
              int& byte = expected[static_cast<std::size_t>(byte_of(p))];
              byte = (byte < 0 ? 0 : byte) | (z_of<T>(p, chosen, adds) <= 0 ? 0 : 1) << bit_of(p);
            });
            for (std::size_t i = 0; i < m.size(); ++i)
              ASSERT_EQ(std::to_integer<int>(m.data()[i]),
                        expected[i] < 0 ? std::to_integer<int>(before[i]) : expected[i])
                  << "byte " << i;
            EXPECT_TRUE(m.margins_intact());
          };
          if (adds) expect_elements({Stores::ordinary, Stores::four_streams}, masked, value);
          expect_elements(
              {Stores::streaming}, [&](const Kernels& k, Array& y, Stores stores) { run(k, y, stores, {}); }, value);
        });
}

TEST_P(FusedKernels, BackwardApplyIsTheScalarExpressionToTheBit) {
  const Array b = minus_k1();
  const GuardedBuffer m = random_mask();
  for (const Activation& activation : kActivations)
    for (const Sign sign : {Sign::none, Sign::mask, Sign::recomputed})
      for (const bool chosen : {false, true})
        for (const bool constant : {false, true})
          with_type([&]<class T>(T) {
            for (const std::int64_t second : {-1, 0, 1}) {
              if (second >= 0 && sign == Sign::recomputed) continue;
              expect_elements(
                  {Stores::ordinary, second < 0 ? Stores::streaming : Stores::four_streams},
                  [&](const Kernels& k, Array& dx, Stores stores) {
                    Array dresidual(type(), x_.count(), Placement::begins_at_guard, std::max<std::int64_t>(second, 0));
                    k.fused_backward_apply({{block(), input(x_), input(dy_), output(dx), hi_.data(), invstd_.data(),
                                             a_.data(), k1_.data(), k2_.data(), stores, choice(chosen)},
                                            gradient_args(activation, sign, m, b),
                                            second < 0 ? Output{} : output(dresidual),
                                            constant});
                    if (second < 0) return;
                    each([&](const Place& p) {
                      const T g = gradient_of<T>(p, chosen, activation, sign, m);
                      ASSERT_TRUE(same_bits(dresidual.get(at(p)), stored(type(), static_cast<double>(g))))
                          << "dresidual, sample " << p.sample << " position " << p.position << " channel " << p.channel;
                    });
                    EXPECT_TRUE(dresidual.buffer().margins_intact());
                  },
                  [&](const Place& p) {
                    return dx_of<T>(p, chosen, gradient_of<T>(p, chosen, activation, sign, m), constant);
                  });
            }
          });
}

TEST_P(FusedKernels, NormalizeWithWeightsIsTheSameWherePresentAndZeroElsewhere) {
  const Array b = minus_k1();
  for (const DrawnWeights::Kind kind : DrawnWeights::kKinds) {
    const DrawnWeights drawn(kind, all_, c_.positions, random_);
    for (const Activation& activation : kActivations)
      for (const bool adds : {false, true})
        with_type([&]<class T>(T) {
          expect_elements(
              {Stores::ordinary},
              [&](const Kernels& k, Array& y, Stores stores) {
                GuardedBuffer m = mask();
                k.weighted_normalize(
                    {{{block(), input(x_), output(y), hi_.data(), a_.data(), b.data(), stores, choice(true)},
                      activation,
                      adds ? input(residual_) : Input{},
                      adds ? mask_output(m) : Output{}},
                     drawn.weights});
                each([&](const Place& p) {
                  if (!adds) return;
                  ASSERT_EQ(bit(m, p), drawn.of(p) != 0 && !(z_of<T>(p, true, adds) <= 0));
                });
                EXPECT_TRUE(m.margins_intact());
              },
              [&](const Place& p) {
                const T z = z_of<T>(p, true, adds);
                return drawn.of(p) != 0 ? activated(activation, z <= 0, z) : T(0);
              });
        });
  }
}

TEST_P(FusedKernels, BackwardApplyWithWeightsIsTheScalarExpressionToTheBit) {
  const Array b = minus_k1();
  const GuardedBuffer m = random_mask();
  for (const DrawnWeights::Kind kind : DrawnWeights::kKinds) {
    const DrawnWeights drawn(kind, all_, c_.positions, random_);
    for (const Activation& activation : kActivations)
      for (const Sign sign : {Sign::none, Sign::mask, Sign::recomputed})
        for (const bool constant : {false, true})
          with_type([&]<class T>(T) {
            const auto gradient = [&](const Place& p) {
              return drawn.of(p) != 0 ? gradient_of<T>(p, true, activation, sign, m) : T(0);
            };
            expect_elements(
                {Stores::ordinary},
                [&](const Kernels& k, Array& dx, Stores stores) {
                  Array dresidual = tensor();
                  k.weighted_backward_apply({{{block(), input(x_), input(dy_), output(dx), hi_.data(), invstd_.data(),
                                               a_.data(), k1_.data(), k2_.data(), stores, choice(true)},
                                              gradient_args(activation, sign, m, b),
                                              output(dresidual),
                                              constant},
                                             drawn.weights});
                  each([&](const Place& p) {
                    ASSERT_TRUE(same_bits(dresidual.get(at(p)), stored(type(), static_cast<double>(gradient(p)))));
                  });
                },
                [&](const Place& p) {
                  const T w = static_cast<T>(drawn.of(p));
                  return w != 0 ? dx_of<T>(p, true, gradient(p), constant, w) : T(0);
                });
          });
  }
}

// The sums, with weights and without, are those that the plain kernel gives of the gradient itself.
TEST_P(FusedKernels, BackwardReduceIsThePlainKernelOfTheGradient) {
  const Array b = minus_k1();
  const GuardedBuffer m = random_mask();
  x_.set(0, 1);
  for (std::int64_t i = 0; i < x_.count(); ++i)
    if (std::isnan(x_.get(i))) x_.set(i, 2);
  for (std::int64_t i = 0; i < dy_.count(); ++i)
    if (std::isnan(dy_.get(i))) dy_.set(i, 2);
  const DrawnWeights drawn(DrawnWeights::Kind::per_position, all_, c_.positions, random_);
  for (const Activation& activation : kActivations)
    for (const Sign sign : {Sign::none, Sign::mask, Sign::recomputed}) {
      // Slopes times dy must be numbers of the storage type to be its dy; with ReLU they are.
      if (activation.keeps && sign != Sign::none && type() != arithmetic()) continue;
      Array g = tensor();
      with_type([&]<class T>(T) {
        each([&](const Place& p) { g.set(at(p), static_cast<double>(gradient_of<T>(p, false, activation, sign, m))); });
      });
      for (const KernelTable* table : runnable_tables()) {
        Array sum = doubles(), dot = doubles(), fused_sum = doubles(), fused_dot = doubles();
        kernels(*table).backward_reduce({block(), input(x_), input(g), hi_.data(), sum.doubles(), dot.doubles()});
        const FusedBackwardReduceArgs fused{
            {block(), input(x_), input(dy_), hi_.data(), fused_sum.doubles(), fused_dot.doubles()},
            gradient_args(activation, sign, m, b)};
        kernels(*table).fused_backward_reduce(fused);
        EXPECT_TRUE(same_bits(fused_sum.values(), sum.values())) << table->isa << " sign " << static_cast<int>(sign);
        EXPECT_TRUE(same_bits(fused_dot.values(), dot.values())) << table->isa << " sign " << static_cast<int>(sign);
        kernels(*table).weighted_backward_reduce(
            {{{block(), input(x_), input(g), hi_.data(), sum.doubles(), dot.doubles()}}, drawn.weights});
        kernels(*table).weighted_backward_reduce({fused, drawn.weights});
        EXPECT_TRUE(same_bits(fused_sum.values(), sum.values())) << table->isa << " sign " << static_cast<int>(sign);
        EXPECT_TRUE(same_bits(fused_dot.values(), dot.values())) << table->isa << " sign " << static_cast<int>(sign);
      }
    }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int storage = 0; storage < kStorages; ++storage)
    for (const bool scattered : {true, false}) {
      const auto add = [&](int form, std::int64_t samples, std::int64_t positions, std::int64_t channels) {
        all.push_back({form, storage, samples, positions, channels, scattered});
      };
      // Rows that end at every bit, rows that lie end to end in tensor and mask, and more than four pages.
      for (const std::int64_t positions : {1, 5, 8, 16, 17, 24, 49, 127, 196}) add(0, 5, positions, 3);
      add(0, 2, 5003, 2);
      for (const std::int64_t channels : {1, 3, 4, 8, 9, 16, 31, 64})
        for (const std::int64_t positions : {1, 10}) add(1, 3, positions, channels);
      for (const std::int64_t channels : {515, 1040}) add(1, 2, 11, channels);
    }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedKernels, testing::ValuesIn(cases()));

}  // namespace
}  // namespace popnorm_test
