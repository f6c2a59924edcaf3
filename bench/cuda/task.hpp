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

// What is asked for besides batch normalization of aligned tensors.
enum class Variant {
  none,
  misaligned,  // tensors begin one element after an aligned address
  relu,        // is applied to y
  add_relu,    // after a residual is added; the residual's gradient is written
  groups       // of 8 neighbouring samples each
};
inline constexpr Variant kVariants[] = {Variant::none, Variant::misaligned, Variant::relu, Variant::add_relu,
                                        Variant::groups};
const char* name_of(Variant variant);

struct GpuTask {
  Operation operation = Operation::forward_training;
  popnorm_layout layout = POPNORM_NCHW;
  popnorm_type storage = POPNORM_F32;
  Layer layer;
  Variant variant = Variant::none;

  [[nodiscard]] std::size_t element() const { return storage == POPNORM_F32 ? 4 : 2; }
  [[nodiscard]] std::size_t bytes() const { return layer.elements() * element(); }
  // Of tensors, in their buffers.
  [[nodiscard]] std::size_t offset() const { return variant == Variant::misaligned ? element() : 0; }
  // Tensors that have to be moved, at the least.
  [[nodiscard]] int floor() const {
    return (operation == Operation::backward ? 3 : 2) + (variant == Variant::add_relu ? 1 : 0);
  }
};

// x, dy: what is read; out: y or dx; residual: also what its gradient is written to. Per channel: f32.
struct GpuMemory {
  DeviceBuffer x, dy, out, residual;
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
