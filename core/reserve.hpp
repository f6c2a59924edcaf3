// The reserve: what forward (or finalize) leaves for normalize and backward. They read it and never live parameters or a live
// population, so that an optimizer step or an update in between cannot change a gradient.
//
//   header | double weight[rows][c] | T hi, lo, invstd, d, r2[rows][c] | T scale, shift[affine_slots][c] | mask
//
// weight is W of the formulas, W/(1-share) for a blend, 0 where statistics are constants; d and r2 = 1/r^2 are those of batch
// renormalization, 0 and 1 otherwise. The mask, where there are an activation and a residual, says which elements were not
// stopped, a bit each, in the order of the canonical problem, each row padded to a byte.
#ifndef POPNORM_CORE_RESERVE_HPP
#define POPNORM_CORE_RESERVE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/backend.hpp"
#include "core/maps.hpp"
#include "core/problem.hpp"
#include "kernels/reserve_layout.hpp"

namespace popnorm {

static_assert(sizeof(ReserveHeader) == kBufferAlignment);

inline constexpr char kReserveMagic[8] = {'P', 'N', 'R', 'E', 'S', '0', '0', '3'};

struct MaskShape {
  std::int64_t row;     // bytes
  std::int64_t sample;  // bytes
  explicit MaskShape(const Problem& p) : row((p.row_length() + 7) / 8), sample(row * p.rows()) {}
};

// Kernels read bits by words: so many bytes beyond the last may be read.
inline constexpr std::size_t kMaskSlack = 8;

// Where the mask begins: after the arrays of whatever statistics a call takes.
inline std::size_t mask_offset(const Problem& p) {
  const auto rows = static_cast<std::size_t>(std::max(p.norm_group.count, p.population_slot.count));
  const auto size = static_cast<std::size_t>(size_of(arithmetic_of(p.storage)));
  const auto c = static_cast<std::size_t>(p.c);
  return round_up(sizeof(ReserveHeader) +
                  c * (rows * (sizeof(double) + 5 * size) + static_cast<std::size_t>(p.affine_slot.count) * 2 * size));
}

inline std::size_t reserve_bytes(const Problem& p) {
  if (!p.masked()) return mask_offset(p);
  return round_up(mask_offset(p) + static_cast<std::size_t>(MaskShape(p).sample * p.n) + kMaskSlack);
}

// The mask of a reserve of a problem that has one; null without a reserve. Byte as in reserve_arrays.
template <class Byte>
Byte* mask_of(Byte* reserve, const Problem& p) {
  return reserve != nullptr && p.masked() ? reserve + mask_offset(p) : nullptr;
}

// Of what decides where an element's bit lies.
inline std::uint32_t mask_shape_of(const Problem& p) {
  if (!p.masked()) return 0;
  std::uint32_t hash = 2166136261U;
  for (const std::int64_t number : {static_cast<std::int64_t>(p.form), p.n, p.rows(), p.row_length()}) {
    const auto bits = static_cast<std::uint64_t>(number);
    hash = (hash ^ static_cast<std::uint32_t>(bits)) * 16777619U;
    hash = (hash ^ static_cast<std::uint32_t>(bits >> 32)) * 16777619U;
  }
  return std::max(hash, 1U);
}

// Of the maps and labels that decide which row and which scale a sample has, so that backward with others is refused. FNV-1a,
// for labels in 16 chains, which are then hashed themselves: one chain would take longer than the labels are worth.
inline std::uint64_t labels_of(const Problem& p, popnorm_statistics statistics, const popnorm_batch& batch) {
  constexpr std::int64_t kChains = 16;
  std::uint64_t hash = 14695981039346656037U;
  const auto add_number = [&](std::uint64_t number) { hash = (hash ^ number) * 1099511628211U; };
  const auto add = [&](const Map& map, const std::int32_t* labels) {
    if (map.count <= 1) return add_number(static_cast<std::uint64_t>(POPNORM_WHOLE));  // however it is called
    add_number(static_cast<std::uint64_t>(map.kind));
    add_number(static_cast<std::uint64_t>(map.k));
    if (map.kind != POPNORM_LABELS) return;
    std::uint32_t chain[kChains];
    std::fill_n(chain, kChains, 2166136261U);
    const auto mix = [&](std::int64_t n, std::int64_t k) {
      chain[k] = (chain[k] ^ static_cast<std::uint32_t>(labels[n])) * 16777619U;
    };
    std::int64_t n = 0;
    for (; n + kChains <= p.n; n += kChains)
      for (std::int64_t k = 0; k < kChains; ++k) mix(n + k, k);
    for (std::int64_t k = 0; n + k < p.n; ++k) mix(n + k, k);
    for (const std::uint32_t value : chain) add_number(value);
  };
  add(p.row_map(statistics), statistics == POPNORM_GIVEN ? batch.population_slot : batch.norm_group);
  add(p.affine_slot, batch.affine_slot);
  return std::max<std::uint64_t>(hash, 1);
}

inline ReserveHeader make_reserve_header(const Problem& p, popnorm_statistics statistics, std::uint64_t labels) {
  ReserveHeader header{};
  std::memcpy(header.magic, kReserveMagic, sizeof(kReserveMagic));
  header.storage = p.storage;
  header.statistics = statistics;
  header.c = p.c;
  header.rows = p.row_map(statistics).count;
  header.affine_slots = p.affine_slot.count;
  header.labels = labels;
  header.activation = static_cast<std::int8_t>(p.activation);
  header.adds_residual = p.adds_residual ? 1 : 0;
  header.mask_shape = mask_shape_of(p);
  header.slope = p.slope;
  return header;
}

inline bool reserve_matches(const ReserveHeader& header, const Problem& p) {
  return std::memcmp(header.magic, kReserveMagic, sizeof(kReserveMagic)) == 0 && header.storage == p.storage &&
         header.c == p.c && header.statistics >= POPNORM_BATCH && header.statistics <= POPNORM_RENORM &&
         header.rows == p.row_map(static_cast<popnorm_statistics>(header.statistics)).count &&
         header.affine_slots == p.affine_slot.count && header.activation == p.activation &&
         header.adds_residual == (p.adds_residual ? 1 : 0) && header.mask_shape == mask_shape_of(p) &&
         header.slope == p.slope;
}

// Byte is std::byte or const std::byte.
template <class T, class Byte>
ReserveArrays<T, Byte> reserve_arrays(Byte* reserve, const Problem& p, popnorm_statistics statistics) {
  return {reserve, p.row_map(statistics).count * p.c, p.affine_slot.count * p.c};
}

}  // namespace popnorm

#endif
