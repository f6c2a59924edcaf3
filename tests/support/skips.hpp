// What a test leaves out because this machine lacks something. It prints SKIP and why; and the golden file skips.golden, by
// the processor's flags and not by the library's own detection, says what may be left out here: anything else fails.
#ifndef POPNORM_TESTS_SUPPORT_SKIPS_HPP
#define POPNORM_TESTS_SUPPORT_SKIPS_HPP

#include <set>
#include <string>

namespace popnorm_test {

// Announces a skip, once per program.
void skip(const std::string& what, const std::string& why);

// What has been skipped so far.
const std::set<std::string>& skipped();

// What the golden file lets this machine skip.
std::set<std::string> expected_skips();

}  // namespace popnorm_test

#endif
