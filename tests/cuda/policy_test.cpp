// The ways of one read: that each has the plain path's bits, and what the policy says that each costs.
#include "gpu/policy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <popnorm/popnorm.hpp>
#include <string>
#include <tuple>

#include "core/validate.hpp"
#include "kernels/cuda/layout.cuh"
#include "maps/case.hpp"
#include "support/layer.hpp"
#include "support/random.hpp"

namespace popnorm_test {
namespace {

using popnorm::cuda::Device;
using popnorm::cuda::Direction;
using popnorm::cuda::Path;
using popnorm::cuda::Policy;

// ------------------------------------------------------------------------------------------------- divisions

TEST(CudaPolicy, DividesExactly) {
  constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;
  Random random("divisor");
  const auto expect_exact = [](std::int64_t by, std::int64_t n) {
    const popnorm::cuda::Divisor divisor(by);
    EXPECT_EQ(divisor.quotient(n), n / by) << n << " / " << by;
    EXPECT_EQ(divisor.quotient(static_cast<std::uint32_t>(n)), n / by) << n << " / " << by << " in 32 bits";
  };
  for (int i = 0; i < 20000; ++i) {
    const std::int64_t by = 1 + random.below(std::int64_t{1} << (1 + random.below(31))), n = random.below(kMost);
    for (const std::int64_t at : {n, n / by * by, std::max<std::int64_t>(n / by * by - 1, 0), kMost})
      expect_exact(by, at);
  }
  for (const std::int64_t by : {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, kMost - 1, kMost, kMost + 1})
    for (const std::int64_t n : {std::int64_t{0}, std::int64_t{1}, kMost - 1, kMost}) expect_exact(by, n);
  EXPECT_EQ(popnorm::cuda::Divisor(7).quotient((std::int64_t{1} << 62) + 5), ((std::int64_t{1} << 62) + 5) / 7);
}

// ------------------------------------------------------------------------------------------------- the same bits

class Wanted {
 public:
  explicit Wanted(const char* policy) { ::setenv("POPNORM_CUDA_POLICY", policy, 1); }
  ~Wanted() { ::unsetenv("POPNORM_CUDA_POLICY"); }
};

// Tensors that teams hold whole, in part and not at all (the emulator's device is small), tails everywhere, one channel and many.
struct Shape {
  std::int64_t n, c, s;
};
constexpr Shape kShapes[] = {{3, 5, 7},    {2, 1, 40000}, {40, 3, 130}, {300, 70, 16},
                             {60, 2, 196}, {5000, 33, 1}, {9, 4, 4096}, {1, 2, 1}};

class CudaPolicies : public ::testing::TestWithParam<std::tuple<popnorm_layout, popnorm_type>> {};

// ThreadSanitizer, under which large ones take hours, sees every kernel and way of meeting in the others.
#ifdef __SANITIZE_THREAD__
constexpr std::int64_t kMostElements = 100000;
#else
constexpr std::int64_t kMostElements = std::numeric_limits<std::int64_t>::max();
#endif

TEST_P(CudaPolicies, HaveThePlainPathsBits) {
  for (const Shape& shape : kShapes) {
    if (shape.n * shape.c * shape.s > kMostElements) continue;
    for (const popnorm_map group : {popnorm_map{POPNORM_WHOLE, 0}, popnorm_map{POPNORM_STRIDED, 3},
                                    popnorm_map{POPNORM_CONTIGUOUS, 2}, popnorm_map{POPNORM_PER_SAMPLE, 0}}) {
      if (group.kind != POPNORM_WHOLE && shape.n > 50) continue;
      Configuration k;
      std::tie(k.layout, k.storage) = GetParam();
      k.parameters = k.statistics = arithmetic_type(k.storage);
      k.n = shape.n;
      k.c = shape.c;
      k.s = shape.s;
      MapSet maps;
      maps.group = group;
      Random random("CudaPolicies");
      MapCase c(k, maps, false, random);
      MapForward f;
      MapBackward b;
      {
        const Wanted wanted("plain");
        f = c.forward({});
        b = c.backward({});
      }
      for (const char* policy : {"block", "cluster", "grid", "auto"}) {
        SCOPED_TRACE(testing::Message() << policy << ": " << testing::PrintToString(k) << ", " << maps);
        const Wanted wanted(policy);
        // One read has no kernels for groups of images that are not made of packs.
        const std::int64_t pack = k.storage == POPNORM_F32 ? 4 : 8;
        const bool small = k.layout == POPNORM_NCHW && k.storage != POPNORM_F64 && k.s % pack != 0;
        if (std::string(policy) != "auto" && !(small && group.kind != POPNORM_WHOLE)) {
          const std::string text = popnorm::plan(c.problem()).info().policy;
          EXPECT_NE(text.find(std::string("forward ") + policy), std::string::npos) << text;
          EXPECT_NE(text.find(std::string("backward ") + policy), std::string::npos) << text;
        }
        const MapForward g = c.forward({});
        const MapBackward d = c.backward({});
        EXPECT_TRUE(same_bits(f.y, g.y) && same_bits(f.saved_mean, g.saved_mean) &&
                    same_bits(f.saved_invstd, g.saved_invstd));
        EXPECT_TRUE(same_bits(f.weight, g.weight) && same_bits(f.mean, g.mean) && same_bits(f.m2, g.m2));
        EXPECT_TRUE(same_bits(b.dx, d.dx) && same_bits(b.dscale, d.dscale) && same_bits(b.dshift, d.dshift));
        if (HasFailure()) return;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, CudaPolicies,
                         ::testing::Combine(::testing::Values(POPNORM_NCHW, POPNORM_NHWC),
                                            ::testing::ValuesIn(kStorageTypes)));

// Blends, renormalization, given statistics, residuals, activations, strides, in any combination.
TEST(CudaPolicy, HasThePlainPathsBitsWithEverySourceOfStatistics) {
  int taken = 0;  // not every problem can go every way
  for (int i = 0; i < 24 * effort(); ++i) {
    Random random("CudaPolicy " + std::to_string(i));
    const Configuration k = random.coin() ? random_configuration(random) : random_aligned(random);
    MapSet maps;
    maps.group = {POPNORM_CONTIGUOUS, 1 + random.below(k.n + 1)};
    maps.slot = maps.group;
    maps.statistics = random.pick({POPNORM_BATCH, POPNORM_GIVEN, POPNORM_BLEND, POPNORM_RENORM});
    if (random.coin()) maps.affine = maps.group;
    maps.activation = random.pick({POPNORM_IDENTITY, POPNORM_RELU, POPNORM_LEAKY_RELU});
    maps.residual = random.coin();
    MapCase c(k, maps, false, random);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << testing::PrintToString(k) << ", " << maps);
    MapForward f;
    MapBackward b;
    {
      const Wanted wanted("plain");
      f = c.forward({});
      b = c.backward({});
    }
    for (const char* policy : {"cluster", "grid"}) {
      SCOPED_TRACE(policy);
      const Wanted wanted(policy);
      const std::string text = popnorm::plan(c.problem()).info().policy;
      for (const char* direction : {"forward ", "backward "})
        taken += text.find(std::string(direction) + policy) != std::string::npos;
      const MapForward g = c.forward({});
      const MapBackward d = c.backward({});
      expect_same(g, f);
      expect_same(d, b);
    }
    if (HasFailure()) return;
  }
  EXPECT_GE(taken, 24 * effort());  // a quarter
}

TEST(CudaPolicy, OfAnUnknownNameIsRefused) {
  const Wanted wanted("fastest");
  popnorm_problem problem = popnorm::problem_nchw(2, 3, 4);
  popnorm_plan* plan = nullptr;
  EXPECT_EQ(popnorm_plan_create(&problem, nullptr, &plan), POPNORM_INVALID);
  EXPECT_NE(std::string(popnorm_last_error()).find("POPNORM_CUDA_POLICY is \"fastest\""), std::string::npos)
      << popnorm_last_error();
}

TEST(CudaPolicy, SaysWhyItIsPlain) {
  const Wanted wanted("grid");
  popnorm_problem problem = popnorm::problem_nchw(2, 3, 4);
  problem.weights = POPNORM_LENGTHS;
  EXPECT_NE(std::string(popnorm::plan(problem).info().policy).find("plain, 3 launches"), std::string::npos);
  EXPECT_NE(std::string(popnorm::plan(problem).info().policy).find("because elements have weights"), std::string::npos);
  // Groups of 12 positions, and bytes of 8; channels of a position have bytes of their own.
  problem = popnorm::problem_nchw(2, 3, 12);
  problem.norm_group = {POPNORM_PER_SAMPLE, 0};
  problem.activation = POPNORM_RELU;
  EXPECT_NE(std::string(popnorm::plan(problem).info().policy).find("forward grid"), std::string::npos);
  problem.adds_residual = 1;
  EXPECT_NE(std::string(popnorm::plan(problem).info().policy).find("because groups end within bytes of the mask"),
            std::string::npos);
  EXPECT_NE(std::string(popnorm::plan(problem).info().policy).find("backward grid"), std::string::npos);
  problem.layout = POPNORM_NHWC;
  EXPECT_NE(std::string(popnorm::plan(problem).info().policy).find("forward grid"), std::string::npos);
}

// ------------------------------------------------------------------------------------------------- what it costs

// Public figures of data-centre parts; sm_80 has no clusters.
constexpr Device kH100{132, 227 << 10, 228 << 10, 50 << 20, true, true, true};
constexpr Device kA100{108, 163 << 10, 164 << 10, 40 << 20, false, true, true};

popnorm::Problem problem(popnorm_layout layout, std::int64_t n, std::int64_t c, std::int64_t s,
                         popnorm_type storage = POPNORM_F32) {
  popnorm_problem p = POPNORM_PROBLEM_INIT;
  p.storage = storage;
  p.n = n;
  p.c = c;
  p.s = s;
  p.layout = layout;
  popnorm::Problem canonical;
  EXPECT_EQ(popnorm::validate_problem(&p, canonical), POPNORM_SUCCESS);
  return canonical;
}

double bytes(const popnorm::Problem& p) { return static_cast<double>(p.elements() * 4); }

TEST(CudaBytes, OfThePlainPathAreReadTwiceBeyondTheCache) {
  const popnorm::Problem large = problem(POPNORM_NCHW, 256, 256, 3136);
  const double kept = static_cast<double>(kH100.l2) / 2;  // of what was read last
  const Policy forward = choose(large, Direction::forward, kH100, "plain", nullptr);
  EXPECT_EQ(forward.path, Path::plain);
  EXPECT_EQ(forward.read + forward.written, 3 * bytes(large) - kept);
  const Policy backward = choose(large, Direction::backward, kH100, "plain", nullptr);
  EXPECT_EQ(backward.read + backward.written, 5 * bytes(large) - kept);
  popnorm::Problem fused = large;
  fused.activation = POPNORM_RELU;
  EXPECT_EQ(choose(fused, Direction::backward, kH100, "plain", nullptr).read, backward.read);
  // The residual once, and a bit for each element: written, and read for the sums and for dx.
  fused.adds_residual = true;
  const Policy adds = choose(fused, Direction::forward, kH100, "plain", nullptr);
  EXPECT_EQ(adds.read, forward.read + bytes(large));
  EXPECT_EQ(adds.written, bytes(large) * (1 + 1 / 32.0));
  const Policy gradients = choose(fused, Direction::backward, kH100, "grid", nullptr);
  EXPECT_EQ(gradients.read, choose(large, Direction::backward, kH100, "grid", nullptr).read + bytes(large) / 16);
  EXPECT_EQ(gradients.written, 2 * bytes(large));
  const popnorm::Problem small = problem(POPNORM_NCHW, 16, 64, 784);
  EXPECT_EQ(choose(small, Direction::forward, kH100, "plain", nullptr).read, bytes(small));
}

// Forward 2T and backward 3T within residency, and never more than what is not resident on top.
TEST(CudaBytes, OfOneReadAreTheFloorWithinResidencyAndDegradeWithIt) {
  for (const Device& device : {kH100, kA100})
    for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        const int tensors = direction == Direction::forward ? 1 : 2;
        for (std::int64_t n = 8; n <= 4096; n *= 2) {
          const popnorm::Problem p = problem(layout, n, 256, 3136);
          SCOPED_TRACE(testing::Message() << "N = " << n << ", layout " << layout << ", tensors " << tensors);
          const Policy policy = choose(p, direction, device, "grid", nullptr);
          ASSERT_EQ(policy.path, Path::grid);
          const double on_chip = static_cast<double>(policy.held) * policy.team * policy.teams * tensors * 16384;
          const double item = bytes(p) * tensors / 256 * (layout == POPNORM_NHWC ? 32 : 1);
          EXPECT_LE(policy.team * policy.teams, device.multiprocessors * policy.blocks);
          EXPECT_EQ(policy.written, bytes(p));
          EXPECT_GE(policy.read, tensors * bytes(p));
          EXPECT_LE(policy.read, 2 * tensors * bytes(p));
          // What the teams at work cannot keep of their items is read again, as far as it is not in the cache.
          const double kept = std::min(1.0, on_chip / (item * policy.teams));
          EXPECT_LE(policy.read, (2 - kept) * tensors * bytes(p) * (1 + 1e-12));
          if (kept == 1) {
            EXPECT_EQ(policy.read, tensors * bytes(p));
          }
        }
      }
}

TEST(CudaBytes, AndLaunchesDecideWhatAutoTakes) {
  // 98 MB: the plain path reads twice, one read is cheaper.
  const popnorm::Problem layer = problem(POPNORM_NHWC, 50, 512, 784);
  EXPECT_NE(choose(layer, Direction::forward, kH100, "auto", nullptr).path, Path::plain);
  EXPECT_NE(choose(layer, Direction::backward, kA100, "auto", nullptr).path, Path::plain);
  EXPECT_NE(choose(layer, Direction::forward, kA100, "auto", nullptr).path, Path::cluster);
  // Instance normalization of small images: a block each.
  popnorm::Problem instance = problem(POPNORM_NCHW, 64, 64, 4096);
  instance.norm_group = {POPNORM_PER_SAMPLE, 0, 64};
  const Policy policy = choose(instance, Direction::forward, kH100, "auto", nullptr);
  EXPECT_EQ(policy.path, Path::block);
  EXPECT_EQ(policy.read + policy.written, 2 * bytes(instance));
}

// What docs/performance.md has figures of.
TEST(CudaPolicy, IsByMeasurementUnlessOneIsNamed) {
  const auto taken = [](const popnorm::Problem& p, Direction direction, const Device& device = kH100) {
    return choose(p, direction, device, nullptr, nullptr).path;
  };
  constexpr Direction forward = Direction::forward, backward = Direction::backward;
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 512, 784), forward), Path::block);
  EXPECT_TRUE(choose(problem(POPNORM_NCHW, 50, 512, 784), forward, kH100, nullptr, nullptr).measured);
  EXPECT_FALSE(choose(problem(POPNORM_NCHW, 50, 512, 784), forward, kH100, "block", nullptr).measured);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 128, 784), forward), Path::cluster);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 256, 196), forward), Path::block);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 512, 196), forward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 512, 196, POPNORM_BF16), forward), Path::block);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 1024, 196, POPNORM_BF16), forward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 256, 3136), forward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 512, 784), backward), Path::block);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 1024, 196), backward), Path::block);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 128, 784), backward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 128, 784, POPNORM_BF16), backward), Path::cluster);
  for (const popnorm_type storage : {POPNORM_F32, POPNORM_BF16, POPNORM_F16})
    for (const Direction direction : {forward, backward}) {
      EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 512, 49, storage), direction), Path::plain);
      EXPECT_EQ(taken(problem(POPNORM_NHWC, 50, 512, 784, storage), direction), Path::plain);
    }
  EXPECT_EQ(taken(problem(POPNORM_NHWC, 50, 512, 49), forward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NHWC, 50, 512, 49), backward), Path::grid);
  EXPECT_EQ(taken(problem(POPNORM_NHWC, 50, 510, 49), backward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NHWC, 50, 2048, 49), backward), Path::plain);
  EXPECT_EQ(taken(problem(POPNORM_NHWC, 50, 2048, 49, POPNORM_BF16), backward), Path::grid);
  // Of these there are none.
  EXPECT_EQ(taken(problem(POPNORM_NCHW, 50, 512, 784), forward, kA100), Path::plain);
  popnorm::Problem fused = problem(POPNORM_NCHW, 50, 512, 784);
  fused.activation = POPNORM_RELU;
  EXPECT_EQ(taken(fused, forward), Path::plain);
  popnorm::Problem groups = problem(POPNORM_NCHW, 50, 512, 784);
  groups.norm_group = {POPNORM_PER_SAMPLE, 0, 50};
  EXPECT_EQ(taken(groups, forward), Path::plain);
}

// How many chunks each of the plain path's blocks copies ahead: none where a device cannot, fewer where it has less room.
TEST(CudaPolicy, CopiesAheadWhatThereIsRoomFor) {
  const popnorm::Problem p = problem(POPNORM_NCHW, 50, 512, 784);
  const auto ahead = [&](Direction direction, const Device& device) {
    return choose(p, direction, device, "plain", nullptr).ahead;
  };
  EXPECT_EQ(ahead(Direction::forward, kH100), 3);
  EXPECT_EQ(ahead(Direction::backward, kH100), 3);
  EXPECT_EQ(ahead(Direction::forward, kA100), 2);
  EXPECT_EQ(ahead(Direction::backward, kA100), 2);
  Device turing = kA100;
  turing.copies = false;
  EXPECT_EQ(ahead(Direction::forward, turing), 0);
}

TEST(CudaPolicy, OfOneReadCountsIn32Bits) {
  const popnorm::Problem large = problem(POPNORM_NCHW, 1 << 20, 8, 4096);
  const char* why = nullptr;
  EXPECT_EQ(choose(large, Direction::forward, kH100, "grid", &why).path, Path::plain);
  EXPECT_STREQ(why, "positions or offsets do not fit into 32 bits");
  EXPECT_EQ(choose(large, Direction::forward, kH100, nullptr, nullptr).path, Path::plain);
}

TEST(CudaBytes, ArePrinted) {
  const popnorm::Problem p = problem(POPNORM_NHWC, 50, 512, 784);
  char text[160];
  describe(p, choose(p, Direction::forward, kH100, "grid", nullptr), text, sizeof(text));
  EXPECT_EQ(std::string(text), "grid: 39 blocks x 3 teams hold 8 chunks each, 1 launch, reads 1.00 T, writes 1.00 T");
}

TEST(CudaPolicy, ThatADeviceDoesNotHaveIsPlainAndSaysWhy) {
  const popnorm::Problem p = problem(POPNORM_NCHW, 8, 8, 64);
  const char* why = nullptr;
  EXPECT_EQ(choose(p, Direction::forward, kA100, "cluster", &why).path, Path::plain);
  EXPECT_STREQ(why, "the device has no clusters");
}

}  // namespace
}  // namespace popnorm_test
