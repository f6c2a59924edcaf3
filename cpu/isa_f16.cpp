#define POPNORM_ISA_STORAGE F16
#define POPNORM_ISA_STORAGE_NAME f16
#include "cpu/isa.hpp"
