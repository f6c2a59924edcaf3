#define POPNORM_ISA_STORAGE float
#define POPNORM_ISA_STORAGE_NAME f32
#include "cpu/isa.hpp"
