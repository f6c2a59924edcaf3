// The backends of this library. Only registry.cpp knows their names.
#ifndef POPNORM_CORE_REGISTRY_HPP
#define POPNORM_CORE_REGISTRY_HPP

#include <popnorm/popnorm.h>

#include "core/backend.hpp"

namespace popnorm {

// Chooses a backend; AUTO asks POPNORM_BACKEND. The status and message say why none serves.
// `memory` is what AUTO decides by where the environment does not, or null.
popnorm_status find_backend(popnorm_backend wanted, const void* memory, const Backend*& backend);

// CPU instruction set tiers, best first.
int isa_count();
const char* isa_name(int index);
bool isa_available(int index);

}  // namespace popnorm

#endif
