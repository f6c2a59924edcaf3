#include "calls.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

namespace popnorm_bench {
namespace {

// An element in `storage`, which holds seven binary digits exactly; in 16 bits they are those of f32, cut or with another exponent.
void put(popnorm_type storage, double value, std::byte* to) {
  const auto single = static_cast<float>(value);
  const auto pattern = std::bit_cast<std::uint32_t>(single);
  const std::uint32_t as_f16 = (pattern >> 16 & 0x8000U) | ((pattern >> 13 & 0x3FFFFU) - (112U << 10));
  const auto half = static_cast<std::uint16_t>(storage == POPNORM_BF16 ? pattern >> 16 : as_f16);
  if (storage == POPNORM_F64) std::memcpy(to, &value, sizeof(value));
  if (storage == POPNORM_F32) std::memcpy(to, &single, sizeof(single));
  if (size_of(storage) == 2) std::memcpy(to, &half, sizeof(half));
}

// A period that is prime, so that every channel meets all of it.
constexpr std::size_t kPeriod = 65537;

}  // namespace

Values::Values(popnorm_type storage, std::size_t elements, std::size_t offset, std::uint32_t seed)
    : memory_((elements + offset) * size_of(storage), 4096), offset_(offset * size_of(storage)) {
  const std::size_t size = size_of(storage);
  auto* const to = static_cast<std::byte*>(data());
  std::mt19937 engine(seed);
  for (std::size_t i = 0; i < std::min(elements, kPeriod); ++i) {
    const auto bits = static_cast<std::uint32_t>(engine());
    const double magnitude = std::ldexp(1 + (bits & 0x7F) / 128.0, static_cast<int>(bits >> 8 & 1) - 1);
    put(storage, (bits & 0x80) != 0 ? -magnitude : magnitude, to + i * size);
  }
  for (std::size_t i = kPeriod; i < elements; i += kPeriod)
    std::memcpy(to + i * size, to, std::min(elements - i, kPeriod) * size);
}

Library Library::opened(const std::string& path) {
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  Library library;
  const auto find = [&]<class Entry>(Entry& entry, const char* name) {
    entry = reinterpret_cast<Entry>(dlsym(handle, name));
    if (entry == nullptr) throw std::runtime_error(path + " has no " + name);
  };
  find(library.plan_create, "popnorm_plan_create");
  find(library.plan_query, "popnorm_plan_query");
  find(library.plan_destroy, "popnorm_plan_destroy");
  find(library.forward, "popnorm_forward");
  find(library.backward, "popnorm_backward");
  find(library.last_error, "popnorm_last_error");
  return library;
}

const std::map<std::string, popnorm_type> kStorages = {
    {"f32", POPNORM_F32}, {"f64", POPNORM_F64}, {"bf16", POPNORM_BF16}, {"f16", POPNORM_F16}};

const std::map<std::string, popnorm_weights> kWeights = {{"none", POPNORM_UNWEIGHTED},
                                                         {"per_sample", POPNORM_WEIGHTS_PER_SAMPLE},
                                                         {"per_position", POPNORM_WEIGHTS_PER_POSITION},
                                                         {"lengths", POPNORM_LENGTHS}};

std::size_t size_of(popnorm_type storage) { return storage == POPNORM_F64 ? 8 : storage == POPNORM_F32 ? 4 : 2; }

Set::Set(popnorm_type storage, std::size_t elements, std::size_t offset)
    : x(storage, elements, offset, 1),
      residual(storage, elements, offset, 2),
      y(storage, elements, offset, 3),
      dy(storage, elements, offset, 4),
      dx(storage, elements, offset, 5),
      dresidual(storage, elements, offset, 6) {}

Calls::Calls(const popnorm_problem& problem, const Library& library, const popnorm_options& options)
    : library_(library),
      problem_(problem),
      plan_(nullptr, library.plan_destroy),
      mean_(static_cast<std::size_t>(problem.c)),
      variance_(mean_.size(), 1) {
  problem_.statistics = POPNORM_F64;
  popnorm_plan* plan = nullptr;
  check(library_.plan_create(&problem_, &options, &plan));
  plan_.reset(plan);
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  check(library_.plan_query(plan, &info));
  workspace_ = popnorm::buffer(info.workspace_bytes, info.workspace_alignment);
  reserve_ = popnorm::buffer(info.reserve_bytes, info.reserve_alignment);
  std::mt19937 engine(7);
  if (problem.weights == POPNORM_LENGTHS) {
    for (std::int64_t i = 0; i < problem.n; ++i)
      lengths_.push_back(static_cast<std::int64_t>(engine()) % (problem.s + 1));
    batch_.weights = lengths_.data();
  } else if (problem.weights != POPNORM_UNWEIGHTED) {
    const std::int64_t count = problem.weights == POPNORM_WEIGHTS_PER_SAMPLE ? problem.n : problem.n * problem.s;
    for (std::int64_t i = 0; i < count; ++i) weights_.push_back(static_cast<float>(engine() % 8) / 4);
    batch_.weights = weights_.data();
  }
}

void Calls::check(popnorm_status status) const {
  if (status != POPNORM_SUCCESS) throw std::runtime_error(library_.last_error());
}

void Calls::run(Operation operation, Set& t) {
  const bool adds = problem_.adds_residual != 0;
  if (operation == Operation::backward) {
    popnorm_backward_args a = popnorm::backward_args(workspace_, reserve_);
    a.x = t.x.data();
    a.dy = t.dy.data();
    a.dx = t.dx.data();
    a.batch = batch_;
    if (adds) a.dresidual = t.dresidual.data();
    return check(library_.backward(plan_.get(), &a, nullptr));
  }
  const bool training = operation == Operation::forward_training;
  popnorm_forward_args a = training ? popnorm::forward_args(workspace_, reserve_) : popnorm::forward_args(workspace_);
  a.x = t.x.data();
  a.y = t.y.data();
  a.batch = batch_;
  if (adds) a.residual = t.residual.data();
  if (!training) {
    a.source.statistics = POPNORM_GIVEN;
    a.source.mean = mean_.data();
    a.source.variance = variance_.data();
  }
  check(library_.forward(plan_.get(), &a, nullptr));
}

Compared compared(Operation operation, const Call& reference, const Call& subject) {
  return {.reference = [=] { reference.calls->run(operation, *reference.set); },
          .subject = [=] { subject.calls->run(operation, *subject.set); },
          .prepare =
              [=] {
                for (const Call& call : {reference, subject}) call.calls->run(Operation::forward_training, *call.set);
              }};
}

}  // namespace popnorm_bench
