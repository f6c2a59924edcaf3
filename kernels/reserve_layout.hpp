// Where things lie in a reserve (core/reserve.hpp says what they are).
#ifndef POPNORM_KERNELS_RESERVE_LAYOUT_HPP
#define POPNORM_KERNELS_RESERVE_LAYOUT_HPP

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/inline.hpp"

namespace popnorm {

struct ReserveHeader {
  char magic[8];
  std::int32_t storage;
  std::int32_t statistics;
  std::int64_t c;
  std::int64_t rows;
  std::int64_t affine_slots;
  std::uint64_t labels;  // fingerprint of the maps and labels that forward had; 0 = unknown (finalize has no labels)
  std::int8_t activation;
  std::int8_t adds_residual;
  std::int8_t masked;  // whether normalize has been here
  std::int8_t room;
  std::uint32_t mask_shape;  // fingerprint of the mask's shape; 0 = none
  double slope;
};
static_assert(sizeof(ReserveHeader) == 64);

// Byte is std::byte or const std::byte.
template <class T, class Byte>
struct ReserveArrays {
  template <class U>
  using Pointer = std::conditional_t<std::is_const_v<Byte>, const U*, U*>;
  Pointer<double> weight = nullptr;  // [rows][c], like all but the last two
  Pointer<T> hi = nullptr;
  Pointer<T> lo = nullptr;
  Pointer<T> invstd = nullptr;
  Pointer<T> d = nullptr;
  Pointer<T> r2 = nullptr;
  Pointer<T> scale = nullptr;  // [affine_slots][c]
  Pointer<T> shift = nullptr;

  ReserveArrays() = default;
  // entries = rows*c, affine_entries = affine_slots*c.
  POPNORM_INLINE ReserveArrays(Byte* reserve, std::int64_t entries, std::int64_t affine_entries) {
    if (reserve == nullptr) return;
    weight = reinterpret_cast<Pointer<double>>(reserve + sizeof(ReserveHeader));
    hi = reinterpret_cast<Pointer<T>>(weight + entries);
    lo = hi + entries;
    invstd = lo + entries;
    d = invstd + entries;
    r2 = d + entries;
    scale = r2 + entries;
    shift = scale + affine_entries;
  }
};

}  // namespace popnorm

#endif
