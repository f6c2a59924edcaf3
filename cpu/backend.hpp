// The CPU backend: the stages of every operation, made of kernels.
#ifndef POPNORM_CPU_BACKEND_HPP
#define POPNORM_CPU_BACKEND_HPP

#include "core/backend.hpp"

namespace popnorm::cpu {

extern const Backend backend;

}  // namespace popnorm::cpu

#endif
