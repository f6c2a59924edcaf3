// The same bits for any number of threads, order of tasks, executor, schedule, kind of stores and tier; and, against a
// golden file, for any compiler.
#include <gtest/gtest.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <bit>
#include <fstream>
#include <map>
#include <sstream>

#include "support/executors.hpp"
#include "support/layer.hpp"

namespace popnorm_test {
namespace {

struct Outcome {
  Forward batch, given;
  Backward through, frozen;
};

Outcome run(const Layer& layer, const Route& route) {
  Outcome o;
  Runner runner(layer, route);
  o.batch = runner.forward(POPNORM_BATCH);
  o.through = runner.backward();
  o.given = runner.forward(POPNORM_GIVEN);
  o.frozen = runner.backward();
  return o;
}

std::vector<const std::vector<double>*> parts(const Outcome& o) {
  return {&o.batch.y,  &o.batch.saved_mean, &o.batch.saved_invstd, &o.batch.mean,
          &o.batch.m2, &o.through.dx,       &o.through.dscale,     &o.through.dshift,
          &o.given.y,  &o.frozen.dx,        &o.frozen.dscale,      &o.frozen.dshift};
}

void expect_same(const Outcome& a, const Outcome& b) {
  for (std::size_t i = 0; i < parts(a).size(); ++i)
    EXPECT_TRUE(same_bits(*parts(a)[i], *parts(b)[i])) << "output " << i;
}

// Every shape has at least three tiles per channel and enough data to be run in parallel.
std::vector<Configuration> shapes() {
  std::vector<Configuration> all;
  const auto add = [&](popnorm_layout layout, std::int64_t n, std::int64_t c, std::int64_t s,
                       std::initializer_list<popnorm_type> storages = {POPNORM_F32, POPNORM_F64}) {
    for (const popnorm_type storage : storages) {
      Configuration k;
      k.layout = layout;
      k.n = n;
      k.c = c;
      k.s = s;
      k.storage = storage;
      k.parameters = k.statistics = storage == POPNORM_F64 ? POPNORM_F64 : POPNORM_F32;
      all.push_back(k);
    }
  };
  add(POPNORM_NCHW, 3, 6, 4901);
  add(POPNORM_NCHW, 70, 24, 196);
  add(POPNORM_NCHW, 260, 34, 49);
  add(POPNORM_NCHW, 7001, 12, 1);
  add(POPNORM_NHWC, 40, 37, 196);
  add(POPNORM_NHWC, 3, 64, 4901);
  add(POPNORM_NHWC, 2500, 20, 3);
  add(POPNORM_NCHW, 260, 34, 49, {POPNORM_BF16, POPNORM_F16});
  add(POPNORM_NHWC, 40, 37, 196, {POPNORM_BF16, POPNORM_F16});
  return all;
}

class Bits : public testing::TestWithParam<Configuration> {
 protected:
  Bits()
      : random_("bits"),
        layer_(GetParam(), random_),
        reference_(run(layer_, {"baseline", POPNORM_PHASES, POPNORM_STORES_ORDINARY, nullptr})) {}
  Random random_;
  Layer layer_;
  Outcome reference_;
};

TEST_P(Bits, AnyThreadCountTaskOrderScheduleAndTier) {
  const popnorm::plan plan(layer_.problem());
  ASSERT_GE(plan.info().tiles, 3);
  for (const Route& forced : forced_routes()) {
    for (const int threads : {1, 2, 3, 7, 16}) {
      ShuffledExecutor executor(threads);
      const popnorm_executor interface = executor.interface();
      Route route = forced;
      route.executor = &interface;
      SCOPED_TRACE(testing::Message() << route << " on " << threads << " threads");
      expect_same(run(layer_, route), reference_);
      if (threads == 1) continue;
      ASSERT_GT(executor.calls(), 0) << "nothing ran in parallel";
      EXPECT_GE(executor.most_threads(), std::min<std::int64_t>(threads, executor.most_tasks()));
      EXPECT_GE(executor.most_threads(), 2);
    }
  }
}

TEST_P(Bits, OneTbbWithSixteenThreads) {
  const tbb::global_control threads(tbb::global_control::max_allowed_parallelism, 16);
  tbb::task_arena arena(16);
  for (const Route& route : forced_routes()) {
    SCOPED_TRACE(testing::Message() << route);
    Outcome outcome;
    arena.execute([&] {
      ASSERT_EQ(tbb::this_task_arena::max_concurrency(), 16);
      outcome = run(layer_, route);
    });
    expect_same(outcome, reference_);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Bits, testing::ValuesIn(shapes()));

// ------------------------------------------------------------------------------------------------------------ golden
// bits

std::uint64_t hash(const Outcome& o) {
  std::uint64_t h = 14695981039346656037U;  // FNV-1a
  for (const std::vector<double>* part : parts(o)) {
    for (const double value : *part) {
      h ^= std::bit_cast<std::uint64_t>(value);
      h *= 1099511628211U;
    }
  }
  return h;
}

// Data from integers alone: no libm, whose last bit may differ between systems.
Content dyadic(double offset) {
  return [offset](Random& random, std::int64_t channel, std::int64_t count) {
    std::vector<double> values;
    for (std::int64_t i = 0; i < count; ++i)
      values.push_back(offset * static_cast<double>(channel + 1) +
                       static_cast<double>(random.below(1 << 16)) * 0x1p-14);
    return values;
  };
}

TEST(GoldenBits, AreThoseOfTheNumericsVersion) {
  std::map<std::string, std::string> golden;
  std::ifstream file(POPNORM_GOLDEN_BITS);
  ASSERT_TRUE(file) << "cannot read " POPNORM_GOLDEN_BITS;
  for (std::string line; std::getline(file, line);) {
    const auto space = line.rfind(' ');
    if (!line.empty() && line.front() != '#') golden[line.substr(0, space)] = line.substr(space + 1);
  }
  std::ostringstream found;
  bool same = true;
  Random random("golden bits");
  for (const Configuration& shape : shapes()) {
    Layer layer(shape, random, {dyadic(3), dyadic(-0.5), dyadic(0.25), dyadic(-1)});
    std::ostringstream name, value;
    name << "numerics " << popnorm_numerics_version() << (shape.layout == POPNORM_NCHW ? " nchw" : " nhwc")
         << " " << name_of(shape.storage) << " " << shape.n << " " << shape.c << " " << shape.s;
    value << std::hex << hash(run(layer, {}));
    found << name.str() << " " << value.str() << "\n";
    same = same && golden[name.str()] == value.str();
  }
  EXPECT_TRUE(same)
      << "If bits were meant to change, raise popnorm_numerics_version() and write to " POPNORM_GOLDEN_BITS ":\n"
      << found.str();
}

}  // namespace
}  // namespace popnorm_test
