#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>

#include "cuda/device.hpp"

namespace popnorm_bench {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct Event {
  Event() { check(cudaEventCreate(&event), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record() const { check(cudaEventRecord(event), "cudaEventRecord"); }
  static double milliseconds(const Event& begin, const Event& end) {
    float elapsed = 0;
    check(cudaEventElapsedTime(&elapsed, begin.event, end.event), "cudaEventElapsedTime");
    return static_cast<double>(elapsed);
  }

  cudaEvent_t event = nullptr;
};

template <int kUnroll>
__global__ void __launch_bounds__(512) copy_kernel(int4* to, const int4* from, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x * kUnroll;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x * kUnroll + threadIdx.x; i < count; i += step) {
    int4 held[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (i + k * blockDim.x < count) held[k] = __ldcs(from + i + k * blockDim.x);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (i + k * blockDim.x < count) __stcs(to + i + k * blockDim.x, held[k]);
  }
}

template <int kUnroll>
Copy copy_by_kernel(const DeviceBuffer& to, const DeviceBuffer& from, std::size_t bytes, int multiprocessors) {
  return {"kernel_" + std::to_string(kUnroll), [=, to = to.as<int4>(), from = from.as<int4>()] {
            copy_kernel<kUnroll><<<static_cast<unsigned>(4 * multiprocessors), 512>>>(
                to, from, static_cast<std::int64_t>(bytes / sizeof(int4)));
            check(cudaGetLastError(), "copy_kernel");
          }};
}

}  // namespace

DeviceInfo ask_device() {
  DeviceInfo info;
  int devices = 0;
  if (cudaDriverGetVersion(&info.driver) != cudaSuccess || info.driver == 0)
    throw std::runtime_error("this machine has no NVIDIA driver");
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
    throw std::runtime_error("this machine has a driver but no device that it serves");
  cudaDeviceProp properties{};
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  check(cudaRuntimeGetVersion(&info.runtime), "cudaRuntimeGetVersion");
  info.name = properties.name;
  info.multiprocessors = properties.multiProcessorCount;
  info.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  info.memory_bytes = properties.totalGlobalMem;
  return info;
}

DeviceBuffer::DeviceBuffer(std::size_t bytes)
    : memory_(nullptr, [](void* memory) { cudaFree(memory); }), bytes_(bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes > 0 ? bytes : 1), "cudaMalloc");
  memory_.reset(memory);
  check(cudaMemset(memory, 0, bytes), "cudaMemset");
}

void DeviceBuffer::put(const void* host, std::size_t bytes) const {
  check(cudaMemcpy(data(), host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
}
void DeviceBuffer::get(void* host, std::size_t bytes) const {
  check(cudaMemcpy(host, data(), bytes, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
}

void synchronize() { check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

std::vector<double> time_runs(const std::function<void()>& run, int runs, const DeviceBuffer* flush) {
  std::vector<double> times;
  if (flush == nullptr) {
    const Event begin, end;
    begin.record();
    for (int i = 0; i < runs; ++i) run();
    end.record();
    synchronize();
    times.assign(static_cast<std::size_t>(runs), Event::milliseconds(begin, end) / runs);
    return times;
  }
  const std::vector<Event> begin(static_cast<std::size_t>(runs)), end(static_cast<std::size_t>(runs));
  for (std::size_t i = 0; i < begin.size(); ++i) {
    check(cudaMemsetAsync(flush->data(), static_cast<int>(i), flush->size()), "cudaMemsetAsync");
    begin[i].record();
    run();
    end[i].record();
  }
  synchronize();
  for (std::size_t i = 0; i < begin.size(); ++i) times.push_back(Event::milliseconds(begin[i], end[i]));
  return times;
}

std::vector<Copy> copies(const DeviceBuffer& to, const DeviceBuffer& from, std::size_t bytes) {
  const int multiprocessors = ask_device().multiprocessors;
  return {copy_by_kernel<1>(to, from, bytes, multiprocessors),
          copy_by_kernel<4>(to, from, bytes, multiprocessors),
          copy_by_kernel<8>(to, from, bytes, multiprocessors),
          {"cudaMemcpy", [bytes, to = to.data(), from = from.data()] {
             check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpyAsync");
           }}};
}

}  // namespace popnorm_bench
