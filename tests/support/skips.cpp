#include "support/skips.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace popnorm_test {
namespace {

std::set<std::string>& skips() {
  static std::set<std::string> all;
  return all;
}

std::set<std::string> processor_flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::set<std::string> flags;
    for (std::string word; words >> word;) flags.insert(word);
    return flags;
  }
  throw std::runtime_error("/proc/cpuinfo names no processor flags");
}

}  // namespace

void skip(const std::string& what, const std::string& why) {
  if (skips().insert(what).second) std::printf("SKIP %s: %s\n", what.c_str(), why.c_str());
}

const std::set<std::string>& skipped() { return skips(); }

std::set<std::string> expected_skips() {
  const std::set<std::string> flags = processor_flags();
  std::set<std::string> expected;
  // Tests that were carried to another machine bring theirs along.
  const char* carried = std::getenv("POPNORM_GOLDEN_SKIPS");
  const std::string path = carried != nullptr ? carried : POPNORM_GOLDEN_SKIPS;
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.front() == '#') continue;
    const auto colon = line.find(':');
    std::istringstream needed(line.substr(colon + 1));
    for (std::string flag; needed >> flag;)
      if (!flags.contains(flag)) expected.insert(line.substr(0, colon));
  }
  return expected;
}

}  // namespace popnorm_test
