#define POPNORM_ISA_STORAGE Bf16
#define POPNORM_ISA_STORAGE_NAME bf16
#include "cpu/isa.hpp"
