// A small problem with a valid argument struct for every entry of the API, for tests that then break one thing.
#ifndef POPNORM_TESTS_API_SCENE_HPP
#define POPNORM_TESTS_API_SCENE_HPP

#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <algorithm>
#include <cstring>
#include <popnorm/popnorm.hpp>
#include <string>
#include <vector>

#include "support/check.hpp"
#include "support/random.hpp"
#include "support/tensor.hpp"

namespace popnorm_test {

template <class Args>
using Entry = popnorm_status (*)(const popnorm_plan*, const Args*, void*);

class Scene {
 public:
  static constexpr std::int64_t kN = 2, kC = 3, kS = 5;

  explicit Scene(const popnorm_problem& problem_ = popnorm::problem_nchw(kN, kC, kS))
      : problem(problem_), plan(problem_) {
    Random random("Scene");
    for (Array* filled :
         {static_cast<Array*>(&x), static_cast<Array*>(&dy), static_cast<Array*>(&v), static_cast<Array*>(&residual),
          &scale, &shift, &mean, &running_mean, &part_mean, &v_scale, &v_shift}) {
      for (std::int64_t i = 0; i < filled->count(); ++i) filled->set(i, random.normal());
    }
    for (Array* positive : {&variance, &running_variance, &part_weight, &part_m2}) {
      for (std::int64_t i = 0; i < positive->count(); ++i) positive->set(i, 4 + random.unit());
    }
    workspace = GuardedBuffer(plan.info().workspace_bytes, 64, Placement::ends_at_guard);
    double_workspace = GuardedBuffer(plan.info().double_backward_workspace_bytes, 64, Placement::ends_at_guard);
    reserve = GuardedBuffer(plan.info().reserve_bytes, 64, Placement::ends_at_guard);
    for (GuardedBuffer* p : {&population, &given_population}) {
      std::size_t bytes = 0;
      popnorm::check(popnorm_population_size(slots(), kC, &bytes));
      *p = GuardedBuffer(bytes, 8, Placement::ends_at_guard);
      popnorm::check(popnorm_population_init(p->data(), bytes, slots(), kC));
      Array weight_of_slots(POPNORM_F64, slots() * kC, Placement::ends_at_guard);
      for (std::int64_t i = 0; i < weight_of_slots.count(); ++i) weight_of_slots.set(i, 4 + random.unit());
      popnorm_population_feed_args args = POPNORM_POPULATION_FEED_ARGS_INIT;
      args.moments = {weight_of_slots.doubles(), weight_of_slots.doubles(), weight_of_slots.doubles()};
      popnorm::check(popnorm_population_feed(p->data(), bytes, &args));
    }
    // Groups take turns; a group has one slot of either kind.
    for (std::int64_t n = 0; n < problem.n; ++n) {
      group.push_back(static_cast<std::int32_t>(n % plan.info().groups));
      slot.push_back(static_cast<std::int32_t>(n % plan.info().groups % slots()));
      affine.push_back(static_cast<std::int32_t>(n % plan.info().groups % plan.info().affine_slots));
      lengths.push_back(n % (kS + 1));
    }
    for (std::int64_t g = 0; g < plan.info().groups; ++g) group_slot.push_back(static_cast<std::int32_t>(g % slots()));
    weights.assign(static_cast<std::size_t>(problem.n * kS), 0.5F);
    plan.forward(forward_inputs());  // the reserve and the saved statistics that backward needs
  }

  // Labels and weights, where the problem has them.
  popnorm_batch batch() const {
    popnorm_batch b = POPNORM_BATCH_INIT;
    if (problem.norm_group.kind == POPNORM_LABELS) b.norm_group = group.data();
    if (problem.population_slot.kind == POPNORM_LABELS) b.population_slot = slot.data();
    if (problem.affine_slot.kind == POPNORM_LABELS) b.affine_slot = affine.data();
    if (problem.weights == POPNORM_LENGTHS)
      b.weights = lengths.data();
    else if (problem.weights != POPNORM_UNWEIGHTED)
      b.weights = weights.data();
    return b;
  }

  popnorm_forward_args forward_inputs() {
    popnorm_forward_args a = POPNORM_FORWARD_ARGS_INIT;
    a.x = x.data();
    a.y = y.data();
    if (problem.adds_residual != 0) a.residual = residual.data();
    a.batch = batch();
    a.scale = scale.data();
    a.shift = shift.data();
    a.saved_mean = saved_mean.data();
    a.saved_invstd = saved_invstd.data();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
    return a;
  }
  popnorm_forward_args forward_batch() {
    popnorm_forward_args a = forward_inputs();
    a.update.running_mean = running_mean.data();
    a.update.running_variance = running_variance.data();
    a.moments = moments_out();
    return a;
  }
  popnorm_forward_args forward_feeding() {
    popnorm_forward_args a = forward_inputs();
    a.update.population = population.data();
    a.update.population_bytes = population.size();
    return a;
  }
  popnorm_forward_args forward_given() {
    popnorm_forward_args a = forward_inputs();
    a.source.statistics = POPNORM_GIVEN;
    a.source.mean = mean.data();
    a.source.variance = variance.data();
    return a;
  }
  popnorm_forward_args forward_given_population() {
    popnorm_forward_args a = forward_inputs();
    a.source.statistics = POPNORM_GIVEN;
    a.source.population = given_population.data();
    a.source.population_bytes = given_population.size();
    return a;
  }
  popnorm_backward_args backward_outputs() {
    popnorm_backward_args a = POPNORM_BACKWARD_ARGS_INIT;
    a.x = x.data();
    a.dy = dy.data();
    a.batch = batch();
    a.dx = dx.data();
    if (problem.adds_residual != 0) a.dresidual = dresidual.data();
    a.dscale = dscale.data();
    a.dshift = dshift.data();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
    return a;
  }
  popnorm_backward_args backward() {
    popnorm_backward_args a = backward_outputs();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    return a;
  }
  popnorm_backward_args backward_saved() {
    popnorm_backward_args a = backward_outputs();
    a.saved_mean = saved_mean.data();
    a.saved_invstd = saved_invstd.data();
    a.scale = scale.data();
    return a;
  }
  popnorm_moments_args moments() {
    popnorm_moments_args a = POPNORM_MOMENTS_ARGS_INIT;
    a.x = x.data();
    a.batch = batch();
    a.moments = moments_out();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
    return a;
  }
  popnorm_combine_args combine() {
    parts = {parts_in(), parts_in()};
    popnorm_combine_args a = POPNORM_COMBINE_ARGS_INIT;
    a.parts = parts.data();
    a.count = 2;
    a.moments = moments_out();
    return a;
  }
  popnorm_finalize_args finalize_outputs() {
    popnorm_finalize_args a = POPNORM_FINALIZE_ARGS_INIT;
    a.scale = scale.data();
    a.shift = shift.data();
    a.saved_mean = saved_mean.data();
    a.saved_invstd = saved_invstd.data();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    return a;
  }
  popnorm_finalize_args finalize() {
    popnorm_finalize_args a = finalize_outputs();
    a.moments = parts_in();
    a.update.running_mean = running_mean.data();
    a.update.running_variance = running_variance.data();
    if (slots() > 1) a.group_slot = group_slot.data();
    return a;
  }
  popnorm_finalize_args finalize_given() {
    popnorm_finalize_args a = finalize_outputs();
    a.source.statistics = POPNORM_GIVEN;
    a.source.mean = mean.data();
    a.source.variance = variance.data();
    return a;
  }
  popnorm_normalize_args normalize() {
    popnorm_normalize_args a = POPNORM_NORMALIZE_ARGS_INIT;
    a.x = x.data();
    a.y = y.data();
    if (problem.adds_residual != 0) a.residual = residual.data();
    a.batch = batch();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
    return a;
  }
  popnorm_backward_reduce_args backward_reduce() {
    popnorm_backward_reduce_args a = POPNORM_BACKWARD_REDUCE_ARGS_INIT;
    a.x = x.data();
    a.dy = dy.data();
    a.batch = batch();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    a.sum_dy = sum_dy.doubles();
    a.sum_dy_xhat = sum_dy_xhat.doubles();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
    return a;
  }
  popnorm_backward_apply_args backward_apply() {
    popnorm_backward_apply_args a = POPNORM_BACKWARD_APPLY_ARGS_INIT;
    a.x = x.data();
    a.dy = dy.data();
    a.batch = batch();
    a.dx = dx.data();
    if (problem.adds_residual != 0) a.dresidual = dresidual.data();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    a.sum_dy = part_weight.doubles();
    a.sum_dy_xhat = part_m2.doubles();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
    return a;
  }
  popnorm_double_backward_args double_backward() {
    popnorm_double_backward_args a = POPNORM_DOUBLE_BACKWARD_ARGS_INIT;
    a.x = x.data();
    a.dy = dy.data();
    a.batch = batch();
    a.v = v.data();
    a.v_scale = v_scale.data();
    a.v_shift = v_shift.data();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    a.grad_x = grad_x.data();
    a.grad_dy = grad_dy.data();
    a.grad_scale = grad_scale.data();
    a.workspace = double_workspace.data();
    a.workspace_bytes = double_workspace.size();
    return a;
  }
  popnorm_population_feed_args feed() {
    popnorm_population_feed_args a = POPNORM_POPULATION_FEED_ARGS_INIT;
    a.moments = parts_in();
    return a;
  }
  popnorm_population_finalize_args population_finalize() {
    popnorm_population_finalize_args a = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
    a.mean = running_mean.data();
    a.variance = running_variance.data();
    return a;
  }

  // Calls visit(name, valid arguments, entry) for every run entry.
  template <class Visit>
  void for_each_entry(Visit visit) {
    visit("forward", forward_batch(), Entry<popnorm_forward_args>(popnorm_forward));
    visit("backward", backward(), Entry<popnorm_backward_args>(popnorm_backward));
    visit("moments", moments(), Entry<popnorm_moments_args>(popnorm_moments));
    visit("combine", combine(), Entry<popnorm_combine_args>(popnorm_combine));
    visit("finalize", finalize(), Entry<popnorm_finalize_args>(popnorm_finalize));
    visit("normalize", normalize(), Entry<popnorm_normalize_args>(popnorm_normalize));
    visit("backward_reduce", backward_reduce(), Entry<popnorm_backward_reduce_args>(popnorm_backward_reduce));
    visit("backward_apply", backward_apply(), Entry<popnorm_backward_apply_args>(popnorm_backward_apply));
    visit("double_backward", double_backward(), Entry<popnorm_double_backward_args>(popnorm_double_backward));
  }

  // The contents of everything, to find what a refused call has written.
  [[nodiscard]] std::vector<std::vector<std::byte>> snapshot() const {
    std::vector<std::vector<std::byte>> all;
    for (const Array* a : {static_cast<const Array*>(&x),
                           static_cast<const Array*>(&y),
                           static_cast<const Array*>(&dy),
                           static_cast<const Array*>(&dx),
                           static_cast<const Array*>(&residual),
                           static_cast<const Array*>(&dresidual),
                           static_cast<const Array*>(&v),
                           static_cast<const Array*>(&grad_x),
                           static_cast<const Array*>(&grad_dy),
                           &scale,
                           &shift,
                           &mean,
                           &variance,
                           &running_mean,
                           &running_variance,
                           &saved_mean,
                           &saved_invstd,
                           &dscale,
                           &dshift,
                           &weight,
                           &moments_mean,
                           &m2,
                           &part_weight,
                           &part_mean,
                           &part_m2,
                           &sum_dy,
                           &sum_dy_xhat,
                           &v_scale,
                           &v_shift,
                           &grad_scale}) {
      all.push_back(a->buffer().snapshot());
    }
    for (const GuardedBuffer* b : {&workspace, &double_workspace, &reserve, &population, &given_population})
      all.push_back(b->snapshot());
    return all;
  }

  popnorm_moment_arrays moments_out() { return {weight.doubles(), moments_mean.doubles(), m2.doubles()}; }
  popnorm_moment_arrays parts_in() { return {part_weight.doubles(), part_mean.doubles(), part_m2.doubles()}; }

  [[nodiscard]] std::int64_t groups() const { return plan.info().groups; }
  [[nodiscard]] std::int64_t slots() const { return plan.info().population_slots; }
  [[nodiscard]] std::int64_t rows() const { return std::max(groups(), slots()); }

  popnorm_problem problem;  // packed, of kC channels and kS positions
  popnorm::plan plan;
  Tensor x = tensor(), y = tensor(), dy = tensor(), dx = tensor();
  Tensor residual = tensor(), dresidual = tensor();
  Tensor v = tensor(), grad_x = tensor(), grad_dy = tensor();
  Array scale = affines(), shift = affines(), dscale = affines(), dshift = affines();
  Array v_scale = affines(), v_shift = affines(), grad_scale = affines();
  Array mean = floats(slots()), variance = floats(slots());
  Array running_mean = floats(slots()), running_variance = floats(slots());
  Array saved_mean = floats(rows()), saved_invstd = floats(rows());
  Array weight = doubles(groups()), moments_mean = doubles(groups()), m2 = doubles(groups());
  Array part_weight = doubles(groups()), part_mean = doubles(groups()), part_m2 = doubles(groups());
  Array sum_dy = doubles(rows()), sum_dy_xhat = doubles(rows());
  GuardedBuffer workspace, double_workspace, reserve, population, given_population;
  std::vector<popnorm_moment_arrays> parts;
  std::vector<std::int32_t> group, slot, affine, group_slot;
  std::vector<float> weights;
  std::vector<std::int64_t> lengths;

 private:
  [[nodiscard]] Tensor tensor() const {
    return {{problem.layout, problem.n, kC, kS, Spacing::packed}, POPNORM_F32, Placement::ends_at_guard};
  }
  static Array floats(std::int64_t rows) { return {POPNORM_F32, rows * kC, Placement::ends_at_guard}; }
  static Array doubles(std::int64_t rows) { return {POPNORM_F64, rows * kC, Placement::ends_at_guard}; }
  [[nodiscard]] Array affines() const { return floats(plan.info().affine_slots); }
};

// Problems that say what the batch is.
inline constexpr std::int64_t kSamples = 8;
inline constexpr std::int32_t kGroups = 3, kSlots = 2, kAffines = 2;

inline popnorm_problem unmapped() { return popnorm::problem_nchw(kSamples, Scene::kC, Scene::kS); }

inline popnorm_problem fused(popnorm_activation activation, bool residual) {
  popnorm_problem p = popnorm::problem_nchw(Scene::kN, Scene::kC, Scene::kS);
  p.activation = activation;
  p.adds_residual = residual ? 1 : 0;
  return p;
}

inline popnorm_problem labelled() {
  popnorm_problem p = unmapped();
  p.norm_group = popnorm::labels(kGroups);
  p.population_slot = popnorm::labels(kSlots);
  p.affine_slot = popnorm::labels(kAffines);
  return p;
}

inline popnorm_problem weighted(popnorm_weights weights) {
  popnorm_problem p = unmapped();
  p.weights = weights;
  return p;
}

}  // namespace popnorm_test

#endif
