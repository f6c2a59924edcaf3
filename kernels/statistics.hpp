// What normalizes a row, by the source that a call names.
#ifndef POPNORM_KERNELS_STATISTICS_HPP
#define POPNORM_KERNELS_STATISTICS_HPP

#include <popnorm/popnorm.h>

#include "kernels/affine.hpp"
#include "kernels/moments.hpp"

namespace popnorm {

// How a source mixes what is given with the batch.
struct Mixture {
  popnorm_statistics statistics;
  double share;
  double renorm_r;
  double renorm_d;
};

// Of the batch's moments, of what is given (not looked at with BATCH), or of both.
POPNORM_INLINE Statistics row_statistics(const Mixture& mixture, const Moments& batch, const MeanVariance& given,
                                         double epsilon) {
  switch (mixture.statistics) {
    case POPNORM_BATCH:
      return batch_statistics(batch, epsilon);
    case POPNORM_GIVEN:
      return given_statistics(given, epsilon);
    case POPNORM_BLEND:
      return blended_statistics(batch, given, mixture.share, epsilon);
    case POPNORM_RENORM:
      return renormalized_statistics(batch, given, mixture.renorm_r, mixture.renorm_d, epsilon);
  }
  return {};
}

}  // namespace popnorm

#endif
