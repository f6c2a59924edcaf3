#include "core/log.hpp"

#include <charconv>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace popnorm {
namespace {

int level() {
  static const int value = [] {
    const char* text = std::getenv("POPNORM_VERBOSE");
    if (text == nullptr || *text == '\0' || std::strcmp(text, "0") == 0) return 0;
    return std::strcmp(text, "dispatch") == 0 ? 2 : 1;
  }();
  return value;
}

}  // namespace

bool log_calls() { return level() >= 1; }
bool log_dispatch() { return level() >= 2; }

double log_clock() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void log_call(const char* operation, const Plan* plan, popnorm_status status, double milliseconds) {
  char shape[96] = "";
  if (plan != nullptr) {
    const Problem& p = plan->problem;
    std::snprintf(shape, sizeof(shape), "%s_%s_n%lld_c%lld_s%lld", p.layout == POPNORM_NCHW ? "nchw" : "nhwc",
                  name_of(p.storage), static_cast<long long>(p.n), static_cast<long long>(p.c),
                  static_cast<long long>(p.s));
  }
  // Not printf's, whose point is the locale's.
  char time[32] = "";
  *std::to_chars(time, time + sizeof(time) - 1, milliseconds, std::chars_format::fixed, 4).ptr = '\0';
  std::fprintf(stderr, "popnorm,%s,%s,%s,%s,%s,%s,%s\n", POPNORM_VERSION_STRING,
               plan != nullptr ? plan->backend->name : "", plan != nullptr ? plan->isa : "", operation, shape,
               popnorm_status_string(status), time);
}

void log_choice(const char* format, ...) {
  char line[256];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "popnorm,dispatch,%s\n", line);
}

}  // namespace popnorm
