// Tensors that are made and looked at on the device: for device_test.cpp, which has more elements than a host would fill.
#ifndef POPNORM_TESTS_CUDA_DEVICE_TENSOR_HPP
#define POPNORM_TESTS_CUDA_DEVICE_TENSOR_HPP

#include <cuda_runtime_api.h>
#include <popnorm/popnorm.h>

#include <cstdint>

namespace popnorm_test {

// Multiples of 1/16 in [-8, 8), which every storage type has: a hash of seed and index. With `late` the last of them are written a while
// after the first, and the next launch of the stream may begin meanwhile if it asked for that.
void fill(void* to, popnorm_type storage, std::int64_t elements, std::uint32_t seed, cudaStream_t stream, bool late);

// Of a dense tensor of bf16.
struct Shape {
  std::int64_t n, c, s;
  bool columns;  // NHWC
};

// [c][4] = the sums of x, x squared, dy and dy x over a channel, onto what is there.
void sum(const std::uint16_t* x, const std::uint16_t* dy, const Shape& shape, double* sums);

// Elements that are not y = (x - mean) invstd, and dx = invstd (dy - dshift / NS - (x - mean) invstd dscale / NS) with the dy that
// `fill` makes of a seed, each within its bound of docs/numerics.md and a rounding of each number that these are computed from.
void count_wrong_y(const std::uint16_t* x, const std::uint16_t* y, const Shape& shape, const float* mean,
                   const float* invstd, unsigned long long* wrong);
void count_wrong_dx(const std::uint16_t* x, const std::uint16_t* dx, const Shape& shape, std::uint32_t dy_seed,
                    const float* mean, const float* invstd, const float* dscale, const float* dshift,
                    unsigned long long* wrong);

// Traps in a kernel and waits until the device's context has ended.
void fail_on_device();

}  // namespace popnorm_test

#endif
