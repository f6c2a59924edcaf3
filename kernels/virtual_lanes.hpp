// The virtual vector width: sums of the rows form run in 16 lanes whatever the registers are, so every tier has the
// same bits.
#ifndef POPNORM_KERNELS_VIRTUAL_LANES_HPP
#define POPNORM_KERNELS_VIRTUAL_LANES_HPP

#include <cstdint>

namespace popnorm {

inline constexpr std::int64_t kLanes = 16;

}  // namespace popnorm

#endif
