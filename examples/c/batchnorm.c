/* Batch normalization through the C ABI: a training forward and backward of 8 samples x 4 channels x 25 positions. */
#include <math.h>
#include <popnorm/popnorm.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 8, C = 4, S = 25, COUNT = N * C * S };

static void check(popnorm_status status) {
  if (status == POPNORM_SUCCESS) return;
  fprintf(stderr, "%s: %s\n", popnorm_status_string(status), popnorm_last_error());
  exit(1);
}

static void* allocate(size_t alignment, size_t bytes) {
  void* memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!memory) exit(1);
  return memory;
}

int main(void) {
  static float x[COUNT], y[COUNT], dy[COUNT], dx[COUNT];
  float scale[C], shift[C], dscale[C], dshift[C], running_mean[C], running_variance[C];
  for (int c = 0; c < C; ++c) {
    scale[c] = 1.0f + 0.5f * (float)c;
    shift[c] = (float)c - 1.0f;
    running_mean[c] = 0.0f;
    running_variance[c] = 1.0f;
  }
  for (int i = 0; i < COUNT; ++i) {
    x[i] = 1000.0f + sinf(0.7f * (float)i); /* a mean far from zero costs no accuracy */
    dy[i] = cosf(0.3f * (float)i);
  }

  popnorm_problem problem = POPNORM_PROBLEM_INIT;
  problem.n = N;
  problem.c = C;
  problem.s = S;
  popnorm_plan* plan = NULL;
  check(popnorm_plan_create(&problem, NULL, &plan));
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  check(popnorm_plan_query(plan, &info));
  void* workspace = allocate(info.workspace_alignment, info.workspace_bytes);
  void* reserve = allocate(info.reserve_alignment, info.reserve_bytes);

  popnorm_forward_args forward = POPNORM_FORWARD_ARGS_INIT;
  forward.x = x;
  forward.y = y;
  forward.scale = scale;
  forward.shift = shift;
  forward.update.running_mean = running_mean;
  forward.update.running_variance = running_variance;
  forward.reserve = reserve;
  forward.reserve_bytes = info.reserve_bytes;
  forward.workspace = workspace;
  forward.workspace_bytes = info.workspace_bytes;
  check(popnorm_forward(plan, &forward, NULL));

  popnorm_backward_args backward = POPNORM_BACKWARD_ARGS_INIT;
  backward.x = x;
  backward.dy = dy;
  backward.dx = dx;
  backward.dscale = dscale;
  backward.dshift = dshift;
  backward.reserve = reserve;
  backward.reserve_bytes = info.reserve_bytes;
  backward.workspace = workspace;
  backward.workspace_bytes = info.workspace_bytes;
  check(popnorm_backward(plan, &backward, NULL));

  /* Normalized channels average to their shift; a gradient through batch statistics sums to zero. */
  int wrong = 0;
  printf("tier %s\nchannel  mean(y)    shift     sum(dx)    dscale     dshift\n", info.isa);
  for (int c = 0; c < C; ++c) {
    double mean = 0, sum = 0;
    for (int n = 0; n < N; ++n) {
      for (int s = 0; s < S; ++s) {
        mean += y[(n * C + c) * S + s] / (double)(N * S);
        sum += dx[(n * C + c) * S + s];
      }
    }
    printf("%7d %8.5f %8.5f %+11.2e %9.4f %10.4f\n", c, mean, shift[c], sum, dscale[c], dshift[c]);
    wrong += fabs(mean - shift[c]) > 1e-5 || fabs(sum) > 1e-4;
  }

  free(reserve);
  free(workspace);
  popnorm_plan_destroy(plan);
  return wrong == 0 ? 0 : 1;
}
