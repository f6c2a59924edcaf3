/* Valid C11 and C++20: every initializer compiles in both, fills the struct's size, and leaves the documented defaults.
 */
#include <popnorm/popnorm.h>
#include <stdio.h>

static int failures = 0;

static void expect(int condition, const char* what) {
  if (!condition) {
    fprintf(stderr, "wrong: %s\n", what);
    ++failures;
  }
}

#define EXPECT(condition) expect((condition) ? 1 : 0, #condition)

int main(void) {
  const popnorm_problem problem = POPNORM_PROBLEM_INIT;
  EXPECT(problem.size == sizeof problem);
  EXPECT(problem.layout == POPNORM_NCHW && problem.storage == POPNORM_TYPE_DEFAULT);
  EXPECT(problem.epsilon > 0.99e-5 && problem.epsilon < 1.01e-5);
  EXPECT(problem.x.sample == 0 && problem.y.row == 0 && problem.dy.sample == 0 && problem.dx.row == 0);
  EXPECT(problem.activation == POPNORM_IDENTITY && problem.slope > 0.0099 && problem.slope < 0.0101);
  EXPECT(problem.adds_residual == 0 && problem.residual.row == 0 && problem.dresidual.sample == 0);

  const popnorm_executor executor = POPNORM_EXECUTOR_INIT;
  EXPECT(executor.size == sizeof executor && executor.concurrency == 1 && !executor.parallel_for);

  const popnorm_options options = POPNORM_OPTIONS_INIT;
  EXPECT(options.size == sizeof options && options.backend == POPNORM_BACKEND_AUTO && !options.isa &&
         !options.executor);

  const popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  EXPECT(info.size == sizeof info && !info.isa && info.tiles == 0);

  const popnorm_population_feed_args feed = POPNORM_POPULATION_FEED_ARGS_INIT;
  EXPECT(feed.size == sizeof feed && feed.feed == POPNORM_FEED_EMA);
  EXPECT(feed.momentum > 0.099 && feed.momentum < 0.101);

  const popnorm_population_finalize_args estimate = POPNORM_POPULATION_FINALIZE_ARGS_INIT;
  EXPECT(estimate.size == sizeof estimate && estimate.estimator == POPNORM_BIASED && !estimate.mean);

  const popnorm_forward_args forward = POPNORM_FORWARD_ARGS_INIT;
  EXPECT(forward.size == sizeof forward && forward.source.statistics == POPNORM_BATCH && !forward.reserve);
  EXPECT(forward.update.momentum > 0.099 && forward.update.momentum < 0.101);
  EXPECT(!forward.batch.norm_group && !forward.batch.weights && forward.source.renorm_r >= 1);
  EXPECT(!forward.moments.weight && forward.workspace_bytes == 0);

  const popnorm_backward_args backward = POPNORM_BACKWARD_ARGS_INIT;
  EXPECT(backward.size == sizeof backward && backward.accumulate == 0 && backward.statistics == POPNORM_BATCH);

  const popnorm_moments_args moments = POPNORM_MOMENTS_ARGS_INIT;
  EXPECT(moments.size == sizeof moments && !moments.x);

  const popnorm_combine_args combine = POPNORM_COMBINE_ARGS_INIT;
  EXPECT(combine.size == sizeof combine && combine.count == 0);

  const popnorm_finalize_args finalize = POPNORM_FINALIZE_ARGS_INIT;
  EXPECT(finalize.size == sizeof finalize && finalize.source.statistics == POPNORM_BATCH && !finalize.reserve);
  EXPECT(finalize.update.momentum > 0.099 && finalize.update.momentum < 0.101);

  const popnorm_normalize_args normalize = POPNORM_NORMALIZE_ARGS_INIT;
  EXPECT(normalize.size == sizeof normalize && !normalize.y);

  const popnorm_backward_reduce_args reduce = POPNORM_BACKWARD_REDUCE_ARGS_INIT;
  EXPECT(reduce.size == sizeof reduce && !reduce.sum_dy);

  const popnorm_backward_apply_args apply = POPNORM_BACKWARD_APPLY_ARGS_INIT;
  EXPECT(apply.size == sizeof apply && !apply.dx);

  return failures == 0 ? 0 : 1;
}
