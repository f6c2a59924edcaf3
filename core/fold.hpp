// Batch normalization with constant statistics as part of the weights before it.
#ifndef POPNORM_CORE_FOLD_HPP
#define POPNORM_CORE_FOLD_HPP

#include <popnorm/popnorm.h>

namespace popnorm {

// Arguments arrive validated.
void fold(const popnorm_fold_args& args);

}  // namespace popnorm

#endif
