// What may follow normalization: y = z where z > 0, slope*z elsewhere, or +0 where nothing of it is kept (ReLU). A choice, not a
// maximum or a product: NaN stays NaN, -0 and -infinity become +0 under ReLU. The gradient takes the same way.
#ifndef POPNORM_KERNELS_ACTIVATION_HPP
#define POPNORM_KERNELS_ACTIVATION_HPP

#include "kernels/inline.hpp"

namespace popnorm {

struct Activation {
  double slope = 1;
  bool keeps = true;
};

template <class A>
POPNORM_INLINE bool stops(A z) {
  return z <= A(0);
}

// z itself, or the gradient of what was z, where `stopped` says what stops(z) said.
template <class A>
POPNORM_INLINE A activated(const Activation& activation, bool stopped, A value) {
  if (!stopped) return value;
  return activation.keeps ? static_cast<A>(activation.slope) * value : A(0);
}

}  // namespace popnorm

#endif
