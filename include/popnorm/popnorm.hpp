// popnorm for C++20: RAII and exceptions over popnorm.h, header-only, without state of its own.
//
//   popnorm_problem problem = popnorm::problem_nchw(n, c, s);
//   popnorm::plan plan(problem);
//   popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
//   popnorm_forward_args args = popnorm::forward_args(workspace, reserve);
//   args.x = x; args.y = y;
//   plan.forward(args);
//
// Shapes, aliasing rules and errors are those of popnorm.h; every status but POPNORM_SUCCESS is thrown as
// popnorm::error.
#ifndef POPNORM_POPNORM_HPP
#define POPNORM_POPNORM_HPP

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace popnorm {

// A status and the message that popnorm_last_error() held.
class error : public std::runtime_error {
 public:
  explicit error(popnorm_status status, const char* message = popnorm_last_error())
      : std::runtime_error(std::string(popnorm_status_string(status)) + ": " + message), status_(status) {}
  [[nodiscard]] popnorm_status status() const noexcept { return status_; }

 private:
  popnorm_status status_;
};

inline void check(popnorm_status status) {
  if (status != POPNORM_SUCCESS) throw error(status);
}

// Uninitialized bytes at the alignment that workspace and reserve ask for.
class buffer {
 public:
  buffer() noexcept : data_(nullptr, release{alignof(std::max_align_t)}) {}
  buffer(std::size_t bytes, std::size_t alignment)
      : data_(::operator new (bytes, std::align_val_t{alignment}), release{alignment}), bytes_(bytes) {}
  [[nodiscard]] void* data() noexcept { return data_.get(); }
  [[nodiscard]] const void* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  struct release {
    std::size_t alignment;
    void operator()(void* data) const noexcept { ::operator delete (data, std::align_val_t{alignment}); }
  };
  std::unique_ptr<void, release> data_;
  std::size_t bytes_ = 0;
};

inline popnorm_problem problem(popnorm_layout layout, std::int64_t n, std::int64_t c, std::int64_t s,
                               double epsilon = 1e-5) noexcept {
  popnorm_problem p = POPNORM_PROBLEM_INIT;
  p.n = n;
  p.c = c;
  p.s = s;
  p.layout = layout;
  p.epsilon = epsilon;
  return p;
}

inline popnorm_problem problem_nchw(std::int64_t n, std::int64_t c, std::int64_t s, double epsilon = 1e-5) noexcept {
  return problem(POPNORM_NCHW, n, c, s, epsilon);
}

inline popnorm_problem problem_nhwc(std::int64_t n, std::int64_t c, std::int64_t s, double epsilon = 1e-5) noexcept {
  return problem(POPNORM_NHWC, n, c, s, epsilon);
}

// Argument structs with workspace and reserve filled in. The buffers must outlive the call.
inline popnorm_forward_args forward_args(buffer& workspace) noexcept {
  popnorm_forward_args a = POPNORM_FORWARD_ARGS_INIT;
  a.workspace = workspace.data();
  a.workspace_bytes = workspace.size();
  return a;
}

inline popnorm_forward_args forward_args(buffer& workspace, buffer& reserve) noexcept {
  popnorm_forward_args a = forward_args(workspace);
  a.reserve = reserve.data();
  a.reserve_bytes = reserve.size();
  return a;
}

inline popnorm_backward_args backward_args(buffer& workspace, const buffer& reserve) noexcept {
  popnorm_backward_args a = POPNORM_BACKWARD_ARGS_INIT;
  a.workspace = workspace.data();
  a.workspace_bytes = workspace.size();
  a.reserve = reserve.data();
  a.reserve_bytes = reserve.size();
  return a;
}

// Maps of a problem: what the batch is.
inline popnorm_map contiguous(std::int64_t k) noexcept { return {POPNORM_CONTIGUOUS, k}; }
inline popnorm_map strided(std::int64_t k) noexcept { return {POPNORM_STRIDED, k}; }
inline popnorm_map per_sample() noexcept { return {POPNORM_PER_SAMPLE, 0}; }
inline popnorm_map labels(std::int64_t k) noexcept { return {POPNORM_LABELS, k}; }

// An immutable plan: movable, shareable between threads by reference.
class plan {
 public:
  explicit plan(const popnorm_problem& problem) : plan(problem, nullptr) {}
  plan(const popnorm_problem& problem, const popnorm_options& options) : plan(problem, &options) {}

  [[nodiscard]] const popnorm_plan* get() const noexcept { return plan_.get(); }
  [[nodiscard]] const popnorm_plan_info& info() const noexcept { return info_; }
  [[nodiscard]] buffer make_workspace() const { return {info_.workspace_bytes, info_.workspace_alignment}; }
  [[nodiscard]] buffer make_double_backward_workspace() const {
    return {info_.double_backward_workspace_bytes, info_.workspace_alignment};
  }
  [[nodiscard]] buffer make_reserve() const { return {info_.reserve_bytes, info_.reserve_alignment}; }

  void forward(const popnorm_forward_args& a, void* stream = nullptr) const {
    check(popnorm_forward(get(), &a, stream));
  }
  void backward(const popnorm_backward_args& a, void* stream = nullptr) const {
    check(popnorm_backward(get(), &a, stream));
  }
  void moments(const popnorm_moments_args& a, void* stream = nullptr) const {
    check(popnorm_moments(get(), &a, stream));
  }
  void combine(const popnorm_combine_args& a, void* stream = nullptr) const {
    check(popnorm_combine(get(), &a, stream));
  }
  void finalize(const popnorm_finalize_args& a, void* stream = nullptr) const {
    check(popnorm_finalize(get(), &a, stream));
  }
  void normalize(const popnorm_normalize_args& a, void* stream = nullptr) const {
    check(popnorm_normalize(get(), &a, stream));
  }
  void backward_reduce(const popnorm_backward_reduce_args& a, void* stream = nullptr) const {
    check(popnorm_backward_reduce(get(), &a, stream));
  }
  void backward_apply(const popnorm_backward_apply_args& a, void* stream = nullptr) const {
    check(popnorm_backward_apply(get(), &a, stream));
  }
  void double_backward(const popnorm_double_backward_args& a, void* stream = nullptr) const {
    check(popnorm_double_backward(get(), &a, stream));
  }

 private:
  plan(const popnorm_problem& problem, const popnorm_options* options) {
    popnorm_plan* made = nullptr;
    check(popnorm_plan_create(&problem, options, &made));
    plan_.reset(made);
    check(popnorm_plan_query(made, &info_));
  }
  struct destroy {
    void operator()(popnorm_plan* p) const noexcept { popnorm_plan_destroy(p); }
  };
  std::unique_ptr<popnorm_plan, destroy> plan_;
  popnorm_plan_info info_ = POPNORM_PLAN_INFO_INIT;
};

// A population buffer (see popnorm.h) that owns its bytes. Movable; copy() keeps a state to roll back to.
class population {
 public:
  population(std::int64_t slots, std::int64_t c) {
    std::size_t bytes = 0;
    check(popnorm_population_size(slots, c, &bytes));
    data_ = buffer(bytes, alignof(double));
    reset(slots, c);
  }
  [[nodiscard]] void* data() noexcept { return data_.data(); }
  [[nodiscard]] const void* data() const noexcept { return data_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return data_.size(); }
  [[nodiscard]] const popnorm_population_header& header() const noexcept {
    return *static_cast<const popnorm_population_header*>(data_.data());
  }
  [[nodiscard]] population copy() const {
    population other(header().slots, header().c);
    std::memcpy(other.data(), data(), size());
    return other;
  }
  // Empties it.
  void reset() { reset(header().slots, header().c); }
  void feed(const popnorm_population_feed_args& a) { check(popnorm_population_feed(data(), size(), &a)); }
  void finalize(const popnorm_population_finalize_args& a) const {
    check(popnorm_population_finalize(data(), size(), &a));
  }
  void combine(const population& other) {
    check(popnorm_population_combine(data(), size(), other.data(), other.size()));
  }
  void subtract(const population& other) {
    check(popnorm_population_subtract(data(), size(), other.data(), other.size()));
  }
  void decay(double factor) { check(popnorm_population_decay(data(), size(), factor)); }
  [[nodiscard]] std::vector<double> standard_error() const {
    std::vector<double> error(static_cast<std::size_t>(header().slots * header().c));
    check(popnorm_population_standard_error(data(), size(), error.data()));
    return error;
  }
  [[nodiscard]] popnorm_drift drift_from(const population& reference,
                                         popnorm_estimator estimator = POPNORM_BIASED) const {
    popnorm_drift drift = POPNORM_DRIFT_INIT;
    drift.estimator = estimator;
    check(popnorm_population_drift(data(), size(), reference.data(), reference.size(), &drift));
    return drift;
  }
  [[nodiscard]] std::vector<std::byte> serialize() const {
    std::vector<std::byte> bytes(size());
    check(popnorm_population_serialize(data(), size(), bytes.data(), bytes.size()));
    return bytes;
  }
  // INVALID: bytes of another shape than this population's, besides popnorm_population_deserialize's reasons.
  void deserialize(const std::vector<std::byte>& bytes) {
    buffer read(size(), alignof(double));
    check(popnorm_population_deserialize(bytes.data(), bytes.size(), read.data(), read.size()));
    const auto& other = *static_cast<const popnorm_population_header*>(read.data());
    if (other.slots != header().slots || other.c != header().c)
      throw error(POPNORM_INVALID, "population: the bytes are of a population of another shape, must be of the same");
    std::memcpy(data(), read.data(), size());
  }

 private:
  void reset(std::int64_t slots, std::int64_t c) { check(popnorm_population_init(data(), size(), slots, c)); }
  buffer data_;
};

// Updates of a population that hold only if commit() is called: otherwise, by an exception say, the state of construction
// comes back, at its address if the population still has its size.
class population_transaction {
 public:
  explicit population_transaction(population& target) : target_(target), before_(target.copy()) {}
  population_transaction(const population_transaction&) = delete;
  population_transaction& operator=(const population_transaction&) = delete;
  ~population_transaction() {
    if (committed_) return;
    if (target_.data() != nullptr && target_.size() == before_.size())
      std::memcpy(target_.data(), before_.data(), before_.size());
    else
      target_ = std::move(before_);
  }
  void commit() noexcept { committed_ = true; }

 private:
  population& target_;
  population before_;
  bool committed_ = false;
};

}  // namespace popnorm

#endif
