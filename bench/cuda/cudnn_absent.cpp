// Where cuDNN's header was not found at build.
#include "cuda/task.hpp"

namespace popnorm_bench {

std::optional<GpuContender> make_cudnn(const GpuTask& /*task*/, const GpuMemory& /*memory*/, std::string& why_not) {
  why_not = "built without cudnn.h";
  return std::nullopt;
}

}  // namespace popnorm_bench
