// Roles that a test program plays in a child process, where it can have another environment.
#ifndef POPNORM_TESTS_SUPPORT_CHILD_HPP
#define POPNORM_TESTS_SUPPORT_CHILD_HPP

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace popnorm_test {

inline constexpr std::string_view kChildFlag = "--popnorm-child";

// Registers a role under a name; its return value is the child's exit status. Define one at namespace scope.
struct ChildRole {
  ChildRole(const char* name, int (*role)());
};

// For main(): plays the role; 125 if there is none of that name.
int run_child(std::string_view name);

struct ChildResult {
  int exit_status = -1;  // 128 + signal if it was killed
  std::string out;
  std::string err;
};

// Runs a role of this program in a new process with the given environment variables added.
ChildResult run_in_child(const char* role, const std::vector<std::pair<std::string, std::string>>& environment);

}  // namespace popnorm_test

#endif
