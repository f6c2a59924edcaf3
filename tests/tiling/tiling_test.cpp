// The tiling is a pure function whose properties everything else relies on.
#include "core/tiling.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/moments.hpp"
#include "support/random.hpp"

namespace {

using popnorm::kColumnsTile;
using popnorm::kLanes;
using popnorm::kRowsTile;
using popnorm::kSlotBudget;
using popnorm::Slots;
using popnorm::Tile;
using popnorm::Tiling;
using popnorm_test::Random;

struct Shape {
  std::int64_t n, c, s;
};

std::vector<Shape> shapes() {
  std::vector<Shape> all = {{1, 1, 1},       {1, 1, kRowsTile},     {1, 1, kRowsTile + 1},     {50, 64, 49},
                            {50, 64, 12544}, {7, 3, kRowsTile / 2}, {7, 3, kRowsTile / 2 + 1}, {100000, 2, 1},
                            {3, 5, 100003}};
  Random random("tiling shapes");
  for (int i = 0; i < 200; ++i)
    all.push_back({1 + random.below(300), 1 + random.below(100), 1 + random.below(random.coin() ? 50 : 20000)});
  return all;
}

TEST(Tiling, CoversEveryPositionOnceInMemoryOrder) {
  for (const Shape& shape : shapes()) {
    const Tiling tiling(shape.n, shape.c, shape.s, kRowsTile);
    std::int64_t next = 0;
    for (std::int64_t t = 0; t < tiling.tiles(); ++t) {
      const Tile tile = tiling[t];
      ASSERT_LT(tile.n0, tile.n1);
      ASSERT_LT(tile.s0, tile.s1);
      ASSERT_EQ(tile.n0 * shape.s + tile.s0, next);
      ASSERT_TRUE(tile.n1 == tile.n0 + 1 || (tile.s0 == 0 && tile.s1 == shape.s));
      next += tile.positions();
    }
    EXPECT_EQ(next, shape.n * shape.s);
  }
}

TEST(Tiling, RunsStartAtLaneZeroAndAreEqualUpToALaneSet) {
  for (const Shape& shape : shapes()) {
    const Tiling tiling(shape.n, shape.c, shape.s, kRowsTile);
    if (shape.s <= tiling.length()) continue;
    std::int64_t shortest = shape.s, longest = 0;
    for (std::int64_t t = 0; t < tiling.tiles(); ++t) {
      const Tile tile = tiling[t];
      EXPECT_EQ(tile.s0 % kLanes, 0);
      if (tile.s1 == shape.s) continue;  // the last run also lacks what the sample lacks to a lane set
      shortest = std::min(shortest, tile.positions());
      longest = std::max(longest, tile.positions());
    }
    if (longest > 0) {
      EXPECT_LE(longest - shortest, kLanes);
    }
    EXPECT_LE(longest, tiling.length() + kLanes);
  }
}

TEST(Tiling, EmptyProblemsHaveNoTiles) {
  EXPECT_EQ(Tiling(0, 3, 5, kRowsTile).tiles(), 0);
  EXPECT_EQ(Tiling(3, 3, 0, kRowsTile).tiles(), 0);
}

TEST(Tiling, SlotsStayWithinTheirBudgetHoweverLargeTheProblem) {
  for (const Shape& shape : {Shape{1, 1, std::int64_t{1} << 33}, Shape{1 << 20, 64, 3136}, Shape{1 << 24, 4, 16}}) {
    const Tiling tiling(shape.n, shape.c, shape.s, kRowsTile);
    EXPECT_LE(tiling.tiles() * shape.c, kSlotBudget) << shape.n << " x " << shape.c << " x " << shape.s;
  }
}

TEST(Tiling, CutRestartsAtEachContiguousGroup) {
  for (const std::int64_t group : {1, 3, 7, 32, 1000}) {
    for (const std::int64_t s : {1, 49, 700}) {
      const std::int64_t n = 100;
      const Tiling tiling(n, 4, s, kRowsTile, group);
      std::int64_t next = 0;
      for (std::int64_t t = 0; t < tiling.tiles(); ++t) {
        const Tile tile = tiling[t];
        EXPECT_EQ(tile.n0, next);
        EXPECT_EQ(tile.n0 / group, (tile.n1 - 1) / group) << "a tile spans two groups";
        next = tile.n1;
      }
      EXPECT_EQ(next, n);
    }
  }
}

TEST(Slots, ThreeInterleavedGroupsHaveOneSlotPerTileAndGroupPresent) {
  const std::int64_t n = 90, c = 2, s = 49;
  const std::int32_t groups = 3;
  std::vector<std::int32_t> group_of(static_cast<std::size_t>(n));
  Random random("slots");
  // Group 2 is absent from the first half, so that tiles differ in which groups they hold.
  for (std::int64_t i = 0; i < n; ++i)
    group_of[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(random.below(i < n / 2 ? 2 : 3));
  const Tiling tiling(n, c, s, kColumnsTile);
  ASSERT_GE(tiling.tiles(), 3);
  const auto count = static_cast<std::size_t>(Slots::count(tiling, group_of, groups));
  std::vector<std::int64_t> first(static_cast<std::size_t>(tiling.tiles()) + 1), weight(count);
  std::vector<std::int32_t> group(count);
  const Slots slots(tiling, group_of, groups, first, group, weight);

  EXPECT_EQ(first.front(), 0);
  EXPECT_EQ(first.back(), static_cast<std::int64_t>(count));
  std::vector<std::int64_t> seen(groups), expected(groups);
  for (const std::int32_t g : group_of) expected[static_cast<std::size_t>(g)] += s;
  for (std::int64_t t = 0; t < tiling.tiles(); ++t) {
    const Tile tile = tiling[t];
    for (std::int32_t g = 0; g < groups; ++g) {
      std::int64_t members = 0;
      for (std::int64_t i = tile.n0; i < tile.n1; ++i) members += group_of[static_cast<std::size_t>(i)] == g;
      const std::int64_t slot = slots.find(t, g);
      if (members == 0) {
        EXPECT_EQ(slot, -1);
        continue;
      }
      ASSERT_GE(slot, first[static_cast<std::size_t>(t)]);
      ASSERT_LT(slot, first[static_cast<std::size_t>(t) + 1]);
      EXPECT_EQ(weight[static_cast<std::size_t>(slot)], members * s);
      seen[static_cast<std::size_t>(g)] += members * s;
    }
  }
  EXPECT_EQ(seen, expected);
}

TEST(BalancedTree, PairsNeighboursLevelByLevel) {
  const auto shape = [](std::int64_t count) {
    return popnorm::balanced_tree(
        count, [](std::int64_t i) { return std::to_string(i); },
        [](const std::string& a, const std::string& b) { return "(" + a + b + ")"; });
  };
  EXPECT_EQ(shape(1), "0");
  EXPECT_EQ(shape(3), "((01)2)");
  EXPECT_EQ(shape(5), "(((01)(23))4)");
  EXPECT_EQ(shape(7), "(((01)(23))((45)6))");
}

TEST(Combine, IsCommutativeToTheBitWithAnIdentity) {
  Random random("combine");
  for (int i = 0; i < 10000; ++i) {
    const auto draw = [&] {
      return popnorm::Moments{random.coin() ? 64.0 : 1 + static_cast<double>(random.below(1000)), random.normal() * 1e3,
                              random.unit()};
    };
    const popnorm::Moments a = draw(), b = draw();
    const popnorm::Moments p = combine(a, b), q = combine(b, a);
    ASSERT_EQ(p.weight, q.weight);
    ASSERT_EQ(p.mean, q.mean);
    ASSERT_EQ(p.m2, q.m2);
    const popnorm::Moments same = combine(a, popnorm::Moments{});
    ASSERT_EQ(same.mean, a.mean);
    ASSERT_EQ(same.m2, a.m2);
  }
}

}  // namespace
