#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>

#include "cuda/device_tensor.hpp"

namespace popnorm_test {
namespace {

constexpr unsigned kThreads = 256;
constexpr double kRoundingOfF32 = 0x1p-24, kRoundingOfBf16 = 0x1p-8;

__device__ float value_at(std::int64_t i, std::uint32_t seed) {
  auto h = static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15U + seed * 0xd1b54a32d192ed03U;
  h ^= h >> 31;
  h *= 0x7fb5d329728ea185U;
  return static_cast<float>(static_cast<int>(h >> 56) - 128) / 16;
}

__device__ float as_float(std::uint16_t bf16) { return __uint_as_float(static_cast<std::uint32_t>(bf16) << 16); }

__device__ void store(float* to, float value) { *to = value; }
__device__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16(value); }
__device__ void store(__half* to, float value) { *to = __float2half(value); }

template <class T>
__global__ void fill_kernel(T* to, std::int64_t elements, std::uint32_t seed, bool late) {
#if __CUDA_ARCH__ >= 900
  if (late) cudaTriggerProgrammaticLaunchCompletion();
#endif
  if (late && blockIdx.x == gridDim.x - 1)
    for (const long long begin = clock64(); clock64() - begin < 50000;) {
    }
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += step)
    store(to + i, value_at(i, seed));
}

// Of position p of channel c.
__device__ std::int64_t index_of(const Shape& shape, std::int64_t c, std::int64_t p) {
  return shape.columns ? p * shape.c + c : (p / shape.s * shape.c + c) * shape.s + p % shape.s;
}

// Block (c, y) has every gridDim.y-th stretch of positions of channel c.
template <class Visit>
__device__ void each_position(const Shape& shape, Visit visit) {
  const std::int64_t step = std::int64_t{gridDim.y} * blockDim.x;
  for (std::int64_t p = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x; p < shape.n * shape.s; p += step)
    visit(index_of(shape, blockIdx.x, p));
}
dim3 blocks_of(const Shape& shape) {
  return {static_cast<unsigned>(shape.c), static_cast<unsigned>(4096 / shape.c + 1)};
}

__global__ void sum_kernel(const std::uint16_t* x, const std::uint16_t* dy, Shape shape, double* sums) {
  double of[4]{};
  each_position(shape, [&](std::int64_t i) {
    const double a = as_float(x[i]), b = as_float(dy[i]);
    of[0] += a;
    of[1] += a * a;
    of[2] += b;
    of[3] += b * a;
  });
  for (int k = 0; k < 4; ++k) {
    for (int lane = 16; lane > 0; lane /= 2) of[k] += __shfl_xor_sync(0xffffffffU, of[k], lane);
    if (threadIdx.x % 32 == 0) atomicAdd(sums + 4 * blockIdx.x + k, of[k]);
  }
}

__global__ void count_wrong_y_kernel(const std::uint16_t* x, const std::uint16_t* y, Shape shape, const float* mean,
                                     const float* invstd, unsigned long long* wrong) {
  const double mu = mean[blockIdx.x], inv = invstd[blockIdx.x];
  unsigned long long count = 0;
  each_position(shape, [&](std::int64_t i) {
    const double value = as_float(x[i]), expected = (value - mu) * inv;
    const double limit =
        kRoundingOfBf16 * fabs(expected) + kRoundingOfF32 * (8 * fabs(expected) + 16 + fabs(expected) + fabs(mu) * inv);
    if (!(fabs(as_float(y[i]) - expected) <= limit)) ++count;
  });
  if (count > 0) atomicAdd(wrong, count);
}

__global__ void count_wrong_dx_kernel(const std::uint16_t* x, const std::uint16_t* dx, Shape shape,
                                      std::uint32_t dy_seed, const float* mean, const float* invstd,
                                      const float* dscale, const float* dshift, unsigned long long* wrong) {
  const double mu = mean[blockIdx.x], inv = invstd[blockIdx.x],
               all = static_cast<double>(shape.n) * static_cast<double>(shape.s);
  const double b = dshift[blockIdx.x] / all, a = dscale[blockIdx.x] / all;
  unsigned long long count = 0;
  each_position(shape, [&](std::int64_t i) {
    const double value = as_float(x[i]), dy = value_at(i, dy_seed), xhat = (value - mu) * inv;
    const double expected = (dy - b - xhat * a) * inv;
    // The means of |dy| and |dy xhat| are at most 8; four more roundings: of mean, invstd, dscale and dshift.
    const double limit =
        kRoundingOfBf16 * fabs(expected) + (24 + 4) * kRoundingOfF32 * inv * (fabs(dy) + 8 + (1 + fabs(xhat)) * 8);
    if (!(fabs(as_float(dx[i]) - expected) <= limit)) ++count;
  });
  if (count > 0) atomicAdd(wrong, count);
}

__global__ void trap_kernel() { __trap(); }

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <class T>
void launch_fill(void* to, std::int64_t elements, std::uint32_t seed, cudaStream_t stream, bool late) {
  fill_kernel<<<1024, kThreads, 0, stream>>>(static_cast<T*>(to), elements, seed, late);
}

}  // namespace

void fill(void* to, popnorm_type storage, std::int64_t elements, std::uint32_t seed, cudaStream_t stream, bool late) {
  if (storage == POPNORM_F32)
    launch_fill<float>(to, elements, seed, stream, late);
  else if (storage == POPNORM_BF16)
    launch_fill<__nv_bfloat16>(to, elements, seed, stream, late);
  else
    launch_fill<__half>(to, elements, seed, stream, late);
  check(cudaPeekAtLastError());
}

void sum(const std::uint16_t* x, const std::uint16_t* dy, const Shape& shape, double* sums) {
  sum_kernel<<<blocks_of(shape), kThreads>>>(x, dy, shape, sums);
  check(cudaPeekAtLastError());
}

void count_wrong_y(const std::uint16_t* x, const std::uint16_t* y, const Shape& shape, const float* mean,
                   const float* invstd, unsigned long long* wrong) {
  count_wrong_y_kernel<<<blocks_of(shape), kThreads>>>(x, y, shape, mean, invstd, wrong);
  check(cudaPeekAtLastError());
}

void count_wrong_dx(const std::uint16_t* x, const std::uint16_t* dx, const Shape& shape, std::uint32_t dy_seed,
                    const float* mean, const float* invstd, const float* dscale, const float* dshift,
                    unsigned long long* wrong) {
  count_wrong_dx_kernel<<<blocks_of(shape), kThreads>>>(x, dx, shape, dy_seed, mean, invstd, dscale, dshift, wrong);
  check(cudaPeekAtLastError());
}

void fail_on_device() {
  trap_kernel<<<1, 1>>>();
  if (cudaDeviceSynchronize() == cudaSuccess) throw std::runtime_error("a kernel that traps did not fail");
}

}  // namespace popnorm_test
