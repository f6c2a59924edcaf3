// A small problem with a valid argument struct for every entry of the API, for tests that then break one thing.
#ifndef POPNORM_TESTS_API_SCENE_HPP
#define POPNORM_TESTS_API_SCENE_HPP

#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

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

  explicit Scene(const popnorm_problem& problem = popnorm::problem_nchw(kN, kC, kS)) : plan(problem) {
    Random random("Scene");
    for (Array* filled : {static_cast<Array*>(&x), static_cast<Array*>(&dy), &scale, &shift, &mean, &running_mean}) {
      for (std::int64_t i = 0; i < filled->count(); ++i) filled->set(i, random.normal());
    }
    for (Array* positive : {&variance, &running_variance, &part_weight, &part_m2}) {
      for (std::int64_t i = 0; i < positive->count(); ++i) positive->set(i, 4 + random.unit());
    }
    for (std::int64_t i = 0; i < kC; ++i) part_mean.set(i, random.normal());
    workspace = GuardedBuffer(plan.info().workspace_bytes, 64, Placement::ends_at_guard);
    reserve = GuardedBuffer(plan.info().reserve_bytes, 64, Placement::ends_at_guard);
    for (GuardedBuffer* p : {&population, &given_population}) {
      std::size_t bytes = 0;
      popnorm::check(popnorm_population_size(1, kC, &bytes));
      *p = GuardedBuffer(bytes, 8, Placement::ends_at_guard);
      popnorm::check(popnorm_population_init(p->data(), bytes, 1, kC));
      popnorm::check(popnorm_population_feed(p->data(), bytes, &(feed_args = feed())));
    }
    plan.forward(forward_batch());  // the reserve and the saved statistics that backward needs
  }

  popnorm_forward_args forward_inputs() {
    popnorm_forward_args a = POPNORM_FORWARD_ARGS_INIT;
    a.x = x.data();
    a.y = y.data();
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
    a.dx = dx.data();
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
    a.dx = dx.data();
    a.reserve = reserve.data();
    a.reserve_bytes = reserve.size();
    a.sum_dy = part_weight.doubles();
    a.sum_dy_xhat = part_m2.doubles();
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size();
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
  }

  // The contents of everything, to find what a refused call has written.
  [[nodiscard]] std::vector<std::vector<std::byte>> snapshot() const {
    std::vector<std::vector<std::byte>> all;
    for (const Array* a : {static_cast<const Array*>(&x),
                           static_cast<const Array*>(&y),
                           static_cast<const Array*>(&dy),
                           static_cast<const Array*>(&dx),
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
                           &sum_dy_xhat}) {
      all.push_back(a->buffer().snapshot());
    }
    for (const GuardedBuffer* b : {&workspace, &reserve, &population, &given_population}) all.push_back(b->snapshot());
    return all;
  }

  popnorm_moment_arrays moments_out() { return {weight.doubles(), moments_mean.doubles(), m2.doubles()}; }
  popnorm_moment_arrays parts_in() { return {part_weight.doubles(), part_mean.doubles(), part_m2.doubles()}; }

  popnorm::plan plan;
  Tensor x = tensor(), y = tensor(), dy = tensor(), dx = tensor();
  Array scale = channels(), shift = channels(), mean = channels(), variance = channels();
  Array running_mean = channels(), running_variance = channels(), saved_mean = channels(), saved_invstd = channels();
  Array dscale = channels(), dshift = channels();
  Array weight = doubles(), moments_mean = doubles(), m2 = doubles();
  Array part_weight = doubles(), part_mean = doubles(), part_m2 = doubles();
  Array sum_dy = doubles(), sum_dy_xhat = doubles();
  GuardedBuffer workspace, reserve, population, given_population;
  std::vector<popnorm_moment_arrays> parts;

 private:
  static Tensor tensor() {
    return {{POPNORM_NCHW, kN, kC, kS, Spacing::packed}, POPNORM_F32, Placement::ends_at_guard};
  }
  static Array channels() { return {POPNORM_F32, kC, Placement::ends_at_guard}; }
  static Array doubles() { return {POPNORM_F64, kC, Placement::ends_at_guard}; }

  popnorm_population_feed_args feed_args;
};

}  // namespace popnorm_test

#endif
