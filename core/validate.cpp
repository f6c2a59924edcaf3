#include "core/validate.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

#include "core/maps.hpp"
#include "core/population.hpp"
#include "core/reserve.hpp"

namespace popnorm {
namespace {

using ll = long long;

template <class Enum>
popnorm_status check_enum(const char* operation, const char* name, const Enum& value, int last) {
  const int n = number(value);
  if (n >= 0 && n <= last) return POPNORM_SUCCESS;
  return fail(POPNORM_INVALID, "%s: %s is %d, must be an enumerator in 0..%d", operation, name, n, last);
}

popnorm_status check_share(const char* operation, const char* name, double value) {
  if (value >= 0 && value <= 1) return POPNORM_SUCCESS;
  return fail(POPNORM_INVALID, "%s: %s is %g, must be in [0, 1]", operation, name, value);
}

// ----------------------------------------------------------------------------------------------------------------
// strides

// Strides made explicit, and refused where two rows of the tensor would share memory.
popnorm_status resolve_strides(const char* name, const Problem& p, popnorm_layout layout, const popnorm_strides& from,
                               Strides& to) {
  const std::int64_t rows = layout == POPNORM_NCHW ? p.c : p.s;
  const std::int64_t length = layout == POPNORM_NCHW ? p.s : p.c;
  if (from.sample < 0 || from.row < 0)
    return fail(POPNORM_INVALID, "plan: strides of %s are (sample %lld, row %lld), must be >= 0", name, ll{from.sample},
                ll{from.row});
  std::int64_t rows_extent = 0;
  std::int64_t extent = 0;
  to.row = from.row != 0 ? from.row : length;
  const bool overflow_rows = __builtin_mul_overflow(to.row, rows, &rows_extent);
  to.sample = from.sample != 0 ? from.sample : rows_extent;
  if (overflow_rows || __builtin_mul_overflow(to.sample, p.n, &extent) ||
      __builtin_add_overflow(extent, rows_extent, &extent) ||
      extent > std::numeric_limits<std::int64_t>::max() / size_of(p.storage))
    return fail(POPNORM_INVALID, "plan: strides of %s (sample %lld, row %lld) make its extent overflow 63 bits", name,
                ll{from.sample}, ll{from.row});
  const bool rows_inside = (rows <= 1 || to.row >= length) && (p.n <= 1 || to.sample >= (rows - 1) * to.row + length);
  const bool samples_inside =
      (p.n <= 1 || to.sample >= length) && (rows <= 1 || to.row >= (p.n - 1) * to.sample + length);
  if (p.n > 0 && p.s > 0 && !rows_inside && !samples_inside)
    return fail(
        POPNORM_INVALID,
        "plan: strides of %s (sample %lld, row %lld) let rows of %lld elements overlap or interleave; 0 means packed",
        name, ll{to.sample}, ll{to.row}, ll{length});
  return POPNORM_SUCCESS;
}

// ----------------------------------------------------------------------------------------------------------------
// memory

// Every id of map a has one id of map b: the samples of a group feed one slot, say.
popnorm_status check_one_each(const char* operation, const char* a_name, const Labelled& a, const char* b_name,
                              const Labelled& b, std::int64_t n, const char* why) {
  if (b.map.kind == POPNORM_WHOLE || a.map.kind == POPNORM_PER_SAMPLE || a.same_as(b)) return POPNORM_SUCCESS;
  const auto refuse = [&](std::int64_t id, std::int64_t first, std::int64_t other) {
    return fail(POPNORM_INVALID, "%s: %s %lld has samples of %s %lld and %lld, must have one: %s", operation, a_name,
                ll{id}, b_name, ll{first}, ll{other}, why);
  };
  if (a.map.kind != POPNORM_LABELS) {
    // The first sample of an id is known.
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t first = a.map.kind == POPNORM_STRIDED ? i % a.map.k : a(i) * samples_per_id(a.map, n);
      if (b(i) != b(first)) return refuse(a(i), b(first), b(i));
    }
    return POPNORM_SUCCESS;
  }
  constexpr std::int64_t kAtOnce = 4096;
  std::int32_t first[kAtOnce];
  for (std::int64_t begin = 0; begin < a.map.count; begin += kAtOnce) {
    std::fill(first, first + kAtOnce, -1);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t id = a(i) - begin;
      if (id < 0 || id >= kAtOnce) continue;
      if (first[id] < 0) first[id] = static_cast<std::int32_t>(b(i));
      if (first[id] != b(i)) return refuse(a(i), first[id], b(i));
    }
  }
  return POPNORM_SUCCESS;
}

// A piece of the caller's memory: solid, or the rows of a tensor.
struct Region {
  const char* name;
  const char* first;
  std::int64_t bytes;  // from the first to the last byte
  bool written;
  Strides pitch;  // strides in bytes; 0, 0: solid
  std::int64_t row_bytes;
};

// What messages call the arrays of moments.
struct MomentNames {
  char all[32], weight[40], mean[40], m2[40];

  explicit MomentNames(const char* name, std::int64_t index = -1) {
    if (index < 0)
      std::snprintf(all, sizeof(all), "%s", name);
    else
      std::snprintf(all, sizeof(all), "%s[%lld]", name, ll{index});
    std::snprintf(weight, sizeof(weight), "%s.weight", all);
    std::snprintf(mean, sizeof(mean), "%s.mean", all);
    std::snprintf(m2, sizeof(m2), "%s.m2", all);
  }
};
const MomentNames& names_of_moments() {
  static const MomentNames names("moments");
  return names;
}

class Memory {
 public:
  Memory(const char* operation, const Plan& plan) : operation_(operation), problem_(plan.problem), plan_(plan) {}

  popnorm_status tensor(const char* name, const void* first, const Strides& strides, bool written) {
    const Problem& p = problem_;
    if (p.elements() == 0) return POPNORM_SUCCESS;
    if (first == nullptr)
      return fail(POPNORM_INVALID, "%s: %s is null, must point to %lld x %lld x %lld elements", operation_, name,
                  ll{p.n}, ll{p.c}, ll{p.s});
    const std::int64_t size = size_of(p.storage);
    POPNORM_TRY(aligned(name, first, size));
    const Strides pitch{strides.sample * size, strides.row * size};
    const std::int64_t row_bytes = p.row_length() * size;
    const std::int64_t bytes = (p.n - 1) * pitch.sample + (p.rows() - 1) * pitch.row + row_bytes;
    return add({name, static_cast<const char*>(first), bytes, written, pitch, row_bytes});
  }

  // An optional array: null is fine.
  popnorm_status array(const char* name, const void* first, std::int64_t count, std::int64_t size, bool written) {
    if (first == nullptr || count == 0) return POPNORM_SUCCESS;
    POPNORM_TRY(aligned(name, first, size));
    return add(solid(name, first, count * size, written));
  }

  popnorm_status required(const char* name, const void* first, std::int64_t count, std::int64_t size, bool written) {
    if (first == nullptr)
      return fail(POPNORM_INVALID, "%s: %s is null, must point to %lld elements", operation_, name, ll{count});
    return array(name, first, count, size, written);
  }

  popnorm_status buffer(const char* name, const void* first, std::size_t bytes, std::size_t needed, bool written) {
    if (bytes < needed)
      return fail(POPNORM_INVALID, "%s: %s has %zu bytes, needs %zu (popnorm_plan_query)", operation_, name, bytes,
                  needed);
    if (first == nullptr)
      return fail(POPNORM_INVALID, "%s: %s is null, must point to %zu bytes", operation_, name, needed);
    POPNORM_TRY(aligned(name, first, kBufferAlignment));
    return add(solid(name, first, static_cast<std::int64_t>(needed), written));
  }

  popnorm_status workspace(const void* first, std::size_t bytes) {
    return workspace(first, bytes, plan_.workspace_bytes);
  }
  popnorm_status workspace(const void* first, std::size_t bytes, std::size_t needed) {
    if (needed == 0) return POPNORM_SUCCESS;
    return buffer("workspace", first, bytes, needed, true);
  }

  popnorm_status reserve(const void* first, std::size_t bytes, bool written) {
    reserve_ = count_;
    POPNORM_TRY(buffer("reserve", first, bytes, plan_.reserve_bytes, written));
    if (written || on_device() || reserve_matches(*static_cast<const ReserveHeader*>(first), problem_))
      return POPNORM_SUCCESS;
    return fail(
        POPNORM_INVALID,
        "%s: reserve was not written by a forward or finalize of this problem (C = %lld, %lld groups, %lld population "
        "slots, %lld affine slots, this storage type and activation); pass forward's",
        operation_, ll{problem_.c}, ll{problem_.norm_group.count}, ll{problem_.population_slot.count},
        ll{problem_.affine_slot.count});
  }

  popnorm_status moments(const MomentNames& names, const popnorm_moment_arrays& m, std::int64_t count, bool written) {
    if (m.weight == nullptr || m.mean == nullptr || m.m2 == nullptr)
      return fail(POPNORM_INVALID, "%s: %s needs all of weight, mean and m2; %s is null", operation_, names.all,
                  m.weight == nullptr ? "weight"
                  : m.mean == nullptr ? "mean"
                                      : "m2");
    POPNORM_TRY(array(names.weight, m.weight, count, sizeof(double), written));
    POPNORM_TRY(array(names.mean, m.mean, count, sizeof(double), written));
    return array(names.m2, m.m2, count, sizeof(double), written);
  }

  popnorm_status population(const char* name, const void* first, std::size_t bytes, bool written) {
    if (on_device()) {
      std::size_t needed = 0;
      POPNORM_TRY(population_bytes(operation_, problem_.population_slot.count, problem_.c, needed));
      if (bytes < needed)
        return fail(POPNORM_INVALID, "%s: %s has %zu bytes, needs %zu (popnorm_population_size)", operation_, name,
                    bytes, needed);
      POPNORM_TRY(aligned(name, first, alignof(double)));
      return add(solid(name, first, static_cast<std::int64_t>(needed), written));
    }
    POPNORM_TRY(check_population(operation_, name, first, bytes));
    const auto& header = *static_cast<const popnorm_population_header*>(first);
    if (header.c != problem_.c)
      return fail(POPNORM_INVALID, "%s: %s has %lld channels, expected C = %lld", operation_, name, ll{header.c},
                  ll{problem_.c});
    if (header.slots != problem_.population_slot.count)
      return fail(POPNORM_INVALID, "%s: %s has %lld slots, expected population_slots = %lld", operation_, name,
                  ll{header.slots}, ll{problem_.population_slot.count});
    return add(solid(name, first, static_cast<std::int64_t>(header.bytes), written));
  }

  // What a call says of the samples: labels of the maps that it needs, and weights.
  struct Needs {
    bool norm_group;
    bool population_slot;
    bool affine_slot;
  };
  popnorm_status batch(const popnorm_batch& b, const Needs& needs) {
    POPNORM_TRY(labels("batch.norm_group", problem_.norm_group, b.norm_group, needs.norm_group));
    POPNORM_TRY(labels("batch.population_slot", problem_.population_slot, b.population_slot, needs.population_slot));
    POPNORM_TRY(labels("batch.affine_slot", problem_.affine_slot, b.affine_slot, needs.affine_slot));
    if (on_device()) POPNORM_TRY(array("batch.device_status", b.device_status, 1, sizeof(std::uint32_t), true));
    return weights(b.weights);
  }
  // Of every id of `a` the samples have one id of `b`. Labels that only the device can read are checked there.
  popnorm_status one_each(const Labelled& a, const Labelled& b, const char* why) const {
    const bool readable = a.map.kind != POPNORM_LABELS && b.map.kind != POPNORM_LABELS;
    if (on_device() && !readable) return POPNORM_SUCCESS;
    return check_one_each(operation_, "norm_group", a, "population_slot", b, problem_.n, why);
  }

  // What is added to the normalized, or the gradient of it.
  popnorm_status residual(const char* name, const void* first, const Strides& strides, bool written, bool required) {
    if (problem_.adds_residual) {
      if (first == nullptr && !required) return POPNORM_SUCCESS;
      return tensor(name, first, strides, written);
    }
    if (first == nullptr) return POPNORM_SUCCESS;
    return fail(POPNORM_INVALID, "%s: %s is not null, must be null: the problem's adds_residual is 0", operation_,
                name);
  }

  // dx and dresidual, at least one of them.
  popnorm_status gradients(void* dx, void* dresidual, const char* others, bool any_other) {
    if (dx == nullptr && dresidual == nullptr && !any_other)
      return fail(POPNORM_INVALID, "%s: dx, dresidual%s are all null, at least one must be asked for", operation_,
                  others);
    if (dx != nullptr) POPNORM_TRY(tensor("dx", dx, problem_.dx, true));
    return residual("dresidual", dresidual, problem_.dresidual, true, false);
  }

  // The reserve of a forward with the same labels.
  popnorm_status reserve_of(const void* first, std::size_t bytes, const popnorm_batch& b) {
    POPNORM_TRY(reserve(first, bytes, false));
    return labels_of_reserve(first, b);
  }
  // The same, to write where the activation stopped.
  popnorm_status reserve_to_mask(const void* first, std::size_t bytes, const popnorm_batch& b) {
    POPNORM_TRY(reserve_of(first, bytes, b));
    if (problem_.masked()) region_[reserve_].written = true;
    return POPNORM_SUCCESS;
  }
  // The same, for backward.
  popnorm_status reserve_with_mask(const void* first, std::size_t bytes, const popnorm_batch& b) {
    POPNORM_TRY(reserve_of(first, bytes, b));
    if (!problem_.masked() || on_device() || static_cast<const ReserveHeader*>(first)->masked != 0)
      return POPNORM_SUCCESS;
    return fail(POPNORM_INVALID, "%s: reserve does not say where the activation stopped, must: call normalize first",
                operation_);
  }

  popnorm_status labels_of_reserve(const void* first, const popnorm_batch& b) {
    if (on_device()) {
      // Which of the two is needed is written in the reserve.
      const Problem& p = problem_;
      if (p.n > 0 && p.norm_group.kind == POPNORM_LABELS && p.population_slot.kind == POPNORM_LABELS &&
          b.norm_group == nullptr && b.population_slot == nullptr)
        return fail(POPNORM_INVALID,
                    "%s: batch.norm_group and batch.population_slot are null, must be those of the forward that wrote "
                    "the reserve",
                    operation_);
      return batch(b, {false, false, true});
    }
    const auto& header = *static_cast<const ReserveHeader*>(first);
    const auto statistics = static_cast<popnorm_statistics>(header.statistics);
    POPNORM_TRY(batch(b, {statistics != POPNORM_GIVEN, statistics == POPNORM_GIVEN, true}));
    if (header.labels == 0 || header.labels == labels_of(problem_, statistics, b)) return POPNORM_SUCCESS;
    return fail(
        POPNORM_INVALID,
        "%s: reserve was written by a forward with other labels or maps, must be the same; pass forward's batch",
        operation_);
  }

  // Whether what the arrays hold cannot be looked at: kernels check it then.
  bool on_device() const { return plan_.backend != nullptr && plan_.backend->check_memory != nullptr; }

  // Statistics rows of a reserve; where it cannot be looked at, at least so many.
  std::int64_t rows_of_reserve(const void* first) const {
    if (on_device()) return std::min(problem_.norm_group.count, problem_.population_slot.count);
    return problem_.row_map(static_cast<popnorm_statistics>(static_cast<const ReserveHeader*>(first)->statistics))
        .count;
  }

  // To be called last: no written region may share memory with another, but for the exact aliases that popnorm.h
  // allows.
  popnorm_status disjoint() const {
    for (int i = 0; i < count_; ++i) {
      for (int j = 0; j < count_; ++j) {
        const Region& w = region_[i];
        const Region& o = region_[j];
        if (i == j || !w.written || (o.written && j < i) || !overlap(w, o) || in_place(w, o)) continue;
        return fail(POPNORM_INVALID, "%s: %s overlaps %s; they must not share memory%s", operation_, w.name, o.name,
                    same_memory(w, o) ? "" : " (in place means the same pointer and strides)");
      }
    }
    return POPNORM_SUCCESS;
  }

 private:
  static Region solid(const char* name, const void* first, std::int64_t bytes, bool written) {
    return {name, static_cast<const char*>(first), bytes, written, {0, 0}, bytes};
  }

  popnorm_status aligned(const char* name, const void* first, std::int64_t size) const {
    if (reinterpret_cast<std::uintptr_t>(first) % static_cast<std::uintptr_t>(size) == 0) return POPNORM_SUCCESS;
    return fail(POPNORM_INVALID, "%s: %s is at address %p, must be aligned to %lld bytes", operation_, name, first,
                ll{size});
  }

  popnorm_status labels(const char* name, const Map& map, const std::int32_t* ids, bool needed) {
    if (map.kind != POPNORM_LABELS) {
      if (ids == nullptr) return POPNORM_SUCCESS;
      return fail(POPNORM_INVALID, "%s: %s is not null, must be null: the problem's map is not of kind LABELS",
                  operation_, name);
    }
    if (problem_.n == 0) return POPNORM_SUCCESS;
    if (on_device()) {
      if (needed) return required(name, ids, problem_.n, sizeof(std::int32_t), false);
      return array(name, ids, problem_.n, sizeof(std::int32_t), false);
    }
    if (!needed) return POPNORM_SUCCESS;
    POPNORM_TRY(required(name, ids, problem_.n, sizeof(std::int32_t), false));
    // Looked for only if there is one, which a loop without exits finds out many times faster.
    const auto count = static_cast<std::uint32_t>(map.count);
    bool outside = false;
    for (std::int64_t n = 0; n < problem_.n; ++n) outside |= static_cast<std::uint32_t>(ids[n]) >= count;
    for (std::int64_t n = 0; outside && n < problem_.n; ++n)
      if (ids[n] < 0 || ids[n] >= map.count)
        return fail(POPNORM_INVALID, "%s: %s[%lld] is %d, must be in [0, %lld)", operation_, name, ll{n}, ids[n],
                    ll{map.count});
    return POPNORM_SUCCESS;
  }

  popnorm_status weights(const void* first) {
    constexpr const char* name = "batch.weights";
    const Problem& p = problem_;
    if (p.weights == POPNORM_UNWEIGHTED) {
      if (first == nullptr) return POPNORM_SUCCESS;
      return fail(POPNORM_INVALID, "%s: %s is not null, must be null: the problem is unweighted", operation_, name);
    }
    if (p.elements() == 0) return POPNORM_SUCCESS;
    if (p.weights == POPNORM_LENGTHS) {
      POPNORM_TRY(required(name, first, p.n, sizeof(std::int64_t), false));
      if (on_device()) return POPNORM_SUCCESS;
      const auto* length = static_cast<const std::int64_t*>(first);
      for (std::int64_t n = 0; n < p.n; ++n)
        if (length[n] < 0 || length[n] > p.s)
          return fail(POPNORM_INVALID, "%s: %s[%lld] is a length of %lld, must be in [0, S = %lld]", operation_, name,
                      ll{n}, ll{length[n]}, ll{p.s});
      return POPNORM_SUCCESS;
    }
    const std::int64_t count = p.weights == POPNORM_WEIGHTS_PER_SAMPLE ? p.n : p.n * p.s;
    POPNORM_TRY(required(name, first, count, sizeof(float), false));
    if (on_device()) return POPNORM_SUCCESS;
    const auto* weight = static_cast<const float*>(first);
    const auto usable = [](float w) { return w >= 0 && w <= std::numeric_limits<float>::max(); };
    // As labels are: looked for only if there is one.
    bool all = true;
    for (std::int64_t i = 0; i < count; ++i) all &= usable(weight[i]);
    for (std::int64_t i = 0; !all && i < count; ++i)
      if (!usable(weight[i]))
        return fail(POPNORM_INVALID, "%s: %s[%lld] is %g, must be finite and >= 0", operation_, name, ll{i},
                    static_cast<double>(weight[i]));
    return POPNORM_SUCCESS;
  }

  popnorm_status add(const Region& region) {
    if (on_device()) POPNORM_TRY(plan_.backend->check_memory(operation_, region.name, region.first));
    region_[count_++] = region;
    return POPNORM_SUCCESS;
  }

  static bool same_memory(const Region& a, const Region& b) {
    return a.first == b.first && a.pitch.sample == b.pitch.sample && a.pitch.row == b.pitch.row && a.bytes == b.bytes;
  }

  static bool is(const Region& r, const char* name) { return std::strcmp(r.name, name) == 0; }

  // What is read before it is written.
  static bool in_place(const Region& w, const Region& o) {
    constexpr const char* kPairs[][2] = {{"y", "x"},
                                         {"y", "residual"},
                                         {"dx", "x"},
                                         {"dx", "dy"},
                                         {"dresidual", "x"},
                                         {"dresidual", "dy"},
                                         {"update.running_mean", "source.mean"},
                                         {"update.running_variance", "source.variance"},
                                         {"update.population", "source.population"}};
    return same_memory(w, o) &&
           std::ranges::any_of(kPairs, [&](const auto& pair) { return is(w, pair[0]) && is(o, pair[1]); });
  }

  // Two tensors of the same strides, side by side in one allocation: rows start `distance` apart, give or take whole
  // pitches.
  bool rows_meet(const Region& a, std::int64_t distance) const {
    const bool samples_outside = a.pitch.sample >= a.pitch.row;
    const std::int64_t outer = samples_outside ? a.pitch.sample : a.pitch.row;
    const std::int64_t inner = samples_outside ? a.pitch.row : a.pitch.sample;
    const std::int64_t outer_count = samples_outside ? problem_.n : problem_.rows();
    const std::int64_t inner_count = samples_outside ? problem_.rows() : problem_.n;
    // The nearest of those that there are: where there is one, its pitch may be anything.
    const auto nearest = [](std::int64_t of, std::int64_t pitch, std::int64_t count) {
      return std::clamp(of / pitch, 1 - count, count - 1);
    };
    const std::int64_t near_i = nearest(distance, outer, outer_count);
    for (std::int64_t i = near_i - 1; i <= near_i + 1; ++i) {
      if (i <= -outer_count || i >= outer_count) continue;
      const std::int64_t rest = distance - i * outer;
      const std::int64_t near_j = nearest(rest, inner, inner_count);
      for (std::int64_t j = near_j - 1; j <= near_j + 1; ++j) {
        const std::int64_t gap = rest - j * inner;
        if (j > -inner_count && j < inner_count && gap > -a.row_bytes && gap < a.row_bytes) return true;
      }
    }
    return false;
  }

  bool overlap(const Region& a, const Region& b) const {
    const std::int64_t distance = b.first - a.first;
    if (distance >= a.bytes || -distance >= b.bytes) return false;
    const bool same_strides =
        a.pitch.row > 0 && a.pitch.row == b.pitch.row && a.pitch.sample > 0 && a.pitch.sample == b.pitch.sample;
    return !same_strides || rows_meet(a, distance);
  }

  const char* operation_;
  const Problem& problem_;
  const Plan& plan_;
  Region region_[32] = {};
  int count_ = 0;
  int reserve_ = 0;  // where its region is
};

popnorm_status check_moments_values(const char* operation, const MomentNames& names, const popnorm_moment_arrays& m,
                                    std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (m.weight[i] < 0)
      return fail(POPNORM_INVALID, "%s: %s[%lld] is %g, must be >= 0", operation, names.weight, ll{i}, m.weight[i]);
    if (m.m2[i] < 0)
      return fail(POPNORM_INVALID, "%s: %s[%lld] is %g, must be >= 0", operation, names.m2, ll{i}, m.m2[i]);
  }
  return POPNORM_SUCCESS;
}

popnorm_status check_source(const char* operation, const Problem& p, const popnorm_source& s, Memory& memory) {
  POPNORM_TRY(check_enum(operation, "source.statistics", s.statistics, POPNORM_RENORM));
  POPNORM_TRY(check_enum(operation, "source.estimator", s.estimator, POPNORM_MEAN_OF_BATCH_VARIANCES));
  const bool arrays = s.mean != nullptr || s.variance != nullptr;
  if (s.statistics == POPNORM_BATCH) {
    if (!arrays && s.population == nullptr) return POPNORM_SUCCESS;
    return fail(POPNORM_INVALID, "%s: %s is not null, must be null with source.statistics = BATCH; or ask for GIVEN",
                operation,
                s.mean != nullptr       ? "source.mean"
                : s.variance != nullptr ? "source.variance"
                                        : "source.population");
  }
  if (s.statistics == POPNORM_BLEND) POPNORM_TRY(check_share(operation, "source.share", s.share));
  if (s.statistics == POPNORM_RENORM) {
    if (!(s.renorm_r >= 1))
      return fail(POPNORM_INVALID, "%s: source.renorm_r is %g, must be >= 1", operation, s.renorm_r);
    if (!(s.renorm_d >= 0))
      return fail(POPNORM_INVALID, "%s: source.renorm_d is %g, must be >= 0", operation, s.renorm_d);
  }
  if (s.population != nullptr) {
    if (arrays)
      return fail(POPNORM_INVALID,
                  "%s: both source.population and source.mean, variance are given, must be one of them", operation);
    return memory.population("source.population", s.population, s.population_bytes, false);
  }
  if (s.mean == nullptr || s.variance == nullptr)
    return fail(POPNORM_INVALID, "%s: %s is null, these source.statistics need mean and variance or a population",
                operation, s.mean == nullptr ? "source.mean" : "source.variance");
  const std::int64_t count = p.population_slot.count * p.c;
  POPNORM_TRY(memory.array("source.mean", s.mean, count, size_of(p.statistics), false));
  return memory.array("source.variance", s.variance, count, size_of(p.statistics), false);
}

popnorm_status check_update(const char* operation, const Problem& p, const popnorm_update& u, Memory& memory) {
  POPNORM_TRY(check_enum(operation, "update.feed", u.feed, POPNORM_FEED_MERGE));
  POPNORM_TRY(check_share(operation, "update.momentum", u.momentum));
  const std::int64_t count = p.population_slot.count * p.c;
  POPNORM_TRY(memory.array("update.running_mean", u.running_mean, count, size_of(p.statistics), true));
  POPNORM_TRY(memory.array("update.running_variance", u.running_variance, count, size_of(p.statistics), true));
  if (u.population == nullptr) return POPNORM_SUCCESS;
  return memory.population("update.population", u.population, u.population_bytes, true);
}

// The part that forward and finalize share.
template <class Args>
popnorm_status check_statistics(const char* operation, const Problem& p, const Args& a, Memory& memory) {
  const std::int64_t scales = p.affine_slot.count * p.c;
  POPNORM_TRY(memory.array("scale", a.scale, scales, size_of(p.parameters), false));
  POPNORM_TRY(memory.array("shift", a.shift, scales, size_of(p.parameters), false));
  POPNORM_TRY(check_source(operation, p, a.source, memory));
  POPNORM_TRY(check_update(operation, p, a.update, memory));
  if (a.source.statistics == POPNORM_GIVEN) {
    if (updates(a.update))
      return fail(POPNORM_INVALID, "%s: %s is not null, must be null with source.statistics = GIVEN (nothing is fed)",
                  operation,
                  a.update.running_mean != nullptr       ? "update.running_mean"
                  : a.update.running_variance != nullptr ? "update.running_variance"
                                                         : "update.population");
    if (a.moments.weight != nullptr || a.moments.mean != nullptr || a.moments.m2 != nullptr)
      return fail(POPNORM_INVALID, "%s: moments is not null, must be null with source.statistics = GIVEN", operation);
  }
  const std::int64_t rows = p.row_map(a.source.statistics).count * p.c;
  POPNORM_TRY(memory.array("saved_mean", a.saved_mean, rows, size_of(p.statistics), true));
  return memory.array("saved_invstd", a.saved_invstd, rows, size_of(p.statistics), true);
}

constexpr const char* kOneSlot = "a group's statistics feed, or are blended with, one slot";

popnorm_status resolve_map(const char* name, const char* kind_name, const popnorm_map& from, std::int64_t n,
                           std::int64_t c, Map& to) {
  POPNORM_TRY(check_enum("plan", kind_name, from.kind, POPNORM_LABELS));
  to = {from.kind, from.k, 1};
  const bool sized = from.kind == POPNORM_CONTIGUOUS || from.kind == POPNORM_STRIDED || from.kind == POPNORM_LABELS;
  if (sized && from.k < 1)
    return fail(POPNORM_INVALID, "plan: %s.k is %lld, must be >= 1 for this kind of map", name, ll{from.k});
  if (!sized && from.k != 0)
    return fail(POPNORM_INVALID, "plan: %s.k is %lld, must be 0 for this kind of map", name, ll{from.k});
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (from.kind != POPNORM_WHOLE && n > kMost)
    return fail(POPNORM_UNSUPPORTED, "plan: n is %lld, must be <= %lld with a map other than WHOLE", ll{n}, ll{kMost});
  if ((from.kind == POPNORM_STRIDED || from.kind == POPNORM_LABELS) && from.k > kMost)
    return fail(POPNORM_UNSUPPORTED, "plan: %s.k is %lld, must be <= %lld", name, ll{from.k}, ll{kMost});
  if (from.kind == POPNORM_CONTIGUOUS) {
    to.k = std::min(from.k, std::max<std::int64_t>(n, 1));
    to.count = n / to.k + (n % to.k > 0);
  }
  if (from.kind == POPNORM_STRIDED || from.kind == POPNORM_LABELS) to.count = from.k;
  if (from.kind == POPNORM_PER_SAMPLE) to.count = n;
  if (to.count > std::numeric_limits<std::int64_t>::max() / 1024 / c)
    return fail(POPNORM_INVALID, "plan: %s has %lld ids, times c = %lld overflows 63 bits in bytes", name, ll{to.count},
                ll{c});
  return POPNORM_SUCCESS;
}

// What follows normalization. Without a residual its strides are those of dx, which any form suits that suits dx.
popnorm_status resolve_fusions(const popnorm_problem& from, Problem& to) {
  POPNORM_TRY(check_enum("plan", "activation", from.activation, POPNORM_LEAKY_RELU));
  to.activation = from.activation;
  if (from.activation == POPNORM_LEAKY_RELU) {
    const bool fits = to.storage == POPNORM_F64 || std::abs(from.slope) <= std::numeric_limits<float>::max();
    if (!std::isfinite(from.slope) || !fits)
      return fail(POPNORM_INVALID, "plan: slope is %g, must be finite in the arithmetic type", from.slope);
    to.slope = from.slope;
  }
  if (from.adds_residual != 0 && from.adds_residual != 1)
    return fail(POPNORM_INVALID, "plan: adds_residual is %d, must be 0 or 1", from.adds_residual);
  to.adds_residual = from.adds_residual == 1;
  if (!to.adds_residual) {
    to.residual = to.dresidual = to.dx;
    return POPNORM_SUCCESS;
  }
  POPNORM_TRY(resolve_strides("residual", to, to.layout, from.residual, to.residual));
  return resolve_strides("dresidual", to, to.layout, from.dresidual, to.dresidual);
}

}  // namespace

popnorm_status check_size(const char* operation, const void* from, std::size_t known) {
  if (from == nullptr) return fail(POPNORM_INVALID, "%s: the argument struct is null", operation);
  std::size_t size = 0;
  std::memcpy(&size, from, sizeof(size));
  if (size < known)
    return fail(POPNORM_INVALID,
                "%s: size of the struct is %zu, must be >= %zu; initialize it with its POPNORM_..._INIT", operation,
                size, known);
  const auto* bytes = static_cast<const unsigned char*>(from);
  for (std::size_t i = known; i < size; ++i)
    if (bytes[i] != 0)
      return fail(POPNORM_UNSUPPORTED,
                  "%s: byte %zu of the struct is set, this version knows %zu bytes; link a newer popnorm", operation, i,
                  known);
  return POPNORM_SUCCESS;
}

popnorm_status validate_problem(const popnorm_problem* from, Problem& p) {
  popnorm_problem q;
  POPNORM_TRY(read_struct("plan: problem", from, q));
  if (q.n < 0) return fail(POPNORM_INVALID, "plan: n is %lld, must be >= 0", ll{q.n});
  if (q.c < 1) return fail(POPNORM_INVALID, "plan: c is %lld, must be >= 1", ll{q.c});
  if (q.s < 0) return fail(POPNORM_INVALID, "plan: s is %lld, must be >= 0", ll{q.s});
  POPNORM_TRY(check_enum("plan", "layout", q.layout, POPNORM_NHWC));
  POPNORM_TRY(check_enum("plan", "storage", q.storage, POPNORM_F16));
  POPNORM_TRY(check_enum("plan", "parameters", q.parameters, POPNORM_F16));
  POPNORM_TRY(check_enum("plan", "statistics", q.statistics, POPNORM_F16));
  if (!std::isfinite(q.epsilon) || q.epsilon < 0)
    return fail(POPNORM_INVALID, "plan: epsilon is %g, must be finite and >= 0", q.epsilon);
  if (q.parameters > POPNORM_F64 || q.statistics > POPNORM_F64)
    return fail(POPNORM_UNSUPPORTED, "plan: %s of 16 bits are not supported; use f32 or f64",
                q.parameters > POPNORM_F64 ? "parameters" : "statistics");
  p.n = q.n;
  p.c = q.c;
  p.s = q.s;
  p.layout = q.layout;
  p.storage = q.storage == POPNORM_TYPE_DEFAULT ? POPNORM_F32 : q.storage;
  const auto or_default = [&p](popnorm_type type) {
    return type != POPNORM_TYPE_DEFAULT ? type : p.storage == POPNORM_F64 ? POPNORM_F64 : POPNORM_F32;
  };
  p.parameters = or_default(q.parameters);
  p.statistics = or_default(q.statistics);
  p.epsilon = q.epsilon;
  std::int64_t elements = 0;
  // A sample, a position and c rows of statistics must be addressable too where n or s is 0.
  if (__builtin_mul_overflow(std::max<std::int64_t>(p.n, 1), p.c, &elements) ||
      __builtin_mul_overflow(std::max<std::int64_t>(p.s, 1), elements, &elements) ||
      elements > std::numeric_limits<std::int64_t>::max() / 8 || p.c > std::numeric_limits<std::int64_t>::max() / 1024)
    return fail(POPNORM_INVALID, "plan: n %lld x c %lld x s %lld overflows 63 bits in bytes", ll{p.n}, ll{p.c},
                ll{p.s});

  POPNORM_TRY(resolve_map("norm_group", "norm_group.kind", q.norm_group, p.n, p.c, p.norm_group));
  POPNORM_TRY(resolve_map("population_slot", "population_slot.kind", q.population_slot, p.n, p.c, p.population_slot));
  POPNORM_TRY(resolve_map("affine_slot", "affine_slot.kind", q.affine_slot, p.n, p.c, p.affine_slot));
  POPNORM_TRY(check_enum("plan", "weights", q.weights, POPNORM_LENGTHS));
  p.weights = q.weights;

  POPNORM_TRY(resolve_strides("x", p, p.layout, q.x, p.x));
  POPNORM_TRY(resolve_strides("y", p, p.layout, q.y, p.y));
  POPNORM_TRY(resolve_strides("dy", p, p.layout, q.dy, p.dy));
  POPNORM_TRY(resolve_strides("dx", p, p.layout, q.dx, p.dx));
  POPNORM_TRY(resolve_fusions(q, p));

  // Vectors run over whatever is contiguous. Where channels (NCHW with s = 1) or positions (NHWC with c = 1) are too,
  // the other form is the efficient one.
  p.form = p.layout == POPNORM_NCHW ? Form::rows : Form::columns;
  Strides* const strides[] = {&p.x, &p.y, &p.dy, &p.dx, &p.residual, &p.dresidual};
  bool dense = true;
  for (const Strides* t : strides) dense = dense && t->row == 1;
  if (dense && (p.form == Form::rows ? p.s == 1 : p.c == 1)) {
    p.form = p.form == Form::rows ? Form::columns : Form::rows;
    for (Strides* t : strides) t->row = p.row_length();
  }
  return POPNORM_SUCCESS;
}

popnorm_status validate_options(const popnorm_options* from, Options& to) {
  popnorm_options o = POPNORM_OPTIONS_INIT;
  if (from != nullptr) POPNORM_TRY(read_struct("plan: options", from, o));
  POPNORM_TRY(check_enum("plan", "backend", o.backend, POPNORM_CUDA));
  POPNORM_TRY(check_enum("plan", "schedule", o.schedule, POPNORM_PHASES));
  POPNORM_TRY(check_enum("plan", "stores", o.stores, POPNORM_STORES_STREAMING));
  if (o.executor != nullptr) {
    POPNORM_TRY(check_size("plan: executor", o.executor, sizeof(popnorm_executor)));
    if (o.executor->parallel_for == nullptr) return fail(POPNORM_INVALID, "plan: executor.parallel_for is null");
    if (o.executor->concurrency < 1)
      return fail(POPNORM_INVALID, "plan: executor.concurrency is %d, must be >= 1", o.executor->concurrency);
  }
  to = {o.backend, o.schedule, o.stores, o.isa, o.executor, o.memory};
  return POPNORM_SUCCESS;
}

popnorm_status validate(const Plan& plan, const popnorm_forward_args& a) {
  const Problem& p = plan.problem;
  Memory memory("forward", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("y", a.y, p.y, true));
  POPNORM_TRY(memory.residual("residual", a.residual, p.residual, false, true));
  POPNORM_TRY(check_statistics("forward", p, a, memory));
  if (a.moments.weight != nullptr || a.moments.mean != nullptr || a.moments.m2 != nullptr)
    POPNORM_TRY(memory.moments(names_of_moments(), a.moments, p.norm_group.count * p.c, true));
  const bool given = a.source.statistics == POPNORM_GIVEN;
  const bool one_slot = !given && (updates(a.update) || a.source.statistics != POPNORM_BATCH);
  POPNORM_TRY(memory.batch(a.batch, {!given, given || one_slot, true}));
  if (one_slot)
    POPNORM_TRY(
        memory.one_each({p.norm_group, a.batch.norm_group}, {p.population_slot, a.batch.population_slot}, kOneSlot));
  if (a.reserve != nullptr || a.reserve_bytes != 0) POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, true));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_backward_args& a) {
  const Problem& p = plan.problem;
  Memory memory("backward", plan);
  if (a.accumulate != 0 && a.accumulate != 1)
    return fail(POPNORM_INVALID, "backward: accumulate is %d, must be 0 or 1", a.accumulate);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  POPNORM_TRY(memory.gradients(a.dx, a.dresidual, ", dscale and dshift", a.dscale != nullptr || a.dshift != nullptr));
  const std::int64_t scales = p.affine_slot.count * p.c;
  POPNORM_TRY(memory.array("dscale", a.dscale, scales, size_of(p.parameters), true));
  POPNORM_TRY(memory.array("dshift", a.dshift, scales, size_of(p.parameters), true));
  const bool saved = a.saved_mean != nullptr || a.saved_invstd != nullptr;
  POPNORM_TRY(check_enum("backward", "statistics", a.statistics, POPNORM_RENORM));
  if (a.reserve != nullptr) {
    if (saved)
      return fail(POPNORM_INVALID,
                  "backward: both reserve and saved_mean, saved_invstd are given, must be one of them");
    if (a.scale != nullptr)
      return fail(POPNORM_INVALID,
                  "backward: scale is not null, must be null with a reserve (it holds the scale that forward used)");
    if (a.statistics != POPNORM_BATCH)
      return fail(POPNORM_INVALID, "backward: statistics is %d, must be 0 with a reserve (it holds its source)",
                  number(a.statistics));
    POPNORM_TRY(memory.reserve_with_mask(a.reserve, a.reserve_bytes, a.batch));
  } else {
    if (!saved)
      return fail(POPNORM_INVALID,
                  "backward: reserve is null, must be forward's (or give saved_mean and saved_invstd)");
    if (!p.plain() || p.weights != POPNORM_UNWEIGHTED || a.statistics > POPNORM_GIVEN ||
        p.activation != POPNORM_IDENTITY)
      return fail(POPNORM_UNSUPPORTED,
                  "backward: saved_mean and saved_invstd do not tell enough for maps, weights, BLEND, RENORM or an "
                  "activation; pass forward's reserve");
    POPNORM_TRY(memory.required("saved_mean", a.saved_mean, p.c, size_of(p.statistics), false));
    POPNORM_TRY(memory.required("saved_invstd", a.saved_invstd, p.c, size_of(p.statistics), false));
    POPNORM_TRY(memory.array("scale", a.scale, p.c, size_of(p.parameters), false));
    POPNORM_TRY(memory.batch(a.batch, {true, true, true}));
  }
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_moments_args& a) {
  const Problem& p = plan.problem;
  Memory memory("moments", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(check_update("moments", p, a.update, memory));
  const bool wanted = a.moments.weight != nullptr || a.moments.mean != nullptr || a.moments.m2 != nullptr;
  if (wanted || !updates(a.update))
    POPNORM_TRY(memory.moments(names_of_moments(), a.moments, p.norm_group.count * p.c, true));
  POPNORM_TRY(memory.batch(a.batch, {true, updates(a.update), false}));
  if (updates(a.update))
    POPNORM_TRY(
        memory.one_each({p.norm_group, a.batch.norm_group}, {p.population_slot, a.batch.population_slot}, kOneSlot));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_combine_args& a) {
  const std::int64_t entries = plan.problem.norm_group.count * plan.problem.c;
  Memory target("combine", plan);
  POPNORM_TRY(target.moments(names_of_moments(), a.moments, entries, true));
  if (a.count < 0) return fail(POPNORM_INVALID, "combine: count is %lld, must be >= 0", ll{a.count});
  if (a.count > 0 && a.parts == nullptr)
    return fail(POPNORM_INVALID, "combine: parts is null, count is %lld", ll{a.count});
  // The list, which is the host's.
  constexpr std::int64_t kPointers = sizeof(popnorm_moment_arrays) / sizeof(double*);
  if (!target.on_device()) POPNORM_TRY(target.array("parts", a.parts, kPointers * a.count, sizeof(double*), false));
  POPNORM_TRY(target.disjoint());
  for (std::int64_t i = 0; i < a.count; ++i) {
    const popnorm_moment_arrays& part = a.parts[i];
    const bool in_place = part.weight == a.moments.weight && part.mean == a.moments.mean && part.m2 == a.moments.m2;
    const auto check = [&](const MomentNames& names) {
      Memory memory("combine", plan);
      POPNORM_TRY(memory.moments(names, part, entries, false));
      if (!in_place) {
        POPNORM_TRY(memory.moments(names_of_moments(), a.moments, entries, true));
        POPNORM_TRY(memory.disjoint());
      }
      return memory.on_device() ? POPNORM_SUCCESS : check_moments_values("combine", names, part, entries);
    };
    // Which part it was is only written where it matters.
    if (check(names_of_moments()) != POPNORM_SUCCESS) return check(MomentNames("parts", i));
  }
  return POPNORM_SUCCESS;
}

popnorm_status validate(const Plan& plan, const popnorm_finalize_args& a) {
  const Problem& p = plan.problem;
  Memory memory("finalize", plan);
  POPNORM_TRY(check_statistics("finalize", p, a, memory));
  const bool given = a.source.statistics == POPNORM_GIVEN;
  if (!given) {
    const std::int64_t entries = p.norm_group.count * p.c;
    POPNORM_TRY(memory.moments(names_of_moments(), a.moments, entries, false));
    if (!memory.on_device()) POPNORM_TRY(check_moments_values("finalize", names_of_moments(), a.moments, entries));
  }
  const bool one_slot = !given && (updates(a.update) || a.source.statistics != POPNORM_BATCH);
  const std::int64_t slots = p.population_slot.count;
  if (one_slot && slots > 1) {
    if (p.norm_group.count > 0)
      POPNORM_TRY(memory.required("group_slot", a.group_slot, p.norm_group.count, sizeof(std::int32_t), false));
    for (std::int64_t g = 0; !memory.on_device() && g < p.norm_group.count; ++g)
      if (a.group_slot[g] < 0 || a.group_slot[g] >= slots)
        return fail(POPNORM_INVALID, "finalize: group_slot[%lld] is %d, must be in [0, %lld)", ll{g}, a.group_slot[g],
                    ll{slots});
  } else if (a.group_slot != nullptr) {
    return fail(POPNORM_INVALID,
                "finalize: group_slot is not null, must be null unless groups feed or are blended with several slots");
  }
  POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, true));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_normalize_args& a) {
  const Problem& p = plan.problem;
  Memory memory("normalize", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("y", a.y, p.y, true));
  POPNORM_TRY(memory.residual("residual", a.residual, p.residual, false, true));
  POPNORM_TRY(memory.reserve_to_mask(a.reserve, a.reserve_bytes, a.batch));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_backward_reduce_args& a) {
  const Problem& p = plan.problem;
  Memory memory("backward_reduce", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  POPNORM_TRY(memory.reserve_with_mask(a.reserve, a.reserve_bytes, a.batch));
  const std::int64_t rows = memory.rows_of_reserve(a.reserve) * p.c;
  const std::int64_t scales = p.affine_slot.count * p.c;
  POPNORM_TRY(memory.required("sum_dy", a.sum_dy, rows, sizeof(double), true));
  POPNORM_TRY(memory.required("sum_dy_xhat", a.sum_dy_xhat, rows, sizeof(double), true));
  POPNORM_TRY(memory.array("dscale", a.dscale, scales, size_of(p.parameters), true));
  POPNORM_TRY(memory.array("dshift", a.dshift, scales, size_of(p.parameters), true));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_backward_apply_args& a) {
  const Problem& p = plan.problem;
  Memory memory("backward_apply", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  POPNORM_TRY(memory.gradients(a.dx, a.dresidual, "", false));
  POPNORM_TRY(memory.reserve_with_mask(a.reserve, a.reserve_bytes, a.batch));
  const bool may_be_null = memory.on_device()
                               ? a.sum_dy == nullptr && a.sum_dy_xhat == nullptr
                               : static_cast<const ReserveHeader*>(a.reserve)->statistics == POPNORM_GIVEN;
  if (!may_be_null) {
    const std::int64_t rows = memory.rows_of_reserve(a.reserve) * p.c;
    POPNORM_TRY(memory.required("sum_dy", a.sum_dy, rows, sizeof(double), false));
    POPNORM_TRY(memory.required("sum_dy_xhat", a.sum_dy_xhat, rows, sizeof(double), false));
  }
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_double_backward_args& a) {
  constexpr const char* operation = "double_backward";
  const Problem& p = plan.problem;
  const std::int64_t scales = p.affine_slot.count * p.c;
  Memory memory(operation, plan);
  if (plan.backend->double_backward == nullptr)
    return fail(POPNORM_UNSUPPORTED, "%s: backend %s has no second derivative; make the plan for cpu", operation,
                plan.backend->name);
  if (is_16_bits(p.storage))
    return fail(POPNORM_UNSUPPORTED, "%s: storage is %s, in which second derivatives lose their digits; use f32 or f64",
                operation, name_of(p.storage));
  if (p.fused())
    return fail(POPNORM_UNSUPPORTED, "%s: the problem has %s, of which there is no second derivative", operation,
                p.adds_residual ? "a residual" : "an activation");
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  if (a.v != nullptr) POPNORM_TRY(memory.tensor("v", a.v, p.dx, false));
  POPNORM_TRY(memory.array("v_scale", a.v_scale, scales, size_of(p.parameters), false));
  POPNORM_TRY(memory.array("v_shift", a.v_shift, scales, size_of(p.parameters), false));
  POPNORM_TRY(memory.tensor("grad_x", a.grad_x, p.y, true));
  if (a.grad_dy != nullptr) POPNORM_TRY(memory.tensor("grad_dy", a.grad_dy, p.dx, true));
  POPNORM_TRY(memory.array("grad_scale", a.grad_scale, scales, size_of(p.parameters), true));
  if (p.weights != POPNORM_UNWEIGHTED)
    return fail(POPNORM_UNSUPPORTED, "%s: the problem has weights, of which there is no second derivative", operation);
  POPNORM_TRY(memory.reserve_of(a.reserve, a.reserve_bytes, a.batch));
  const int statistics = static_cast<const ReserveHeader*>(a.reserve)->statistics;
  if (statistics != POPNORM_BATCH && statistics != POPNORM_GIVEN)
    return fail(POPNORM_UNSUPPORTED, "%s: the reserve's statistics are %d, must be BATCH or GIVEN", operation,
                statistics);
  if (statistics == POPNORM_BATCH &&
      check_one_each(operation, "norm_group", {p.norm_group, a.batch.norm_group}, "affine_slot",
                     {p.affine_slot, a.batch.affine_slot}, p.n,
                     "second derivatives are served only where a group has one scale") != POPNORM_SUCCESS)
    return POPNORM_UNSUPPORTED;
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes, plan.double_backward_bytes));
  return memory.disjoint();
}

popnorm_status validate_fold(const popnorm_fold_args& a) {
  constexpr const char* operation = "fold";
  if (a.c < 1) return fail(POPNORM_INVALID, "%s: c is %lld, must be >= 1", operation, ll{a.c});
  if (a.row < 1) return fail(POPNORM_INVALID, "%s: row is %lld, must be >= 1", operation, ll{a.row});
  if (a.affine_slots < 1)
    return fail(POPNORM_INVALID, "%s: affine_slots is %lld, must be >= 1", operation, ll{a.affine_slots});
  std::int64_t all = 0;
  if (__builtin_mul_overflow(a.c, a.row, &all) || __builtin_mul_overflow(all, a.affine_slots, &all) ||
      all > std::numeric_limits<std::int64_t>::max() / 8)
    return fail(POPNORM_INVALID, "%s: affine_slots %lld x c %lld x row %lld overflows 63 bits in bytes", operation,
                ll{a.affine_slots}, ll{a.c}, ll{a.row});
  POPNORM_TRY(check_enum(operation, "type", a.type, POPNORM_F16));
  if (a.type > POPNORM_F64)
    return fail(POPNORM_UNSUPPORTED, "%s: type %d is not supported; use f32 or f64", operation, number(a.type));
  if (!std::isfinite(a.epsilon) || a.epsilon < 0)
    return fail(POPNORM_INVALID, "%s: epsilon is %g, must be finite and >= 0", operation, a.epsilon);
  const std::int64_t size = a.type == POPNORM_F64 ? 8 : 4;
  const std::int64_t scales = a.affine_slots * a.c;
  const Plan none;
  Memory memory(operation, none);
  const bool in_place = a.affine_slots == 1;
  if (!(in_place && a.weights == a.folded_weights))
    POPNORM_TRY(memory.required("weights", a.weights, a.c * a.row, size, false));
  if (!(in_place && a.bias == a.folded_bias)) POPNORM_TRY(memory.array("bias", a.bias, a.c, size, false));
  POPNORM_TRY(memory.required("mean", a.mean, a.c, size, false));
  POPNORM_TRY(memory.required("variance", a.variance, a.c, size, false));
  POPNORM_TRY(memory.array("scale", a.scale, scales, size, false));
  POPNORM_TRY(memory.array("shift", a.shift, scales, size, false));
  POPNORM_TRY(memory.required("folded_weights", a.folded_weights, all, size, true));
  POPNORM_TRY(memory.required("folded_bias", a.folded_bias, scales, size, true));
  for (std::int64_t c = 0; c < a.c; ++c) {
    const double variance = a.type == POPNORM_F64 ? static_cast<const double*>(a.variance)[c]
                                                  : static_cast<double>(static_cast<const float*>(a.variance)[c]);
    if (!(variance >= 0))
      return fail(POPNORM_INVALID, "%s: variance[%lld] is %g, must be >= 0", operation, ll{c}, variance);
  }
  return memory.disjoint();
}

popnorm_status check_estimator(const char* operation, const popnorm_estimator& estimator) {
  return check_enum(operation, "estimator", estimator, POPNORM_MEAN_OF_BATCH_VARIANCES);
}

popnorm_status validate_feed(const void* population, std::size_t bytes, const popnorm_population_feed_args& a) {
  constexpr const char* operation = "population_feed";
  POPNORM_TRY(check_population(operation, "population", population, bytes));
  POPNORM_TRY(check_enum(operation, "feed", a.feed, POPNORM_FEED_MERGE));
  POPNORM_TRY(check_share(operation, "momentum", a.momentum));
  const auto& header = *static_cast<const popnorm_population_header*>(population);
  const Plan none;
  Memory memory(operation, none);
  const std::int64_t entries = header.slots * header.c;
  POPNORM_TRY(memory.array("population", population, static_cast<std::int64_t>(header.bytes / sizeof(double)),
                           sizeof(double), true));
  POPNORM_TRY(memory.moments(names_of_moments(), a.moments, entries, false));
  POPNORM_TRY(memory.disjoint());
  return check_moments_values(operation, names_of_moments(), a.moments, entries);
}

popnorm_status validate_finalize(const void* population, std::size_t bytes, const popnorm_population_finalize_args& a) {
  constexpr const char* operation = "population_finalize";
  POPNORM_TRY(check_population(operation, "population", population, bytes));
  POPNORM_TRY(check_estimator(operation, a.estimator));
  POPNORM_TRY(check_enum(operation, "type", a.type, POPNORM_F16));
  if (a.type > POPNORM_F64)
    return fail(POPNORM_UNSUPPORTED, "%s: type %d is not supported; use f32 or f64", operation, number(a.type));
  if (a.mean == nullptr && a.variance == nullptr)
    return fail(POPNORM_INVALID, "%s: mean and variance are both null, at least one must be asked for", operation);
  const auto& header = *static_cast<const popnorm_population_header*>(population);
  const std::int64_t count = header.slots * header.c;
  const std::int64_t size = a.type == POPNORM_F64 ? 8 : 4;
  const Plan shape;
  Memory memory(operation, shape);
  POPNORM_TRY(memory.array("population", population, static_cast<std::int64_t>(header.bytes / sizeof(double)),
                           sizeof(double), false));
  POPNORM_TRY(memory.array("mean", a.mean, count, size, true));
  POPNORM_TRY(memory.array("variance", a.variance, count, size, true));
  return memory.disjoint();
}

}  // namespace popnorm
