// One thing wrong with a valid call: it is refused with its status and a message that names subject and value, and nothing is
// written.
#ifndef POPNORM_TESTS_API_REFUSALS_HPP
#define POPNORM_TESTS_API_REFUSALS_HPP

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "api/scene.hpp"

namespace popnorm_test {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class Args>
struct Refusal {
  const char* what;
  std::function<void(Args&)> spoil;
  std::vector<std::string> words;  // in the message, as regular expressions
  popnorm_status status = POPNORM_INVALID;
};

// A valid call succeeds, and every spoiled one is refused and writes nothing.
template <class Args>
void expect_refusals(Scene& scene, const char* operation, const Args& valid, Entry<Args> entry,
                     const std::vector<Refusal<Args>>& refusals) {
  SCOPED_TRACE(operation);
  ASSERT_TRUE(succeeded(entry(scene.plan.get(), &valid, nullptr)));
  for (const Refusal<Args>& refusal : refusals) {
    SCOPED_TRACE(refusal.what);
    Args args = valid;
    refusal.spoil(args);
    const auto before = scene.snapshot();
    std::vector<std::string> words = refusal.words;
    words.push_back("^" + std::string(operation) + ":");
    EXPECT_TRUE(refused(entry(scene.plan.get(), &args, nullptr), refusal.status, words));
    EXPECT_TRUE(scene.snapshot() == before) << "written in spite of the refusal";
  }
}

// One element further than the type's alignment allows.
template <class Pointer>
Pointer misaligned(Pointer p) {
  return reinterpret_cast<Pointer>(reinterpret_cast<std::uintptr_t>(p) + 1);
}

}  // namespace popnorm_test

#endif
