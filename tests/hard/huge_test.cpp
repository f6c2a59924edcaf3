// Tensors of more than 2^32 elements, on a machine without memory for one: a small file mapped over and over side by
// side. The repeats have moments that are known exactly, and with one period per map also y is known everywhere.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "support/layer.hpp"

namespace popnorm_test {
namespace {

namespace reference = popnorm::reference;
using reference::Real;

constexpr std::int64_t kLimit = std::int64_t{1} << 32;
// Elements after which memory repeats: enough that all mappings of a test stay below the kernel's limit on their
// number.
constexpr std::int64_t kPeriod = 1 << 20;

// `elements` floats of address space that repeat every kPeriod floats.
class Repeated {
 public:
  explicit Repeated(std::int64_t elements) {
    const std::size_t period_bytes = static_cast<std::size_t>(kPeriod) * sizeof(float);
    const auto repeats = static_cast<std::size_t>((elements + kPeriod - 1) / kPeriod);
    bytes_ = repeats * period_bytes;
    const int file = memfd_create("popnorm-test", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(period_bytes)) != 0) throw std::runtime_error("memfd_create");
    void* base = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("mmap");
    base_ = static_cast<std::byte*>(base);
    for (std::size_t i = 0; i < repeats; ++i) {
      if (mmap(base_ + i * period_bytes, period_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
          MAP_FAILED) {
        throw std::runtime_error("mmap of a repeat");
      }
    }
    close(file);
  }
  ~Repeated() { munmap(base_, bytes_); }
  Repeated(const Repeated&) = delete;

  [[nodiscard]] float* data() { return reinterpret_cast<float*>(base_); }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

std::vector<double> fill(Repeated& repeated, Random& random, double mean, double deviation) {
  std::vector<double> values(static_cast<std::size_t>(kPeriod));
  for (std::size_t i = 0; i < values.size(); ++i) {
    repeated.data()[i] = static_cast<float>(mean + deviation * random.normal());
    values[i] = static_cast<double>(repeated.data()[i]);
  }
  return values;
}

// The oracle's moments of `times` repeats of x and a first part of it.
reference::Moments repeated_moments(const std::vector<double>& x, std::int64_t times, std::size_t rest) {
  reference::Moments m = reference::moments_of(x);
  m.weight *= static_cast<Real>(times);
  m.m2 *= static_cast<Real>(times);
  return reference::combine(m, reference::moments_of({x.data(), rest}));
}

void expect_moments(const reference::Moments& exact, double weight, double mean, double m2) {
  const reference::Bounds bounds(reference::kF32, reference::statistics_of(exact, 0), {});
  EXPECT_EQ(weight, static_cast<double>(exact.weight));
  EXPECT_NEAR(mean, static_cast<double>(exact.mean), static_cast<double>(bounds.mean(reference::kF64)));
  EXPECT_NEAR(m2, static_cast<double>(exact.m2), static_cast<double>(bounds.relative(exact.m2, reference::kF64)));
}

// One row of 2^32 and some elements: every index and count beyond 32 bits.
TEST(Huge, MomentsOfOneRow) {
  constexpr std::int64_t kRest = 12345, kElements = kLimit + kRest;
  Repeated x(kElements);
  Random random("MomentsOfOneRow");
  const std::vector<double> values = fill(x, random, 100, 1);
  const popnorm::plan plan(popnorm::problem_nchw(1, 1, kElements));
  popnorm::buffer space = plan.make_workspace();
  double weight = 0, mean = 0, m2 = 0;
  popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
  args.x = x.data();
  args.moments = {&weight, &mean, &m2};
  args.workspace = space.data();
  args.workspace_bytes = space.size();
  plan.moments(args);
  expect_moments(repeated_moments(values, kLimit / kPeriod, kRest), weight, mean, m2);
}

// A constant beyond 2^24 elements is where sums in f32 get stuck.
TEST(Huge, ConstantStaysExact) {
  constexpr std::int64_t kC = 3, kElements = std::int64_t{3} << 26;
  Repeated x(kElements);
  for (std::int64_t i = 0; i < kPeriod; ++i) x.data()[i] = 1.1f;
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC}) {
    const popnorm::plan plan(popnorm::problem(layout, 1, kC, kElements / kC));
    popnorm::buffer space = plan.make_workspace();
    std::vector<double> weight(kC), mean(kC), m2(kC, -1);
    popnorm_moments_args args = POPNORM_MOMENTS_ARGS_INIT;
    args.x = x.data();
    args.moments = {weight.data(), mean.data(), m2.data()};
    args.workspace = space.data();
    args.workspace_bytes = space.size();
    plan.moments(args);
    EXPECT_EQ(mean, std::vector<double>(kC, static_cast<double>(1.1f)));
    EXPECT_EQ(m2, std::vector<double>(kC, 0));
  }
}

struct Shape {
  const char* name;
  popnorm_layout layout;
  std::int64_t n, c, s;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.name; }

class HugeLayer : public ::testing::TestWithParam<Shape> {};

// Forward and backward. Every period holds the same elements of the same channels, so that y and dx repeat as well:
// what memory holds in the end is what each of the periods must be.
TEST_P(HugeLayer, ForwardAndBackward) {
  const Shape& shape = GetParam();
  const std::int64_t elements = shape.n * shape.c * shape.s;
  ASSERT_GT(elements, kLimit);
  const bool last = shape.layout == POPNORM_NHWC;
  const bool rows_are_periods = !last && shape.s % kPeriod == 0;  // then all channels see all of the period
  ASSERT_EQ(elements % kPeriod, 0);
  ASSERT_TRUE(rows_are_periods || kPeriod % (last ? shape.c : shape.s * shape.c) == 0) << "periods would differ";
  Random random("HugeLayer");
  Repeated x(elements), dy(elements), y(elements), dx(elements);
  const std::vector<double> x_period = fill(x, random, 10, 2), dy_period = fill(dy, random, 0.25, 1);
  const auto c = static_cast<std::size_t>(shape.c);
  const std::int64_t per_channel = elements / shape.c;

  const auto places_of = [&](std::int64_t channel) {
    std::vector<std::size_t> places;
    for (std::int64_t i = 0; i < kPeriod; ++i) {
      const std::int64_t owner = last ? i % shape.c : i / shape.s % shape.c;
      if (rows_are_periods || owner == channel) places.push_back(static_cast<std::size_t>(i));
    }
    return places;
  };

  const popnorm::plan plan(popnorm::problem(shape.layout, shape.n, shape.c, shape.s));
  popnorm::buffer space = plan.make_workspace(), reserve = plan.make_reserve();
  std::vector<double> weight(c), mean(c), m2(c);
  std::vector<float> dscale(c), dshift(c);
  popnorm_forward_args forward = popnorm::forward_args(space, reserve);
  forward.x = x.data();
  forward.y = y.data();
  forward.moments = {weight.data(), mean.data(), m2.data()};
  plan.forward(forward);
  popnorm_backward_args backward = popnorm::backward_args(space, reserve);
  backward.x = x.data();
  backward.dy = dy.data();
  backward.dx = dx.data();
  backward.dscale = dscale.data();
  backward.dshift = dshift.data();
  plan.backward(backward);

  for (std::size_t channel = 0; channel < c; ++channel) {
    SCOPED_TRACE(channel);
    const std::vector<std::size_t> places = places_of(static_cast<std::int64_t>(channel));
    std::vector<double> xs, dys;
    for (const std::size_t at : places) {
      xs.push_back(x_period[at]);
      dys.push_back(dy_period[at]);
    }
    const auto repeats = static_cast<Real>(per_channel) / static_cast<Real>(xs.size());
    reference::Moments m = reference::moments_of(xs);
    m.weight *= repeats;
    m.m2 *= repeats;
    expect_moments(m, weight[channel], mean[channel], m2[channel]);

    const reference::Statistics s = reference::statistics_of(m, 1e-5L);
    const reference::Bounds bounds(reference::kF32, s, {});
    reference::Sums sums = reference::sums_of(xs, dys, s);
    for (Real* sum : {&sums.dy, &sums.dy_xhat, &sums.abs_dy, &sums.abs_dy_xhat}) *sum *= repeats;
    EXPECT_NEAR(dshift[channel], static_cast<double>(sums.dy),
                static_cast<double>(bounds.dshift(sums, 0, reference::kF32)));
    EXPECT_NEAR(dscale[channel], static_cast<double>(sums.dy_xhat),
                static_cast<double>(bounds.dscale(sums, 0, reference::kF32)));

    const std::vector<Real> exact_y = reference::forward(xs, s, {});
    const std::vector<Real> exact_dx = reference::backward_batch(xs, dys, s, 1, sums, m.weight);
    Promise of_y, of_dx;
    std::vector<double> got_y, got_dx;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      of_y.add(exact_y[i], bounds.y(xs[i], reference::kF32));
      of_dx.add(exact_dx[i], bounds.dx(xs[i], dys[i], exact_dx[i], sums, m.weight, reference::kF32));
      got_y.push_back(static_cast<double>(y.data()[places[i]]));
      got_dx.push_back(static_cast<double>(dx.data()[places[i]]));
    }
    EXPECT_TRUE(within(of_y, got_y)) << "y";
    EXPECT_TRUE(within(of_dx, got_dx)) << "dx";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, HugeLayer,
                         ::testing::Values(Shape{"LongRows", POPNORM_NCHW, 1, 3, (kLimit / 3 / kPeriod + 1) * kPeriod},
                                           Shape{"ManySamples", POPNORM_NCHW, 16388, 4, 65536},
                                           Shape{"ChannelsLast", POPNORM_NHWC, 1, 4,
                                                 (kLimit / 4 / kPeriod + 1) * kPeriod},
                                           Shape{"ChannelsLastManySamples", POPNORM_NHWC, 2050, 32, 65536}),
                         [](const ::testing::TestParamInfo<Shape>& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace popnorm_test
