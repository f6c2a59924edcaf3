#include <cuda_runtime_api.h>

#include "core/error.hpp"
#include "gpu/runtime.hpp"

namespace popnorm::cuda {

// Not launched: it is compiled for the same architectures as every other kernel.
__global__ void compiled_kernel() {}

namespace {

constexpr int kLeastMajor = 7, kLeastMinor = 5;

// What the kernels that run on the current device were compiled for: 90 where __CUDA_ARCH__ was 900. A device may have more than
// they know of, where they are of an older architecture's PTX.
cudaError_t compiled_for(int& architecture) {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(compiled_kernel));
  architecture = attributes.ptxVersion;
  return status;
}

// Where it is reported, an error is not left for the caller to find; one that a device is lost to stays.
const char* text_of(cudaError_t status) {
  cudaGetLastError();
  return cudaGetErrorString(status);
}

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
                text_of(counted == cudaSuccess ? cudaErrorNoDevice : counted));
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
  int architecture = 0;
  if (const cudaError_t status = compiled_for(architecture); status != cudaSuccess)
    return fail(POPNORM_UNSUPPORTED,
                "plan: backend cuda has no kernels for compute capability %d.%d, which device %d has (%s); build it "
                "with that in POPNORM_CUDA_ARCHITECTURES",
                major, minor, device, text_of(status));
  return POPNORM_SUCCESS;
}

Memory memory_of(const void* memory) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
    cudaGetLastError();  // no driver: nobody else is to find this error
    return Memory::host;
  }
  return attributes.type == cudaMemoryTypeDevice    ? Memory::device
         : attributes.type == cudaMemoryTypeManaged ? Memory::managed
                                                    : Memory::host;
}

popnorm_status check_reachable(const char* operation, const char* name, const void* first) {
  if (first == nullptr) return POPNORM_SUCCESS;
  cudaPointerAttributes attributes{};
  const cudaError_t status = cudaPointerGetAttributes(&attributes, first);
  if (status != cudaSuccess)
    return fail(POPNORM_INTERNAL, "%s: cudaPointerGetAttributes of %s: %s", operation, name, text_of(status));
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
  int architecture = 0;
  if (status == cudaSuccess) status = compiled_for(architecture);
  device.clusters = architecture >= 90 && attribute(cudaDevAttrClusterLaunch) != 0;
  device.cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0;
  device.copies = architecture >= 80;
  if (status == cudaSuccess) return POPNORM_SUCCESS;
  return fail(POPNORM_INTERNAL, "plan: the current device cannot be asked what it has: %s", text_of(status));
}

namespace {

// What launches on a device need to know of it.
struct Launching {
  int device = -1;
  int shared_of_block = 0;
  bool overlap = false;  // they may begin while the one before them ends: kernels wait for it themselves
};

cudaError_t ask_launching(Launching& launching) {
  thread_local Launching known;
  int device = 0, architecture = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess && device != known.device) {
    Launching found{device, 0, false};
    status = compiled_for(architecture);
    if (status == cudaSuccess)
      status = cudaDeviceGetAttribute(&found.shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    found.overlap = architecture >= 90;
    if (status == cudaSuccess) known = found;
  }
  launching = known;
  return status;
}

// A launch as the runtime wants it described.
struct Configuration {
  cudaLaunchAttribute attribute[3]{};
  cudaLaunchConfig_t launch{};

  Configuration(const Grid& grid, bool overlap, void* stream) {
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
    } else if (overlap) {
      attribute[launch.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute[launch.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
};

// Beyond what every kernel may have. All that a block can have, whatever this launch takes: the limit is the kernel's, and other
// threads launch it with other sizes meanwhile. No kernel declares shared memory of its own.
cudaError_t allow_shared(const void* kernel, const Grid& grid, const Launching& launching) {
  constexpr std::size_t kOfEveryKernel = std::size_t{48} << 10;
  if (grid.shared_bytes <= kOfEveryKernel) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launching.shared_of_block);
}

}  // namespace

int co_resident(const void* kernel, const Grid& grid) {
  int blocks = 0;
  Launching launching;
  cudaError_t status = ask_launching(launching);
  if (status == cudaSuccess) status = allow_shared(kernel, grid, launching);
  if (status == cudaSuccess && grid.cluster > 1) {
    const Configuration configuration(grid, launching.overlap, nullptr);
    status = cudaOccupancyMaxActiveClusters(&blocks, kernel, &configuration.launch);
    blocks *= static_cast<int>(grid.cluster);
  } else if (status == cudaSuccess) {
    int multiprocessors = 0;
    status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, launching.device);
    if (status == cudaSuccess)
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
  Launching launching;
  cudaError_t status = ask_launching(launching);
  if (status == cudaSuccess) status = allow_shared(kernel, grid, launching);
  if (status == cudaSuccess) {
    const Configuration configuration(grid, launching.overlap, stream);
    status = cudaLaunchKernelExC(&configuration.launch, kernel, arguments);
  }
  if (status == cudaSuccess) return POPNORM_SUCCESS;
  const bool was_there = status == earlier;
  return fail(POPNORM_INTERNAL, "%s: kernel %s was not launched: %s%s", operation, kernel_name,
              was_there ? "an error from before popnorm was called: " : "",
              was_there ? cudaGetErrorString(status) : text_of(status));
}

}  // namespace popnorm::cuda
