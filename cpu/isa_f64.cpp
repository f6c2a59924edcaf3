#define POPNORM_ISA_STORAGE double
#define POPNORM_ISA_STORAGE_NAME f64
#include "cpu/isa.hpp"
