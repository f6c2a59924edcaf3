// From a problem to what kernels take: extents, operands, groups, tiles, grids, and how scratch is laid out.
#ifndef POPNORM_GPU_CALL_HPP
#define POPNORM_GPU_CALL_HPP

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/arena.hpp"
#include "core/error.hpp"
#include "core/problem.hpp"
#include "core/reserve.hpp"
#include "gpu/launch.hpp"
#include "kernels/cuda/fold.cuh"
#include "kernels/cuda/layout.cuh"
#include "kernels/cuda/normalize.cuh"

namespace popnorm::cuda {

inline Extents extents_of(const Problem& p) { return {p.n, p.c, p.s}; }

inline Operand operand(const Problem& p, const void* first, const Strides& strides) {
  const bool rows = p.form == Form::rows;
  return {const_cast<void*>(first), strides.sample, rows ? strides.row : 1, rows ? 1 : strides.row};
}

inline Groups groups_of(const Problem& p, const Map& map) { return {map.kind, map.k, map.count, p.n}; }

inline Values values(const void* first, popnorm_type type) { return {first, type}; }
inline Results results(void* first, popnorm_type type) { return {first, type}; }

// The shape of a block: threads side by side in channels, and in positions.
struct Block {
  unsigned x;
  unsigned y;
};
inline Block block_of(const Problem& p) {
  if (p.form == Form::rows) return {1, kThreads};
  const auto x = static_cast<unsigned>(std::bit_ceil(static_cast<std::uint64_t>(std::min<std::int64_t>(p.c, 32))));
  return {x, kThreads / x};
}

// Blocks of channels side by side that a grid can have.
inline constexpr std::int64_t kMostChannelBlocks = (std::int64_t{1} << 31) - 1;
inline std::int64_t channel_blocks(const Problem& p, const Block& block) { return (p.c + block.x - 1) / block.x; }

// Blocks of all channels by `rows` of work, of which a block takes another when it is done with one.
template <class Shared>
Grid grid_of(const Problem& p, const Block& block, std::int64_t rows) {
  constexpr std::int64_t kMostRows = 65535;
  return {static_cast<unsigned>(channel_blocks(p, block)), static_cast<unsigned>(std::min(rows, kMostRows)), block.x,
          block.y, kThreads * sizeof(Shared)};
}

// Positions of a tile: so many chunks that the partial results of all stay within 1/64 of a tensor and 4 MB.
inline std::int64_t tile_length(const Problem& p) {
  constexpr std::int64_t kLeast = 1024, kMostBytes = std::int64_t{4} << 20, kSlotBytes = 3 * sizeof(double);
  const std::int64_t chunk = std::int64_t{block_of(p).y} * kHeld;
  const std::int64_t budget = p.n * p.s * p.c / (kMostBytes / kSlotBytes) + 1;
  return (std::max(kLeast, budget) + chunk - 1) / chunk * chunk;
}

inline Tiles tiles_of(const Problem& p, const Groups& groups) { return tiles_of(groups, p.s, tile_length(p)); }

inline std::int64_t slots_of(const Groups& groups, const Tiles& tiles) { return groups.count * tiles.per_group; }

template <class A>
RowSource<A> row_source(const Problem& p, const void* reserve) {
  RowSource<A> source;
  source.groups = groups_of(p, p.norm_group);
  source.slots = groups_of(p, p.population_slot);
  source.affine = groups_of(p, p.affine_slot);
  source.c = p.c;
  source.reserve = const_cast<std::byte*>(static_cast<const std::byte*>(reserve));
  return source;
}

template <class Body>
popnorm_status with_arithmetic_type(const Problem& p, Body&& body) {
  return p.storage == POPNORM_F64 ? body(double{}) : body(float{});
}

}  // namespace popnorm::cuda

#endif
