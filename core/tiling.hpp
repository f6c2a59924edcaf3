// Tiling fixes the bits. A pure function of the problem cuts it into tiles; every tile gives one partial result per
// group present in it (a slot), and a group's slots are combined along a balanced binary tree in ascending tile order.
// Threads, caches and schedules decide only who computes a tile and when.
#ifndef POPNORM_CORE_TILING_HPP
#define POPNORM_CORE_TILING_HPP

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/problem.hpp"
#include "kernels/virtual_lanes.hpp"

namespace popnorm {

// L, the positions of a tile per channel. Leaves sum in f32 only over four vectors at a time (kernels/README.md), so that
// accuracy does not limit it. Measured: rows like 16 KiB, enough to prefetch one tile ahead of another; columns, whose tile
// holds all channels, like many tiles to share out.
inline constexpr std::int64_t kRowsTile = 4096;
inline constexpr std::int64_t kColumnsTile = 512;

constexpr std::int64_t tile_length(Form form) { return form == Form::rows ? kRowsTile : kColumnsTile; }

// Slots stay below about 3 MiB at 16 bytes per channel: L grows with the problem beyond that.
inline constexpr std::int64_t kSlotBudget = (std::int64_t{3} << 20) / 16;

// What kernels accept as one slot (cpu/kernel_table.hpp), with room for the excess of a run.
inline constexpr std::int64_t kLongestTile = std::int64_t{1} << 24;

// Samples [n0, n1) x positions [s0, s1), all channels.
struct Tile {
  std::int64_t n0, n1, s0, s1;
  std::int64_t positions() const { return (n1 - n0) * (s1 - s0); }
};

class Tiling {
 public:
  Tiling() = default;
  // Tiles of about `length` positions. `run` > 0 restarts the cut every `run` samples: groups of contiguous(run) then never
  // share a tile.
  Tiling(std::int64_t n, std::int64_t c, std::int64_t s, std::int64_t length, std::int64_t run = 0)
      : n_(n), s_(s), length_(length) {
    if (n == 0 || s == 0) return;
    const double budget = static_cast<double>(kSlotBudget) / static_cast<double>(c);
    const double grown = static_cast<double>(n) * static_cast<double>(s) / std::max(budget, 1.0);
    while (static_cast<double>(length_) < grown && length_ < kLongestTile) length_ *= 2;
    run_ = run > 0 ? std::min(run, n) : n;
    if (s > length_) {
      runs_ = (s + length_ - 1) / length_;
      tiles_ = n * runs_;
    } else {
      const std::int64_t samples = std::max<std::int64_t>(length_ / s, 1);
      tiles_per_run_ = (run_ + samples - 1) / samples;
      tiles_of_rest_ = (n % run_ + samples - 1) / samples;
      tiles_ = n / run_ * tiles_per_run_ + tiles_of_rest_;
    }
  }

  std::int64_t tiles() const { return tiles_; }

  // L: positions of a tile at most (a run may exceed it by less than kLanes).
  std::int64_t length() const { return length_; }

  // Positions of tile t. Tiles follow one another in memory order, so that any run of them has no gaps.
  double weight(std::int64_t t) const { return static_cast<double>((*this)[t].positions()); }

  Tile operator[](std::int64_t t) const {
    if (runs_ > 0) {
      const std::int64_t n = t / runs_;
      const std::int64_t i = t % runs_;
      return {n, n + 1, cut(i), cut(i + 1)};
    }
    const std::int64_t first = t / tiles_per_run_ * run_;
    const std::int64_t i = t % tiles_per_run_;
    const std::int64_t samples = std::min(run_, n_ - first);
    const std::int64_t tiles = samples == run_ ? tiles_per_run_ : tiles_of_rest_;
    return {first + part(samples, tiles, i), first + part(samples, tiles, i + 1), 0, s_};
  }

 private:
  // Where part i begins when `total` things are cut into `parts` that are equal up to one.
  static std::int64_t part(std::int64_t total, std::int64_t parts, std::int64_t i) {
    return total / parts * i + std::min(i, total % parts);
  }

  // Runs of a sample are equal up to kLanes positions, and start at virtual lane 0.
  std::int64_t cut(std::int64_t i) const { return std::min(s_, part((s_ + kLanes - 1) / kLanes, runs_, i) * kLanes); }

  std::int64_t n_ = 0, s_ = 0;
  std::int64_t length_ = 0;
  std::int64_t tiles_ = 0;
  std::int64_t runs_ = 0;  // tiles per sample where one sample exceeds a tile, else 0
  std::int64_t run_ = 1;   // samples after which the cut restarts
  std::int64_t tiles_per_run_ = 1;
  std::int64_t tiles_of_rest_ = 0;
};

// Slots of a tiling whose samples belong to groups: slot indices are prefix sums over (tile, group present), groups of
// a tile in ascending order.
class Slots {
 public:
  // `first` holds tiles+1 entries, `group` and `weight` at least `count(tiling, group_of)` entries. group_of[n] in [0,
  // groups).
  Slots(const Tiling& tiling, std::span<const std::int32_t> group_of, std::int32_t groups,
        std::span<std::int64_t> first, std::span<std::int32_t> group, std::span<std::int64_t> weight)
      : first_(first), group_(group) {
    std::int64_t slot = 0;
    for (std::int64_t t = 0; t < tiling.tiles(); ++t) {
      const Tile tile = tiling[t];
      first[static_cast<std::size_t>(t)] = slot;
      for (std::int32_t g = 0; g < groups; ++g) {
        const std::int64_t samples = members(tile, group_of, g);
        if (samples == 0) continue;
        group[static_cast<std::size_t>(slot)] = g;
        weight[static_cast<std::size_t>(slot)] = samples * (tile.s1 - tile.s0);
        ++slot;
      }
    }
    first[static_cast<std::size_t>(tiling.tiles())] = slot;
  }

  static std::int64_t count(const Tiling& tiling, std::span<const std::int32_t> group_of, std::int32_t groups) {
    std::int64_t slots = 0;
    for (std::int64_t t = 0; t < tiling.tiles(); ++t)
      for (std::int32_t g = 0; g < groups; ++g) slots += members(tiling[t], group_of, g) > 0;
    return slots;
  }

  // The slot of a group in a tile, or -1 if the group is absent there.
  std::int64_t find(std::int64_t tile, std::int32_t group) const {
    for (std::int64_t i = first_[static_cast<std::size_t>(tile)]; i < first_[static_cast<std::size_t>(tile) + 1]; ++i)
      if (group_[static_cast<std::size_t>(i)] == group) return i;
    return -1;
  }

 private:
  static std::int64_t members(const Tile& tile, std::span<const std::int32_t> group_of, std::int32_t group) {
    return std::count(group_of.begin() + tile.n0, group_of.begin() + tile.n1, group);
  }

  std::span<const std::int64_t> first_;
  std::span<const std::int32_t> group_;
};

// leaf(0) ... leaf(count-1) merged along a balanced binary tree: neighbours pair up level by level, an odd one passes
// up. Needs count >= 1 and a stack of log2(count) values.
template <class Leaf, class Merge>
auto balanced_tree(std::int64_t count, Leaf&& leaf, Merge&& merge) {
  decltype(leaf(std::int64_t{0})) stack[64];
  int depth = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    stack[depth++] = leaf(i);
    for (std::int64_t pairs = i + 1; pairs % 2 == 0; pairs /= 2, --depth)
      stack[depth - 2] = merge(stack[depth - 2], stack[depth - 1]);
  }
  for (; depth > 1; --depth) stack[depth - 2] = merge(stack[depth - 2], stack[depth - 1]);
  return stack[0];
}

}  // namespace popnorm

#endif
