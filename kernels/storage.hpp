#ifndef POPNORM_KERNELS_STORAGE_HPP
#define POPNORM_KERNELS_STORAGE_HPP

#include "kernels/inline.hpp"

namespace popnorm {

template <class A, class T>
POPNORM_INLINE A widen(T value) {
  return static_cast<A>(value);
}
template <class T, class A>
POPNORM_INLINE T narrow(A value) {
  return static_cast<T>(value);
}

}  // namespace popnorm

#endif
