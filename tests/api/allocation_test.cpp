// Run entries allocate nothing. malloc and its relatives, operator new (which calls malloc) and mmap are this executable's, and count.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cerrno>
#include <cstdlib>
#include <popnorm/popnorm.hpp>
#include <thread>
#include <vector>

#include "support/random.hpp"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void count() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

extern "C" {
// glibc's own, under names that nobody replaces.
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  count();
  return __libc_malloc(bytes);
}
void* calloc(std::size_t number, std::size_t bytes) {
  count();
  return __libc_calloc(number, bytes);
}
void* realloc(void* old, std::size_t bytes) {
  count();
  return __libc_realloc(old, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
  count();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory != nullptr ? 0 : ENOMEM;
}
void* mmap(void* at, std::size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  count();
  return reinterpret_cast<void*>(::syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
}
}

namespace popnorm_test {
namespace {

// Allocations of `body`, by any thread.
template <class Body>
int allocations_of(const Body& body) {
  allocations = 0;
  counting = true;
  body();
  counting = false;
  return allocations;
}

// Two threads that are there before the call: a caller's executor that itself allocates nothing.
class Pair {
 public:
  Pair()
      : other_([this] {
          for (;;) {
            meeting_.arrive_and_wait();
            if (task_ == nullptr) return;
            work(1);
            meeting_.arrive_and_wait();
          }
        }) {}
  ~Pair() {
    task_ = nullptr;
    meeting_.arrive_and_wait();
    other_.join();
  }
  Pair(const Pair&) = delete;

  popnorm_executor interface() {
    popnorm_executor e = POPNORM_EXECUTOR_INIT;
    e.context = this;
    e.concurrency = 2;
    e.parallel_for = [](void* context, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
      auto& self = *static_cast<Pair*>(context);
      self.count_ = count;
      self.task_ = task;
      self.argument_ = argument;
      ++self.calls;
      self.meeting_.arrive_and_wait();
      self.work(0);
      self.meeting_.arrive_and_wait();
    };
    return e;
  }

  int calls = 0;

 private:
  void work(std::int64_t first) const {
    for (std::int64_t i = first; i < count_; i += 2) task_(argument_, i);
  }

  std::int64_t count_ = 0;
  void (*task_)(void*, std::int64_t) = nullptr;
  void* argument_ = nullptr;
  std::barrier<> meeting_{2};
  std::thread other_;
};

// All that calls on one problem need, made beforehand.
class Calls {
 public:
  Calls(const popnorm_problem& problem, const popnorm_options& options)
      : p_(problem),
        plan_(problem, options),
        workspace_(plan_.make_workspace()),
        second_workspace_(plan_.make_double_backward_workspace()),
        reserve_(plan_.make_reserve()),
        population_(2, problem.c) {
    Random random("allocation");
    const auto size = static_cast<std::size_t>(p_.n * p_.c * p_.s);
    for (std::vector<float>* t : {&x_, &y_, &dy_, &dx_, &residual_, &dresidual_})
      for (std::size_t i = 0; i < size; ++i) t->push_back(static_cast<float>(random.normal()));
    for (std::int64_t i = 0; i < p_.n; ++i) labels_.push_back(static_cast<std::int32_t>(i % 2));
    weights_.assign(static_cast<std::size_t>(p_.n), 0.5F);
    const popnorm_plan_info info = plan_.info();
    const auto entries =
        static_cast<std::size_t>(std::max({info.groups, info.population_slots, info.affine_slots}) * p_.c);
    for (std::vector<float>& v : vector_) v.assign(entries, 1);
    for (std::vector<double>& v : moment_) v.assign(entries, 1);
    slot_of_group_.assign(static_cast<std::size_t>(info.groups), 0);
    for (std::size_t i = 0; i < slot_of_group_.size(); ++i) slot_of_group_[i] = static_cast<std::int32_t>(i % 2);
  }

  void run(bool second_derivative) {
    const bool labelled = p_.norm_group.kind == POPNORM_LABELS;
    popnorm_batch batch = POPNORM_BATCH_INIT;
    if (labelled) batch.norm_group = batch.population_slot = batch.affine_slot = labels_.data();
    if (p_.weights != POPNORM_UNWEIGHTED) batch.weights = weights_.data();

    popnorm_forward_args f = popnorm::forward_args(workspace_, reserve_);
    f.x = x_.data();
    f.y = y_.data();
    if (p_.adds_residual != 0) f.residual = residual_.data();
    f.scale = vector_[0].data();
    f.shift = vector_[1].data();
    f.batch = batch;
    f.saved_mean = vector_[2].data();
    f.saved_invstd = vector_[3].data();
    f.moments = moments();
    f.update.running_mean = vector_[4].data();
    f.update.running_variance = vector_[5].data();
    if (labelled) {
      f.update.population = population_.data();
      f.update.population_bytes = population_.size();
    }
    expect_success(popnorm_forward(plan_.get(), &f, nullptr));

    popnorm_backward_args b = popnorm::backward_args(workspace_, reserve_);
    b.x = x_.data();
    b.dy = dy_.data();
    b.dx = dx_.data();
    if (p_.adds_residual != 0) b.dresidual = dresidual_.data();
    b.dscale = vector_[6].data();
    b.dshift = vector_[7].data();
    b.batch = batch;
    expect_success(popnorm_backward(plan_.get(), &b, nullptr));

    popnorm_moments_args m = POPNORM_MOMENTS_ARGS_INIT;
    m.x = x_.data();
    m.batch = batch;
    m.moments = moments();
    m.workspace = workspace_.data();
    m.workspace_bytes = workspace_.size();
    expect_success(popnorm_moments(plan_.get(), &m, nullptr));

    const popnorm_moment_arrays parts[] = {moments(), moments(), moments()};
    popnorm_combine_args c = POPNORM_COMBINE_ARGS_INIT;
    c.parts = parts;
    c.count = 3;
    c.moments = moments();
    expect_success(popnorm_combine(plan_.get(), &c, nullptr));

    popnorm_finalize_args z = POPNORM_FINALIZE_ARGS_INIT;
    z.moments = moments();
    z.update = f.update;
    if (labelled) z.group_slot = slot_of_group_.data();
    z.scale = f.scale;
    z.shift = f.shift;
    z.reserve = reserve_.data();
    z.reserve_bytes = reserve_.size();
    expect_success(popnorm_finalize(plan_.get(), &z, nullptr));

    popnorm_normalize_args n = POPNORM_NORMALIZE_ARGS_INIT;
    n.x = f.x;
    n.y = f.y;
    n.residual = f.residual;
    n.batch = batch;
    n.reserve = reserve_.data();
    n.reserve_bytes = reserve_.size();
    n.workspace = workspace_.data();
    n.workspace_bytes = workspace_.size();
    expect_success(popnorm_normalize(plan_.get(), &n, nullptr));

    popnorm_backward_reduce_args r = POPNORM_BACKWARD_REDUCE_ARGS_INIT;
    r.x = b.x;
    r.dy = b.dy;
    r.batch = batch;
    r.sum_dy = moment_[0].data();
    r.sum_dy_xhat = moment_[1].data();
    r.reserve = reserve_.data();
    r.reserve_bytes = reserve_.size();
    r.workspace = workspace_.data();
    r.workspace_bytes = workspace_.size();
    expect_success(popnorm_backward_reduce(plan_.get(), &r, nullptr));

    popnorm_backward_apply_args a = POPNORM_BACKWARD_APPLY_ARGS_INIT;
    a.x = b.x;
    a.dy = b.dy;
    a.dx = b.dx;
    a.dresidual = b.dresidual;
    a.batch = batch;
    a.sum_dy = r.sum_dy;
    a.sum_dy_xhat = r.sum_dy_xhat;
    a.reserve = reserve_.data();
    a.reserve_bytes = reserve_.size();
    a.workspace = workspace_.data();
    a.workspace_bytes = workspace_.size();
    expect_success(popnorm_backward_apply(plan_.get(), &a, nullptr));

    // Refusals neither.
    a.dx = const_cast<void*>(a.x);
    a.reserve = nullptr;
    refused_ += popnorm_backward_apply(plan_.get(), &a, nullptr) == POPNORM_INVALID;

    if (!second_derivative) return;
    popnorm_double_backward_args d = POPNORM_DOUBLE_BACKWARD_ARGS_INIT;
    d.x = b.x;
    d.dy = b.dy;
    d.v = residual_.data();
    d.batch = batch;
    d.reserve = reserve_.data();
    d.reserve_bytes = reserve_.size();
    d.grad_x = dresidual_.data();
    d.grad_dy = y_.data();
    d.workspace = second_workspace_.data();
    d.workspace_bytes = second_workspace_.size();
    expect_success(popnorm_double_backward(plan_.get(), &d, nullptr));
  }

  [[nodiscard]] int failures() const { return failures_; }
  [[nodiscard]] int refused() const { return refused_; }

 private:
  // EXPECT_EQ would allocate.
  void expect_success(popnorm_status status) { failures_ += status != POPNORM_SUCCESS; }
  popnorm_moment_arrays moments() { return {moment_[0].data(), moment_[1].data(), moment_[2].data()}; }

  popnorm_problem p_;
  popnorm::plan plan_;
  popnorm::buffer workspace_, second_workspace_, reserve_;
  popnorm::population population_;
  std::vector<float> x_, y_, dy_, dx_, residual_, dresidual_, weights_, vector_[8];
  std::vector<double> moment_[3];
  std::vector<std::int32_t> labels_, slot_of_group_;
  int failures_ = 0, refused_ = 0;
};

struct Case {
  const char* name;
  popnorm_problem problem;
  bool second_derivative;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const popnorm_layout layout : {POPNORM_NCHW, POPNORM_NHWC})
    for (const std::int64_t n : {2, 40}) {  // for the calling thread alone; for several
      const popnorm_problem plain = popnorm::problem(layout, n, 24, 196);
      all.push_back({"plain", plain, true});
      popnorm_problem fused = plain;
      fused.activation = POPNORM_RELU;
      fused.adds_residual = 1;
      all.push_back({"fused", fused, false});
      popnorm_problem weighted = plain;
      weighted.weights = POPNORM_WEIGHTS_PER_SAMPLE;
      all.push_back({"weighted", weighted, false});
      popnorm_problem labelled = plain;
      labelled.norm_group = labelled.population_slot = labelled.affine_slot = {POPNORM_LABELS, 2};
      all.push_back({"labelled", labelled, false});
    }
  return all;
}

void expect_none(Calls& calls, const Case& k, const char* by) {
  calls.run(k.second_derivative);  // what a first call makes for good, such as what dispatch knows of the machine
  EXPECT_EQ(allocations_of([&] { calls.run(k.second_derivative); }), 0)
      << k.name << " by " << by << ", layout " << k.problem.layout << ", n = " << k.problem.n;
  EXPECT_EQ(calls.failures(), 0) << popnorm_last_error();
  EXPECT_EQ(calls.refused(), 2);
}

// What a compiler must not do without.
void* seen(void* memory) {
  asm volatile("" : "+r"(memory) : : "memory");
  return memory;
}

TEST(Allocation, IsCounted) {
  EXPECT_EQ(allocations_of([] { ::operator delete(seen(::operator new(1))); }), 1);
  EXPECT_EQ(allocations_of([] { std::free(seen(std::calloc(1, 1))); }), 1);
  EXPECT_EQ(
      allocations_of([] { ::operator delete (seen(::operator new (64, std::align_val_t{64})), std::align_val_t{64}); }),
      1);
}

TEST(Allocation, IsNoneWithACallersExecutor) {
  for (const Case& k : cases()) {
    Pair pair;
    const popnorm_executor executor = pair.interface();
    popnorm_options options = POPNORM_OPTIONS_INIT;
    options.executor = &executor;
    for (const popnorm_schedule schedule : {POPNORM_SCHEDULE_AUTO, POPNORM_SLAB, POPNORM_PHASES}) {
      options.schedule = schedule;
      Calls calls(k.problem, options);
      expect_none(calls, k, "a caller's executor");
    }
    EXPECT_EQ(pair.calls > 0, k.problem.n > 2);
  }
}

// Where there is too little to share out, oneTBB is not asked.
TEST(Allocation, IsNoneOnTheCallingThread) {
  for (const Case& k : cases()) {
    if (k.problem.n > 2) continue;
    Calls calls(k.problem, POPNORM_OPTIONS_INIT);
    expect_none(calls, k, "the calling thread");
  }
}

TEST(Allocation, OfAPlanIsOne) {
  const popnorm_problem problem = popnorm::problem_nchw(8, 64, 196);
  popnorm_plan* plan = nullptr;
  popnorm_plan_create(&problem, nullptr, &plan);
  popnorm_plan_destroy(plan);
  popnorm_status status = POPNORM_INTERNAL;
  EXPECT_EQ(allocations_of([&] {
              status = popnorm_plan_create(&problem, nullptr, &plan);
              popnorm_plan_destroy(plan);
            }),
            1);
  EXPECT_EQ(status, POPNORM_SUCCESS);
}

}  // namespace
}  // namespace popnorm_test
