// The message of the last failure on this thread. House form: "<operation>: <subject> <value>, <rule>; <remedy>".
#ifndef POPNORM_CORE_ERROR_HPP
#define POPNORM_CORE_ERROR_HPP

#include <popnorm/popnorm.h>

namespace popnorm {

// Formats the message and returns the status.
[[gnu::format(printf, 2, 3)]] popnorm_status fail(popnorm_status status, const char* format, ...);

const char* last_error();

}  // namespace popnorm

// Returns from the function if a step of it fails.
#define POPNORM_TRY(expression) \
  if (const popnorm_status status_ = (expression); status_ != POPNORM_SUCCESS) return status_

#endif
