#include "core/error.hpp"

#include <cstdarg>
#include <cstdio>

namespace popnorm {
namespace {

thread_local char message[512] = "";

}  // namespace

popnorm_status fail(popnorm_status status, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  return status;
}

const char* last_error() { return message; }

}  // namespace popnorm
