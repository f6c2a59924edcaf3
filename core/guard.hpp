// What every entry of the C ABI runs under, and is logged by.
#ifndef POPNORM_CORE_GUARD_HPP
#define POPNORM_CORE_GUARD_HPP

#include <popnorm/popnorm.h>

#include <exception>
#include <new>

#include "core/error.hpp"
#include "core/fp_environment.hpp"
#include "core/log.hpp"

namespace popnorm {

// No exception crosses the C ABI (oneTBB may throw when it cannot allocate a task), and none of the caller's
// floating-point traps springs inside, validation included.
template <class Body>
popnorm_status guarded(const char* operation, Body&& body) noexcept {
  const FpEnvironment environment;
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(POPNORM_OUT_OF_MEMORY, "%s: out of memory", operation);
  } catch (const std::exception& e) {
    return fail(POPNORM_INTERNAL, "%s: %s", operation, e.what());
  } catch (...) {
    return fail(POPNORM_INTERNAL, "%s: the executor threw an unknown exception", operation);
  }
}

// An entry that does something, rather than answer a question: refused or not, it is a line of the log. `plan` may be null.
template <class Body>
popnorm_status entry(const char* operation, const Plan* plan, Body&& body) noexcept {
  if (!log_calls()) return guarded(operation, body);
  const FpEnvironment environment;  // the log's arithmetic is no cause for traps either
  const double start = log_clock();
  const popnorm_status status = guarded(operation, body);
  log_call(operation, plan, status, log_clock() - start);
  return status;
}

}  // namespace popnorm

#endif
