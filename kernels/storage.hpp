// What tensors are stored as, and how 16 bits become an arithmetic number and back: exactly, and rounded once, to nearest even, by
// integer arithmetic that gives every tier and device the same bits. (NaNs stay NaN; which one is nobody's promise.)
#ifndef POPNORM_KERNELS_STORAGE_HPP
#define POPNORM_KERNELS_STORAGE_HPP

#include <cstdint>
#include <type_traits>

#include "kernels/inline.hpp"

namespace popnorm {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

// What a storage type is computed in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// std::bit_cast, which kernels on a device cannot call.
template <class To, class From>
POPNORM_INLINE constexpr To bits_as(const From& value) {
  return __builtin_bit_cast(To, value);
}

POPNORM_INLINE constexpr float to_float(Bf16 value) {
  return bits_as<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

POPNORM_INLINE constexpr float to_float(F16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
  const std::uint32_t exponent = value.bits >> 10 & 0x1FU, fraction = value.bits & 0x3FFU;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;  // exact
    return bits_as<float>(sign | bits_as<std::uint32_t>(magnitude));
  }
  const std::uint32_t wide = exponent == 0x1F ? 0xFFU : exponent + (127 - 15);
  return bits_as<float>(sign | wide << 23 | fraction << 13);
}

POPNORM_INLINE constexpr Bf16 to_bf16(float value) {
  const auto bits = bits_as<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<std::uint16_t>(bits >> 16 | 0x40U)};
  return {static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
}

POPNORM_INLINE constexpr F16 to_f16(float value) {
  const auto bits = bits_as<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
  std::uint32_t half = 0;
  if (magnitude > 0x7F800000U) {
    half = 0x7E00U;
  } else if (magnitude >= 0x47800000U) {  // 2^16
    half = 0x7C00U;
  } else if (magnitude >= 0x38800000U) {  // 2^-14, the smallest normal number; what rounds up to 2^16 becomes infinity
    const std::uint32_t rebased = magnitude - ((127U - 15U) << 23);
    half = (rebased + 0xFFFU + (rebased >> 13 & 1U)) >> 13;
  } else if (magnitude >= 0x33000000U) {  // 2^-25, half of the smallest number
    const std::uint32_t fraction = (magnitude & 0x7FFFFFU) | 0x800000U;
    const std::uint32_t shift = 126U - (magnitude >> 23);  // to units of 2^-24
    const std::uint32_t rest = fraction & ((1U << shift) - 1), middle = 1U << (shift - 1);
    half = fraction >> shift;
    half += rest > middle || (rest == middle && (half & 1U) != 0) ? 1U : 0U;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

// Between a storage type T and the type A that it is computed in: float, or double for double.
template <class A, class T>
POPNORM_INLINE constexpr A widen(T value) {
  return static_cast<A>(value);
}
template <class A>
POPNORM_INLINE constexpr A widen(Bf16 value) {
  return to_float(value);
}
template <class A>
POPNORM_INLINE constexpr A widen(F16 value) {
  return to_float(value);
}

template <class T>
struct Narrow {
  template <class A>
  POPNORM_INLINE static constexpr T from(A value) {
    return static_cast<T>(value);
  }
};
template <>
struct Narrow<Bf16> {
  POPNORM_INLINE static constexpr Bf16 from(float value) { return to_bf16(value); }
};
template <>
struct Narrow<F16> {
  POPNORM_INLINE static constexpr F16 from(float value) { return to_f16(value); }
};
template <class T, class A>
POPNORM_INLINE constexpr T narrow(A value) {
  return Narrow<T>::from(value);
}

}  // namespace popnorm

#endif
