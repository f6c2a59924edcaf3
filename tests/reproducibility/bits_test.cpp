// The same bits for any number of threads, order of tasks, executor, schedule, kind of stores and tier; and, against a
// golden file, for any compiler.
#include <gtest/gtest.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <bit>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>

#include "maps/case.hpp"
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
      k.parameters = k.statistics = arithmetic_type(storage);
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

std::uint64_t hash(const std::vector<const std::vector<double>*>& parts) {
  std::uint64_t h = 14695981039346656037U;  // FNV-1a, folded: numbers of few digits differ in high bits alone
  for (const std::vector<double>* part : parts) {
    for (const double value : *part) {
      h ^= std::bit_cast<std::uint64_t>(value);
      h *= 1099511628211U;
      h ^= h >> 32;
    }
  }
  return h;
}

const char* lower_name_of(popnorm_layout layout) { return layout == POPNORM_NCHW ? "nchw" : "nhwc"; }

// Compares lines of names and hashes with the golden file's.
class Golden {
 public:
  void add(const std::string& name, const std::vector<const std::vector<double>*>& parts) {
    found_ << "numerics " << popnorm_numerics_version() << " " << name << " " << std::hex << hash(parts) << std::dec
           << "\n";
  }
  void expect_kept() const {
    std::ifstream file(POPNORM_GOLDEN_BITS);
    ASSERT_TRUE(file) << "cannot read " POPNORM_GOLDEN_BITS;
    const std::set<std::string> kept{LineIterator(file), LineIterator()};
    std::istringstream found(found_.str());
    const bool same =
        std::all_of(LineIterator(found), LineIterator(), [&](const Line& line) { return kept.contains(line); });
    EXPECT_TRUE(same)
        << "If bits were meant to change, raise popnorm_numerics_version() and write to " POPNORM_GOLDEN_BITS << ":\n"
        << found_.str();
  }

 private:
  struct Line : std::string {
    friend std::istream& operator>>(std::istream& in, Line& line) { return std::getline(in, line); }
  };
  using LineIterator = std::istream_iterator<Line>;

  std::ostringstream found_;
};

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
  Golden golden;
  Random random("golden bits");
  for (const Configuration& shape : shapes()) {
    Layer layer(shape, random, {dyadic(3), dyadic(-0.5), dyadic(0.25), dyadic(-1)});
    std::ostringstream name;
    name << lower_name_of(shape.layout) << " " << name_of(shape.storage) << " " << shape.n << " " << shape.c << " "
         << shape.s;
    golden.add(name.str(), parts(run(layer, {})));
  }
  golden.expect_kept();
}

// What the batch is, weights, sources of statistics, fusions and second derivatives.
TEST(GoldenBits, OfMapsAreThoseOfTheNumericsVersion) {
  struct Case {
    const char* name;
    MapSet maps;
    popnorm_type storage = POPNORM_F32;
    bool second_derivative = false;
    std::int64_t n = 40, c = 19, s = 130;
  };
  constexpr popnorm_map kThree{POPNORM_LABELS, 3}, kFours{POPNORM_CONTIGUOUS, 4}, kDealt{POPNORM_STRIDED, 3},
      kEach{POPNORM_PER_SAMPLE, 0}, kAll{POPNORM_WHOLE, 0};
  const Case cases[] = {
      {"labels", {.group = kThree, .slot = kThree, .affine = {POPNORM_LABELS, 4}}},
      {"second derivative", {.group = kDealt}, POPNORM_F32, true},
      {"second derivative", {.slot = kFours, .statistics = POPNORM_GIVEN}, POPNORM_F64, true},
      {"weights per sample", {.group = kDealt, .weights = POPNORM_WEIGHTS_PER_SAMPLE}},
      {"weights per position", {.group = kAll, .weights = POPNORM_WEIGHTS_PER_POSITION}, POPNORM_F64},
      {"lengths", {.group = kEach, .weights = POPNORM_LENGTHS}, POPNORM_BF16},
      {"blend", {.group = kFours, .slot = kFours, .statistics = POPNORM_BLEND}},
      {"renorm", {.group = kThree, .affine = kFours, .statistics = POPNORM_RENORM}},
      {"given", {.slot = kThree, .affine = kThree, .statistics = POPNORM_GIVEN}, POPNORM_F16},
      // How many groups are in flight decides which samples of a scale share a tile; that shows in double.
      {"labelled scales",
       {.group = {POPNORM_CONTIGUOUS, 7}, .affine = {POPNORM_LABELS, 2}},
       POPNORM_F64,
       false,
       56,
       64,
       196},
      {"relu", {.activation = POPNORM_RELU}},
      {"relu of a sum", {.group = kFours, .activation = POPNORM_RELU, .residual = true}, POPNORM_BF16},
      {"leaky relu of a sum",
       {.group = kThree, .weights = POPNORM_LENGTHS, .activation = POPNORM_LEAKY_RELU, .residual = true}},
  };
  Golden golden;
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
    for (const Case& k : cases) {
      Configuration shape;
      shape.layout = layout;
      shape.n = k.n;
      shape.c = k.c;
      shape.s = k.s;
      shape.storage = k.storage;
      shape.parameters = shape.statistics = arithmetic_type(k.storage);
      Random random(k.name);
      random.avoid_libm();
      MapCase c(shape, k.maps, needs_one_slot(k.maps), random);
      const MapForward f = c.forward({});
      const MapBackward b = c.backward({});
      MapDoubleBackward d;
      if (k.second_derivative) d = c.double_backward({}, {&c.dy, &c.scale});
      golden.add(std::string(lower_name_of(layout)) + " " + name_of(k.storage) + " " + k.name,
                 {&f.y, &f.saved_mean, &f.saved_invstd, &f.weight, &f.mean, &f.m2, &b.dx, &b.dscale, &b.dshift,
                  &b.dresidual, &d.grad_x, &d.grad_dy, &d.grad_scale});
    }
  golden.expect_kept();
}

}  // namespace
}  // namespace popnorm_test
