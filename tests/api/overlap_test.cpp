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

template <class Args>
bool may_be_in_place(const Operand<Args>& a, const Operand<Args>& b) {
  const auto is = [&](const char* out, const char* in) {
    return (std::strcmp(a.name, out) == 0 && std::strcmp(b.name, in) == 0) ||
           (std::strcmp(b.name, out) == 0 && std::strcmp(a.name, in) == 0);
  };
  return is("y", "x") || is("y", "residual") || is("dx", "dy") || is("dx", "x") || is("dresidual", "dy") ||
         is("dresidual", "x");
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
        // The more aligned last, so that the header of a population or reserve survives: overlap is then all that is wrong.
        const auto fill = [&](const Operand<Args>& operand, std::byte* at) {
          if (operand.content != nullptr) std::memcpy(at, operand.content, operand.bytes);
        };
        if (a.alignment < b.alignment) fill(a, memory.data());
        fill(b, memory.data() + distance);
        if (a.alignment >= b.alignment) fill(a, memory.data());
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

// Operands of the scene's arrays: their sizes, and for inputs what they hold.
template <class Args>
Operand<Args> input(const char* name, const void* Args::*field, const Array& a) {
  return {name, a.buffer().size(), size_of(a.type()), false, [=](Args& args, void* p) { args.*field = p; }, a.data()};
}
template <class Args>
Operand<Args> output(const char* name, void* Args::*field, const Array& a) {
  return {name, a.buffer().size(), size_of(a.type()), true, [=](Args& args, void* p) { args.*field = p; }, nullptr};
}
template <class Args>
Operand<Args> running(const char* name, void* popnorm_update::*field, const Array& a) {
  return {name, a.buffer().size(), 4, true, [=](Args& args, void* p) { args.update.*field = p; }, nullptr};
}
template <class Args>
Operand<Args> given(const char* name, const void* popnorm_source::*field, const Array& a) {
  return {name, a.buffer().size(), 4, false, [=](Args& args, void* p) { args.source.*field = p; }, a.data()};
}
template <class Args>
Operand<Args> moments_part(const char* name, double* popnorm_moment_arrays::*part, bool written, const Array& a) {
  return {name,
          a.buffer().size(),
          8,
          written,
          [=](Args& args, void* p) { args.moments.*part = static_cast<double*>(p); },
          written ? nullptr : a.data()};
}
template <class Args, class Pointer>
Operand<Args> sum(const char* name, Pointer Args::*field, const Array& a) {
  const bool written = !std::is_const_v<std::remove_pointer_t<Pointer>>;
  return {name,
          a.buffer().size(),
          8,
          written,
          [=](Args& args, void* p) { args.*field = static_cast<double*>(p); },
          written ? nullptr : a.data()};
}
template <class Args>
Operand<Args> workspace(const GuardedBuffer& buffer) {
  return {"workspace", buffer.size(), 64, true, [](Args& a, void* p) { a.workspace = p; }, nullptr};
}
template <class Args>
Operand<Args> reserve_in(const GuardedBuffer& content, bool written = false) {
  return {"reserve", content.size(), 64, written, [](Args& a, void* p) { a.reserve = p; }, content.data()};
}
template <class Args>
Operand<Args> reserve_out(const Scene& scene) {
  return {"reserve", scene.reserve.size(), 64, true, [](Args& a, void* p) { a.reserve = p; }, nullptr};
}

template <class Args>
using Operands = std::vector<Operand<Args>>;

template <class Args>
Operands<Args> operator+(Operands<Args> a, const Operands<Args>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// The labels and weights that the scene's problem has. `slots`: those of population slots are read.
template <class Args>
Operands<Args> batch_operands(const Scene& scene, bool slots = false) {
  Operands<Args> all;
  const popnorm_batch batch = scene.batch();
  const auto labels = [&](const char* name, const std::int32_t* popnorm_batch::*field) {
    if (batch.*field == nullptr) return;
    all.push_back({name, sizeof(std::int32_t) * static_cast<std::size_t>(scene.problem.n), 4, false,
                   [=](Args& a, void* p) { a.batch.*field = static_cast<const std::int32_t*>(p); }, batch.*field});
  };
  labels("batch.norm_group", &popnorm_batch::norm_group);
  if (slots) labels("batch.population_slot", &popnorm_batch::population_slot);
  if constexpr (!std::is_same_v<Args, popnorm_moments_args>) labels("batch.affine_slot", &popnorm_batch::affine_slot);
  if (batch.weights != nullptr) {
    const bool lengths = scene.problem.weights == POPNORM_LENGTHS;
    const std::size_t size = lengths ? sizeof(std::int64_t) : sizeof(float);
    const std::int64_t count =
        scene.problem.n * (scene.problem.weights == POPNORM_WEIGHTS_PER_POSITION ? Scene::kS : 1);
    all.push_back({"batch.weights", size * static_cast<std::size_t>(count), size, false,
                   [](Args& a, void* p) { a.batch.weights = p; }, batch.weights});
  }
  return all;
}

// What forward and finalize have in common.
template <class Args>
Operands<Args> parameters_and_saved(Scene& scene) {
  return {input("scale", &Args::scale, scene.scale), input("shift", &Args::shift, scene.shift),
          output("saved_mean", &Args::saved_mean, scene.saved_mean),
          output("saved_invstd", &Args::saved_invstd, scene.saved_invstd), reserve_out<Args>(scene)};
}

template <class Args>
Operands<Args> running_statistics(const Scene& scene) {
  return {running<Args>("update.running_mean", &popnorm_update::running_mean, scene.running_mean),
          running<Args>("update.running_variance", &popnorm_update::running_variance, scene.running_variance)};
}

template <class Args>
Operands<Args> moments_out(const Scene& scene) {
  return {moments_part<Args>("weight", &popnorm_moment_arrays::weight, true, scene.weight),
          moments_part<Args>("mean", &popnorm_moment_arrays::mean, true, scene.moments_mean),
          moments_part<Args>("m2", &popnorm_moment_arrays::m2, true, scene.m2)};
}

template <class Args>
Operands<Args> residual_in(const Scene& scene) {
  if (scene.problem.adds_residual == 0) return {};
  return {input("residual", &Args::residual, scene.residual)};
}
template <class Args>
Operands<Args> residual_out(const Scene& scene) {
  if (scene.problem.adds_residual == 0) return {};
  return {output("dresidual", &Args::dresidual, scene.dresidual)};
}

Operands<popnorm_forward_args> tensors_of_forward(const Scene& scene) {
  using Args = popnorm_forward_args;
  return Operands<Args>{input("x", &Args::x, scene.x), output("y", &Args::y, scene.y),
                        workspace<Args>(scene.workspace)} +
         residual_in<Args>(scene);
}

// Plain, and with everything that says what the batch is: arrays then have a row for every group, slot or set of scales.
struct Named {
  const char* name;
  popnorm_problem problem;
};
void PrintTo(const Named& n, std::ostream* out) { *out << n.name; }
const Named kProblems[] = {{"plain", popnorm::problem_nchw(Scene::kN, Scene::kC, Scene::kS)},
                           {"labelled", labelled()},
                           {"weights_per_sample", weighted(POPNORM_WEIGHTS_PER_SAMPLE)},
                           {"weights_per_position", weighted(POPNORM_WEIGHTS_PER_POSITION)},
                           {"lengths", weighted(POPNORM_LENGTHS)},
                           {"residual", fused(POPNORM_IDENTITY, true)},
                           {"residual_and_relu", fused(POPNORM_RELU, true)}};

class Overlap : public testing::TestWithParam<Named> {
 protected:
  Scene scene{GetParam().problem};
};

TEST_P(Overlap, Forward) {
  using Args = popnorm_forward_args;
  expect_overlaps_found<Args>(scene, scene.forward_batch(), popnorm_forward,
                              parameters_and_saved<Args>(scene) + tensors_of_forward(scene) +
                                  running_statistics<Args>(scene) + moments_out<Args>(scene) +
                                  batch_operands<Args>(scene, true));
}

TEST_P(Overlap, ForwardThatFeedsAPopulation) {
  using Args = popnorm_forward_args;
  expect_overlaps_found<Args>(
      scene, scene.forward_feeding(), popnorm_forward,
      parameters_and_saved<Args>(scene) + tensors_of_forward(scene) +
          Operands<Args>{{"update.population", scene.population.size(), 8, true,
                          [](Args& a, void* p) { a.update.population = p; }, scene.population.data()}});
}

TEST_P(Overlap, ForwardByGivenStatistics) {
  using Args = popnorm_forward_args;
  // Saved statistics have a row per slot.
  Operands<Args> common =
      tensors_of_forward(scene) + Operands<Args>{input("scale", &Args::scale, scene.scale),
                                                 input("shift", &Args::shift, scene.shift), reserve_out<Args>(scene)};
  expect_overlaps_found<Args>(
      scene, scene.forward_given(), popnorm_forward,
      common + Operands<Args>{given<Args>("source.mean", &popnorm_source::mean, scene.mean),
                              given<Args>("source.variance", &popnorm_source::variance, scene.variance)});
  expect_overlaps_found<Args>(
      scene, scene.forward_given_population(), popnorm_forward,
      common + Operands<Args>{{"source.population", scene.given_population.size(), 8, false,
                               [](Args& a, void* p) { a.source.population = p; }, scene.given_population.data()}});
}

TEST_P(Overlap, Finalize) {
  using Args = popnorm_finalize_args;
  Operands<Args> operands =
      parameters_and_saved<Args>(scene) + running_statistics<Args>(scene) +
      Operands<Args>{moments_part<Args>("weight", &popnorm_moment_arrays::weight, false, scene.part_weight),
                     moments_part<Args>("mean", &popnorm_moment_arrays::mean, false, scene.part_mean),
                     moments_part<Args>("m2", &popnorm_moment_arrays::m2, false, scene.part_m2)};
  if (scene.slots() > 1)
    operands.push_back({"group_slot", sizeof(std::int32_t) * scene.group_slot.size(), 4, false,
                        [](Args& a, void* p) { a.group_slot = static_cast<const std::int32_t*>(p); },
                        scene.group_slot.data()});
  expect_overlaps_found<Args>(scene, scene.finalize(), popnorm_finalize, operands);
}

TEST_P(Overlap, Backward) {
  using Args = popnorm_backward_args;
  const Operands<Args> common = {input("x", &Args::x, scene.x),
                                 input("dy", &Args::dy, scene.dy),
                                 output("dx", &Args::dx, scene.dx),
                                 output("dscale", &Args::dscale, scene.dscale),
                                 output("dshift", &Args::dshift, scene.dshift),
                                 workspace<Args>(scene.workspace)};
  const Operands<Args> residual = residual_out<Args>(scene);
  expect_overlaps_found<Args>(
      scene, scene.backward(), popnorm_backward,
      common + residual + Operands<Args>{reserve_in<Args>(scene.reserve)} + batch_operands<Args>(scene));
  const bool plain = scene.groups() == 1 && scene.problem.weights == POPNORM_UNWEIGHTED;
  if (!plain || scene.problem.activation != POPNORM_IDENTITY) return;  // a reserve is needed
  expect_overlaps_found<Args>(scene, scene.backward_saved(), popnorm_backward,
                              common + Operands<Args>{input("saved_mean", &Args::saved_mean, scene.saved_mean),
                                                      input("saved_invstd", &Args::saved_invstd, scene.saved_invstd),
                                                      input("scale", &Args::scale, scene.scale)});
}

TEST_P(Overlap, Stages) {
  using Moments = popnorm_moments_args;
  expect_overlaps_found<Moments>(
      scene, scene.moments(), popnorm_moments,
      Operands<Moments>{input("x", &Moments::x, scene.x), workspace<Moments>(scene.workspace)} +
          moments_out<Moments>(scene) + batch_operands<Moments>(scene));
  using Normalize = popnorm_normalize_args;
  const bool masked = scene.problem.activation != POPNORM_IDENTITY && scene.problem.adds_residual != 0;
  expect_overlaps_found<Normalize>(
      scene, scene.normalize(), popnorm_normalize,
      Operands<Normalize>{input("x", &Normalize::x, scene.x), output("y", &Normalize::y, scene.y),
                          reserve_in<Normalize>(scene.reserve, masked), workspace<Normalize>(scene.workspace)} +
          residual_in<Normalize>(scene) + batch_operands<Normalize>(scene));
  using Reduce = popnorm_backward_reduce_args;
  expect_overlaps_found<Reduce>(
      scene, scene.backward_reduce(), popnorm_backward_reduce,
      Operands<Reduce>{input("x", &Reduce::x, scene.x), input("dy", &Reduce::dy, scene.dy),
                       reserve_in<Reduce>(scene.reserve), sum("sum_dy", &Reduce::sum_dy, scene.sum_dy),
                       sum("sum_dy_xhat", &Reduce::sum_dy_xhat, scene.sum_dy_xhat),
                       output("dscale", &Reduce::dscale, scene.dscale), output("dshift", &Reduce::dshift, scene.dshift),
                       workspace<Reduce>(scene.workspace)} +
          batch_operands<Reduce>(scene));
  using Apply = popnorm_backward_apply_args;
  expect_overlaps_found<Apply>(
      scene, scene.backward_apply(), popnorm_backward_apply,
      Operands<Apply>{input("x", &Apply::x, scene.x), input("dy", &Apply::dy, scene.dy),
                      output("dx", &Apply::dx, scene.dx), reserve_in<Apply>(scene.reserve),
                      sum("sum_dy", &Apply::sum_dy, scene.part_weight),
                      sum("sum_dy_xhat", &Apply::sum_dy_xhat, scene.part_m2), workspace<Apply>(scene.workspace)} +
          residual_out<Apply>(scene) + batch_operands<Apply>(scene));
}

TEST_P(Overlap, DoubleBackward) {
  if (scene.problem.weights != POPNORM_UNWEIGHTED || scene.problem.adds_residual != 0) return;  // not served
  using Args = popnorm_double_backward_args;
  expect_overlaps_found<Args>(
      scene, scene.double_backward(), popnorm_double_backward,
      Operands<Args>{input("x", &Args::x, scene.x), input("dy", &Args::dy, scene.dy), input("v", &Args::v, scene.v),
                     input("v_scale", &Args::v_scale, scene.v_scale), input("v_shift", &Args::v_shift, scene.v_shift),
                     reserve_in<Args>(scene.reserve), output("grad_x", &Args::grad_x, scene.grad_x),
                     output("grad_dy", &Args::grad_dy, scene.grad_dy),
                     output("grad_scale", &Args::grad_scale, scene.grad_scale),
                     workspace<Args>(scene.double_workspace)} +
          batch_operands<Args>(scene));
}

INSTANTIATE_TEST_SUITE_P(Problems, Overlap, testing::ValuesIn(kProblems),
                         [](const auto& of) { return std::string(of.param.name); });

TEST(Sharing, OfInputsIsAccepted) {
  Scene scene;
  popnorm_forward_args args = scene.forward_given();
  args.scale = args.shift = args.source.mean = args.source.variance = scene.variance.data();
  EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
  popnorm_backward_args backward = scene.backward();
  backward.dy = backward.x;
  EXPECT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &backward, nullptr)));
}

TEST(Sharing, OfCombinesOutputWithAPartIsAccepted) {
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
    {"one sample, whose pitch means nothing", POPNORM_NCHW, 1, 4, 9, {1, 9}, 36},
    {"one position, whose pitch means nothing", POPNORM_NHWC, 6, 8, 1, {16, 1}, 8},
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
