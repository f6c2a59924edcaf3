#include "support/check.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <iomanip>
#include <limits>
#include <regex>
#include <sstream>

#include "support/tensor.hpp"

namespace popnorm_test {

using popnorm::reference::Real;

namespace {

constexpr Real kInfinite = std::numeric_limits<Real>::infinity();

Real error_in_bounds(const popnorm::reference::Format& type, Real exact, Real bound, double got) {
  if (std::isnan(exact) || std::isnan(got)) return std::isnan(exact) && std::isnan(got) ? 0 : kInfinite;
  if (std::isinf(got)) return got * exact > 0 && std::fabs(exact) + bound > type.largest ? 0 : kInfinite;
  if (std::isinf(exact)) return kInfinite;
  const Real error = std::fabs(got - exact);
  return error == 0 ? 0 : error / bound;
}

}  // namespace

WorstError worst_of(const Promise& expected, const std::vector<double>& got) {
  WorstError worst;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const Real error = error_in_bounds(format_of(expected.type), expected.exact[i], expected.bound[i], got[i]);
    if (error > worst.in_bounds) worst = {error, i};
  }
  return worst;
}

::testing::AssertionResult within(const Promise& expected, const std::vector<double>& got, std::size_t per_channel) {
  if (got.size() != expected.exact.size()) {
    return ::testing::AssertionFailure() << got.size() << " results, expected " << expected.exact.size();
  }
  const WorstError worst = worst_of(expected, got);
  if (worst.in_bounds <= 1) return ::testing::AssertionSuccess();
  const std::size_t i = worst.index;
  std::ostringstream text;
  text << "worst at channel " << i / per_channel << ", element " << i % per_channel << ": got " << std::setprecision(17)
       << got[i] << ", exact " << static_cast<double>(expected.exact[i]) << std::setprecision(4) << ", error "
       << worst.in_bounds << " times the bound " << expected.bound[i];
  return ::testing::AssertionFailure() << text.str();
}

bool same_bits(double a, double b) {
  if (std::isnan(a) && std::isnan(b)) return true;
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

::testing::AssertionResult same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " results against " << b.size();
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) {
      std::ostringstream text;
      text << "element " << i << ": " << std::setprecision(17) << a[i] << " is not " << b[i];
      return ::testing::AssertionFailure() << text.str();
    }
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult refused(popnorm_status got, popnorm_status expected, const std::vector<std::string>& words) {
  const std::string message = popnorm_last_error();
  if (got != expected) {
    return ::testing::AssertionFailure() << popnorm_status_string(got) << ", expected "
                                         << popnorm_status_string(expected) << "; message: " << message;
  }
  for (const std::string& word : words) {
    if (!std::regex_search(message, std::regex(word))) {
      return ::testing::AssertionFailure() << "the message does not name '" << word << "': " << message;
    }
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult succeeded(popnorm_status got) {
  if (got == POPNORM_SUCCESS) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << popnorm_status_string(got) << ": " << popnorm_last_error();
}

}  // namespace popnorm_test
