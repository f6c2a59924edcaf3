// The population buffer's arrays, and how a batch joins them (popnorm.h documents the layout and the rules).
#ifndef POPNORM_CORE_POPULATION_HPP
#define POPNORM_CORE_POPULATION_HPP

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/moments.hpp"

namespace popnorm {

inline constexpr std::int64_t kPopulationArrays = 8;

// Pointers into a population whose header was checked.
template <class Double>
struct PopulationArrays {
  Double* weight;
  Double* mean;
  Double* m2;
  Double* m2_within;
  Double* var_sum;
  Double* var_weight;
  Double* batches;
  Double* nonfinite;

  PopulationArrays(Double* first, std::int64_t count)
      : weight(first),
        mean(weight + count),
        m2(mean + count),
        m2_within(m2 + count),
        var_sum(m2_within + count),
        var_weight(var_sum + count),
        batches(var_weight + count),
        nonfinite(batches + count) {}
};

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

// The same of a header that lies elsewhere than its arrays, which have `bytes` together with it.
popnorm_status check_header(const char* operation, const char* name, const popnorm_population_header& header,
                            std::size_t bytes);

// Feeds moments_at(i), i in [0, slots*c), slot by slot.
template <class MomentsAt>
void feed_population(void* population, popnorm_feed feed, double momentum, MomentsAt&& moments_at);

// Mean and variance of entry i under an estimator.
MeanVariance population_statistics(const PopulationArrays<const double>& a, std::int64_t i,
                                   popnorm_estimator estimator);

// One channel of feed_population, of a batch that has elements there.
void feed_entry(const PopulationArrays<double>& a, std::int64_t i, popnorm_feed feed, double momentum,
                const Moments& batch);
bool is_finite(const Moments& m);

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
