// What a call is made of: grids, the order of labelled samples, and which instance of a kernel serves a problem.
#ifndef POPNORM_GPU_CALL_HPP
#define POPNORM_GPU_CALL_HPP

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/arena.hpp"
#include "core/error.hpp"
#include "core/reserve.hpp"
#include "gpu/launch.hpp"
#include "gpu/policy.hpp"
#include "gpu/shape.hpp"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/chunk.cuh"
#include "kernels/cuda/fold.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/cuda/resident.cuh"

namespace popnorm::cuda {

// ------------------------------------------------------------------------------------------------- blocks and grids

// Blocks of all channels by `rows` of work, of which a block takes another when it is done with one.
inline constexpr std::int64_t kMostRows = 65535;
inline Grid grid_of(const Problem& p, std::int64_t rows) {
  const Block block = block_of(p);
  return {static_cast<unsigned>(channel_blocks(p)), static_cast<unsigned>(std::min(rows, kMostRows)), block.x, block.y,
          kChunksAt};
}
// The same of kernels that copy chunks ahead.
inline Grid ahead_grid_of(const Problem& p, std::int64_t rows, Direction direction, int ahead) {
  Grid grid = grid_of(p, rows);
  grid.shared_bytes = shared_bytes(p, direction, ahead);
  return grid;
}
// Blocks of all channels by stretches of chunks.
inline Grid stretch_grid_of(const Problem& p) { return grid_of(p, (chunks_of(p) + stretch_of(p) - 1) / stretch_of(p)); }
// Blocks of all channels by rows to fold.
inline Grid fold_grid_of(const Problem& p, std::int64_t rows) {
  return {static_cast<unsigned>((p.c + fold_columns(p) - 1) / fold_columns(p)),
          static_cast<unsigned>(std::min(rows, kMostRows)), kThreads, 1, kReduceBytes};
}
// Teams of a policy side by side.
inline Grid team_grid_of(const Problem& p, Direction direction, const Policy& policy) {
  const Block block = block_of(p);
  Grid grid{static_cast<unsigned>(policy.team * policy.teams), 1, block.x, block.y,
            shared_bytes(p, direction, policy.held)};
  grid.cluster = policy.path == Path::cluster ? static_cast<unsigned>(policy.team) : 1;
  grid.cooperative = policy.path == Path::grid && policy.team > 1;
  return grid;
}
inline Crew crew_of(const Problem& p, const Policy& policy) {
  const Team team = policy.team == 1 ? Team::block : policy.path == Path::grid ? Team::grid : Team::cluster;
  return {team, Divisor(policy.team), Divisor(channel_blocks(p)), policy.held};
}

// A thread per item.
inline Grid line_of(std::int64_t items, std::int64_t rows = 1) {
  return {static_cast<unsigned>(std::clamp<std::int64_t>((items + kThreads - 1) / kThreads, 1, kMostChannelBlocks)),
          static_cast<unsigned>(std::min(rows, kMostRows)), kThreads, 1, 0};
}

// ------------------------------------------------------------------------------------------------- arguments

inline Weights weights_of(const Problem& p, const popnorm_batch& batch) { return {p.weights, batch.weights, p.s}; }

inline Activation activation_of(const Problem& p) {
  return {p.activation == POPNORM_LEAKY_RELU ? p.slope : 1, p.activation != POPNORM_RELU};
}

// The mask of a reserve, in no more than the bytes that the reserve has for it: a sample's rows end within bytes there.
inline Mask mask_of(const Problem& p, const void* reserve) {
  auto* const first = const_cast<std::byte*>(popnorm::mask_of(static_cast<const std::byte*>(reserve), p));
  return {reinterpret_cast<std::uint8_t*>(first), ((p.form == Form::rows ? p.n * p.s : p.c) + 7) / 8};
}

// Not that of the CPU's masks, whose bits lie elsewhere.
inline std::uint32_t device_mask_shape(const Problem& p) { return p.masked() ? ~mask_shape_of(p) : 0; }

inline ForwardFusion fusion_of(const Problem& p, const void* residual, const void* reserve) {
  return {activation_of(p), p.adds_residual ? operand(p, residual, p.residual) : Operand{}, mask_of(p, reserve)};
}
inline BackwardFusion fusion_of(const Problem& p, const void* reserve) {
  return {activation_of(p), mask_of(p, reserve), p.recomputes()};
}

template <class A>
RowSource<A> row_source(const Problem& p, const Maps& maps, const void* reserve) {
  RowSource<A> source;
  source.groups = maps.norm_group;
  source.slots = maps.population_slot;
  source.affine = maps.affine_slot;
  source.c = p.c;
  source.mask_shape = device_mask_shape(p);
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

// Which of a call's maps it uses; with `one_slot` each group has one population slot, and its map has been ordered. Rows of statistics
// are those of groups or of slots, as `reserve` says, if not null.
struct Uses {
  bool groups = true, slots = true, affine = true, one_slot = false;
  const void* reserve = nullptr;
};

// Enqueues the check that a call has asked for, of what it uses: the same as the CPU's (core/validate.cpp).
inline popnorm_status check(const char* operation, const Problem& p, const popnorm_batch& batch, const Maps& maps,
                            const Uses& uses, void* stream) {
  if (batch.device_status == nullptr) return POPNORM_SUCCESS;
  CheckArgs args;
  if (uses.groups) args.map[0] = maps.norm_group;
  if (uses.slots) args.map[1] = maps.population_slot;
  if (uses.affine) args.map[2] = maps.affine_slot;
  args.slots = maps.population_slot;
  args.reserve = static_cast<const ReserveHeader*>(uses.reserve);
  if (uses.one_slot) args.groups = maps.norm_group;
  if (p.elements() > 0) args.weights = weights_of(p, batch);
  args.status = static_cast<unsigned*>(static_cast<void*>(batch.device_status));
  return launch(operation, "check", check_kernel<void>, args, line_of(std::min<std::int64_t>(p.n * p.s, 1 << 20)),
                stream);
}

// ------------------------------------------------------------------------------------------------- instantiations

template <class Body>
auto with_arithmetic_type(const Problem& p, Body&& body) {
  return p.storage == POPNORM_F64 ? body(double{}) : body(float{});
}

template <Access kAccess>
using AccessConstant = std::integral_constant<Access, kAccess>;

// Calls body(T) with the storage type, of those that are computed in A.
template <class A, class Body>
auto with_storage(const Problem& p, const Body& body) {
  if constexpr (std::is_same_v<A, float>) {
    if (p.storage == POPNORM_BF16) return body(Bf16{});
    if (p.storage == POPNORM_F16) return body(F16{});
  }
  return body(A{});
}

// Calls body(T, access, flag...) with the storage type, an AccessConstant and a std::bool_constant for each flag.
template <class A, class Body>
auto with_access(const Problem& p, Reach reach, const Body& body) {
  return with_storage<A>(p, [&](auto type) {
    const bool rows = p.form == Form::rows;
    if constexpr (!std::is_same_v<A, double>) {
      if (reach == Reach::even && rows) {
        if (has_single_elements(p)) return body(type, AccessConstant<Access::single_rows>{});
        if constexpr (sizeof(type) == 2)
          if (unit_of(p) < 8) return body(type, AccessConstant<Access::half_rows>{});
        return body(type, AccessConstant<Access::even_rows>{});
      }
      if (reach == Reach::even) return body(type, AccessConstant<Access::even_columns>{});
      if (reach == Reach::loose) return body(type, AccessConstant<Access::loose_rows>{});
    }
    if (rows) return body(type, AccessConstant<Access::rows>{});
    return body(type, AccessConstant<Access::columns>{});
  });
}

// The same of kernels that know weights, which are not narrow.
template <class A, class Body>
auto with_weights(const Problem& p, Reach reach, bool weighted, const Body& body) {
  return with_access<A>(p, weighted ? Reach::any : reach, [&](auto type, auto access) {
    if constexpr (!is_narrow(access.value))
      if (weighted) return body(type, access, std::true_type{});
    return body(type, access, std::false_type{});
  });
}
template <class A, class Body>
auto with_weights(const Problem& p, Reach reach, bool weighted, bool flag, const Body& body) {
  return with_weights<A>(p, reach, weighted, [&](auto type, auto access, auto weighs) {
    return flag ? body(type, access, weighs, std::true_type{}) : body(type, access, weighs, std::false_type{});
  });
}

}  // namespace popnorm::cuda

#endif
