// The tiling is a pure function whose properties everything else relies on.
#include "core/tiling.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/partition.hpp"
#include "kernels/moments.hpp"
#include "support/random.hpp"

namespace {

using popnorm::kLanes;
using popnorm::kRowsTile;
using popnorm::kSlotBudget;
using popnorm::Partition;
using popnorm::Tile;
using popnorm::Tiling;
using popnorm_test::Random;

struct Shape {
  std::int64_t n, c, s;
};

Tiling tiling_of(const Shape& shape, std::int64_t group = 0) {
  const std::int64_t length = popnorm::tile_length(popnorm::Form::rows, shape.n, shape.c, shape.s);
  return {shape.n, shape.s, length, group > 0 ? group : shape.n};
}

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
    const Tiling tiling = tiling_of(shape);
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
    const Tiling tiling = tiling_of(shape);
    const std::int64_t length = popnorm::tile_length(popnorm::Form::rows, shape.n, shape.c, shape.s);
    if (shape.s <= length) continue;
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
    EXPECT_LE(longest, length + kLanes);
  }
}

TEST(Tiling, EmptyProblemsHaveNoTiles) {
  EXPECT_EQ(tiling_of({0, 3, 5}).tiles(), 0);
  EXPECT_EQ(tiling_of({3, 3, 0}).tiles(), 0);
}

TEST(Tiling, SlotsStayWithinTheirBudgetHoweverLargeTheProblem) {
  for (const Shape& shape : {Shape{1, 1, std::int64_t{1} << 33}, Shape{1 << 20, 64, 3136}, Shape{1 << 24, 4, 16}}) {
    const Tiling tiling = tiling_of(shape);
    EXPECT_LE(tiling.tiles() * shape.c, kSlotBudget) << shape.n << " x " << shape.c << " x " << shape.s;
  }
}

TEST(Tiling, CutRestartsAtEachContiguousGroup) {
  for (const std::int64_t group : {1, 3, 7, 32, 1000}) {
    for (const std::int64_t s : {1, 49, 700}) {
      const std::int64_t n = 100;
      const Tiling tiling = tiling_of({n, 4, s}, group);
      std::int64_t next = 0;
      for (std::int64_t t = 0; t < tiling.tiles(); ++t) {
        const Tile tile = tiling[t];
        EXPECT_EQ(tile.n0, next);
        EXPECT_EQ(tile.n0 / group, (tile.n1 - 1) / group) << "a tile spans two groups";
        EXPECT_EQ(tiling.group_of(t), tile.n0 / group);
        EXPECT_LE(tiling.first_of(tiling.group_of(t)), t);
        EXPECT_GT(tiling.first_of(tiling.group_of(t) + 1), t);
        next = tile.n1;
      }
      EXPECT_EQ(next, n);
    }
  }
}

// A partition with the memory that it wants.
class Slots {
 public:
  Slots(const popnorm::Problem& problem, const popnorm::Map& map, const std::vector<std::int32_t>& labels)
      : shape_(Partition::shape(problem, map, problem.n, map.count)),
        order_(size(shape_.n)),
        begin_(size(shape_.most_bundles() + 1)),
        of_(size(shape_.most_bundles())),
        first_(size(shape_.classes + 1)),
        partition_(shape_, {map, labels.data()}, map.count, {order_.data(), begin_.data(), of_.data(), first_.data()}) {
  }
  const Partition* operator->() const { return &partition_; }
  const Partition::Shape& shape() const { return shape_; }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  Partition::Shape shape_;
  std::vector<std::int32_t> order_, begin_, of_, first_;
  Partition partition_;
};

popnorm::Problem problem_of(const Shape& shape, popnorm::Form form) {
  popnorm::Problem p;
  p.form = form;
  p.n = shape.n;
  p.c = shape.c;
  p.s = shape.s;
  return p;
}

// Every element of every class is in one slot of that class, a class's slots ascend, and slots weigh their positions.
void expect_covers(const popnorm::Problem& p, const popnorm::Map& map, const std::vector<std::int32_t>& labels) {
  const Slots slots(p, map, labels);
  EXPECT_LE(slots->slots(), slots.shape().most_slots());
  const auto entry = [&](std::int64_t n, std::int64_t s) { return static_cast<std::size_t>(n * p.s + s); };
  std::vector<int> seen(static_cast<std::size_t>(p.n * p.s));
  std::vector<std::int64_t> class_of(static_cast<std::size_t>(slots->slots()), -1), weight(class_of);
  slots->for_each_weight(
      [&](std::int64_t slot, std::int64_t positions) { weight[static_cast<std::size_t>(slot)] = positions; });
  for (std::int64_t unit = 0; unit < slots->units(); ++unit)
    slots->for_each_slot(unit, [&](std::int64_t id, const popnorm::Slot& slot) {
      class_of[static_cast<std::size_t>(id)] = slot.of;
      EXPECT_EQ(weight[static_cast<std::size_t>(id)], slot.positions());
      for (std::int64_t k = 0; k < slot.samples; ++k) {
        const std::int64_t n = slot.index != nullptr ? slot.index[k] : slot.first + k;
        if (k == 0) {
          ASSERT_EQ(slot.first, n);
        }
        ASSERT_EQ(popnorm::id_of(map, labels.data(), n), slot.of);
        for (std::int64_t s = slot.s0; s < slot.s1; ++s) ++seen[entry(n, s)];
      }
    });
  for (const int times : seen) ASSERT_EQ(times, 1);
  std::int64_t counted = 0;
  for (std::int64_t of = 0; of < map.count; ++of) {
    const Partition::Of own = slots->slots_of(of);
    ASSERT_GE(own.stride, 1);
    for (std::int64_t i = 0; i < own.count; ++i, ++counted)
      ASSERT_EQ(class_of[static_cast<std::size_t>(own.first + i * own.stride)], of);
    std::int64_t first = -1;
    for (std::int64_t n = p.n; n-- > 0;)
      if (popnorm::id_of(map, labels.data(), n) == of) first = n;
    ASSERT_EQ(slots->first_sample(of), first);
  }
  EXPECT_EQ(counted, slots->slots());
}

std::vector<std::int32_t> random_labels(Random& random, std::int64_t n, std::int64_t ids) {
  std::vector<std::int32_t> labels(static_cast<std::size_t>(n));
  for (std::int32_t& label : labels) label = static_cast<std::int32_t>(random.below(ids));
  return labels;
}

TEST(Partition, CoversEveryElementOnceWithItsClassForAnyMap) {
  Random random("partitions");
  for (int i = 0; i < 300; ++i) {
    const Shape shape{1 + random.below(400), 1 + random.below(40), random.pick({1, 3, 49, 500, 5000})};
    const popnorm::Problem p = problem_of(shape, random.coin() ? popnorm::Form::rows : popnorm::Form::columns);
    const std::int64_t k = 1 + random.below(random.coin() ? 8 : 60);
    SCOPED_TRACE(testing::Message() << shape.n << " x " << shape.c << " x " << shape.s << ", k " << k);
    expect_covers(p, {POPNORM_WHOLE, 0, 1}, {});
    expect_covers(p, {POPNORM_PER_SAMPLE, 0, shape.n}, {});
    expect_covers(p, {POPNORM_CONTIGUOUS, k, (shape.n + k - 1) / k}, {});
    expect_covers(p, {POPNORM_STRIDED, k, k}, {});
    expect_covers(p, {POPNORM_LABELS, k, k}, random_labels(random, shape.n, k));
  }
}

TEST(Partition, AFewInterleavedGroupsShareTilesInMemoryOrder) {
  const popnorm::Problem p = problem_of({900, 2, 49}, popnorm::Form::columns);
  Random random("slots");
  // Group 2 is absent from the first half, so that tiles differ in which groups they hold.
  std::vector<std::int32_t> labels = random_labels(random, 450, 2);
  for (const std::int32_t label : random_labels(random, 450, 3)) labels.push_back(label);
  const Slots slots(p, {POPNORM_LABELS, 3, 3}, labels);
  ASSERT_TRUE(slots->shares_tiles());
  ASSERT_GE(slots->units(), 3);
  EXPECT_EQ(slots->slots(), 3 * slots->units());
  std::int64_t next = 0;
  for (std::int64_t tile = 0; tile < slots->units(); ++tile) {
    std::int64_t samples = 0, first = p.n, last = 0;
    slots->for_each_slot(tile, [&](std::int64_t, const popnorm::Slot& slot) {
      samples += slot.samples;
      if (slot.samples == 0) return;
      first = std::min<std::int64_t>(first, slot.index[0]);
      last = std::max<std::int64_t>(last, slot.index[slot.samples - 1]);
    });
    EXPECT_EQ(first, next) << "tiles do not follow one another in memory";
    EXPECT_EQ(last - first + 1, samples);
    next = last + 1;
  }
}

TEST(Partition, ManyGroupsAreSorted) {
  const popnorm::Problem p = problem_of({5000, 2, 1}, popnorm::Form::columns);
  Random random("many groups");
  const std::vector<std::int32_t> labels = random_labels(random, 5000, 1000);
  const Slots slots(p, {POPNORM_LABELS, 1000, 1000}, labels);
  ASSERT_FALSE(slots->shares_tiles());
  std::int64_t before = 0;
  for (std::int64_t i = 0; i < slots->units(); ++i) {
    EXPECT_LE(before, slots->first_slot(i).of);
    before = slots->first_slot(i).of;
  }
}

// What another group's samples do, and how many they are, moves no slot border of a group that is sorted.
TEST(Partition, ASortedGroupsSlotsAreItsOwn) {
  const popnorm::Problem p = problem_of({4000, 2, 1}, popnorm::Form::columns);
  Random random("own slots");
  std::vector<std::int32_t> labels = random_labels(random, 4000, 40);
  const auto borders = [&] {
    const Slots slots(p, {POPNORM_LABELS, 40, 40}, labels);
    std::vector<std::int64_t> firsts;
    const Partition::Of own = slots->slots_of(7);
    for (std::int64_t i = 0; i < own.count; ++i) firsts.push_back(slots->first_slot(own.first + i * own.stride).first);
    return firsts;
  };
  const std::vector<std::int64_t> before = borders();
  for (std::int32_t& label : labels)
    if (label != 7) label = label == 8 ? 9 : label % 5;
  EXPECT_EQ(borders(), before);
}

// Cells are the pairs that occur, and a row's first cells do not depend on other rows' samples.
TEST(Cells, AreThePairsOfRowAndAffineSlotThatOccur) {
  Random random("cells");
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = 1 + random.below(200), rows = 1 + random.below(12), slots = 1 + random.below(5);
    const std::vector<std::int32_t> row = random_labels(random, n, rows), affine = random_labels(random, n, slots);
    const popnorm::Map row_map{POPNORM_LABELS, rows, rows}, affine_map{POPNORM_LABELS, slots, slots};
    const auto most = static_cast<std::size_t>(popnorm::Cells::most(row_map, affine_map, n, rows));
    std::vector<std::int32_t> cell(static_cast<std::size_t>(n)), of_row(most), of_affine(most), next(most),
        bucket(most);
    const popnorm::Cells cells({row_map, row.data()}, {affine_map, affine.data()}, {0, n, 0, rows},
                               {cell.data(), of_row.data(), of_affine.data(), next.data(), bucket.data()});
    ASSERT_LE(cells.count(), static_cast<std::int64_t>(most));
    std::set<std::pair<std::int64_t, std::int64_t>> pairs;
    for (std::int64_t k = 0; k < cells.count(); ++k) pairs.emplace(cells.row(k), cells.affine(k));
    EXPECT_EQ(static_cast<std::int64_t>(pairs.size()), cells.count()) << "a pair twice";
    for (std::int64_t k = 0; k < n; ++k) {
      EXPECT_EQ(cells.row(cells.of(k)), row[static_cast<std::size_t>(k)]);
      EXPECT_EQ(cells.affine(cells.of(k)), affine[static_cast<std::size_t>(k)]);
    }
    const popnorm::Cells same({row_map, row.data()}, {row_map, row.data()}, {0, n, 0, rows}, {});
    EXPECT_TRUE(same.by_row());
    EXPECT_EQ(same.count(), rows);
  }
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
