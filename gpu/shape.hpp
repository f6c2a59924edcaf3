// What a problem is to the kernels: blocks, chunks, tiles, groups, operands.
#ifndef POPNORM_GPU_SHAPE_HPP
#define POPNORM_GPU_SHAPE_HPP

#include <algorithm>
#include <bit>
#include <cstdint>

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
inline std::int64_t chunk_positions(const Problem& p) { return kThreads * kHeld / block_of(p).channels; }

inline std::int64_t chunks_of(const Problem& p) { return (p.n * p.s + chunk_positions(p) - 1) / chunk_positions(p); }

inline Extents extents_of(const Problem& p) { return {p.n, p.c, Divisor(p.s)}; }

inline Operand operand(const Problem& p, const void* first, const Strides& strides) {
  const bool rows = p.form == Form::rows;
  const std::int64_t pack = 16 / size_of(p.storage);
  const bool packs = reinterpret_cast<std::uintptr_t>(first) % 16 == 0 && strides.sample % pack == 0 &&
                     strides.row % pack == 0 && (!rows || p.s % pack == 0);
  return {const_cast<void*>(first), strides.sample, rows ? strides.row : 1, rows ? 1 : strides.row, packs};
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

// Positions of a tile: whole chunks, so many that the partial results of all stay within 1/64 of a tensor and 4 MB.
inline std::int64_t tile_length(const Problem& p) {
  constexpr std::int64_t kSlotBytes = 3 * sizeof(double), kMostBytes = std::int64_t{4} << 20;
  const std::int64_t least = 2048 / size_of(p.storage);
  const std::int64_t budget = p.n * p.s * p.c / (kMostBytes / kSlotBytes) + 1;
  const std::int64_t chunk = chunk_positions(p);
  return (std::max(least, budget) + chunk - 1) / chunk * chunk;
}

inline Tiles tiles_of(const Problem& p, const Groups& groups) { return tiles_of(groups, p.s, tile_length(p)); }

// Whether elements have weights or, because a label can be none, may be absent.
inline bool is_weighted(const Problem& p) {
  const auto labels = [](const Map& map) { return map.kind == POPNORM_LABELS; };
  return p.weights != POPNORM_UNWEIGHTED || labels(p.norm_group) || labels(p.population_slot) || labels(p.affine_slot);
}

}  // namespace popnorm::cuda

#endif
