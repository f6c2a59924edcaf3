#include <cuda_runtime_api.h>

#include "core/error.hpp"
#include "gpu/runtime.hpp"

namespace popnorm::cuda {
namespace {

constexpr int kLeastMajor = 7, kLeastMinor = 5;

}  // namespace

popnorm_status device_ready() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return fail(POPNORM_UNSUPPORTED, "plan: backend cuda finds no NVIDIA driver on this machine; ask for cpu or auto");
  int devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (counted == cudaErrorInsufficientDriver)
    return fail(POPNORM_UNSUPPORTED,
                "plan: backend cuda needs a driver for CUDA %d.%d, this one serves %d.%d; update it",
                CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, driver / 1000, driver % 1000 / 10);
  if (counted != cudaSuccess || devices == 0)
    return fail(POPNORM_UNSUPPORTED,
                "plan: backend cuda finds a driver but no device (%s); is CUDA_VISIBLE_DEVICES empty?",
                cudaGetErrorString(counted == cudaSuccess ? cudaErrorNoDevice : counted));
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return fail(POPNORM_UNSUPPORTED, "plan: backend cuda cannot ask the current device what it is (%s)",
                cudaGetErrorString(cudaGetLastError()));
  if (major < kLeastMajor || (major == kLeastMajor && minor < kLeastMinor))
    return fail(POPNORM_UNSUPPORTED,
                "plan: backend cuda needs a device of compute capability %d.%d or later, device %d has "
                "%d.%d; select another with cudaSetDevice",
                kLeastMajor, kLeastMinor, device, major, minor);
  return POPNORM_SUCCESS;
}

bool is_device_memory(const void* memory) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) == cudaSuccess)
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  cudaGetLastError();  // no driver: nobody else is to find this error
  return false;
}

popnorm_status check_reachable(const char* operation, const char* name, const void* first) {
  if (first == nullptr) return POPNORM_SUCCESS;
  cudaPointerAttributes attributes{};
  const cudaError_t status = cudaPointerGetAttributes(&attributes, first);
  if (status != cudaSuccess)
    return fail(POPNORM_INTERNAL, "%s: cudaPointerGetAttributes of %s: %s", operation, name,
                cudaGetErrorString(status));
  int device = 0;
  cudaGetDevice(&device);
  if (attributes.type == cudaMemoryTypeManaged ||
      (attributes.type == cudaMemoryTypeHost && attributes.devicePointer == first))
    return POPNORM_SUCCESS;
  if (attributes.type != cudaMemoryTypeDevice)
    return fail(POPNORM_INVALID, "%s: %s is at host address %p, must be memory of CUDA device %d", operation, name,
                first, device);
  if (attributes.device == device) return POPNORM_SUCCESS;
  return fail(POPNORM_INVALID, "%s: %s is memory of CUDA device %d, the current device is %d; call cudaSetDevice",
              operation, name, attributes.device, device);
}

popnorm_status ask_device(Device& device) {
  int id = 0;
  cudaError_t status = cudaGetDevice(&id);
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, which, id);
    return value;
  };
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  device.shared_of_block = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  device.shared_of_multiprocessor = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  device.l2 = static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize));
  device.clusters = attribute(cudaDevAttrClusterLaunch) != 0;
  device.cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0;
  device.copies = attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
  if (status == cudaSuccess) return POPNORM_SUCCESS;
  return fail(POPNORM_INTERNAL, "plan: the current device cannot be asked what it has: %s", cudaGetErrorString(status));
}

namespace {

// Whether launches on the current device may begin while the one before them ends: kernels wait for it themselves.
bool launches_overlap() {
  thread_local int known = -1;
  thread_local bool overlap = false;
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (device != known) {
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return false;
    known = device;
    overlap = major >= 9;
  }
  return overlap;
}

// A launch as the runtime wants it described.
struct Configuration {
  cudaLaunchAttribute attribute[3]{};
  cudaLaunchConfig_t launch{};

  Configuration(const Grid& grid, void* stream) {
    launch.gridDim = dim3(grid.blocks_x, grid.blocks_y);
    launch.blockDim = dim3(grid.threads_x, grid.threads_y);
    launch.dynamicSmemBytes = grid.shared_bytes;
    launch.stream = static_cast<cudaStream_t>(stream);
    launch.attrs = attribute;
    if (grid.cluster > 1) {
      attribute[launch.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attribute[launch.numAttrs].val.clusterDim.x = grid.cluster;
      attribute[launch.numAttrs].val.clusterDim.y = 1;
      attribute[launch.numAttrs++].val.clusterDim.z = 1;
    }
    if (grid.cooperative) {
      attribute[launch.numAttrs].id = cudaLaunchAttributeCooperative;
      attribute[launch.numAttrs++].val.cooperative = 1;
    } else if (launches_overlap()) {
      attribute[launch.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute[launch.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
};

// Beyond what every kernel may have.
cudaError_t allow_shared(const void* kernel, const Grid& grid) {
  constexpr std::size_t kOfEveryKernel = std::size_t{48} << 10;
  if (grid.shared_bytes <= kOfEveryKernel) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
}

}  // namespace

int co_resident(const void* kernel, const Grid& grid) {
  int blocks = 0;
  cudaError_t status = allow_shared(kernel, grid);
  if (status == cudaSuccess && grid.cluster > 1) {
    const Configuration configuration(grid, nullptr);
    status = cudaOccupancyMaxActiveClusters(&blocks, kernel, &configuration.launch);
    blocks *= static_cast<int>(grid.cluster);
  } else if (status == cudaSuccess) {
    int id = 0, multiprocessors = 0;
    cudaGetDevice(&id);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, id);
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks, kernel, static_cast<int>(grid.threads_x * grid.threads_y), grid.shared_bytes);
    blocks *= multiprocessors;
  }
  if (status == cudaSuccess) return blocks;
  cudaGetLastError();
  return 0;
}

popnorm_status launch_kernel(const char* operation, const char* kernel_name, const void* kernel, const Grid& grid,
                             void** arguments, void* stream) {
  const cudaError_t earlier = cudaPeekAtLastError();
  const Configuration configuration(grid, stream);
  cudaError_t status = allow_shared(kernel, grid);
  if (status == cudaSuccess) status = cudaLaunchKernelExC(&configuration.launch, kernel, arguments);
  if (status == cudaSuccess) return POPNORM_SUCCESS;
  if (status == earlier)
    return fail(POPNORM_INTERNAL, "%s: the device was already lost to an earlier error: %s", operation,
                cudaGetErrorString(status));
  cudaGetLastError();
  return fail(POPNORM_INTERNAL, "%s: kernel %s was not launched: %s", operation, kernel_name,
              cudaGetErrorString(status));
}

}  // namespace popnorm::cuda
