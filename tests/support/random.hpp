// Seeded randomness. Every test draws from a stream of its own, which depends on the base seed and the stream's name
// only, so that a failing test replays alone: support/main.cpp prints the line to do it with.
#ifndef POPNORM_TESTS_SUPPORT_RANDOM_HPP
#define POPNORM_TESTS_SUPPORT_RANDOM_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string_view>
#include <vector>

namespace popnorm_test {

// POPNORM_TEST_SEED in the environment, else a constant.
inline std::uint64_t base_seed() {
  const char* text = std::getenv("POPNORM_TEST_SEED");
  return text == nullptr ? 20210517 : std::strtoull(text, nullptr, 10);
}

// How many times the quick number of random cases to draw: POPNORM_TEST_EFFORT in the environment, else 1.
inline int effort() {
  const char* text = std::getenv("POPNORM_TEST_EFFORT");
  return text == nullptr ? 1 : std::atoi(text);
}

class Random {
 public:
  explicit Random(std::string_view stream) {
    std::vector<std::uint32_t> words = {static_cast<std::uint32_t>(base_seed()),
                                        static_cast<std::uint32_t>(base_seed() >> 32)};
    for (const char c : stream) words.push_back(static_cast<unsigned char>(c));
    std::seed_seq seed(words.begin(), words.end());
    engine_.seed(seed);
  }

  // In [0, bound).
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(bound));
  }
  bool coin() { return below(2) == 0; }
  // In (0, 1].
  double unit() { return static_cast<double>((engine_() >> 11) + 1) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * unit(); }
  double normal() {
    if (!libm_) return (unit() + unit() + unit() + unit()) * 1.75 - 3.5;  // of about the same mean and variance
    return std::sqrt(-2 * std::log(unit())) * std::cos(6.283185307179586 * unit());
  }
  // From here on the same on every system: libm's last bit is not.
  void avoid_libm() { libm_ = false; }
  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<std::int64_t>(choices.size()))];
  }
  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[static_cast<std::size_t>(below(static_cast<std::int64_t>(i)))]);
    }
  }

 private:
  bool libm_ = true;
  std::mt19937_64 engine_;
};

}  // namespace popnorm_test

#endif
