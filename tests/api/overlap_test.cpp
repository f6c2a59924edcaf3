// Memory shared between operands: found and refused wherever it would matter, accepted where nothing is shared.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>

#include "api/scene.hpp"

namespace popnorm_test {
namespace {

// One pointer of an argument struct.
template <class Args>
struct Operand {
  const char* name;
  std::size_t bytes;
  std::size_t alignment;
  bool written;
  std::function<void(Args&, void*)> place;
  const void* content;  // what an input must hold to be accepted
};

constexpr std::size_t kTensorBytes = sizeof(float) * Scene::kN * Scene::kC * Scene::kS;
constexpr std::size_t kFloats = sizeof(float) * Scene::kC;
constexpr std::size_t kDoubles = sizeof(double) * Scene::kC;

template <class Args>
bool may_be_in_place(const Operand<Args>& a, const Operand<Args>& b) {
  const auto is = [&](const char* out, const char* in) {
    return (std::strcmp(a.name, out) == 0 && std::strcmp(b.name, in) == 0) ||
           (std::strcmp(b.name, out) == 0 && std::strcmp(a.name, in) == 0);
  };
  return is("y", "x") || is("dx", "dy") || is("dx", "x");
}

// Places every pair of operands, one of them an output, in one piece of memory: sharing an end, sharing their
// beginning, and side by side.
template <class Args>
void expect_overlaps_found(Scene& scene, const Args& valid, Entry<Args> entry,
                           const std::vector<Operand<Args>>& operands) {
  for (const Operand<Args>& a : operands) {
    for (const Operand<Args>& b : operands) {
      if (&a == &b || !(a.written || b.written)) continue;
      SCOPED_TRACE(std::string(a.name) + " before " + b.name);
      const std::size_t step = std::max(a.alignment, b.alignment);
      const std::size_t sharing = (a.bytes - 1) / step * step;
      const std::size_t beside = (a.bytes + step - 1) / step * step;
      const auto call = [&](std::size_t distance) {
        GuardedBuffer memory(distance + a.bytes + b.bytes, 64, Placement::begins_at_guard);
        Args args = valid;
        a.place(args, memory.data());
        b.place(args, memory.data() + distance);
        // The larger last, so that the header of a population or reserve survives: overlap is then all that is wrong.
        const auto fill = [&](const Operand<Args>& operand, std::byte* at) {
          if (operand.content != nullptr) std::memcpy(at, operand.content, operand.bytes);
        };
        if (a.bytes < b.bytes) fill(a, memory.data());
        fill(b, memory.data() + distance);
        if (a.bytes >= b.bytes) fill(a, memory.data());
        const auto before = memory.snapshot();
        const auto scene_before = scene.snapshot();
        const popnorm_status status = entry(scene.plan.get(), &args, nullptr);
        if (status != POPNORM_SUCCESS) {
          EXPECT_TRUE(memory.snapshot() == before);
          EXPECT_TRUE(scene.snapshot() == scene_before);
        }
        return status;
      };
      EXPECT_TRUE(refused(call(sharing), POPNORM_INVALID,
                          {"overlap", "\\b" + std::string(a.name) + "\\b", "\\b" + std::string(b.name) + "\\b"}));
      if (may_be_in_place(a, b)) {
        EXPECT_TRUE(succeeded(call(0)));
      } else {
        EXPECT_TRUE(refused(call(0), POPNORM_INVALID, {"overlap"}));
      }
      EXPECT_TRUE(succeeded(call(beside)));
    }
  }
}

template <class Args>
Operand<Args> tensor_in(const char* name, const void* Args::*field, const Tensor& content) {
  return {name, kTensorBytes, 4, false, [=](Args& a, void* p) { a.*field = p; }, content.data()};
}
template <class Args>
Operand<Args> tensor_out(const char* name, void* Args::*field) {
  return {name, kTensorBytes, 4, true, [=](Args& a, void* p) { a.*field = p; }, nullptr};
}
template <class Args>
Operand<Args> array_in(const char* name, const void* Args::*field, const Array& content) {
  return {name, kFloats, 4, false, [=](Args& a, void* p) { a.*field = p; }, content.data()};
}
template <class Args>
Operand<Args> array_out(const char* name, void* Args::*field) {
  return {name, kFloats, 4, true, [=](Args& a, void* p) { a.*field = p; }, nullptr};
}
template <class Args>
Operand<Args> running(const char* name, void* popnorm_update::*field) {
  return {name, kFloats, 4, true, [=](Args& a, void* p) { a.update.*field = p; }, nullptr};
}
template <class Args>
Operand<Args> given(const char* name, const void* popnorm_source::*field, const Array& content) {
  return {name, kFloats, 4, false, [=](Args& a, void* p) { a.source.*field = p; }, content.data()};
}
template <class Args>
Operand<Args> moments_part(const char* name, double* popnorm_moment_arrays::*part, bool written, const Array& content) {
  return {name,
          kDoubles,
          8,
          written,
          [=](Args& a, void* p) { a.moments.*part = static_cast<double*>(p); },
          written ? nullptr : content.data()};
}
template <class Args>
Operand<Args> workspace(const Scene& scene) {
  return {"workspace", scene.workspace.size(), 64, true, [](Args& a, void* p) { a.workspace = p; }, nullptr};
}
template <class Args>
Operand<Args> reserve_in(const GuardedBuffer& content) {
  return {"reserve", content.size(), 64, false, [](Args& a, void* p) { a.reserve = p; }, content.data()};
}
template <class Args>
Operand<Args> reserve_out(const Scene& scene) {
  return {"reserve", scene.reserve.size(), 64, true, [](Args& a, void* p) { a.reserve = p; }, nullptr};
}

// What forward and finalize have in common.
template <class Args>
std::vector<Operand<Args>> parameters_and_saved(Scene& scene) {
  return {array_in("scale", &Args::scale, scene.scale), array_in("shift", &Args::shift, scene.shift),
          array_out("saved_mean", &Args::saved_mean), array_out("saved_invstd", &Args::saved_invstd),
          reserve_out<Args>(scene)};
}

template <class Args>
void append(std::vector<Operand<Args>>& to, std::initializer_list<Operand<Args>> more) {
  to.insert(to.end(), more);
}

TEST(Overlap, Forward) {
  using Args = popnorm_forward_args;
  Scene scene;
  std::vector<Operand<Args>> common = parameters_and_saved<Args>(scene);
  append(common, {tensor_in("x", &Args::x, scene.x), tensor_out("y", &Args::y), workspace<Args>(scene)});

  std::vector<Operand<Args>> batch = common;
  append(batch, {running<Args>("update.running_mean", &popnorm_update::running_mean),
                 running<Args>("update.running_variance", &popnorm_update::running_variance),
                 moments_part<Args>("weight", &popnorm_moment_arrays::weight, true, scene.weight),
                 moments_part<Args>("mean", &popnorm_moment_arrays::mean, true, scene.moments_mean),
                 moments_part<Args>("m2", &popnorm_moment_arrays::m2, true, scene.m2)});
  expect_overlaps_found<Args>(scene, scene.forward_batch(), popnorm_forward, batch);

  const auto population = [&](const char* name, bool written, auto place, const GuardedBuffer& content) {
    return Operand<Args>{name, content.size(), 8, written, place, content.data()};
  };
  std::vector<Operand<Args>> feeding = common;
  append(feeding, {population(
                      "update.population", true, [](Args& a, void* p) { a.update.population = p; }, scene.population)});
  expect_overlaps_found<Args>(scene, scene.forward_feeding(), popnorm_forward, feeding);

  std::vector<Operand<Args>> with_given = common;
  append(with_given, {given<Args>("source.mean", &popnorm_source::mean, scene.mean),
                      given<Args>("source.variance", &popnorm_source::variance, scene.variance)});
  expect_overlaps_found<Args>(scene, scene.forward_given(), popnorm_forward, with_given);

  std::vector<Operand<Args>> from_population = common;
  append(from_population,
         {population(
             "source.population", false, [](Args& a, void* p) { a.source.population = p; }, scene.given_population)});
  expect_overlaps_found<Args>(scene, scene.forward_given_population(), popnorm_forward, from_population);
}

TEST(Overlap, Finalize) {
  using Args = popnorm_finalize_args;
  Scene scene;
  std::vector<Operand<Args>> operands = parameters_and_saved<Args>(scene);
  append(operands, {running<Args>("update.running_mean", &popnorm_update::running_mean),
                    running<Args>("update.running_variance", &popnorm_update::running_variance),
                    moments_part<Args>("weight", &popnorm_moment_arrays::weight, false, scene.part_weight),
                    moments_part<Args>("mean", &popnorm_moment_arrays::mean, false, scene.part_mean),
                    moments_part<Args>("m2", &popnorm_moment_arrays::m2, false, scene.part_m2)});
  expect_overlaps_found<Args>(scene, scene.finalize(), popnorm_finalize, operands);
}

TEST(Overlap, Backward) {
  using Args = popnorm_backward_args;
  Scene scene;
  std::vector<Operand<Args>> common = {tensor_in("x", &Args::x, scene.x),  tensor_in("dy", &Args::dy, scene.dy),
                                       tensor_out("dx", &Args::dx),        array_out("dscale", &Args::dscale),
                                       array_out("dshift", &Args::dshift), workspace<Args>(scene)};
  std::vector<Operand<Args>> with_reserve = common;
  append(with_reserve, {reserve_in<Args>(scene.reserve)});
  expect_overlaps_found<Args>(scene, scene.backward(), popnorm_backward, with_reserve);
  std::vector<Operand<Args>> with_saved = common;
  append(with_saved, {array_in("saved_mean", &Args::saved_mean, scene.saved_mean),
                      array_in("saved_invstd", &Args::saved_invstd, scene.saved_invstd),
                      array_in("scale", &Args::scale, scene.scale)});
  expect_overlaps_found<Args>(scene, scene.backward_saved(), popnorm_backward, with_saved);
}

TEST(Overlap, Stages) {
  Scene scene;
  using Moments = popnorm_moments_args;
  expect_overlaps_found<Moments>(
      scene, scene.moments(), popnorm_moments,
      {tensor_in("x", &Moments::x, scene.x),
       moments_part<Moments>("weight", &popnorm_moment_arrays::weight, true, scene.weight),
       moments_part<Moments>("mean", &popnorm_moment_arrays::mean, true, scene.moments_mean),
       moments_part<Moments>("m2", &popnorm_moment_arrays::m2, true, scene.m2), workspace<Moments>(scene)});
  using Normalize = popnorm_normalize_args;
  expect_overlaps_found<Normalize>(scene, scene.normalize(), popnorm_normalize,
                                   {tensor_in("x", &Normalize::x, scene.x), tensor_out("y", &Normalize::y),
                                    reserve_in<Normalize>(scene.reserve), workspace<Normalize>(scene)});
  using Reduce = popnorm_backward_reduce_args;
  expect_overlaps_found<Reduce>(
      scene, scene.backward_reduce(), popnorm_backward_reduce,
      {tensor_in("x", &Reduce::x, scene.x),
       tensor_in("dy", &Reduce::dy, scene.dy),
       reserve_in<Reduce>(scene.reserve),
       {"sum_dy", kDoubles, 8, true, [](Reduce& a, void* p) { a.sum_dy = static_cast<double*>(p); }, nullptr},
       {"sum_dy_xhat", kDoubles, 8, true, [](Reduce& a, void* p) { a.sum_dy_xhat = static_cast<double*>(p); }, nullptr},
       workspace<Reduce>(scene)});
  using Apply = popnorm_backward_apply_args;
  expect_overlaps_found<Apply>(
      scene, scene.backward_apply(), popnorm_backward_apply,
      {tensor_in("x", &Apply::x, scene.x),
       tensor_in("dy", &Apply::dy, scene.dy),
       tensor_out("dx", &Apply::dx),
       reserve_in<Apply>(scene.reserve),
       {"sum_dy", kDoubles, 8, false, [](Apply& a, void* p) { a.sum_dy = static_cast<double*>(p); },
        scene.part_weight.data()},
       {"sum_dy_xhat", kDoubles, 8, false, [](Apply& a, void* p) { a.sum_dy_xhat = static_cast<double*>(p); },
        scene.part_m2.data()},
       workspace<Apply>(scene)});
}

TEST(Overlap, InputsMayShareMemory) {
  Scene scene;
  popnorm_forward_args args = scene.forward_given();
  args.scale = args.shift = args.source.mean = args.source.variance = scene.variance.data();
  EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
  popnorm_backward_args backward = scene.backward();
  backward.dy = backward.x;
  EXPECT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &backward, nullptr)));
}

TEST(Overlap, CombineMayWriteOneOfItsParts) {
  Scene scene;
  popnorm_combine_args args = scene.combine();
  args.moments = scene.parts_in();
  EXPECT_TRUE(succeeded(popnorm_combine(scene.plan.get(), &args, nullptr)));
}

// ---------------------------------------------------------------------------------------------------- strided tensors

// The ways in which two channel slices of one concatenated tensor lie in memory: all disjoint, all interleaved.
struct Slices {
  const char* name;
  popnorm_layout layout;
  std::int64_t n, c, s;
  popnorm_strides strides;
  std::int64_t distance;  // between the bases, in elements, for slices side by side
};

const Slices kSlices[] = {
    {"channels first", POPNORM_NCHW, 4, 3, 5, {6 * 5, 5}, 15},
    {"channels first, padded rows", POPNORM_NCHW, 4, 3, 5, {6 * 7, 7}, 21},
    {"channels first, padded samples", POPNORM_NCHW, 4, 3, 5, {6 * 5 + 4, 5}, 15},
    {"channels last", POPNORM_NHWC, 4, 3, 5, {6 * 5, 6}, 3},
    {"channels last, padded rows", POPNORM_NHWC, 4, 3, 5, {7 * 5, 7}, 3},
    {"channels last, padded samples", POPNORM_NHWC, 4, 3, 5, {6 * 5 + 4, 6}, 3},
    {"channels last, samples inside", POPNORM_NHWC, 4, 3, 5, {6, 6 * 4}, 3},
    {"channels first, samples inside", POPNORM_NCHW, 4, 3, 5, {5, 5 * 4}, 3 * 5 * 4},
    {"halves of each row", POPNORM_NCHW, 4, 3, 5, {30, 10}, 5},
    {"BatchNorm1d", POPNORM_NHWC, 6, 4, 1, {8, 0}, 4},
};

popnorm_status forward_between(const Slices& slices, std::int64_t distance, bool y_first = false) {
  popnorm_problem problem = popnorm::problem(slices.layout, slices.n, slices.c, slices.s);
  problem.x = problem.y = slices.strides;
  const popnorm::plan plan(problem);
  popnorm::buffer space = plan.make_workspace();
  std::vector<float> whole(1000, 1.0f);
  popnorm_forward_args args = popnorm::forward_args(space);
  args.x = whole.data() + (y_first ? distance : 0);
  args.y = whole.data() + (y_first ? 0 : distance);
  return popnorm_forward(plan.get(), &args, nullptr);
}

TEST(Slices, SideBySideAreAccepted) {
  for (const Slices& slices : kSlices) {
    EXPECT_TRUE(succeeded(forward_between(slices, slices.distance))) << slices.name;
    EXPECT_TRUE(succeeded(forward_between(slices, slices.distance, true))) << slices.name << ", y first";
  }
}

// The elements of a slice, from its base.
std::vector<std::int64_t> places_of(const Slices& slices) {
  Geometry shape(slices.layout, slices.n, slices.c, slices.s, Spacing::packed);
  shape.strides = {slices.strides.sample, slices.strides.row != 0 ? slices.strides.row : shape.strides.row};
  std::vector<std::int64_t> places;
  for (std::int64_t n = 0; n < slices.n; ++n) {
    for (std::int64_t c = 0; c < slices.c; ++c) {
      for (std::int64_t s = 0; s < slices.s; ++s) places.push_back(shape.index(n, c, s));
    }
  }
  return places;
}

TEST(Slices, SharingAnElementAreRefused) {
  for (const Slices& slices : kSlices) {
    const std::vector<std::int64_t> places = places_of(slices);
    const std::set<std::int64_t> x(places.begin(), places.end());
    for (std::int64_t distance = 1; distance <= *x.rbegin(); ++distance) {
      if (std::none_of(places.begin(), places.end(), [&](std::int64_t p) { return x.contains(p + distance); }))
        continue;
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, slices.name + std::to_string(distance));
      for (const bool y_first : {false, true}) {
        EXPECT_TRUE(refused(forward_between(slices, distance, y_first), POPNORM_INVALID, {"\\by overlaps x\\b"}));
      }
    }
  }
}

TEST(Slices, AreWrittenWithoutTouchingOneAnother) {
  Random random("Slices");
  for (const Slices& slices : kSlices) {
    SCOPED_TRACE(slices.name);
    popnorm_problem problem = popnorm::problem(slices.layout, slices.n, slices.c, slices.s);
    problem.x = problem.y = slices.strides;
    const popnorm::plan plan(problem);
    popnorm::buffer space = plan.make_workspace();
    std::vector<float> whole(1000);
    for (float& v : whole) v = static_cast<float>(random.normal());
    const std::vector<float> before = whole;
    popnorm_forward_args args = popnorm::forward_args(space);
    args.x = whole.data();
    args.y = whole.data() + slices.distance;
    plan.forward(args);

    std::vector<bool> is_y(whole.size(), false);
    for (const std::int64_t place : places_of(slices)) is_y[static_cast<std::size_t>(slices.distance + place)] = true;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      if (!is_y[i]) {
        EXPECT_EQ(whole[i], before[i]) << "element " << i;
      }
    }
  }
}

// In place means the same strides as well.
TEST(Slices, InPlaceWithOtherStridesIsRefused) {
  popnorm_problem problem = popnorm::problem_nchw(4, 3, 5);
  problem.y = {20, 5};
  const popnorm::plan plan(problem);
  popnorm::buffer space = plan.make_workspace();
  std::vector<float> whole(100, 1.0f);
  popnorm_forward_args args = popnorm::forward_args(space);
  args.x = args.y = whole.data();
  EXPECT_TRUE(refused(popnorm_forward(plan.get(), &args, nullptr), POPNORM_INVALID, {"y overlaps x", "strides"}));
}

}  // namespace
}  // namespace popnorm_test
