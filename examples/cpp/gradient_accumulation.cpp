// Gradient accumulation with batch normalization over the whole batch: micro-batches come one at a time, yet all are normalized
// by the statistics of all, and differentiated through them. Each direction is two sweeps over the micro-batches: sums first,
// then what needs everybody's. Micro-batches of 2^k whole tiles that are combined pairwise give the bits of the whole batch,
// any others its results within the error bounds.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <popnorm/popnorm.hpp>
#include <vector>

namespace {

constexpr std::int64_t kMicroBatches = 4, kSamples = 2, kChannels = 3, kPositions = 1024;
constexpr std::int64_t kElements = kSamples * kChannels * kPositions;  // of a micro-batch

struct Batch {
  std::vector<float> x, dy, scale, shift;
};
struct Result {
  std::vector<float> y, dx, dscale, dshift;

  explicit Result(const Batch& batch)
      : y(batch.x.size()), dx(batch.x.size()), dscale(batch.scale.size()), dshift(batch.shift.size()) {}
  bool operator==(const Result&) const = default;
};

// Doubles per channel of every micro-batch.
class PerMicroBatch {
 public:
  double* operator[](std::int64_t i) { return values_.data() + i * kChannels; }

  // The sum over all micro-batches, pairwise, ends up in the first.
  void add_up() {
    for (std::int64_t step = 1; step < kMicroBatches; step *= 2)
      for (std::int64_t i = 0; i + step < kMicroBatches; i += 2 * step)
        for (std::int64_t c = 0; c < kChannels; ++c) (*this)[i][c] += (*this)[i + step][c];
  }

 private:
  std::vector<double> values_ = std::vector<double>(kMicroBatches * kChannels);
};

Result by_micro_batches(const Batch& batch) {
  Result result(batch);
  const popnorm::plan plan(popnorm::problem_nchw(kSamples, kChannels, kPositions));
  popnorm::buffer workspace = plan.make_workspace();
  popnorm::buffer reserve = plan.make_reserve();
  const auto with_workspace = [&](auto args) {
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    return args;
  };
  const auto with_reserve = [&](auto args) {
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    return args;
  };

  // Moments of every micro-batch, combined, make one reserve for all.
  PerMicroBatch weight, mean, m2;
  std::vector<popnorm_moment_arrays> parts;
  for (std::int64_t i = 0; i < kMicroBatches; ++i) {
    parts.push_back({weight[i], mean[i], m2[i]});
    popnorm_moments_args moments = with_workspace(popnorm_moments_args(POPNORM_MOMENTS_ARGS_INIT));
    moments.x = batch.x.data() + i * kElements;
    moments.moments = parts[i];
    plan.moments(moments);
  }
  popnorm_combine_args combine = POPNORM_COMBINE_ARGS_INIT;
  combine.parts = parts.data();
  combine.count = kMicroBatches;
  combine.moments = parts[0];
  plan.combine(combine);
  popnorm_finalize_args finalize = with_reserve(popnorm_finalize_args(POPNORM_FINALIZE_ARGS_INIT));
  finalize.scale = batch.scale.data();
  finalize.shift = batch.shift.data();
  finalize.moments = combine.moments;
  plan.finalize(finalize);
  for (std::int64_t i = 0; i < kMicroBatches; ++i) {
    popnorm_normalize_args normalize =
        with_reserve(with_workspace(popnorm_normalize_args(POPNORM_NORMALIZE_ARGS_INIT)));
    normalize.x = batch.x.data() + i * kElements;
    normalize.y = result.y.data() + i * kElements;
    plan.normalize(normalize);
  }

  // Sums of every micro-batch, added, are dshift and dscale, and what every dx needs.
  PerMicroBatch sum_dy, sum_dy_xhat;
  for (std::int64_t i = 0; i < kMicroBatches; ++i) {
    popnorm_backward_reduce_args reduce =
        with_reserve(with_workspace(popnorm_backward_reduce_args(POPNORM_BACKWARD_REDUCE_ARGS_INIT)));
    reduce.x = batch.x.data() + i * kElements;
    reduce.dy = batch.dy.data() + i * kElements;
    reduce.sum_dy = sum_dy[i];
    reduce.sum_dy_xhat = sum_dy_xhat[i];
    plan.backward_reduce(reduce);
  }
  sum_dy.add_up();
  sum_dy_xhat.add_up();
  for (std::int64_t i = 0; i < kMicroBatches; ++i) {
    popnorm_backward_apply_args apply =
        with_reserve(with_workspace(popnorm_backward_apply_args(POPNORM_BACKWARD_APPLY_ARGS_INIT)));
    apply.x = batch.x.data() + i * kElements;
    apply.dy = batch.dy.data() + i * kElements;
    apply.dx = result.dx.data() + i * kElements;
    apply.sum_dy = sum_dy[0];
    apply.sum_dy_xhat = sum_dy_xhat[0];
    plan.backward_apply(apply);
  }
  result.dshift.assign(sum_dy[0], sum_dy[1]);
  result.dscale.assign(sum_dy_xhat[0], sum_dy_xhat[1]);
  return result;
}

Result at_once(const Batch& batch) {
  Result result(batch);
  const popnorm::plan plan(popnorm::problem_nchw(kMicroBatches * kSamples, kChannels, kPositions));
  popnorm::buffer workspace = plan.make_workspace();
  popnorm::buffer reserve = plan.make_reserve();
  popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
  forward.x = batch.x.data();
  forward.y = result.y.data();
  forward.scale = batch.scale.data();
  forward.shift = batch.shift.data();
  plan.forward(forward);
  popnorm_backward_args backward = popnorm::backward_args(workspace, reserve);
  backward.x = batch.x.data();
  backward.dy = batch.dy.data();
  backward.dx = result.dx.data();
  backward.dscale = result.dscale.data();
  backward.dshift = result.dshift.data();
  plan.backward(backward);
  return result;
}

int run() {
  Batch batch{std::vector<float>(kMicroBatches * kElements), {}, {1.0f, 2.0f, 0.5f}, {0.0f, -1.0f, 3.0f}};
  // Micro-batches differ in mean and spread: normalized one by one they would look alike.
  for (std::int64_t i = 0; i < kMicroBatches * kElements; ++i) {
    const std::int64_t micro_batch = i / kElements;
    const auto mean = static_cast<float>(10 * micro_batch), spread = static_cast<float>(1 + micro_batch);
    const auto t = static_cast<float>(i);
    batch.x[i] = mean + spread * std::sin(0.7f * t);
    batch.dy.push_back(std::cos(0.3f * t));
  }
  const Result whole = at_once(batch), accumulated = by_micro_batches(batch);
  const bool same = whole == accumulated;
  std::printf("%lld micro-batches %s the whole batch: dscale %.6f and %.6f\n", static_cast<long long>(kMicroBatches),
              same ? "have the bits of" : "differ from", accumulated.dscale[0], whole.dscale[0]);
  return same ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
