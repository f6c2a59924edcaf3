#include "subject.hpp"

#include <memory>
#include <popnorm/popnorm.hpp>
#include <vector>

namespace popnorm_bench {
namespace {

struct State {
  explicit State(const popnorm_problem& problem)
      : plan(problem),
        workspace(plan.make_workspace()),
        reserve(plan.make_reserve()),
        invstd(static_cast<std::size_t>(problem.c)) {}

  popnorm::plan plan;
  popnorm::buffer workspace, reserve;
  std::vector<float> invstd;
};

}  // namespace

Subject make_popnorm(const Task& task, ChannelArrays& arrays) {
  const Layer& layer = task.layer;
  const auto state = std::make_shared<State>(popnorm::problem(task.layout, layer.n, layer.c, layer.s(), kEpsilon));
  const auto forward = [state, &task, &arrays](std::size_t set, bool training) {
    popnorm_forward_args a =
        training ? popnorm::forward_args(state->workspace, state->reserve) : popnorm::forward_args(state->workspace);
    a.x = task.sets[set].x;
    a.y = task.sets[set].out;
    a.scale = arrays.scale.data();
    a.shift = arrays.shift.data();
    if (training) {
      a.saved_mean = arrays.mean.data();
      a.saved_invstd = state->invstd.data();
    } else {
      a.source.statistics = POPNORM_GIVEN;
      a.source.mean = arrays.mean.data();
      a.source.variance = arrays.variance.data();
    }
    state->plan.forward(a);
  };
  const auto backward = [state, &task, &arrays](std::size_t set) {
    popnorm_backward_args a = popnorm::backward_args(state->workspace, state->reserve);
    a.x = task.sets[set].x;
    a.dy = task.sets[set].dy;
    a.dx = task.sets[set].out;
    a.dscale = arrays.dscale.data();
    a.dshift = arrays.dshift.data();
    state->plan.backward(a);
  };

  Subject subject{{}, state->plan.info().isa};
  switch (task.operation) {
    case Operation::forward_training:
      subject.run = [forward](std::size_t set) { forward(set, true); };
      break;
    case Operation::forward_inference:
      subject.run = [forward](std::size_t set) { forward(set, false); };
      break;
    case Operation::backward:
      forward(0, true);
      subject.run = backward;
      break;
  }
  return subject;
}

}  // namespace popnorm_bench
