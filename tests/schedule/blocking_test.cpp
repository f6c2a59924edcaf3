// Blocking is a pure function of problem, caches and threads: what it may choose, and that it covers the work.
#include "cpu/blocking.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "core/tiling.hpp"

namespace {

using namespace popnorm;
using namespace popnorm::cpu;

Problem problem(Form form, std::int64_t n, std::int64_t c, std::int64_t s) {
  Problem p;
  p.form = form;
  p.layout = form == Form::rows ? POPNORM_NCHW : POPNORM_NHWC;
  p.n = n;
  p.c = c;
  p.s = s;
  return p;
}

constexpr Machine kMachine{std::int64_t{1} << 20, std::int64_t{32} << 20, false};
constexpr Work kForward{1, true, true};
constexpr Work kInference{1, false, true};

Extent extent(const Problem& p, int threads) {
  const auto count = [&](std::int64_t length) { return Tiling(p.n, p.s, length, p.n).tiles(); };
  return {p.n, p.n, count(tile_length(p.form, p.n, p.c, p.s)), count(box_length(p, p.n, threads))};
}

Blocking choose(const Problem& p, int threads, const Work& work = kForward,
                popnorm_schedule schedule = POPNORM_SCHEDULE_AUTO, popnorm_stores stores = POPNORM_STORES_AUTO) {
  return choose_blocking(p, extent(p, threads), work, kMachine, threads, schedule, stores);
}

TEST(Blocking, SmallCallsRunOnTheCallingThread) {
  EXPECT_FALSE(choose(problem(Form::rows, 1, 64, 196), 8).parallel);
  EXPECT_FALSE(choose(problem(Form::columns, 1, 64, 196), 8).parallel);
  EXPECT_TRUE(choose(problem(Form::rows, 50, 64, 3136), 8).parallel);
  EXPECT_FALSE(choose(problem(Form::rows, 50, 64, 3136), 1).parallel);
}

// Nor are they cut as if they did not: each task and each box has a price.
TEST(Blocking, SmallCallsAreOnePieceForAnyThreads) {
  for (const Form form : {Form::rows, Form::columns})
    for (const Work& work : {kForward, kInference}) {
      const Problem p = problem(form, 1, 64, 256);
      const Extent pieces = extent(p, 2);
      ASSERT_GT(pieces.boxes, 1);
      const Blocking b = choose(p, 2, work);
      if (b.slabs) {
        EXPECT_EQ(b.slabs_per_task, divide_up(p.c, b.channels));
        continue;
      }
      EXPECT_EQ(b.units, pieces.units);
      EXPECT_EQ(b.boxes, pieces.boxes);
      EXPECT_EQ(std::pair(b.channels, b.box_channels), std::pair(p.c, p.c));
    }
}

TEST(Blocking, ChannelsFirstGetsSlabsThatFitTheSecondLevelCache) {
  const Blocking b = choose(problem(Form::rows, 50, 1024, 196), 2);
  EXPECT_TRUE(b.slabs);
  EXPECT_GT(b.channels, 1);
  EXPECT_LE(b.channels * 50 * 196 * 4, kMachine.l2 / 2);
  EXPECT_EQ(b.channels * 196 % 16, 0) << "every sample's part of a slab is whole cache lines";
}

// A channel of backward is a fifth of the cache already, and a slab of one would share every line with its neighbours.
TEST(Blocking, SlabsAreWholeLines) {
  constexpr Work kBackward{2, true, true};
  EXPECT_EQ(choose(problem(Form::rows, 128, 1024, 196), 2, kBackward).channels, 4);
  EXPECT_EQ(choose(problem(Form::rows, 4096, 1024, 196), 2, kBackward).channels, 4) << "beyond the second-level cache";
  EXPECT_FALSE(choose(problem(Form::rows, 128, 8, 196), 4, kBackward).slabs) << "threads would idle";
  EXPECT_EQ(choose(problem(Form::rows, 128, 3, 49), 1, kBackward).channels, 3) << "all of it is";
  EXPECT_EQ(choose(problem(Form::rows, 64, 128, 3025), 2, kBackward).channels, 1)
      << "rows are long, and there is no room";
  EXPECT_EQ(choose(problem(Form::rows, 2, 128, 2601), 2, kBackward).channels, 16) << "there is room";
}

// As wide as a third of the cache allows they would be 32 of 160 channels, three for one thread and two for the other.
TEST(Blocking, SlabsGoRound) {
  EXPECT_EQ(choose(problem(Form::rows, 32, 160, 49), 2).channels, 16);
  EXPECT_EQ(choose(problem(Form::rows, 16, 128, 196), 2).channels, 16);
  EXPECT_EQ(choose(problem(Form::rows, 32, 160, 49), 1).channels, 48) << "alone, as wide as they may be";
}

TEST(Blocking, FewChannelsFallToPhases) {
  EXPECT_FALSE(choose(problem(Form::rows, 50, 3, 12544), 4).slabs);
  EXPECT_FALSE(choose(problem(Form::columns, 50, 256, 3136), 2).slabs);
}

TEST(Blocking, AForcedScheduleIsTaken) {
  const Problem p = problem(Form::columns, 50, 256, 3136);
  EXPECT_TRUE(choose(p, 2, kForward, POPNORM_SLAB).slabs);
  EXPECT_FALSE(choose(problem(Form::rows, 50, 256, 3136), 2, kForward, POPNORM_PHASES).slabs);
}

TEST(Blocking, StreamsOnceInputAndOutputExceedTheLastLevelCache) {
  const Problem small = problem(Form::rows, 50, 64, 196);
  const Problem large = problem(Form::rows, 50, 256, 3136);
  EXPECT_EQ(choose(problem(Form::columns, 32, 1 << 9, 1 << 8), 2).stores, Stores::streaming) << "32 MiB";
  EXPECT_EQ(choose(problem(Form::columns, 32, 1 << 9, (1 << 8) - 1), 2).stores, Stores::ordinary);
  EXPECT_EQ(choose(problem(Form::columns, 16, 1 << 9, 1 << 8), 2).stores, Stores::ordinary);
  EXPECT_EQ(choose(problem(Form::columns, 16, 1 << 9, 1 << 8), 1).stores, Stores::streaming) << "16 MiB a thread";
  Machine far = kMachine;
  far.far_llc = true;
  const auto stores = [&](std::int64_t n) {
    const Problem p = problem(Form::columns, n, 1 << 9, 1 << 8);
    return choose_blocking(p, extent(p, 2), kForward, far, 2, POPNORM_SCHEDULE_AUTO, POPNORM_STORES_AUTO).stores;
  };
  EXPECT_EQ(stores(39), Stores::ordinary);
  EXPECT_EQ(stores(40), Stores::streaming) << "40 MiB";
  EXPECT_EQ(choose(small, 2, kInference).stores, Stores::ordinary);
  EXPECT_EQ(choose(large, 2, kInference).stores, Stores::streaming);
  EXPECT_EQ(choose(large, 2, kInference, POPNORM_SCHEDULE_AUTO, POPNORM_STORES_ORDINARY).stores, Stores::ordinary);
  EXPECT_EQ(choose(small, 2, kInference, POPNORM_SCHEDULE_AUTO, POPNORM_STORES_STREAMING).stores, Stores::streaming);
}

TEST(Blocking, StreamsInPagesWhereTheMachineWantsThem) {
  Machine machine = kMachine;
  machine.four_streams = true;
  const Problem p = problem(Form::columns, 50, 256, 3136);
  const auto stores = [&](popnorm_stores wanted) {
    return choose_blocking(p, extent(p, 2), kInference, machine, 2, POPNORM_SCHEDULE_AUTO, wanted).stores;
  };
  EXPECT_EQ(stores(POPNORM_STORES_AUTO), Stores::four_streams);
  EXPECT_EQ(stores(POPNORM_STORES_ORDINARY), Stores::ordinary);
}

// Five tiles on two threads would leave one of them idle for a sixth of the time.
TEST(Blocking, TasksGoRound) {
  constexpr int threads = 2;
  for (const std::int64_t c : {512, 1024, 2048})
    for (const std::int64_t s : {49, 196}) {
      const Problem p = problem(Form::columns, 50, c, s);
      const Extent e = extent(p, threads);
      const Blocking b = choose(p, threads);
      const auto busy = [&](std::int64_t count, std::int64_t grain, std::int64_t channels) {
        const std::int64_t cuts = (c + channels - 1) / channels;
        const std::int64_t rounds = ((count + grain - 1) / grain * cuts + threads - 1) / threads;
        return static_cast<double>(count * cuts) / static_cast<double>(threads * rounds * grain);
      };
      EXPECT_GE(busy(e.units, b.units, b.channels), 0.9) << "C " << c << " S " << s;
      EXPECT_GE(busy(e.boxes, b.boxes, b.box_channels), 0.9) << "C " << c << " S " << s;
      EXPECT_EQ(b.box_channels, c) << "rows of output are whole";
      EXPECT_GE(b.channels * 4, 1024) << "rows of input are long";
    }
}

TEST(Blocking, CutsAreWithinTheProblemForAnyShape) {
  for (const Form form : {Form::rows, Form::columns})
    for (const std::int64_t n : {0, 1, 7, 200})
      for (const std::int64_t c : {1, 3, 16, 100, 2048})
        for (const std::int64_t s : {0, 1, 49, 100000})
          for (const int threads : {1, 2, 7, 256})
            for (const popnorm_schedule schedule : {POPNORM_SCHEDULE_AUTO, POPNORM_SLAB, POPNORM_PHASES}) {
              const Blocking b = choose(problem(form, n, c, s), threads, kForward, schedule);
              ASSERT_GE(b.channels, 1);
              ASSERT_LE(b.channels, c);
              ASSERT_GE(b.slabs ? 1 : b.box_channels, 1);
              ASSERT_LE(b.slabs ? 1 : b.box_channels, c);
              const auto whole_bytes = [&](std::int64_t cut) { return cut == c || cut % 8 == 0; };
              const bool columns = form == Form::columns;
              ASSERT_TRUE(!columns || (whole_bytes(b.channels) && (b.slabs || whole_bytes(b.box_channels))))
                  << "tasks share a byte of a mask";
              ASSERT_GE(b.slabs ? b.slabs_per_task : std::min(b.units, b.boxes), 1);
            }
}

}  // namespace
