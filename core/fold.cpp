#include "core/fold.hpp"

#include <cstdint>

#include "kernels/affine.hpp"

namespace popnorm {
namespace {

template <class T>
void fold_as(const popnorm_fold_args& a) {
  const auto* weights = static_cast<const T*>(a.weights);
  const auto* bias = static_cast<const T*>(a.bias);
  const auto* mean = static_cast<const T*>(a.mean);
  const auto* variance = static_cast<const T*>(a.variance);
  const auto* scale = static_cast<const T*>(a.scale);
  const auto* shift = static_cast<const T*>(a.shift);
  auto* folded_weights = static_cast<T*>(a.folded_weights);
  auto* folded_bias = static_cast<T*>(a.folded_bias);
  for (std::int64_t slot = 0; slot < a.affine_slots; ++slot)
    for (std::int64_t c = 0; c < a.c; ++c) {
      const std::int64_t i = slot * a.c + c;
      const double gain = (scale != nullptr ? static_cast<double>(scale[i]) : 1) *
                          inverse_std(static_cast<double>(variance[c]), a.epsilon);
      for (std::int64_t k = 0; k < a.row; ++k)
        folded_weights[i * a.row + k] = round_to<T>(static_cast<double>(weights[c * a.row + k]) * gain);
      const double centred = (bias != nullptr ? static_cast<double>(bias[c]) : 0) - static_cast<double>(mean[c]);
      folded_bias[i] = round_to<T>(centred * gain + (shift != nullptr ? static_cast<double>(shift[i]) : 0));
    }
}

}  // namespace

void fold(const popnorm_fold_args& args) { args.type == POPNORM_F64 ? fold_as<double>(args) : fold_as<float>(args); }

}  // namespace popnorm
