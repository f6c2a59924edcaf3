// POPNORM_VERBOSE=1: one CSV line per call on standard error, refused ones too; =dispatch: also why implementations were
// chosen or refused.
#ifndef POPNORM_CORE_LOG_HPP
#define POPNORM_CORE_LOG_HPP

#include <popnorm/popnorm.h>

#include "core/backend.hpp"

namespace popnorm {

bool log_calls();
bool log_dispatch();

// Milliseconds of a monotonic clock.
double log_clock();

// `plan` is null where a call has none.
void log_call(const char* operation, const Plan* plan, popnorm_status status, double milliseconds);

[[gnu::format(printf, 1, 2)]] void log_choice(const char* format, ...);

}  // namespace popnorm

#endif
