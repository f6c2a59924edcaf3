#include "core/validate.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/population.hpp"
#include "core/reserve.hpp"

#define POPNORM_TRY(expression) \
  if (const popnorm_status status_ = (expression); status_ != POPNORM_SUCCESS) return status_

namespace popnorm {
namespace {

using ll = long long;

// An enum field may hold any number: read it as one.
template <class Enum>
int number(const Enum& value) {
  static_assert(sizeof(Enum) == sizeof(int));
  int n;
  std::memcpy(&n, &value, sizeof(n));
  return n;
}

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
                ll{to.sample}, ll{to.row});
  const bool rows_inside = (rows <= 1 || to.row >= length) && (p.n <= 1 || to.sample >= (rows - 1) * to.row + length);
  const bool samples_inside =
      (p.n <= 1 || to.sample >= length) && (rows <= 1 || to.row >= (p.n - 1) * to.sample + length);
  if (p.n > 0 && p.s > 0 && !rows_inside && !samples_inside)
    return fail(POPNORM_INVALID,
                "plan: strides of %s (sample %lld, row %lld) let rows of %lld elements overlap; 0 means packed", name,
                ll{to.sample}, ll{to.row}, ll{length});
  return POPNORM_SUCCESS;
}

// ----------------------------------------------------------------------------------------------------------------
// memory

// A piece of the caller's memory: solid, or the rows of a tensor.
struct Region {
  const char* name;
  const char* first;
  std::int64_t bytes;  // from the first to the last byte
  bool written;
  Strides pitch;  // strides in bytes; 0, 0: solid
  std::int64_t row_bytes;
};

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

  popnorm_status workspace(const void* first, std::size_t bytes) {
    if (plan_.workspace_bytes == 0) return POPNORM_SUCCESS;
    return buffer("workspace", first, bytes, plan_.workspace_bytes, true);
  }

  popnorm_status reserve(const void* first, std::size_t bytes, bool written) {
    POPNORM_TRY(buffer("reserve", first, bytes, plan_.reserve_bytes, written));
    if (written || reserve_matches(*static_cast<const ReserveHeader*>(first), problem_)) return POPNORM_SUCCESS;
    return fail(
        POPNORM_INVALID,
        "%s: reserve was not written by a forward or finalize with C = %lld and this storage type; pass forward's",
        operation_, ll{problem_.c});
  }

  popnorm_status moments(const char* name, const popnorm_moment_arrays& m, bool written) {
    if (m.weight == nullptr || m.mean == nullptr || m.m2 == nullptr)
      return fail(POPNORM_INVALID, "%s: %s needs all of weight, mean and m2; %s is null", operation_, name,
                  m.weight == nullptr ? "weight"
                  : m.mean == nullptr ? "mean"
                                      : "m2");
    POPNORM_TRY(array("moments.weight", m.weight, problem_.c, sizeof(double), written));
    POPNORM_TRY(array("moments.mean", m.mean, problem_.c, sizeof(double), written));
    return array("moments.m2", m.m2, problem_.c, sizeof(double), written);
  }

  popnorm_status population(const char* name, const void* first, std::size_t bytes, bool written) {
    POPNORM_TRY(check_population(operation_, name, first, bytes));
    const auto& header = *static_cast<const popnorm_population_header*>(first);
    if (header.c != problem_.c)
      return fail(POPNORM_INVALID, "%s: %s has %lld channels, expected C = %lld", operation_, name, ll{header.c},
                  ll{problem_.c});
    if (header.slots != 1)
      return fail(POPNORM_INVALID, "%s: %s has %lld slots, expected 1", operation_, name, ll{header.slots});
    return add(solid(name, first, static_cast<std::int64_t>(header.bytes), written));
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

  popnorm_status buffer(const char* name, const void* first, std::size_t bytes, std::size_t needed, bool written) {
    if (bytes < needed)
      return fail(POPNORM_INVALID, "%s: %s has %zu bytes, needs %zu (popnorm_plan_query)", operation_, name, bytes,
                  needed);
    if (first == nullptr)
      return fail(POPNORM_INVALID, "%s: %s is null, must point to %zu bytes", operation_, name, needed);
    POPNORM_TRY(aligned(name, first, kBufferAlignment));
    return add(solid(name, first, static_cast<std::int64_t>(needed), written));
  }

  popnorm_status add(const Region& region) {
    region_[count_++] = region;
    return POPNORM_SUCCESS;
  }

  static bool same_memory(const Region& a, const Region& b) {
    return a.first == b.first && a.pitch.sample == b.pitch.sample && a.pitch.row == b.pitch.row && a.bytes == b.bytes;
  }

  static bool is(const Region& r, const char* name) { return std::strcmp(r.name, name) == 0; }

  static bool in_place(const Region& w, const Region& o) {
    return same_memory(w, o) && ((is(w, "y") && is(o, "x")) || (is(w, "dx") && (is(o, "dy") || is(o, "x"))));
  }

  // Two tensors of the same strides, side by side in one allocation: rows start `distance` apart, give or take whole
  // pitches.
  bool rows_meet(const Region& a, std::int64_t distance) const {
    const bool samples_outside = a.pitch.sample >= a.pitch.row;
    const std::int64_t outer = samples_outside ? a.pitch.sample : a.pitch.row;
    const std::int64_t inner = samples_outside ? a.pitch.row : a.pitch.sample;
    const std::int64_t outer_count = samples_outside ? problem_.n : problem_.rows();
    const std::int64_t inner_count = samples_outside ? problem_.rows() : problem_.n;
    for (std::int64_t i = distance / outer - 1; i <= distance / outer + 1; ++i) {
      if (i <= -outer_count || i >= outer_count) continue;
      const std::int64_t rest = distance - i * outer;
      for (std::int64_t j = rest / inner - 1; j <= rest / inner + 1; ++j) {
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
};

popnorm_status check_moments_values(const char* operation, const popnorm_moment_arrays& m, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (m.weight[i] < 0)
      return fail(POPNORM_INVALID, "%s: moments.weight[%lld] is %g, must be >= 0", operation, ll{i}, m.weight[i]);
    if (m.m2[i] < 0)
      return fail(POPNORM_INVALID, "%s: moments.m2[%lld] is %g, must be >= 0", operation, ll{i}, m.m2[i]);
  }
  return POPNORM_SUCCESS;
}

// The part that forward and finalize share: where statistics come from, and what is fed and saved.
template <class Args>
popnorm_status check_statistics(const char* operation, const Problem& p, const Args& a, Memory& memory) {
  const std::int64_t parameter = size_of(p.parameters);
  const std::int64_t statistic = size_of(p.statistics);
  POPNORM_TRY(check_enum(operation, "statistics", a.statistics, POPNORM_GIVEN));
  POPNORM_TRY(check_enum(operation, "given_estimator", a.given_estimator, POPNORM_MEAN_OF_BATCH_VARIANCES));
  POPNORM_TRY(check_enum(operation, "feed", a.feed, POPNORM_FEED_MERGE));
  POPNORM_TRY(check_share(operation, "momentum", a.momentum));
  POPNORM_TRY(memory.array("scale", a.scale, p.c, parameter, false));
  POPNORM_TRY(memory.array("shift", a.shift, p.c, parameter, false));
  const bool given_arrays = a.mean != nullptr || a.variance != nullptr;
  if (a.statistics == POPNORM_BATCH) {
    if (given_arrays || a.given_population != nullptr)
      return fail(POPNORM_INVALID, "%s: %s is not null, must be with statistics = BATCH; or set statistics = GIVEN",
                  operation,
                  a.mean != nullptr       ? "mean"
                  : a.variance != nullptr ? "variance"
                                          : "given_population");
    POPNORM_TRY(memory.array("running_mean", a.running_mean, p.c, statistic, true));
    POPNORM_TRY(memory.array("running_variance", a.running_variance, p.c, statistic, true));
    if (a.population != nullptr) POPNORM_TRY(memory.population("population", a.population, a.population_bytes, true));
  } else {
    if (a.running_mean != nullptr || a.running_variance != nullptr || a.population != nullptr)
      return fail(POPNORM_INVALID, "%s: %s is not null, must be with statistics = GIVEN (nothing is fed)", operation,
                  a.running_mean != nullptr       ? "running_mean"
                  : a.running_variance != nullptr ? "running_variance"
                                                  : "population");
    if (a.moments.weight != nullptr || a.moments.mean != nullptr || a.moments.m2 != nullptr)
      return fail(POPNORM_INVALID, "%s: moments is not null, must be with statistics = GIVEN", operation);
    if (a.given_population != nullptr) {
      if (given_arrays)
        return fail(POPNORM_INVALID, "%s: both given_population and mean, variance are given, must be one of them",
                    operation);
      POPNORM_TRY(memory.population("given_population", a.given_population, a.given_population_bytes, false));
    } else {
      if (a.mean == nullptr || a.variance == nullptr)
        return fail(POPNORM_INVALID, "%s: %s is null, statistics = GIVEN needs mean and variance or given_population",
                    operation, a.mean == nullptr ? "mean" : "variance");
      POPNORM_TRY(memory.array("mean", a.mean, p.c, statistic, false));
      POPNORM_TRY(memory.array("variance", a.variance, p.c, statistic, false));
    }
  }
  POPNORM_TRY(memory.array("saved_mean", a.saved_mean, p.c, statistic, true));
  return memory.array("saved_invstd", a.saved_invstd, p.c, statistic, true);
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
  if (q.storage > POPNORM_F64)
    return fail(POPNORM_UNSUPPORTED, "plan: storage %s is not in this version; use f32 or f64",
                q.storage == POPNORM_BF16 ? "bf16" : "f16");
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
  // c rows of statistics must be addressable too, also where n or s is 0.
  if (__builtin_mul_overflow(p.n, p.c, &elements) || __builtin_mul_overflow(elements, p.s, &elements) ||
      elements > std::numeric_limits<std::int64_t>::max() / 8 || p.c > std::numeric_limits<std::int64_t>::max() / 1024)
    return fail(POPNORM_INVALID, "plan: n %lld x c %lld x s %lld overflows 63 bits in bytes", ll{p.n}, ll{p.c},
                ll{p.s});

  POPNORM_TRY(resolve_strides("x", p, p.layout, q.x, p.x));
  POPNORM_TRY(resolve_strides("y", p, p.layout, q.y, p.y));
  POPNORM_TRY(resolve_strides("dy", p, p.layout, q.dy, p.dy));
  POPNORM_TRY(resolve_strides("dx", p, p.layout, q.dx, p.dx));

  // Vectors run over whatever is contiguous. Where channels (NCHW with s = 1) or positions (NHWC with c = 1) are too,
  // the other form is the efficient one.
  p.form = p.layout == POPNORM_NCHW ? Form::rows : Form::columns;
  Strides* const strides[] = {&p.x, &p.y, &p.dy, &p.dx};
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
  to = {o.backend, o.schedule, o.stores, o.isa, o.executor};
  return POPNORM_SUCCESS;
}

popnorm_status validate(const Plan& plan, const popnorm_forward_args& a) {
  const Problem& p = plan.problem;
  Memory memory("forward", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("y", a.y, p.y, true));
  POPNORM_TRY(check_statistics("forward", p, a, memory));
  if (a.moments.weight != nullptr || a.moments.mean != nullptr || a.moments.m2 != nullptr)
    POPNORM_TRY(memory.moments("moments", a.moments, true));
  if (a.reserve != nullptr || a.reserve_bytes != 0) POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, true));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_backward_args& a) {
  const Problem& p = plan.problem;
  Memory memory("backward", plan);
  if (a.dx == nullptr && a.dscale == nullptr && a.dshift == nullptr)
    return fail(POPNORM_INVALID, "backward: dx, dscale and dshift are all null, at least one must be asked for");
  if (a.accumulate != 0 && a.accumulate != 1)
    return fail(POPNORM_INVALID, "backward: accumulate is %d, must be 0 or 1", a.accumulate);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  if (a.dx != nullptr) POPNORM_TRY(memory.tensor("dx", a.dx, p.dx, true));
  POPNORM_TRY(memory.array("dscale", a.dscale, p.c, size_of(p.parameters), true));
  POPNORM_TRY(memory.array("dshift", a.dshift, p.c, size_of(p.parameters), true));
  const bool saved = a.saved_mean != nullptr || a.saved_invstd != nullptr;
  POPNORM_TRY(check_enum("backward", "statistics", a.statistics, POPNORM_GIVEN));
  if (a.reserve != nullptr) {
    if (saved)
      return fail(POPNORM_INVALID,
                  "backward: both reserve and saved_mean, saved_invstd are given, must be one of them");
    if (a.scale != nullptr)
      return fail(POPNORM_INVALID,
                  "backward: scale is not null, must be with a reserve (it holds the scale that forward used)");
    if (a.statistics != POPNORM_BATCH)
      return fail(POPNORM_INVALID, "backward: statistics is %d, must be 0 with a reserve (it holds its source)",
                  number(a.statistics));
    POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, false));
  } else {
    if (!saved)
      return fail(POPNORM_INVALID,
                  "backward: reserve is null, must be forward's (or give saved_mean and saved_invstd)");
    POPNORM_TRY(memory.required("saved_mean", a.saved_mean, p.c, size_of(p.statistics), false));
    POPNORM_TRY(memory.required("saved_invstd", a.saved_invstd, p.c, size_of(p.statistics), false));
    POPNORM_TRY(memory.array("scale", a.scale, p.c, size_of(p.parameters), false));
  }
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_moments_args& a) {
  Memory memory("moments", plan);
  POPNORM_TRY(memory.tensor("x", a.x, plan.problem.x, false));
  POPNORM_TRY(memory.moments("moments", a.moments, true));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_combine_args& a) {
  const std::int64_t c = plan.problem.c;
  Memory target("combine", plan);
  POPNORM_TRY(target.moments("moments", a.moments, true));
  POPNORM_TRY(target.disjoint());
  if (a.count < 0) return fail(POPNORM_INVALID, "combine: count is %lld, must be >= 0", ll{a.count});
  if (a.count > 0 && a.parts == nullptr)
    return fail(POPNORM_INVALID, "combine: parts is null, count is %lld", ll{a.count});
  for (std::int64_t i = 0; i < a.count; ++i) {
    const popnorm_moment_arrays& part = a.parts[i];
    const bool in_place = part.weight == a.moments.weight && part.mean == a.moments.mean && part.m2 == a.moments.m2;
    Memory memory("combine", plan);
    POPNORM_TRY(memory.moments("parts", part, false));
    if (!in_place) {
      POPNORM_TRY(memory.moments("moments", a.moments, true));
      POPNORM_TRY(memory.disjoint());
    }
    POPNORM_TRY(check_moments_values("combine", part, c));
  }
  return POPNORM_SUCCESS;
}

popnorm_status validate(const Plan& plan, const popnorm_finalize_args& a) {
  const Problem& p = plan.problem;
  Memory memory("finalize", plan);
  POPNORM_TRY(check_statistics("finalize", p, a, memory));
  if (a.statistics == POPNORM_BATCH) {
    POPNORM_TRY(memory.moments("moments", a.moments, false));
    POPNORM_TRY(check_moments_values("finalize", a.moments, p.c));
  }
  POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, true));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_normalize_args& a) {
  const Problem& p = plan.problem;
  Memory memory("normalize", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("y", a.y, p.y, true));
  POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, false));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_backward_reduce_args& a) {
  const Problem& p = plan.problem;
  Memory memory("backward_reduce", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  POPNORM_TRY(memory.required("sum_dy", a.sum_dy, p.c, sizeof(double), true));
  POPNORM_TRY(memory.required("sum_dy_xhat", a.sum_dy_xhat, p.c, sizeof(double), true));
  POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, false));
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate(const Plan& plan, const popnorm_backward_apply_args& a) {
  const Problem& p = plan.problem;
  Memory memory("backward_apply", plan);
  POPNORM_TRY(memory.tensor("x", a.x, p.x, false));
  POPNORM_TRY(memory.tensor("dy", a.dy, p.dy, false));
  POPNORM_TRY(memory.tensor("dx", a.dx, p.dx, true));
  POPNORM_TRY(memory.reserve(a.reserve, a.reserve_bytes, false));
  const bool batch = static_cast<const ReserveHeader*>(a.reserve)->statistics == POPNORM_BATCH;
  if (batch) {
    POPNORM_TRY(memory.required("sum_dy", a.sum_dy, p.c, sizeof(double), false));
    POPNORM_TRY(memory.required("sum_dy_xhat", a.sum_dy_xhat, p.c, sizeof(double), false));
  }
  POPNORM_TRY(memory.workspace(a.workspace, a.workspace_bytes));
  return memory.disjoint();
}

popnorm_status validate_feed(const void* population, std::size_t bytes, const popnorm_population_feed_args& a) {
  constexpr const char* operation = "population_feed";
  POPNORM_TRY(check_population(operation, "population", population, bytes));
  POPNORM_TRY(check_enum(operation, "feed", a.feed, POPNORM_FEED_MERGE));
  POPNORM_TRY(check_share(operation, "momentum", a.momentum));
  const auto& header = *static_cast<const popnorm_population_header*>(population);
  Plan shape;
  shape.problem.c = header.slots * header.c;
  Memory memory(operation, shape);
  POPNORM_TRY(memory.array("population", population, static_cast<std::int64_t>(header.bytes / sizeof(double)),
                           sizeof(double), true));
  POPNORM_TRY(memory.moments("moments", a.moments, false));
  POPNORM_TRY(memory.disjoint());
  return check_moments_values(operation, a.moments, shape.problem.c);
}

popnorm_status validate_finalize(const void* population, std::size_t bytes, const popnorm_population_finalize_args& a) {
  constexpr const char* operation = "population_finalize";
  POPNORM_TRY(check_population(operation, "population", population, bytes));
  POPNORM_TRY(check_enum(operation, "estimator", a.estimator, POPNORM_MEAN_OF_BATCH_VARIANCES));
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
