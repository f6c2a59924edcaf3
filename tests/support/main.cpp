// The main of every test program: GoogleTest, a line that replays a failure, and child roles for tests that need a
// process of their own (another environment, another library state).
#include <gtest/gtest.h>

#include <cstdio>

#include "support/child.hpp"
#include "support/random.hpp"

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

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == popnorm_test::kChildFlag) return popnorm_test::run_child(argv[2]);
  ::testing::InitGoogleTest(&argc, argv);
  ::testing::UnitTest::GetInstance()->listeners().Append(new ReplayLine(argv[0]));
  return RUN_ALL_TESTS();
}
