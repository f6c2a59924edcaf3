// From a problem to what kernels take: extents, operands, groups, tiles, grids, and how scratch is laid out.
#ifndef POPNORM_GPU_CALL_HPP
#define POPNORM_GPU_CALL_HPP

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "core/arena.hpp"
#include "core/error.hpp"
#include "core/problem.hpp"
#include "core/reserve.hpp"
#include "gpu/launch.hpp"
#include "kernels/cuda/chunk.cuh"
#include "kernels/cuda/fold.cuh"
#include "kernels/cuda/order.cuh"

namespace popnorm::cuda {

// ------------------------------------------------------------------------------------------------- blocks and grids

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
  return kThreads * kHeld / block_of(p).channels;
}

// Blocks of all channels by `rows` of work, of which a block takes another when it is done with one.
inline constexpr std::int64_t kMostRows = 65535;
inline Grid grid_of(const Problem& p, std::int64_t rows) {
  const Block block = block_of(p);
  return {static_cast<unsigned>(channel_blocks(p)), static_cast<unsigned>(std::min(rows, kMostRows)), block.x, block.y,
          kReduceBytes};
}
// As many channels per block, in a line of threads (kernels that fold).
inline Grid fold_grid_of(const Problem& p, std::int64_t rows) {
  return {static_cast<unsigned>(channel_blocks(p)), static_cast<unsigned>(std::min(rows, kMostRows)), kThreads, 1,
          kReduceBytes};
}
// A thread per item.
inline Grid line_of(std::int64_t items, std::int64_t rows = 1) {
  return {static_cast<unsigned>(std::clamp<std::int64_t>((items + kThreads - 1) / kThreads, 1, kMostChannelBlocks)),
          static_cast<unsigned>(std::min(rows, kMostRows)), kThreads, 1, kReduceBytes};
}
inline std::int64_t chunks_of(const Problem& p) {
  return (p.n * p.s + chunk_positions(p) - 1) / chunk_positions(p);
}

// ------------------------------------------------------------------------------------------------- operands and maps

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

inline Weights weights_of(const Problem& p, const popnorm_batch& batch) { return {p.weights, batch.weights, p.s}; }

// Whether elements have weights or, because a label can be none, may be absent.
inline bool is_weighted(const Problem& p) {
  const auto labels = [](const Map& map) { return map.kind == POPNORM_LABELS; };
  return p.weights != POPNORM_UNWEIGHTED || labels(p.norm_group) || labels(p.population_slot) || labels(p.affine_slot);
}

template <class A>
RowSource<A> row_source(const Problem& p, const Maps& maps, const void* reserve) {
  RowSource<A> source;
  source.groups = maps.norm_group;
  source.slots = maps.population_slot;
  source.affine = maps.affine_slot;
  source.c = p.c;
  source.reserve = const_cast<std::byte*>(static_cast<const std::byte*>(reserve));
  return source;
}

// ------------------------------------------------------------------------------------------------- order of samples

// Scratch of the order of a labelled map's samples; nothing for another map.
struct OrderSpace {
  std::int32_t* order = nullptr;  // [n]
  std::int32_t* begin = nullptr;  // [count + 1]

  OrderSpace(Arena& arena, const Problem& p, const Map& map) {
    if (map.kind != POPNORM_LABELS) return;
    order = arena.take<std::int32_t>(p.n);
    begin = arena.take<std::int32_t>(map.count + 1);
  }
};

// What sorting needs besides, one map after the other.
struct SortSpace {
  static constexpr std::int64_t kMostBlocks = 128;

  std::int32_t* other = nullptr;  // [n]
  std::int32_t* place = nullptr;  // [kDigits][blocks]
  std::int64_t per_block;
  int blocks;

  SortSpace(Arena& arena, const Problem& p)
      : per_block(std::max<std::int64_t>((p.n + kMostBlocks * kThreads - 1) / (kMostBlocks * kThreads), 1) * kThreads),
        blocks(static_cast<int>(std::max<std::int64_t>((p.n + per_block - 1) / per_block, 1))) {
    bool sorts = false;
    for (const Map* map : {&p.norm_group, &p.population_slot, &p.affine_slot}) sorts |= map->kind == POPNORM_LABELS;
    if (!sorts) return;
    other = arena.take<std::int32_t>(p.n);
    place = arena.take<std::int32_t>(std::int64_t{kDigits} * blocks);
  }
};

// Enqueues the sort that a labelled map needs to know its members, and lets it know them. Labels that a call need not have are
// none: the map then has no members.
inline popnorm_status order(const char* operation, Groups& groups, const OrderSpace& own, const SortSpace& space,
                            void* stream) {
  if (!labelled(groups)) return POPNORM_SUCCESS;
  OrderArgs args;
  args.by = groups;
  args.per_block = space.per_block;
  args.place = space.place;
  args.blocks = space.blocks;
  const int passes = (std::bit_width(static_cast<std::uint64_t>(groups.count)) + 7) / 8;
  const Grid all{static_cast<unsigned>(space.blocks), 1, kThreads, 1, 2 * kThreads * sizeof(std::int32_t)};
  for (int pass = 0; pass < passes; ++pass) {
    args.shift = 8 * pass;
    args.out = (passes - pass) % 2 == 1 ? own.order : space.other;
    POPNORM_TRY(launch(operation, "order_count", order_count_kernel<void>, args, all, stream));
    POPNORM_TRY(launch(operation, "order_scan", order_scan_kernel<void>, args,
                       {1, 1, kThreads, 1, kThreads * sizeof(std::int32_t)}, stream));
    POPNORM_TRY(launch(operation, "order_scatter", order_scatter_kernel<void>, args, all, stream));
    args.in = args.out;
  }
  POPNORM_TRY(launch(operation, "order_begin", order_begin_kernel<void>, OrderBeginArgs{groups, own.order, own.begin},
                     line_of(groups.count + 1), stream));
  groups.order = own.order;
  groups.begin = own.begin;
  return POPNORM_SUCCESS;
}

// Enqueues the check that a call has asked for. With `feeds` each group is to feed one slot; its map has been ordered.
inline popnorm_status check(const char* operation, const Problem& p, const popnorm_batch& batch, const Maps& maps,
                            bool feeds, void* stream) {
  if (batch.device_status == nullptr) return POPNORM_SUCCESS;
  CheckArgs args{{maps.norm_group, maps.population_slot, maps.affine_slot}, {}, maps.population_slot, {}, nullptr};
  if (feeds) args.groups = maps.norm_group;
  args.weights = weights_of(p, batch);
  args.status = static_cast<unsigned*>(static_cast<void*>(batch.device_status));
  return launch(operation, "check", check_kernel<void>, args, line_of(std::min<std::int64_t>(p.n * p.s, 1 << 20)),
                stream);
}

// ------------------------------------------------------------------------------------------------- instantiations

template <class Body>
popnorm_status with_arithmetic_type(const Problem& p, Body&& body) {
  return p.storage == POPNORM_F64 ? body(double{}) : body(float{});
}

// Calls body(T, rows, weighted) with the storage type, of those that are computed in A, and two std::bool_constant.
template <class A, class Body>
popnorm_status with_instance(const Problem& p, bool weighted, const Body& body) {
  const auto with_weights = [&](auto type, auto rows) {
    return weighted ? body(type, rows, std::true_type{}) : body(type, rows, std::false_type{});
  };
  const auto with_form = [&](auto type) {
    return p.form == Form::rows ? with_weights(type, std::true_type{}) : with_weights(type, std::false_type{});
  };
  return with_form(A{});
}
template <class A, class Body>
popnorm_status with_instance(const Problem& p, const Body& body) {
  return with_instance<A>(p, is_weighted(p), body);
}

}  // namespace popnorm::cuda

#endif
