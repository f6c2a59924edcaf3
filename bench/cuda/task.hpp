// One operation on one layer, and the memory that all contenders share.
#ifndef POPNORM_BENCH_CUDA_TASK_HPP
#define POPNORM_BENCH_CUDA_TASK_HPP

#include <popnorm/popnorm.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "layer.hpp"

namespace popnorm_bench {

struct GpuTask {
  Operation operation = Operation::forward_training;
  popnorm_layout layout = POPNORM_NCHW;
  popnorm_type storage = POPNORM_F32;
  Layer layer;

  [[nodiscard]] std::size_t element() const { return storage == POPNORM_F32 ? 4 : 2; }
  [[nodiscard]] std::size_t bytes() const { return layer.elements() * element(); }
  // Tensors that have to be moved, at the least.
  [[nodiscard]] int floor() const { return operation == Operation::backward ? 3 : 2; }
};

// x, dy: what is read; out: y or dx. Per channel: f32.
struct GpuMemory {
  DeviceBuffer x, dy, out;
  DeviceBuffer scale, shift, mean, variance, saved_mean, saved_invstd, dscale, dshift;

  explicit GpuMemory(const GpuTask& task);
};

inline constexpr float kGpuEpsilon = 1e-5F;

struct GpuContender {
  std::string name;
  std::string note;  // the policy, the version
  std::function<void()> run;
};

// popnorm by a policy ("plain", "auto"...). Throws std::runtime_error with the message of a plan that is refused.
GpuContender make_popnorm(const GpuTask& task, const GpuMemory& memory, const std::string& policy);

// cuDNN's legacy batch normalization (the Ex entries in training), opened at run time; none where it is absent or refuses.
std::optional<GpuContender> make_cudnn(const GpuTask& task, const GpuMemory& memory, std::string& why_not);

}  // namespace popnorm_bench

#endif
