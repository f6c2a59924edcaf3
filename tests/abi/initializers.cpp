// The C header as C++20, beside the C++ header, which has to compile under the same warnings.
#include "initializers.c"

#include <popnorm/popnorm.hpp>
