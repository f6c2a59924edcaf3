// A finding trains networks, draws a table, writes its part of the report, and says which of its claims hold.
#ifndef DIGITS_FINDING_HPP
#define DIGITS_FINDING_HPP

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "digits.hpp"

namespace digits {

struct Setting {
  const Digits& all;
  std::vector<std::uint64_t> seeds;
  int threads = 1;
  bool quick = false;  // short runs that show how it works: nothing is claimed
};

// A figure that must lie on the right side of a bound.
struct Claim {
  std::string text;
  double value;
  bool at_least;  // else at most
  double bound;

  [[nodiscard]] bool holds() const { return at_least ? value >= bound : value <= bound; }
};

struct Finding {
  nlohmann::json report;
  std::string table;
  std::vector<Claim> claims;  // empty if the setting is quick
};

// Wu & Johnson 2021, section 3: the EMA lags behind the weights, PreciseBN does not; it matters at large batches,
// before the learning rate falls.
Finding ema_vs_precise(const Setting& setting);

}  // namespace digits

#endif
