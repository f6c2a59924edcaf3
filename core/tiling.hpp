// Tiling fixes the bits. A pure function of the problem cuts it into tiles; every tile gives one partial result per
// group present in it (a slot), and a group's slots are combined along a balanced binary tree in ascending tile order.
// Threads, caches and schedules decide only who computes a tile and when.
#ifndef POPNORM_CORE_TILING_HPP
#define POPNORM_CORE_TILING_HPP

#include <algorithm>
#include <cstdint>

#include "core/problem.hpp"
#include "kernels/virtual_lanes.hpp"

namespace popnorm {

// L, the positions of a tile per channel. Leaves sum in f32 only over four vectors at a time (kernels/README.md), so that
// accuracy does not limit it. Measured: rows like 16 KiB, enough to prefetch one tile ahead of another; columns, whose tile
// holds all channels, like many tiles to share out, and longer ones, whose pivots cost less, where there are 16 anyway.
inline constexpr std::int64_t kRowsTile = 4096;
inline constexpr std::int64_t kColumnsTile = 512;

// Slots, 16 bytes per channel, stay below 3 MiB and a 64th of the tensor: L grows with the problem beyond that. With labels they
// may take 8 bytes per sample more.
inline constexpr std::int64_t kSlotBudget = (std::int64_t{3} << 20) / 16;

// What kernels accept as one slot (cpu/kernel_table.hpp), with room for the excess of a run.
inline constexpr std::int64_t kLongestTile = std::int64_t{1} << 24;

// L for a problem whose tiles hold samples of up to `interleaved` groups, dealt by labels or not. Measured: in the rows form a
// group's part is like a whole tile of plain batch normalization, unless that holds but one sample anyway; in the columns form,
// where a group's samples are picked out of the tile, the tile stays in the second-level cache as far as the budget allows.
inline std::int64_t tile_length(Form form, std::int64_t n, std::int64_t c, std::int64_t s, std::int64_t interleaved = 1,
                                bool labels = false) {
  const auto groups = static_cast<double>(interleaved), channels = static_cast<double>(c);
  const auto samples = static_cast<double>(n), positions = static_cast<double>(s);
  const double spare = labels ? 8.0 / 16 : 0;  // slots' channels per sample
  const double budget = std::max((static_cast<double>(kSlotBudget) + spare * samples) / channels, 1.0);
  double least = samples * positions / budget * groups;
  if (interleaved > 1) {
    const double of_tensor = 256 * groups / (1 + 256 * spare / (channels * positions));
    const double each = form == Form::columns ? std::clamp(4096 / channels, 64.0, 256.0)
                        : s <= kRowsTile / 2  ? std::clamp(256 * positions, 256.0, static_cast<double>(kRowsTile))
                                              : 256;
    least = std::max({least, of_tensor, each * groups});
  }
  const bool many = samples * positions >= 16.0 * kColumnsTile;
  std::int64_t length = form == Form::rows ? kRowsTile : many ? 2 * kColumnsTile : kColumnsTile;
  while (static_cast<double>(length) < least && length < kLongestTile) length *= 2;
  return length;
}

// Where part i begins when `total` things are cut into `parts` that are equal up to one.
constexpr std::int64_t part_of(std::int64_t total, std::int64_t parts, std::int64_t i) {
  return total / parts * i + std::min(i, total % parts);
}

// How samples of s positions make tiles of length L: one longer than L is cut into runs, shorter ones are gathered.
class Cut {
 public:
  Cut() = default;
  Cut(std::int64_t s, std::int64_t length)
      : s_(s),
        runs_(s > length ? (s + length - 1) / length : 1),
        samples_(s > length ? 1 : std::max<std::int64_t>(length / std::max<std::int64_t>(s, 1), 1)) {}

  std::int64_t runs() const { return runs_; }        // per sample
  std::int64_t samples() const { return samples_; }  // per tile, at most
  std::int64_t tiles(std::int64_t n) const { return (n + samples_ - 1) / samples_; }

  // Where run i begins. Runs are equal up to kLanes positions, and start at virtual lane 0.
  std::int64_t begin(std::int64_t i) const {
    return std::min(s_, part_of((s_ + kLanes - 1) / kLanes, runs_, i) * kLanes);
  }

 private:
  std::int64_t s_ = 0;
  std::int64_t runs_ = 1;
  std::int64_t samples_ = 1;
};

// Samples [n0, n1) x positions [s0, s1), all channels.
struct Tile {
  std::int64_t n0, n1, s0, s1;
  std::int64_t positions() const { return (n1 - n0) * (s1 - s0); }
};

// Tiles in memory order, so that any run of them has no gaps.
class Tiling {
 public:
  Tiling() = default;
  // Tiles of about `length` positions. The cut restarts every `group` samples, of which there are n / group, the last perhaps
  // smaller: groups of contiguous samples never share a tile.
  Tiling(std::int64_t n, std::int64_t s, std::int64_t length, std::int64_t group)
      : n_(n), cut_(s, length), group_(std::max<std::int64_t>(std::min(group, n), 1)) {
    if (n == 0 || s == 0) return;
    tiles_per_group_ = cut_.tiles(group_);
    tiles_of_rest_ = cut_.tiles(n % group_);
    tiles_ = (n / group_ * tiles_per_group_ + tiles_of_rest_) * cut_.runs();
  }

  std::int64_t tiles() const { return tiles_; }

  // The tiles of group g are first_of(g) ... first_of(g + 1) - 1.
  std::int64_t first_of(std::int64_t g) const { return std::min(g * tiles_per_group_ * cut_.runs(), tiles_); }
  std::int64_t group_of(std::int64_t t) const { return t / (tiles_per_group_ * cut_.runs()); }

  Tile operator[](std::int64_t t) const {
    const std::int64_t bundle = t / cut_.runs();
    const std::int64_t run = t % cut_.runs();
    const std::int64_t first = bundle / tiles_per_group_ * group_;
    const std::int64_t i = bundle % tiles_per_group_;
    const std::int64_t samples = std::min(group_, n_ - first);
    const std::int64_t tiles = samples == group_ ? tiles_per_group_ : tiles_of_rest_;
    return {first + part_of(samples, tiles, i), first + part_of(samples, tiles, i + 1), cut_.begin(run),
            cut_.begin(run + 1)};
  }

 private:
  std::int64_t n_ = 0;
  Cut cut_;
  std::int64_t group_ = 1;
  std::int64_t tiles_per_group_ = 1;
  std::int64_t tiles_of_rest_ = 0;
  std::int64_t tiles_ = 0;
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
