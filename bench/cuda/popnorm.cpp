// popnorm as a contender, through its public API.
#include <cmath>
#include <cstdlib>
#include <memory>
#include <popnorm/popnorm.hpp>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/task.hpp"

namespace popnorm_bench {
namespace {

// Normal numbers in the storage type. Truncation is good enough for 16 bits of test data.
std::vector<unsigned char> normal_numbers(const GpuTask& task, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.5F, 2.0F);
  std::vector<float> some(1 << 16);
  for (float& value : some) value = normal(engine);
  std::vector<unsigned char> bytes(task.bytes());
  for (std::size_t i = 0; i < task.layer.elements(); ++i) {
    const float value = some[(i * 40503U + i / some.size()) % some.size()];
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (task.storage == POPNORM_F32) {
      reinterpret_cast<float*>(bytes.data())[i] = value;
    } else if (task.storage == POPNORM_BF16) {
      reinterpret_cast<std::uint16_t*>(bytes.data())[i] = static_cast<std::uint16_t>(bits >> 16);
    } else {
      const auto exponent = static_cast<int>(bits >> 23 & 0xFFU) - 127 + 15;
      const std::uint32_t half = exponent <= 0 ? 0 : static_cast<std::uint32_t>(exponent) << 10 | (bits >> 13 & 0x3FFU);
      reinterpret_cast<std::uint16_t*>(bytes.data())[i] =
          static_cast<std::uint16_t>(bits >> 16 & 0x8000U) | static_cast<std::uint16_t>(half);
    }
  }
  return bytes;
}

DeviceBuffer filled(std::size_t channels, float first, float step) {
  std::vector<float> values(channels);
  for (std::size_t c = 0; c < channels; ++c) values[c] = first + step * static_cast<float>(c % 7);
  DeviceBuffer buffer(channels * sizeof(float));
  buffer.put(values.data(), channels * sizeof(float));
  return buffer;
}

void check(popnorm_status status) {
  if (status != POPNORM_SUCCESS) throw std::runtime_error(popnorm_last_error());
}

// What a contender keeps alive.
struct Run {
  std::unique_ptr<popnorm_plan, void (*)(popnorm_plan*)> plan{nullptr, popnorm_plan_destroy};
  std::unique_ptr<DeviceBuffer> workspace, reserve;
};

}  // namespace

const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::none:
      return "none";
    case Variant::misaligned:
      return "misaligned";
    case Variant::relu:
      return "relu";
    case Variant::add_relu:
      return "add_relu";
    case Variant::groups:
      return "groups";
  }
  return "?";
}

GpuMemory::GpuMemory(const GpuTask& task)
    : x(task.bytes() + task.offset()),
      dy(task.operation == Operation::backward ? x.size() : 0),
      out(x.size()),
      residual(task.variant == Variant::add_relu ? x.size() : 0),
      scale(filled(task.layer.channels(), 0.5F, 0.25F)),
      shift(filled(task.layer.channels(), -0.5F, 0.125F)),
      mean(filled(task.layer.channels(), 0.5F, 0)),
      variance(filled(task.layer.channels(), 4, 0)),
      saved_mean(filled(task.layer.channels(), 0, 0)),
      saved_invstd(filled(task.layer.channels(), 0, 0)),
      dscale(filled(task.layer.channels(), 0, 0)),
      dshift(filled(task.layer.channels(), 0, 0)) {
  x.put(normal_numbers(task, 1).data(), task.bytes());
  if (dy.size() > 0) dy.put(normal_numbers(task, 2).data(), task.bytes());
  if (residual.size() > 0) residual.put(normal_numbers(task, 3).data(), task.bytes());
}

GpuContender make_popnorm(const GpuTask& task, const GpuMemory& memory, const std::string& policy) {
  popnorm_problem problem = POPNORM_PROBLEM_INIT;
  problem.n = task.layer.n;
  problem.c = task.layer.c;
  problem.s = task.layer.s();
  problem.layout = task.layout;
  problem.storage = task.storage;
  problem.epsilon = static_cast<double>(kGpuEpsilon);
  if (task.variant == Variant::relu || task.variant == Variant::add_relu) problem.activation = POPNORM_RELU;
  problem.adds_residual = task.variant == Variant::add_relu ? 1 : 0;
  if (task.variant == Variant::groups) problem.norm_group = {POPNORM_CONTIGUOUS, 8};
  const auto tensor = [&task](const DeviceBuffer& buffer) { return buffer.as<unsigned char>() + task.offset(); };
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = POPNORM_CUDA;
  ::setenv("POPNORM_CUDA_POLICY", policy.c_str(), 1);
  const auto run = std::make_shared<Run>();
  popnorm_plan* plan = nullptr;
  const popnorm_status made = popnorm_plan_create(&problem, &options, &plan);
  ::unsetenv("POPNORM_CUDA_POLICY");
  check(made);
  run->plan.reset(plan);
  popnorm_plan_info info = POPNORM_PLAN_INFO_INIT;
  check(popnorm_plan_query(plan, &info));
  run->workspace = std::make_unique<DeviceBuffer>(info.workspace_bytes);
  run->reserve = std::make_unique<DeviceBuffer>(info.reserve_bytes);

  popnorm_forward_args forward = POPNORM_FORWARD_ARGS_INIT;
  forward.x = tensor(memory.x);
  forward.y = tensor(memory.out);
  if (task.variant == Variant::add_relu) forward.residual = memory.residual.data();
  forward.scale = memory.scale.data();
  forward.shift = memory.shift.data();
  forward.workspace = run->workspace->data();
  forward.workspace_bytes = run->workspace->size();
  GpuContender contender{"popnorm_" + policy, info.policy, {}};
  if (task.operation == Operation::forward_inference) {
    forward.source.statistics = POPNORM_GIVEN;
    forward.source.mean = memory.mean.data();
    forward.source.variance = memory.variance.data();
    contender.run = [run, forward] { check(popnorm_forward(run->plan.get(), &forward, nullptr)); };
    return contender;
  }
  forward.reserve = run->reserve->data();
  forward.reserve_bytes = run->reserve->size();
  forward.update.running_mean = memory.mean.data();
  forward.update.running_variance = memory.variance.data();
  if (task.operation == Operation::forward_training) {
    contender.run = [run, forward] { check(popnorm_forward(run->plan.get(), &forward, nullptr)); };
    return contender;
  }
  check(popnorm_forward(plan, &forward, nullptr));
  popnorm_backward_args backward = POPNORM_BACKWARD_ARGS_INIT;
  backward.x = tensor(memory.x);
  backward.dy = tensor(memory.dy);
  backward.dx = tensor(memory.out);
  if (task.variant == Variant::add_relu) backward.dresidual = memory.residual.data();
  backward.dscale = memory.dscale.data();
  backward.dshift = memory.dshift.data();
  backward.reserve = run->reserve->data();
  backward.reserve_bytes = run->reserve->size();
  backward.workspace = run->workspace->data();
  backward.workspace_bytes = run->workspace->size();
  contender.run = [run, backward] { check(popnorm_backward(run->plan.get(), &backward, nullptr)); };
  return contender;
}

}  // namespace popnorm_bench
