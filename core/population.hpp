// A population buffer: its header, and feeding it slot by slot.
#ifndef POPNORM_CORE_POPULATION_HPP
#define POPNORM_CORE_POPULATION_HPP

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>

#include "kernels/moments.hpp"
#include "kernels/population.hpp"

namespace popnorm {

inline PopulationArrays<double> arrays_of(void* population) {
  auto* header = static_cast<popnorm_population_header*>(population);
  return {reinterpret_cast<double*>(header + 1), header->slots * header->c};
}
inline PopulationArrays<const double> arrays_of(const void* population) {
  const auto* header = static_cast<const popnorm_population_header*>(population);
  return {reinterpret_cast<const double*>(header + 1), header->slots * header->c};
}

// INVALID unless the buffer holds a population; `name` is its name in messages.
popnorm_status check_population(const char* operation, const char* name, const void* population, std::size_t bytes);

// Bytes of a population, or the reason why there is none.
popnorm_status population_bytes(const char* operation, std::int64_t slots, std::int64_t c, std::size_t& bytes);

// The same of a header that lies elsewhere than its arrays, which have `bytes` together with it.
popnorm_status check_header(const char* operation, const char* name, const popnorm_population_header& header,
                            std::size_t bytes);

// Feeds moments_at(i), i in [0, slots*c), slot by slot.
template <class MomentsAt>
void feed_population(void* population, popnorm_feed feed, double momentum, MomentsAt&& moments_at) {
  auto* header = static_cast<popnorm_population_header*>(population);
  const PopulationArrays<double> a = arrays_of(population);
  bool taken = false;
  for (std::int64_t slot = 0; slot < header->slots; ++slot) {
    const std::int64_t first = slot * header->c;
    bool finite = true;
    for (std::int64_t i = first; i < first + header->c; ++i) {
      if (is_finite(moments_at(i))) continue;
      a.nonfinite[i] += 1;
      finite = false;
    }
    for (std::int64_t i = first; finite && i < first + header->c; ++i) {
      const Moments batch = moments_at(i);
      if (batch.weight == 0) continue;
      feed_entry(a, i, feed, momentum, batch);
      taken = true;
    }
  }
  if (taken) header->steps += 1;
}

}  // namespace popnorm

#endif
