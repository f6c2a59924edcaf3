// What a problem is to the kernels: blocks, chunks, tiles, groups, operands.
#ifndef POPNORM_GPU_SHAPE_HPP
#define POPNORM_GPU_SHAPE_HPP

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>

#include "core/problem.hpp"
#include "kernels/cuda/chunk.cuh"
#include "kernels/cuda/layout.cuh"

namespace popnorm::cuda {

// The shape of a block that reads or writes tensors, and the channels that it covers. In the columns form they are
// kSlabBytes wide: whole lines of memory, and narrow enough that many positions of them fit on the chip.
inline constexpr std::int64_t kSlabBytes = 128;
struct Block {
  unsigned x;
  unsigned y;
  int channels;
};
inline Block block_of(const Problem& p) {
  if (p.form == Form::rows) return {1, kThreads, 1};
  const std::int64_t pack = 16 / size_of(p.storage);
  const auto needed = static_cast<std::uint64_t>((p.c + pack - 1) / pack);
  const auto x = static_cast<unsigned>(std::min<std::uint64_t>(kSlabBytes / 16, std::bit_ceil(needed)));
  return {x, kThreads / x, static_cast<int>(x * pack)};
}

// Blocks of channels side by side that a grid can have.
inline constexpr std::int64_t kMostChannelBlocks = (std::int64_t{1} << 31) - 1;
inline std::int64_t channel_blocks(const Problem& p) {
  const std::int64_t channels = block_of(p).channels;
  return (p.c + channels - 1) / channels;
}

// Positions of a chunk.
inline std::int64_t chunk_positions(const Problem& p) {
  return kThreads * held_of(static_cast<std::size_t>(size_of(p.storage))) / block_of(p).channels;
}

inline std::int64_t chunks_of(const Problem& p) { return (p.n * p.s + chunk_positions(p) - 1) / chunk_positions(p); }

// Positions of a unit (kernels/cuda/chunk.cuh), of the rows form.
inline std::int64_t unit_of(const Problem& p) {
  const std::int64_t pack = 16 / size_of(p.storage), half = 8 / size_of(p.storage);
  return p.s % pack == 0 ? pack : size_of(p.storage) == 2 && p.s % half == 0 ? half : 1;
}
inline bool has_single_elements(const Problem& p) { return p.form == Form::rows && unit_of(p) == 1; }

inline Extents extents_of(const Problem& p) {
  return {p.n, p.c, Divisor(p.s), std::countr_zero(static_cast<std::uint64_t>(unit_of(p)))};
}

inline Operand operand(const Problem& p, const void* first, const Strides& strides) {
  const bool rows = p.form == Form::rows;
  const auto lie = [&](std::int64_t bytes) {  // side by side
    const std::int64_t elements = bytes / size_of(p.storage);
    return reinterpret_cast<std::uintptr_t>(first) % static_cast<std::uintptr_t>(bytes) == 0 &&
           strides.sample % elements == 0 && strides.row % elements == 0 && (!rows || p.s % elements == 0);
  };
  return {const_cast<void*>(first), strides.sample, rows ? strides.row : 1, rows ? 1 : strides.row, lie(16), lie(8)};
}

// Samples are normalized by so many rows of statistics at most: those of groups, or of population slots that are given.
inline std::int64_t most_rows(const Problem& p) { return std::max(p.norm_group.count, p.population_slot.count); }

// Whether the kernel that folds the sums of rows can put dscale and dshift too: there is one row, whatever rows are those of.
inline bool fold_delivers(const Problem& p) {
  return p.norm_group.count == 1 && p.population_slot.count == 1 && p.affine_slot.count == 1;
}

// Whether elements have weights or, because a label can be none, may be absent.
inline bool is_weighted(const Problem& p) {
  const auto labels = [](const Map& map) { return map.kind == POPNORM_LABELS; };
  return p.weights != POPNORM_UNWEIGHTED || labels(p.norm_group) || labels(p.population_slot) || labels(p.affine_slot);
}

// Whether aligned tensors of the rows form are reached pack by pack (kernels/cuda/chunk.cuh): small packs only if all samples have the same
// row of statistics and affine slot.
inline bool has_packs(const Problem& p) {
  const auto whole = [](const Map& map) { return map.kind == POPNORM_WHOLE; };
  return unit_of(p) == 16 / size_of(p.storage) ||
         (whole(p.norm_group) && whole(p.population_slot) && whole(p.affine_slot));
}

// How kernels can reach these tensors (kernels/cuda/chunk.cuh): by whole packs that are there or not, or by elements, counting in 32
// bits; or in any way.
enum class Reach { any, loose, even };
inline Reach reach_of(const Problem& p, std::initializer_list<Operand> operands) {
  const std::int64_t pack = p.form == Form::rows ? unit_of(p) : 16 / size_of(p.storage);
  const auto lies = [&](const Operand& o) {
    const std::int64_t bytes = pack * size_of(p.storage);
    return bytes == 16 ? o.packs : bytes < 8 || o.halves;
  };
  // A chunk beyond the end is counted too.
  constexpr std::int64_t kMost = std::int64_t{1} << 31, kBeyond = 8 * kThreads * kThreads;
  const auto span = [&](const Operand& o) {
    return (p.n - 1) * o.sample + (p.c - 1) * o.channel + (p.s - 1) * o.position;
  };
  const auto all = [&](const auto& holds) {
    return std::ranges::all_of(operands, [&](const Operand& o) { return o.first == nullptr || holds(o); });
  };
  if (p.storage == POPNORM_F64 || is_weighted(p) || p.n * p.s >= kMost - kBeyond || p.c >= kMost) return Reach::any;
  if ((p.form == Form::rows ? has_packs(p) : p.c % pack == 0) &&
      all([&](const Operand& o) { return lies(o) && span(o) / pack < kMost; }))
    return Reach::even;
  return p.form == Form::rows && all([&](const Operand& o) { return span(o) < kMost; }) ? Reach::loose : Reach::any;
}

inline Values values(const void* first, popnorm_type type) { return {first, type}; }
inline Results results(void* first, popnorm_type type) { return {first, type}; }

inline Groups groups_of(const Problem& p, const Map& map, const std::int32_t* labels) {
  return {map.kind, Divisor(map.k), map.count, p.n, labels};
}

// The three maps of a call.
struct Maps {
  Groups norm_group;
  Groups population_slot;
  Groups affine_slot;

  Maps(const Problem& p, const popnorm_batch& batch)
      : norm_group(groups_of(p, p.norm_group, batch.norm_group)),
        population_slot(groups_of(p, p.population_slot, batch.population_slot)),
        affine_slot(groups_of(p, p.affine_slot, batch.affine_slot)) {}
};

inline bool labelled(const Groups& groups) { return groups.kind == POPNORM_LABELS; }

// Chunks that a block takes at a time, where that leaves stretches for many blocks: up to eight; in the rows form three, which divide
// what a block of a kernel of one read can keep.
inline std::int64_t stretch_of(const Problem& p) {
  const bool rows = p.form == Form::rows;
  return std::clamp<std::int64_t>(chunks_of(p) * channel_blocks(p) / (rows ? 1024 : 512), 1, rows ? 3 : 8);
}

// Positions of a tile: whole stretches, so many that the partial results of all stay within 1/64 of a tensor and 4 MB.
inline std::int64_t tile_length(const Problem& p) {
  constexpr std::int64_t kSlotBytes = 3 * sizeof(double), kMostBytes = std::int64_t{4} << 20;
  const std::int64_t least = 64 * kSlotBytes / size_of(p.storage);
  const std::int64_t budget = p.n * p.s * p.c / (kMostBytes / kSlotBytes) + 1;
  const std::int64_t stretch = stretch_of(p) * chunk_positions(p);
  return (std::max(least, budget) + stretch - 1) / stretch * stretch;
}

inline Tiles tiles_of(const Problem& p, const Groups& groups) { return tiles_of(groups, p.s, tile_length(p)); }

// Channels that a block folds at a time, side by side in memory: a sector where tiles are many, so that many threads share those of
// each; more where they are few.
inline int fold_columns(const Problem& p) {
  constexpr std::uint64_t kLeast = 4, kMost = 32;
  const auto tiles = static_cast<std::uint64_t>(tiles_of(p, groups_of(p, p.norm_group, nullptr)).per_group.by());
  const std::uint64_t leaves =
      p.norm_group.kind == POPNORM_LABELS ? kThreads : std::bit_ceil(std::max<std::uint64_t>(tiles, 1));
  const std::uint64_t columns = std::clamp(kThreads / leaves, kLeast, kMost);
  return p.form == Form::rows ? static_cast<int>(columns) : std::min(block_of(p).channels, static_cast<int>(columns));
}

}  // namespace popnorm::cuda

#endif
