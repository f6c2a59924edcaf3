// CUDA's execution model on the host, for tests: kernels compiled as C++ run here thread by thread. Each CUDA thread is a fiber; at
// a barrier or a warp-wide operation it waits until everybody has arrived. Blocks that may wait for one another, those of a
// cluster or of a cooperative grid, are there at once; others come one after the other. Which thread and which block is next is
// drawn from a seed (POPNORM_SIMT_SEED), so that what depends on their order gives other results under other seeds, and from launch
// to launch. Shared memory begins as NaN.
//
// This file defines the names that kernels use and nvcc knows by itself. It is included by kernels/cuda/intrinsics.cuh only.
#ifndef POPNORM_TESTS_SUPPORT_SIMT_SIMT_HPP
#define POPNORM_TESTS_SUPPORT_SIMT_SIMT_HPP

#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace simt {

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

// What the running thread sees.
struct Coordinates {
  Extent thread, block, threads, blocks;
};
const Coordinates& here();

void* shared_memory();
// Aborts with a message where a device would trap.
void expect_aligned(const void* address, std::size_t bytes);
// A thread that ends without having been here aborts with a message.
void wait_for_earlier_launches();
void block_barrier();
// The same; whether it was so for any thread.
bool block_any(bool value);
void cluster_barrier();
void grid_barrier();

// Numbers of every lane of the running thread's warp, swapped with those of the lane whose number differs by `mask`.
inline constexpr int kMostShuffled = 32;
void shuffle_xor(double* values, int count, int mask);

// Copies of the running thread: those begun since the last commit are a group. They happen no sooner than a wait for all but the
// last `kept` groups asks for them.
void copy_async(void* to, const void* from, std::size_t bytes);
void commit_copies();
void wait_for_copies(std::size_t kept);

// A stream counts its launches. The null stream does not.
struct Stream {
  std::uint64_t launches = 0;
};
void enqueue(void* stream);

struct Launch {
  Extent blocks, threads;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks, side by side in x
  bool cooperative = false;  // all blocks of the grid may meet
};

// Runs `thread` once per thread of the grid. Aborts with a message where threads wait for one another for ever.
void run(const Launch& launch, const std::function<void()>& thread);

}  // namespace simt

#define threadIdx (::simt::here().thread)
#define blockIdx (::simt::here().block)
#define blockDim (::simt::here().threads)
#define gridDim (::simt::here().blocks)

inline void __syncthreads() { ::simt::block_barrier(); }

#endif
