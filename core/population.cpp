#include "core/population.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "core/error.hpp"
#include "core/guard.hpp"
#include "core/validate.hpp"

namespace popnorm {
namespace {

constexpr char kMagic[8] = {'P', 'O', 'P', 'N', 'O', 'R', 'M', '\0'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kByteOrder = 0x01020304;

// CRC-64/XZ: ECMA-182's polynomial reflected, all ones before and after.
constexpr std::array<std::uint64_t, 256> kCrcTable = [] {
  std::array<std::uint64_t, 256> table{};
  for (std::uint64_t byte = 0; byte < table.size(); ++byte) {
    std::uint64_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xC96C5795D7870F42U : 0);
    table[byte] = crc;
  }
  return table;
}();

std::uint64_t crc64(std::uint64_t crc, const unsigned char* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) crc = kCrcTable[(crc ^ from[i]) & 0xFF] ^ crc >> 8;
  return crc;
}

// Of a serialized population without its checksum.
std::uint64_t checksum_of(const void* serialized, std::size_t bytes) {
  constexpr std::size_t at = offsetof(popnorm_population_header, checksum);
  constexpr std::size_t after = at + sizeof(std::uint64_t);
  const auto* first = static_cast<const unsigned char*>(serialized);
  return ~crc64(crc64(~std::uint64_t{0}, first, at), first + after, bytes - after);
}

popnorm_population_header& header_of(void* population) { return *static_cast<popnorm_population_header*>(population); }
const popnorm_population_header& header_of(const void* population) {
  return *static_cast<const popnorm_population_header*>(population);
}
std::int64_t entries_of(const void* population) { return header_of(population).slots * header_of(population).c; }

bool overlap(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(a);
  const auto other = reinterpret_cast<std::uintptr_t>(b);
  return first < other + b_bytes && other < first + a_bytes;
}

// Two populations of the same shape.
popnorm_status check_pair(const char* operation, const char* a_name, const void* a, std::size_t a_bytes,
                          const char* b_name, const void* b, std::size_t b_bytes) {
  if (const popnorm_status status = check_population(operation, a_name, a, a_bytes); status != POPNORM_SUCCESS)
    return status;
  if (const popnorm_status status = check_population(operation, b_name, b, b_bytes); status != POPNORM_SUCCESS)
    return status;
  const popnorm_population_header& p = header_of(a);
  const popnorm_population_header& q = header_of(b);
  if (p.slots != q.slots || p.c != q.c)
    return fail(POPNORM_INVALID, "%s: %s has %lld slots x %lld channels, %s has %lld x %lld, must be the same",
                operation, a_name, static_cast<long long>(p.slots), static_cast<long long>(p.c), b_name,
                static_cast<long long>(q.slots), static_cast<long long>(q.c));
  return POPNORM_SUCCESS;
}

void make_empty(void* population, std::size_t bytes, std::int64_t slots, std::int64_t c) {
  std::memset(population, 0, bytes);
  auto& header = *static_cast<popnorm_population_header*>(population);
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.byte_order = kByteOrder;
  header.slots = slots;
  header.c = c;
  header.bytes = bytes;
}

}  // namespace

static_assert(sizeof(popnorm_population_header) == 128);
static_assert(std::endian::native == std::endian::little, "the serialized form is what lies in memory");

popnorm_status population_bytes(const char* operation, std::int64_t slots, std::int64_t c, std::size_t& bytes) {
  if (slots < 1)
    return fail(POPNORM_INVALID, "%s: slots is %lld, must be >= 1", operation, static_cast<long long>(slots));
  if (c < 1) return fail(POPNORM_INVALID, "%s: c is %lld, must be >= 1", operation, static_cast<long long>(c));
  std::int64_t count = 0;
  if (__builtin_mul_overflow(slots, c, &count) ||
      __builtin_mul_overflow(count, kPopulationArrays * static_cast<std::int64_t>(sizeof(double)), &count) ||
      __builtin_add_overflow(count, static_cast<std::int64_t>(sizeof(popnorm_population_header)), &count))
    return fail(POPNORM_INVALID, "%s: slots %lld x c %lld overflows 63 bits", operation, static_cast<long long>(slots),
                static_cast<long long>(c));
  bytes = static_cast<std::size_t>(count);
  return POPNORM_SUCCESS;
}

popnorm_status check_population(const char* operation, const char* name, const void* population, std::size_t bytes) {
  if (population == nullptr) return fail(POPNORM_INVALID, "%s: %s is null", operation, name);
  if (reinterpret_cast<std::uintptr_t>(population) % alignof(double) != 0)
    return fail(POPNORM_INVALID, "%s: %s is not aligned to %zu bytes", operation, name, alignof(double));
  if (bytes < sizeof(popnorm_population_header))
    return fail(POPNORM_INVALID, "%s: %s has %zu bytes, a population header alone has %zu", operation, name, bytes,
                sizeof(popnorm_population_header));
  return check_header(operation, name, header_of(population), bytes);
}

popnorm_status check_header(const char* operation, const char* name, const popnorm_population_header& header,
                            std::size_t bytes) {
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
  if (population_bytes(operation, header.slots, header.c, expected) != POPNORM_SUCCESS || header.bytes != expected ||
      header.steps < 0 || header.checksum != 0 ||
      std::any_of(std::begin(header.room), std::end(header.room), [](std::uint8_t byte) { return byte != 0; }))
    return fail(POPNORM_INVALID, "%s: %s has a corrupted header (slots %lld, c %lld, steps %lld, bytes %llu)",
                operation, name, static_cast<long long>(header.slots), static_cast<long long>(header.c),
                static_cast<long long>(header.steps), static_cast<unsigned long long>(header.bytes));
  if (bytes < expected)
    return fail(POPNORM_INVALID, "%s: %s has %zu bytes, its header says %zu", operation, name, bytes, expected);
  return POPNORM_SUCCESS;
}

}  // namespace popnorm

extern "C" {

popnorm_status popnorm_population_size(int64_t slots, int64_t c, size_t* bytes) {
  using namespace popnorm;
  if (bytes == nullptr) return fail(POPNORM_INVALID, "population_size: bytes is null");
  return population_bytes("population_size", slots, c, *bytes);
}

popnorm_status popnorm_population_init(void* population, size_t bytes, int64_t slots, int64_t c) {
  using namespace popnorm;
  constexpr const char* operation = "population_init";
  return entry(operation, nullptr, [&] {
    std::size_t needed = 0;
    POPNORM_TRY(population_bytes(operation, slots, c, needed));
    if (population == nullptr) return fail(POPNORM_INVALID, "%s: population is null", operation);
    if (reinterpret_cast<std::uintptr_t>(population) % alignof(double) != 0)
      return fail(POPNORM_INVALID, "%s: population is not aligned to %zu bytes", operation, alignof(double));
    if (bytes < needed)
      return fail(POPNORM_INVALID, "%s: population has %zu bytes, needs %zu (popnorm_population_size)", operation,
                  bytes, needed);
    make_empty(population, needed, slots, c);
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_combine(void* target, size_t target_bytes, const void* other, size_t other_bytes) {
  using namespace popnorm;
  constexpr const char* operation = "population_combine";
  return entry(operation, nullptr, [&] {
    if (const popnorm_status status =
            check_pair(operation, "target", target, target_bytes, "other", other, other_bytes);
        status != POPNORM_SUCCESS)
      return status;
    if (overlap(target, header_of(target).bytes, other, header_of(other).bytes))
      return fail(POPNORM_INVALID, "%s: target overlaps other; they must not share memory", operation);
    const PopulationArrays<double> t = arrays_of(target);
    const PopulationArrays<const double> o = arrays_of(other);
    for (std::int64_t i = 0; i < entries_of(target); ++i) {
      const Moments all = combine({t.weight[i], t.mean[i], t.m2[i]}, {o.weight[i], o.mean[i], o.m2[i]});
      t.weight[i] = all.weight;
      t.mean[i] = all.mean;
      t.m2[i] = all.m2;
      t.m2_within[i] += o.m2_within[i];
      t.var_sum[i] += o.var_sum[i];
      t.var_weight[i] += o.var_weight[i];
      t.batches[i] += o.batches[i];
      t.nonfinite[i] += o.nonfinite[i];
    }
    header_of(target).steps += header_of(other).steps;
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_subtract(void* target, size_t target_bytes, const void* other, size_t other_bytes) {
  using namespace popnorm;
  constexpr const char* operation = "population_subtract";
  return entry(operation, nullptr, [&] {
    if (const popnorm_status status =
            check_pair(operation, "target", target, target_bytes, "other", other, other_bytes);
        status != POPNORM_SUCCESS)
      return status;
    if (overlap(target, header_of(target).bytes, other, header_of(other).bytes))
      return fail(POPNORM_INVALID, "%s: target overlaps other; they must not share memory", operation);
    const PopulationArrays<double> t = arrays_of(target);
    const PopulationArrays<const double> o = arrays_of(other);
    const std::int64_t entries = entries_of(target);
    if (header_of(other).steps > header_of(target).steps)
      return fail(POPNORM_INVALID, "%s: other has %lld steps, target %lld; more cannot be taken out than was put in",
                  operation, static_cast<long long>(header_of(other).steps),
                  static_cast<long long>(header_of(target).steps));
    for (std::int64_t i = 0; i < entries; ++i) {
      const auto more = [&](const char* what, double there, double here) {
        return fail(POPNORM_INVALID,
                    "%s: other has %s %g in entry %lld, target %g; more cannot be taken out than was put in", operation,
                    what, there, static_cast<long long>(i), here);
      };
      if (o.weight[i] > t.weight[i]) return more("weight", o.weight[i], t.weight[i]);
      if (o.batches[i] > t.batches[i]) return more("batches", o.batches[i], t.batches[i]);
      if (o.nonfinite[i] > t.nonfinite[i]) return more("nonfinite", o.nonfinite[i], t.nonfinite[i]);
    }
    const auto less = [](double& from, double what) { from = std::max(from - what, 0.0); };
    for (std::int64_t i = 0; i < entries; ++i) {
      const Moments rest = subtract({t.weight[i], t.mean[i], t.m2[i]}, {o.weight[i], o.mean[i], o.m2[i]});
      t.weight[i] = rest.weight;
      t.mean[i] = rest.mean;
      t.m2[i] = rest.m2;
      less(t.m2_within[i], o.m2_within[i]);
      less(t.var_sum[i], o.var_sum[i]);
      less(t.var_weight[i], o.var_weight[i]);
      // Of nothing no rounding errors are left.
      if (rest.weight == 0) t.m2_within[i] = t.var_sum[i] = t.var_weight[i] = 0;
      less(t.batches[i], o.batches[i]);
      less(t.nonfinite[i], o.nonfinite[i]);
    }
    header_of(target).steps -= header_of(other).steps;
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_decay(void* population, size_t bytes, double factor) {
  using namespace popnorm;
  constexpr const char* operation = "population_decay";
  return entry(operation, nullptr, [&] {
    if (const popnorm_status status = check_population(operation, "population", population, bytes);
        status != POPNORM_SUCCESS)
      return status;
    if (!(factor >= 0 && factor <= 1))
      return fail(POPNORM_INVALID, "%s: factor is %g, must be in [0, 1]", operation, factor);
    if (factor == 0) {
      const popnorm_population_header header = header_of(population);
      make_empty(population, header.bytes, header.slots, header.c);
      return POPNORM_SUCCESS;
    }
    const PopulationArrays<double> a = arrays_of(population);
    for (std::int64_t i = 0; i < entries_of(population); ++i)
      for (double* weighted : {a.weight, a.m2, a.m2_within, a.var_sum, a.var_weight}) weighted[i] *= factor;
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_standard_error(const void* population, size_t bytes, double* error) {
  using namespace popnorm;
  constexpr const char* operation = "population_standard_error";
  return entry(operation, nullptr, [&] {
    if (const popnorm_status status = check_population(operation, "population", population, bytes);
        status != POPNORM_SUCCESS)
      return status;
    if (error == nullptr) return fail(POPNORM_INVALID, "%s: error is null", operation);
    if (reinterpret_cast<std::uintptr_t>(error) % alignof(double) != 0)
      return fail(POPNORM_INVALID, "%s: error is not aligned to %zu bytes", operation, alignof(double));
    const std::int64_t entries = entries_of(population);
    if (overlap(population, header_of(population).bytes, error, static_cast<std::size_t>(entries) * sizeof(double)))
      return fail(POPNORM_INVALID, "%s: error overlaps population; they must not share memory", operation);
    const PopulationArrays<const double> a = arrays_of(population);
    for (std::int64_t i = 0; i < entries; ++i) {
      const double between = std::max(a.m2[i] - a.m2_within[i], 0.0);
      error[i] = a.batches[i] < 2 ? std::numeric_limits<double>::infinity()
                 : a.m2[i] == 0   ? 0
                                  : std::sqrt(between / a.m2[i] / (a.batches[i] - 1));
    }
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_drift(const void* population, size_t bytes, const void* reference,
                                        size_t reference_bytes, popnorm_drift* drift) {
  using namespace popnorm;
  constexpr const char* operation = "population_drift";
  return entry(operation, nullptr, [&] {
    popnorm_drift d;
    if (const popnorm_status status = read_struct(operation, drift, d); status != POPNORM_SUCCESS) return status;
    if (const popnorm_status status =
            check_pair(operation, "population", population, bytes, "reference", reference, reference_bytes);
        status != POPNORM_SUCCESS)
      return status;
    for (const popnorm_estimator* estimator : {&d.estimator, &d.reference_estimator})
      if (const popnorm_status status = check_estimator(operation, *estimator); status != POPNORM_SUCCESS)
        return status;
    const PopulationArrays<const double> a = arrays_of(population);
    const PopulationArrays<const double> b = arrays_of(reference);
    double mean_sum = 0, mean_max = 0, log_sum = 0, log_max = 0;
    std::int64_t channels = 0;
    for (std::int64_t i = 0; i < entries_of(population); ++i) {
      const MeanVariance p = population_statistics(a, i, d.estimator);
      const MeanVariance r = population_statistics(b, i, d.reference_estimator);
      if (a.weight[i] == 0 || b.weight[i] == 0 || !(r.variance > 0)) continue;
      ++channels;
      const double shift = std::fabs(p.mean - r.mean) / std::sqrt(r.variance);
      const double ratio = std::fabs(std::log2(p.variance / r.variance));
      mean_sum += shift * shift;
      mean_max = std::max(mean_max, shift);
      log_sum += ratio * ratio;
      log_max = std::max(log_max, ratio);
    }
    const double count = static_cast<double>(std::max<std::int64_t>(channels, 1));
    drift->channels = channels;
    drift->mean_rms = std::sqrt(mean_sum / count);
    drift->mean_max = mean_max;
    drift->log2_variance_rms = std::sqrt(log_sum / count);
    drift->log2_variance_max = log_max;
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_serialize(const void* population, size_t bytes, void* to, size_t to_bytes) {
  using namespace popnorm;
  constexpr const char* operation = "population_serialize";
  return entry(operation, nullptr, [&] {
    if (const popnorm_status status = check_population(operation, "population", population, bytes);
        status != POPNORM_SUCCESS)
      return status;
    const std::size_t needed = header_of(population).bytes;
    if (to == nullptr) return fail(POPNORM_INVALID, "%s: to is null, must point to %zu bytes", operation, needed);
    if (to_bytes < needed)
      return fail(POPNORM_INVALID, "%s: to has %zu bytes, needs %zu (popnorm_population_size)", operation, to_bytes,
                  needed);
    if (overlap(population, needed, to, needed))
      return fail(POPNORM_INVALID, "%s: to overlaps population; they must not share memory", operation);
    std::memcpy(to, population, needed);
    const std::uint64_t checksum = checksum_of(to, needed);
    std::memcpy(static_cast<std::byte*>(to) + offsetof(popnorm_population_header, checksum), &checksum,
                sizeof(checksum));
    return POPNORM_SUCCESS;
  });
}

popnorm_status popnorm_population_deserialize(const void* from, size_t from_bytes, void* population, size_t bytes) {
  using namespace popnorm;
  constexpr const char* operation = "population_deserialize";
  return entry(operation, nullptr, [&] {
    if (from == nullptr) return fail(POPNORM_INVALID, "%s: from is null", operation);
    if (population == nullptr || reinterpret_cast<std::uintptr_t>(population) % alignof(double) != 0)
      return fail(POPNORM_INVALID, "%s: population is at address %p, must be aligned to %zu bytes", operation,
                  population, alignof(double));
    // The bytes may lie anywhere: the header is copied before it is read.
    popnorm_population_header header;
    if (from_bytes < sizeof(header))
      return fail(POPNORM_INVALID, "%s: from has %zu bytes, a header alone has %zu", operation, from_bytes,
                  sizeof(header));
    std::memcpy(&header, from, sizeof(header));
    const std::uint64_t checksum = header.checksum;
    header.checksum = 0;
    if (const popnorm_status status = check_header(operation, "from", header, from_bytes); status != POPNORM_SUCCESS)
      return status;
    if (checksum != checksum_of(from, header.bytes))
      return fail(POPNORM_INVALID, "%s: from has checksum %016llx, must be %016llx: it was damaged", operation,
                  static_cast<unsigned long long>(checksum),
                  static_cast<unsigned long long>(checksum_of(from, header.bytes)));
    if (bytes < header.bytes)
      return fail(POPNORM_INVALID, "%s: population has %zu bytes, needs %zu (popnorm_population_size)", operation,
                  bytes, static_cast<std::size_t>(header.bytes));
    std::memmove(population, from, header.bytes);
    header_of(population).checksum = 0;
    return POPNORM_SUCCESS;
  });
}

}  // extern "C"
