// How a block's threads add up: along trees that the block's shape fixes.
#ifndef POPNORM_KERNELS_CUDA_REDUCE_CUH
#define POPNORM_KERNELS_CUDA_REDUCE_CUH

#include <cstddef>

#include "kernels/cuda/layout.cuh"

namespace popnorm::cuda {

// A block's threads as x columns of y threads each; x and y are powers of two with x*y = kThreads. thread = of_y*x + of_x.
struct Columns {
  int x;
  int log_x;
  int y;

  // A block of any shape seen so, x values side by side.
  POPNORM_INLINE explicit Columns(int columns)
      : x(columns), log_x(lowest_bit(static_cast<unsigned>(columns))), y(kThreads >> log_x) {}
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }
  __device__ __forceinline__ int of_x(int of = thread()) const { return of & (x - 1); }
  __device__ __forceinline__ int of_y(int of = thread()) const { return of >> log_x; }
  POPNORM_INLINE int log_y() const { return lowest_bit(static_cast<unsigned>(y)); }
};

// Bytes of shared memory that block_reduce needs, whatever it reduces: at most 512 partial sums of 16 bytes, or 256 of 24, and 64
// results. Results have a place of their own, where no later call's partial sums meet those who still read them.
inline constexpr std::size_t kPartialBytes = 2 * kThreads * 16;
inline constexpr std::size_t kReduceBytes = kPartialBytes + 64 * 24;

// Each value with that of the lane whose number differs by `mask`, up to four at once. V consists of doubles.
template <int K, class V, class Op>
__device__ __forceinline__ void add_lane(V (&value)[K], int mask, const Op& op) {
  static_assert(sizeof(V) % sizeof(double) == 0);
  constexpr int kAtOnce = K < 4 ? K : 4;
  static_assert(K % kAtOnce == 0);
#pragma unroll
  for (int first = 0; first < K; first += kAtOnce) {
    union Words {
      V whole[kAtOnce];
      double part[kAtOnce * sizeof(V) / sizeof(double)];
      __device__ __forceinline__ Words() {}
    } theirs;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) theirs.whole[k] = value[first + k];
    shuffle_xor(theirs.part, mask);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) value[first + k] = op(value[first + k], theirs.whole[k]);
  }
}

// K values of every thread, reduced over the threads of a column: lanes that differ in y first, then warps. Every thread gets its
// column's. Threads from the `used`-th of a column on have nothing that counts. `shared` has kReduceBytes.
template <int K, class V, class Op>
__device__ __forceinline__ void block_reduce(V (&value)[K], const Columns& columns, void* shared, const Op& op,
                                             int used) {
  const int thread = renewed(Columns::thread());
  for (int mask = columns.x; mask < kWarp && mask < used << columns.log_x; mask *= 2) add_lane(value, mask, op);
  // A warp's columns, or all, in so many parts.
  const int wide = columns.x < kWarp ? columns.x : kWarp;
  const int parts = columns.x < kWarp ? kThreads / kWarp : columns.y;
  const int part = columns.x < kWarp ? thread / kWarp : columns.of_y(thread);
  const int used_parts = columns.x < kWarp ? ((used << columns.log_x) + kWarp - 1) / kWarp : used;
  const int results = columns.x * K;
  V* const partial = static_cast<V*>(shared);
  V* const result = reinterpret_cast<V*>(static_cast<std::byte*>(shared) + kPartialBytes);
  if (thread % kWarp < wide)
#pragma unroll
    for (int k = 0; k < K; ++k) partial[part * results + columns.of_x(thread) * K + k] = value[k];
  __syncthreads();
  // The parts of a result side by side in a warp, of which all lanes take part.
  const int all = parts * results, log_parts = lowest_bit(static_cast<unsigned>(parts));
  for (int at = thread; at < (all + kWarp - 1) / kWarp * kWarp; at += kThreads) {
    const int i = at < all ? at : 0, of = i & (parts - 1);
    V sum[1] = {partial[of * results + (i >> log_parts)]};
    for (int mask = 1; mask < used_parts; mask *= 2) add_lane(sum, mask, op);
    if (at < all && of == 0) result[i >> log_parts] = sum[0];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) value[k] = result[columns.of_x(thread) * K + k];
}
template <int K, class V, class Op>
__device__ __forceinline__ void block_reduce(V (&value)[K], const Columns& columns, void* shared, const Op& op) {
  block_reduce(value, columns, shared, op, columns.y);
}

template <class V, class Op>
__device__ __forceinline__ V block_reduce(const V& value, const Columns& columns, void* shared, const Op& op) {
  V one[1] = {value};
  block_reduce(one, columns, shared, op);
  return one[0];
}

struct TwoSums {
  double first;
  double second;
};
struct Add {
  POPNORM_INLINE double operator()(double a, double b) const { return a + b; }
  POPNORM_INLINE TwoSums operator()(const TwoSums& a, const TwoSums& b) const {
    return {a.first + b.first, a.second + b.second};
  }
};

}  // namespace popnorm::cuda

#endif
