// 16-bit numbers against what they are by definition, all of them.
#include "kernels/storage.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kernel_case.hpp"

namespace popnorm_test {
namespace {

using popnorm::Bf16;
using popnorm::F16;

// sign * significand * 2^exponent, by the bits' meaning.
double meaning(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int fraction = bits & ((1 << fraction_bits) - 1), exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

struct Bf16Traits {
  static constexpr auto kStorage = static_cast<int>(popnorm::cpu::Storage::bf16);
  static constexpr int kExponent = 8, kFraction = 7;
  static float widen(std::uint16_t bits) { return popnorm::widen<float>(Bf16{bits}); }
  static std::uint16_t narrow(float value) { return popnorm::narrow<Bf16>(value).bits; }
};
struct F16Traits {
  static constexpr auto kStorage = static_cast<int>(popnorm::cpu::Storage::f16);
  static constexpr int kExponent = 5, kFraction = 10;
  static float widen(std::uint16_t bits) { return popnorm::widen<float>(F16{bits}); }
  static std::uint16_t narrow(float value) { return popnorm::narrow<F16>(value).bits; }
};

template <class Traits>
class Storage16 : public ::testing::Test {};
using Types = ::testing::Types<Bf16Traits, F16Traits>;
TYPED_TEST_SUITE(Storage16, Types);

TYPED_TEST(Storage16, WidensExactlyAndComesBack) {
  for (int i = 0; i < 1 << 16; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double exact = meaning(bits, TypeParam::kExponent, TypeParam::kFraction);
    const float wide = TypeParam::widen(bits);
    if (std::isnan(exact)) {
      ASSERT_TRUE(std::isnan(wide)) << i;
      ASSERT_TRUE(std::isnan(TypeParam::widen(TypeParam::narrow(wide)))) << i;
    } else {
      ASSERT_EQ(static_cast<double>(wide), exact) << i;
      ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0) << i;
      ASSERT_EQ(TypeParam::narrow(wide), bits) << i;
    }
  }
}

// Halfway between neighbours, and the floats next to that; beyond the largest the neighbour would be 2^(bias + 1).
TYPED_TEST(Storage16, RoundsToNearestEven) {
  const std::uint16_t infinity = ((1 << TypeParam::kExponent) - 1) << TypeParam::kFraction;
  for (std::uint16_t bits = 0; bits < infinity; ++bits) {
    const auto above = static_cast<std::uint16_t>(bits + 1);
    const double low = meaning(bits, TypeParam::kExponent, TypeParam::kFraction);
    const double high = above == infinity ? std::ldexp(1.0, (1 << (TypeParam::kExponent - 1)))
                                          : meaning(above, TypeParam::kExponent, TypeParam::kFraction);
    const auto middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(static_cast<double>(middle), (low + high) / 2);
    const std::uint16_t even = (bits & 1) == 0 ? bits : above;
    for (const float sign : {1.0F, -1.0F}) {
      const auto signed_bits = [&](std::uint16_t of) {
        return static_cast<std::uint16_t>(of | (sign < 0 ? 0x8000 : 0));
      };
      ASSERT_EQ(TypeParam::narrow(sign * middle), signed_bits(even)) << bits;
      ASSERT_EQ(TypeParam::narrow(sign * std::nextafter(middle, 0.0F)), signed_bits(bits)) << bits;
      ASSERT_EQ(TypeParam::narrow(sign * std::nextafter(middle, std::numeric_limits<float>::infinity())),
                signed_bits(above))
          << bits;
    }
  }
  for (const float huge : {std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(TypeParam::narrow(huge), infinity);
    EXPECT_EQ(TypeParam::narrow(-huge), infinity | 0x8000);
  }
}

// y = (x - 0)*s + b in every tier's own instructions, a channel for each number: s = 1 reads every number and s = 0 rounds any
// b. In whole vectors, and one by one in partial ones.
TYPED_TEST(Storage16, EveryTierConvertsLikeTheDefinition) {
  struct Number {
    std::uint16_t x;
    float s, b;
  };
  std::vector<Number> numbers;
  for (int i = 0; i < 1 << 16; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    numbers.push_back({bits, 1, 0});
    const auto above = static_cast<std::uint16_t>(bits + 1);
    const float low = TypeParam::widen(bits), middle = low + (TypeParam::widen(above) - low) / 2;
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float b : {low, middle, std::nextafter(middle, infinity), std::nextafter(middle, -infinity)})
      numbers.push_back({0, 0, b});
  }
  const auto count = static_cast<std::int64_t>(numbers.size());
  std::vector<std::uint16_t> x, y(numbers.size());
  std::vector<float> hi(numbers.size()), s, b;
  for (const Number& n : numbers) {
    x.push_back(n.x);
    s.push_back(n.s);
    b.push_back(n.b);
  }
  for (const KernelTable* table : runnable_tables())
    for (const std::int64_t step : {count, std::int64_t{1}}) {
      y.assign(y.size(), 0x5555);
      for (std::int64_t c = 0; c < count; c += step)
        table->kernels[TypeParam::kStorage][1].normalize({{1, 1, step, nullptr},
                                                          {x.data() + c, step, step},
                                                          {y.data() + c, step, step},
                                                          hi.data() + c,
                                                          s.data() + c,
                                                          b.data() + c,
                                                          Stores::ordinary});
      for (std::size_t c = 0; c < numbers.size(); ++c) {
        const float value = TypeParam::widen(x[c]) * s[c] + b[c];
        const float written = TypeParam::widen(y[c]);
        ASSERT_TRUE(std::isnan(value) ? std::isnan(written) : y[c] == TypeParam::narrow(value))
            << table->isa << " x " << x[c] << " s " << s[c] << " b " << b[c] << ": " << y[c];
      }
    }
}

}  // namespace
}  // namespace popnorm_test
