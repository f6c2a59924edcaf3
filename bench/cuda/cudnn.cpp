// cuDNN as a contender. Only its header is needed to build; the library is opened where it is.
#include <cudnn.h>
#include <dlfcn.h>

#include <memory>

#include "cuda/task.hpp"

namespace popnorm_bench {
namespace {

// The entries that are used, by name.
struct Cudnn {
  template <class Function>
  void take(Function*& function, const char* name) {
    function = reinterpret_cast<Function*>(library != nullptr ? ::dlsym(library, name) : nullptr);
    complete = complete && function != nullptr;
  }

  Cudnn() : library(::dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL)) {
    take(version, "cudnnGetVersion");
    take(message, "cudnnGetErrorString");
    take(create, "cudnnCreate");
    take(create_tensor, "cudnnCreateTensorDescriptor");
    take(set_tensor, "cudnnSetTensor4dDescriptor");
    take(derive, "cudnnDeriveBNTensorDescriptor");
    take(inference, "cudnnBatchNormalizationForwardInference");
    take(forward_workspace, "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize");
    take(backward_workspace, "cudnnGetBatchNormalizationBackwardExWorkspaceSize");
    take(reserve, "cudnnGetBatchNormalizationTrainingExReserveSpaceSize");
    take(forward, "cudnnBatchNormalizationForwardTrainingEx");
    take(backward, "cudnnBatchNormalizationBackwardEx");
  }

  void* library;
  bool complete = true;
  decltype(cudnnGetVersion)* version;
  decltype(cudnnGetErrorString)* message;
  decltype(cudnnCreate)* create;
  decltype(cudnnCreateTensorDescriptor)* create_tensor;
  decltype(cudnnSetTensor4dDescriptor)* set_tensor;
  decltype(cudnnDeriveBNTensorDescriptor)* derive;
  decltype(cudnnBatchNormalizationForwardInference)* inference;
  decltype(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize)* forward_workspace;
  decltype(cudnnGetBatchNormalizationBackwardExWorkspaceSize)* backward_workspace;
  decltype(cudnnGetBatchNormalizationTrainingExReserveSpaceSize)* reserve;
  decltype(cudnnBatchNormalizationForwardTrainingEx)* forward;
  decltype(cudnnBatchNormalizationBackwardEx)* backward;
};

// What a run needs, kept alive by the contender. Descriptors and handle live as long as the process.
struct State {
  cudnnHandle_t handle = nullptr;
  cudnnTensorDescriptor_t tensor = nullptr;
  cudnnTensorDescriptor_t channels = nullptr;
  std::unique_ptr<DeviceBuffer> workspace, reserve;
};

}  // namespace

std::optional<GpuContender> make_cudnn(const GpuTask& task, const GpuMemory& m, std::string& why_not) {
  static const Cudnn cudnn;
  if (cudnn.library == nullptr || !cudnn.complete) {
    why_not = "libcudnn.so.9 is not installed";
    return std::nullopt;
  }
  const auto fine = [&](cudnnStatus_t status) {
    if (status == CUDNN_STATUS_SUCCESS) return true;
    why_not = cudnn.message(status);
    return false;
  };
  static cudnnHandle_t handle = nullptr;
  const auto state = std::make_shared<State>();
  if (handle == nullptr && !fine(cudnn.create(&handle))) return std::nullopt;
  state->handle = handle;
  const cudnnDataType_t type = task.storage == POPNORM_BF16  ? CUDNN_DATA_BFLOAT16
                               : task.storage == POPNORM_F16 ? CUDNN_DATA_HALF
                                                             : CUDNN_DATA_FLOAT;
  // Persistent where it may be: its fastest, and what frameworks ask for.
  const cudnnBatchNormMode_t mode =
      task.operation == Operation::forward_inference ? CUDNN_BATCHNORM_SPATIAL : CUDNN_BATCHNORM_SPATIAL_PERSISTENT;
  const cudnnBatchNormOps_t ops = CUDNN_BATCHNORM_OPS_BN;
  if (!fine(cudnn.create_tensor(&state->tensor)) || !fine(cudnn.create_tensor(&state->channels)) ||
      !fine(cudnn.set_tensor(state->tensor, task.layout == POPNORM_NCHW ? CUDNN_TENSOR_NCHW : CUDNN_TENSOR_NHWC, type,
                             static_cast<int>(task.layer.n), static_cast<int>(task.layer.c),
                             static_cast<int>(task.layer.h), static_cast<int>(task.layer.w))) ||
      !fine(cudnn.derive(state->channels, state->tensor, mode)))
    return std::nullopt;
  GpuContender contender{"cudnn", "version " + std::to_string(cudnn.version()), {}};
  const float one = 1, zero = 0;
  const double epsilon = static_cast<double>(kGpuEpsilon);
  const auto require = [](cudnnStatus_t status) {
    if (status != CUDNN_STATUS_SUCCESS) throw std::runtime_error(std::string("cudnn: ") + cudnn.message(status));
  };
  if (task.operation == Operation::forward_inference) {
    contender.run = [state, &m, one, zero, epsilon, mode, require] {
      require(cudnn.inference(state->handle, mode, &one, &zero, state->tensor, m.x.data(), state->tensor, m.out.data(),
                              state->channels, m.scale.data(), m.shift.data(), m.mean.data(), m.variance.data(),
                              epsilon));
    };
    return contender;
  }
  std::size_t forward_bytes = 0, backward_bytes = 0, reserve_bytes = 0;
  if (!fine(cudnn.forward_workspace(handle, mode, ops, state->tensor, nullptr, state->tensor, state->channels, nullptr,
                                    &forward_bytes)) ||
      !fine(cudnn.backward_workspace(handle, mode, ops, state->tensor, nullptr, state->tensor, nullptr, state->tensor,
                                     state->channels, nullptr, &backward_bytes)) ||
      !fine(cudnn.reserve(handle, mode, ops, nullptr, state->tensor, &reserve_bytes)))
    return std::nullopt;
  state->workspace = std::make_unique<DeviceBuffer>(std::max(forward_bytes, backward_bytes));
  state->reserve = std::make_unique<DeviceBuffer>(reserve_bytes);
  const auto forward = [state, &m, one, zero, epsilon, mode, ops, forward_bytes, reserve_bytes] {
    return cudnn.forward(state->handle, mode, ops, &one, &zero, state->tensor, m.x.data(), nullptr, nullptr,
                         state->tensor, m.out.data(), state->channels, m.scale.data(), m.shift.data(), 0.1,
                         m.mean.data(), m.variance.data(), epsilon, m.saved_mean.data(), m.saved_invstd.data(), nullptr,
                         state->workspace->data(), forward_bytes, state->reserve->data(), reserve_bytes);
  };
  if (!fine(forward())) return std::nullopt;
  if (task.operation == Operation::forward_training) {
    contender.run = [forward, require] { require(forward()); };
    return contender;
  }
  contender.run = [state, &m, one, zero, epsilon, mode, ops, backward_bytes, reserve_bytes, require] {
    require(cudnn.backward(state->handle, mode, ops, &one, &zero, &one, &zero, state->tensor, m.x.data(), nullptr,
                           nullptr, state->tensor, m.dy.data(), nullptr, nullptr, state->tensor, m.out.data(),
                           state->channels, m.scale.data(), m.shift.data(), m.dscale.data(), m.dshift.data(), epsilon,
                           m.saved_mean.data(), m.saved_invstd.data(), nullptr, state->workspace->data(),
                           backward_bytes, state->reserve->data(), reserve_bytes));
  };
  return contender;
}

}  // namespace popnorm_bench
