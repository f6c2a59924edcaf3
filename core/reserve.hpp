// The reserve: what forward (or finalize) leaves for normalize and backward. They read it and never live parameters, so
// that an optimizer step or a population update in between cannot change a gradient.
//
//   header | double weight[c] | T hi[c] | T lo[c] | T invstd[c] | T scale[c] | T shift[c]
#ifndef POPNORM_CORE_RESERVE_HPP
#define POPNORM_CORE_RESERVE_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/backend.hpp"
#include "core/problem.hpp"

namespace popnorm {

struct ReserveHeader {
  char magic[8];
  std::int32_t storage;
  std::int32_t statistics;
  std::int64_t c;
  std::uint8_t room[40];
};
static_assert(sizeof(ReserveHeader) == kBufferAlignment);

inline constexpr char kReserveMagic[8] = {'P', 'N', 'R', 'E', 'S', '0', '0', '1'};

inline std::size_t reserve_bytes(const Problem& p) {
  return round_up(sizeof(ReserveHeader) +
                  static_cast<std::size_t>(p.c) * (sizeof(double) + 5 * static_cast<std::size_t>(size_of(p.storage))));
}

inline ReserveHeader make_reserve_header(const Problem& p, popnorm_statistics statistics) {
  ReserveHeader header{};
  std::memcpy(header.magic, kReserveMagic, sizeof(kReserveMagic));
  header.storage = p.storage;
  header.statistics = statistics;
  header.c = p.c;
  return header;
}

inline bool reserve_matches(const ReserveHeader& header, const Problem& p) {
  return std::memcmp(header.magic, kReserveMagic, sizeof(kReserveMagic)) == 0 && header.storage == p.storage &&
         header.c == p.c && (header.statistics == POPNORM_BATCH || header.statistics == POPNORM_GIVEN);
}

// Byte is std::byte or const std::byte.
template <class T, class Byte>
struct ReserveArrays {
  template <class U>
  using Pointer = std::conditional_t<std::is_const_v<Byte>, const U*, U*>;
  Pointer<double> weight = nullptr;
  Pointer<T> hi = nullptr;
  Pointer<T> lo = nullptr;
  Pointer<T> invstd = nullptr;
  Pointer<T> scale = nullptr;
  Pointer<T> shift = nullptr;

  ReserveArrays() = default;
  ReserveArrays(Byte* reserve, std::int64_t c) {
    if (reserve == nullptr) return;
    weight = reinterpret_cast<Pointer<double>>(reserve + sizeof(ReserveHeader));
    hi = reinterpret_cast<Pointer<T>>(weight + c);
    lo = hi + c;
    invstd = lo + c;
    scale = invstd + c;
    shift = scale + c;
  }
};

}  // namespace popnorm

#endif
