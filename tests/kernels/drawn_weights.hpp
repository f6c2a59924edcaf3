// Weights of each kind for a case's tensors.
#ifndef POPNORM_TESTS_KERNELS_DRAWN_WEIGHTS_HPP
#define POPNORM_TESTS_KERNELS_DRAWN_WEIGHTS_HPP

#include <vector>

#include "kernels/kernel_case.hpp"

namespace popnorm_test {

// Weights of all samples in memory, and what they mean.
struct DrawnWeights {
  enum class Kind { per_sample, per_position, lengths, lengths_further_on };
  static constexpr Kind kKinds[] = {Kind::per_sample, Kind::per_position, Kind::lengths, Kind::lengths_further_on};

  DrawnWeights(Kind kind, std::int64_t samples, std::int64_t positions, Random& random)
      : meaning(samples * positions), pitch(positions) {
    const std::int64_t s0 = kind == Kind::lengths_further_on ? 5 : 0;
    const auto weight = [&] { return static_cast<float>(random.pick({0.0, 0.25, 1.0, 3.0, 0.7})); };
    for (std::int64_t n = 0; n < samples; ++n) {
      const float of_sample = weight();
      lengths.push_back(random.below(s0 + positions + 1));
      for (std::int64_t s = 0; s < positions; ++s) {
        if (kind == Kind::per_sample) values.resize(static_cast<std::size_t>(n + 1), of_sample);
        if (kind == Kind::per_position) values.push_back(weight());
        meaning[n * positions + s] = kind == Kind::per_sample     ? of_sample
                                     : kind == Kind::per_position ? values.back()
                                     : s0 + s < lengths.back()    ? 1
                                                                  : 0;
      }
    }
    if (kind == Kind::per_sample)
      weights = {values.data(), 1, 0};
    else if (kind == Kind::per_position)
      weights = {values.data(), positions, 1};
    else
      weights = {nullptr, 0, 0, lengths.data(), s0};
  }
  DrawnWeights(const DrawnWeights&) = delete;

  float of(const Place& p) const { return meaning[static_cast<std::size_t>(p.sample * pitch + p.position)]; }

  std::vector<float> values;
  std::vector<std::int64_t> lengths;
  std::vector<float> meaning;  // [sample][position]
  std::int64_t pitch;          // of meaning
  Weights weights;
};

}  // namespace popnorm_test

#endif
