// Comparison of results with what the oracle promises, and of results with one another.
#ifndef POPNORM_TESTS_SUPPORT_CHECK_HPP
#define POPNORM_TESTS_SUPPORT_CHECK_HPP

#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <string>
#include <vector>

#include "kernels/reference.hpp"

namespace popnorm_test {

// Exact values and how far a result of type `type` may be from each.
struct Promise {
  popnorm_type type = POPNORM_F32;
  std::vector<popnorm::reference::Real> exact;
  std::vector<popnorm::reference::Real> bound;

  void add(popnorm::reference::Real exact_value, popnorm::reference::Real bound_value) {
    exact.push_back(exact_value);
    bound.push_back(bound_value);
  }
};

// The largest error in units of its bound; infinite where a result is NaN and should not be, or the other way round.
struct WorstError {
  popnorm::reference::Real in_bounds = 0;
  std::size_t index = 0;
};
WorstError worst_of(const Promise& expected, const std::vector<double>& got);

// Every result within its bound; a failure names the worst element. `per_channel` elements belong to one channel.
::testing::AssertionResult within(const Promise& expected, const std::vector<double>& got, std::size_t per_channel = 1);

// The same bits, except that any NaN equals any NaN.
bool same_bits(double a, double b);
::testing::AssertionResult same_bits(const std::vector<double>& a, const std::vector<double>& b);

// A call that must fail: its status, and every one of `words` (regular expressions) in the message.
::testing::AssertionResult refused(popnorm_status got, popnorm_status expected, const std::vector<std::string>& words);
// A call that must succeed.
::testing::AssertionResult succeeded(popnorm_status got);

}  // namespace popnorm_test

#endif
