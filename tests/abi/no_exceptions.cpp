// A C++ caller that is compiled without exceptions and RTTI, as many frameworks are, and sees an error as a status.
#include <popnorm/popnorm.h>

#include <cstring>

int main() {
  popnorm_problem problem = POPNORM_PROBLEM_INIT;
  problem.n = 2;
  problem.c = 3;
  problem.s = 4;
  problem.epsilon = -1.0;
  popnorm_plan* plan = nullptr;
  if (popnorm_plan_create(&problem, nullptr, &plan) != POPNORM_INVALID || plan != nullptr) return 1;
  if (std::strstr(popnorm_last_error(), "epsilon") == nullptr) return 2;
  problem.epsilon = 1e-5;
  if (popnorm_plan_create(&problem, nullptr, &plan) != POPNORM_SUCCESS) return 3;
  popnorm_plan_destroy(plan);
  return 0;
}
