// Arithmetic under one MXCSR: round to nearest, subnormals kept, exceptions masked. Restored on leaving, exception
// flags included.
#ifndef POPNORM_CORE_FP_ENVIRONMENT_HPP
#define POPNORM_CORE_FP_ENVIRONMENT_HPP

#include <xmmintrin.h>

namespace popnorm {

class FpEnvironment {
 public:
  FpEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FpEnvironment() { _mm_setcsr(saved_); }
  FpEnvironment(const FpEnvironment&) = delete;
  FpEnvironment& operator=(const FpEnvironment&) = delete;

 private:
  unsigned saved_;
};

}  // namespace popnorm

#endif
