#include "core/population.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "core/error.hpp"

namespace popnorm {
namespace {

constexpr char kMagic[8] = {'P', 'O', 'P', 'N', 'O', 'R', 'M', '\0'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kByteOrder = 0x01020304;

}  // namespace

static_assert(sizeof(popnorm_population_header) == 128);

popnorm_status check_population(const char* operation, const char* name, const void* population, std::size_t bytes) {
  if (population == nullptr) return fail(POPNORM_INVALID, "%s: %s is null", operation, name);
  if (reinterpret_cast<std::uintptr_t>(population) % alignof(double) != 0)
    return fail(POPNORM_INVALID, "%s: %s is not aligned to %zu bytes", operation, name, alignof(double));
  if (bytes < sizeof(popnorm_population_header))
    return fail(POPNORM_INVALID, "%s: %s has %zu bytes, a population header alone has %zu", operation, name, bytes,
                sizeof(popnorm_population_header));
  const auto& header = *static_cast<const popnorm_population_header*>(population);
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    return fail(POPNORM_INVALID, "%s: %s does not begin with a population header; call popnorm_population_init first",
                operation, name);
  if (header.byte_order != kByteOrder)
    return fail(POPNORM_INVALID, "%s: %s was written in another byte order (0x%08x)", operation, name,
                header.byte_order);
  if (header.version != kVersion)
    return fail(POPNORM_UNSUPPORTED, "%s: %s has version %u, this library reads %u", operation, name, header.version,
                kVersion);
  std::size_t expected = 0;
  if (popnorm_population_size(header.slots, header.c, &expected) != POPNORM_SUCCESS || header.bytes != expected ||
      header.steps < 0 ||
      std::any_of(std::begin(header.room), std::end(header.room), [](std::uint8_t byte) { return byte != 0; }))
    return fail(POPNORM_INVALID, "%s: %s has a corrupted header (slots %lld, c %lld, steps %lld, bytes %llu)",
                operation, name, static_cast<long long>(header.slots), static_cast<long long>(header.c),
                static_cast<long long>(header.steps), static_cast<unsigned long long>(header.bytes));
  if (bytes < expected)
    return fail(POPNORM_INVALID, "%s: %s has %zu bytes, its header says %zu", operation, name, bytes, expected);
  return POPNORM_SUCCESS;
}

bool is_finite(const Moments& m) { return std::isfinite(m.weight) && std::isfinite(m.mean) && std::isfinite(m.m2); }

void feed_entry(const PopulationArrays<double>& a, std::int64_t i, popnorm_feed feed, double momentum,
                const Moments& batch) {
  const Moments before{a.weight[i], a.mean[i], a.m2[i]};
  Moments after;
  double kept;   // factor on what has been accumulated
  double added;  // weight of this batch in the averages of batch variances
  double within;
  if (feed == POPNORM_FEED_MERGE) {
    after = combine(before, batch);
    kept = 1;
    added = batch.weight;
    within = a.m2_within[i] + batch.m2;
  } else {
    const double share = before.weight == 0 ? 1 : feed == POPNORM_FEED_CUMULATIVE ? 1 / (a.batches[i] + 1) : momentum;
    after = share == 1 ? batch : mix(before, batch, share);
    kept = 1 - share;
    added = share;
    // Within-batch variance is averaged like the mean; kept as an m2 of the population's weight.
    const double average =
        (1 - share) * biased_variance({before.weight, 0, a.m2_within[i]}) + share * biased_variance(batch);
    within = average * after.weight;
  }
  a.weight[i] = after.weight;
  a.mean[i] = after.mean;
  a.m2[i] = after.m2;
  a.m2_within[i] = within;
  if (batch.weight > 1) {
    a.var_sum[i] = kept * a.var_sum[i] + added * unbiased_variance(batch);
    a.var_weight[i] = kept * a.var_weight[i] + added;
  }
  a.batches[i] += 1;
}

MeanVariance population_statistics(const PopulationArrays<const double>& a, std::int64_t i,
                                   popnorm_estimator estimator) {
  const Moments m{a.weight[i], a.mean[i], a.m2[i]};
  if (m.weight == 0) return {0, 1};
  if (estimator == POPNORM_UNBIASED) return {m.mean, unbiased_variance(m)};
  if (estimator == POPNORM_MEAN_OF_BATCH_VARIANCES && a.var_weight[i] > 0)
    return {m.mean, a.var_sum[i] / a.var_weight[i]};
  return {m.mean, biased_variance(m)};
}

}  // namespace popnorm

extern "C" {

popnorm_status popnorm_population_size(int64_t slots, int64_t c, size_t* bytes) {
  using namespace popnorm;
  if (bytes == nullptr) return fail(POPNORM_INVALID, "population_size: bytes is null");
  if (slots < 1)
    return fail(POPNORM_INVALID, "population_size: slots is %lld, must be >= 1", static_cast<long long>(slots));
  if (c < 1) return fail(POPNORM_INVALID, "population_size: c is %lld, must be >= 1", static_cast<long long>(c));
  std::int64_t count = 0;
  if (__builtin_mul_overflow(slots, c, &count) ||
      __builtin_mul_overflow(count, kPopulationArrays * static_cast<std::int64_t>(sizeof(double)), &count) ||
      __builtin_add_overflow(count, static_cast<std::int64_t>(sizeof(popnorm_population_header)), &count))
    return fail(POPNORM_INVALID, "population_size: slots %lld x c %lld overflows 63 bits",
                static_cast<long long>(slots), static_cast<long long>(c));
  *bytes = static_cast<std::size_t>(count);
  return POPNORM_SUCCESS;
}

popnorm_status popnorm_population_init(void* population, size_t bytes, int64_t slots, int64_t c) {
  using namespace popnorm;
  std::size_t needed = 0;
  if (const popnorm_status status = popnorm_population_size(slots, c, &needed); status != POPNORM_SUCCESS)
    return status;
  if (population == nullptr) return fail(POPNORM_INVALID, "population_init: population is null");
  if (reinterpret_cast<std::uintptr_t>(population) % alignof(double) != 0)
    return fail(POPNORM_INVALID, "population_init: population is not aligned to %zu bytes", alignof(double));
  if (bytes < needed)
    return fail(POPNORM_INVALID, "population_init: population has %zu bytes, needs %zu (popnorm_population_size)",
                bytes, needed);
  std::memset(population, 0, needed);
  auto& header = *static_cast<popnorm_population_header*>(population);
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.byte_order = kByteOrder;
  header.slots = slots;
  header.c = c;
  header.bytes = needed;
  return POPNORM_SUCCESS;
}

}  // extern "C"
