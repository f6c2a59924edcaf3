// The main of every test program: GoogleTest, a line that replays a failure, the golden set of skips, and child roles for tests that need a
// process of their own (another environment, another library state).
#include <gtest/gtest.h>

#include <cstdio>
#include <set>
#include <string>

#include "support/child.hpp"
#include "support/random.hpp"
#include "support/skips.hpp"

namespace {

class ReplayLine : public ::testing::EmptyTestEventListener {
 public:
  explicit ReplayLine(const char* program) : program_(program) {}

 private:
  void OnTestEnd(const ::testing::TestInfo& test) override {
    if (!test.result()->Failed()) return;
    std::fprintf(stderr, "replay: POPNORM_TEST_SEED=%llu POPNORM_TEST_EFFORT=%d %s --gtest_filter=%s.%s\n",
                 static_cast<unsigned long long>(popnorm_test::base_seed()), popnorm_test::effort(), program_,
                 test.test_suite_name(), test.name());
  }

  const char* program_;
};

// Anything skipped that this machine could have run fails the program, whatever its tests say.
bool only_expected_skips() {
  const std::set<std::string> expected = popnorm_test::expected_skips();
  bool all_expected = true;
  for (const std::string& what : popnorm_test::skipped()) {
    if (expected.contains(what)) continue;
    std::fprintf(stderr, "skipped, but this machine has what it needs (tests/skips.golden): %s\n", what.c_str());
    all_expected = false;
  }
  return all_expected;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == popnorm_test::kChildFlag) return popnorm_test::run_child(argv[2]);
  ::testing::InitGoogleTest(&argc, argv);
  ::testing::UnitTest::GetInstance()->listeners().Append(new ReplayLine(argv[0]));
  const int status = RUN_ALL_TESTS();
  return only_expected_skips() ? status : 1;
}
