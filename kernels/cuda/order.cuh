// Samples ordered by their labels, stably: a radix sort of 8 bits at a time, in which thread d of a block counts the samples whose
// digit is d. Nothing is atomic; labels are never read by the host. Also what a call's arrays are checked for.
#ifndef POPNORM_KERNELS_CUDA_ORDER_CUH
#define POPNORM_KERNELS_CUDA_ORDER_CUH

#include <cstdint>

#include "kernels/cuda/layout.cuh"
#include "kernels/reserve_layout.hpp"

namespace popnorm::cuda {

inline constexpr int kDigits = 256;
static_assert(kDigits == kThreads);

// One pass, on one digit, over blocks of per_block samples. The key of a sample without an id is `count`: such come last.
struct OrderArgs {
  Groups by;
  int shift = 0;
  std::int64_t per_block = 0;        // a multiple of kThreads
  const std::int32_t* in = nullptr;  // [n]: samples as earlier passes left them; null: 0, 1, 2...
  std::int32_t* out = nullptr;       // [n]
  std::int32_t* place = nullptr;     // [kDigits][gridDim.x]: how many, then where the first goes
  int blocks = 0;

  POPNORM_INLINE std::int32_t sample(std::int64_t i) const {
    return in != nullptr ? in[i] : static_cast<std::int32_t>(i);
  }
  POPNORM_INLINE int digit(std::int64_t sample) const {
    const std::int64_t id = by.of(sample);
    return static_cast<int>((id >= 0 ? id : by.count) >> shift & (kDigits - 1));
  }
};

// Calls body(i, digits) for rounds of kThreads samples from i on, whose digits are in shared memory; -1 beyond the last.
template <class Body>
__device__ __forceinline__ void for_each_round(const OrderArgs& args, const Body& body) {
  int* const digits = shared_memory<int>();
  const std::int64_t begin = blockIdx.x * args.per_block;
  const std::int64_t end = begin + args.per_block < args.by.n ? begin + args.per_block : args.by.n;
  for (std::int64_t i = begin; i < end; i += kThreads) {
    __syncthreads();
    digits[threadIdx.x] = i + threadIdx.x < end ? args.digit(args.sample(i + threadIdx.x)) : -1;
    __syncthreads();
    body(i, digits);
  }
}

template <class Unused>
__global__ void __launch_bounds__(kThreads) order_count_kernel(const __grid_constant__ OrderArgs args) {
  wait_for_earlier_launches();
  std::int32_t count = 0;
  for_each_round(args, [&](std::int64_t, const int* digits) {
    for (int i = 0; i < kThreads; ++i) count += digits[i] == static_cast<int>(threadIdx.x) ? 1 : 0;
  });
  args.place[threadIdx.x * args.blocks + blockIdx.x] = count;
}

// One block: counts become places, in the order of digits, then of blocks.
template <class Unused>
__global__ void __launch_bounds__(kThreads) order_scan_kernel(const __grid_constant__ OrderArgs args) {
  wait_for_earlier_launches();
  auto* const sums = shared_memory<std::int32_t>();
  std::int32_t* const own = args.place + static_cast<std::int64_t>(threadIdx.x) * args.blocks;
  std::int32_t sum = 0;
  for (int b = 0; b < args.blocks; ++b) sum += own[b];
  sums[threadIdx.x] = sum;
  __syncthreads();
  std::int32_t at = 0;
  for (unsigned d = 0; d < threadIdx.x; ++d) at += sums[d];
  for (int b = 0; b < args.blocks; ++b) {
    const std::int32_t count = own[b];
    own[b] = at;
    at += count;
  }
}

template <class Unused>
__global__ void __launch_bounds__(kThreads) order_scatter_kernel(const __grid_constant__ OrderArgs args) {
  wait_for_earlier_launches();
  auto* const next = shared_memory<std::int32_t>() + kThreads;  // behind the digits
  next[threadIdx.x] = args.place[threadIdx.x * args.blocks + blockIdx.x];
  for_each_round(args, [&](std::int64_t i, const int* digits) {
    const int own = digits[threadIdx.x];
    std::int32_t before = 0, count = 0;
    for (int t = 0; t < kThreads; ++t) {
      before += digits[t] == own && t < static_cast<int>(threadIdx.x) ? 1 : 0;
      count += digits[t] == static_cast<int>(threadIdx.x) ? 1 : 0;
    }
    if (own >= 0) args.out[next[own] + before] = args.sample(i + threadIdx.x);
    __syncthreads();
    next[threadIdx.x] += count;
  });
}

// Where an id's samples begin in the order.
struct OrderBeginArgs {
  Groups by;
  const std::int32_t* order = nullptr;  // [n]
  std::int32_t* begin = nullptr;        // [count + 1]
};

template <class Unused>
__global__ void __launch_bounds__(kThreads) order_begin_kernel(const __grid_constant__ OrderBeginArgs args) {
  wait_for_earlier_launches();
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t id = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; id <= args.by.count; id += stride) {
    std::int64_t low = 0, high = args.by.n;  // the first whose key is not smaller
    while (low < high) {
      const std::int64_t middle = (low + high) / 2, key = args.by.of(args.order[middle]);
      if ((key >= 0 ? key : args.by.count) < id)
        low = middle + 1;
      else
        high = middle;
    }
    args.begin[id] = static_cast<std::int32_t>(low);
  }
}

// What is wrong with the arrays of a call, for popnorm_batch.device_status.
struct CheckArgs {
  Groups map[3];                           // of groups, population slots and affine slots; of kind WHOLE if not used
  const ReserveHeader* reserve = nullptr;  // says which of the first two is used; null: the host has said
  Groups groups;                           // with their order, where each is to feed one slot; else none
  Groups slots;
  Weights weights;
  unsigned* status = nullptr;
};

POPNORM_INLINE bool is_weight(const Weights& weights, std::int64_t i) {
  if (weights.kind == POPNORM_LENGTHS) {
    const std::int64_t length = static_cast<const std::int64_t*>(weights.first)[i];
    return length >= 0 && length <= weights.s;
  }
  return Weights::is_usable(static_cast<const float*>(weights.first)[i]);
}

template <class Unused>
__global__ void __launch_bounds__(kThreads) check_kernel(const __grid_constant__ CheckArgs args) {
  wait_for_earlier_launches();
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  unsigned found = 0;
  const std::int64_t n = args.slots.n;
  int unused = -1;
  if (args.reserve != nullptr)
    unused = static_cast<popnorm_statistics>(args.reserve->statistics) == POPNORM_GIVEN ? 0 : 1;
  for (std::int64_t sample = first; sample < n; sample += stride) {
    for (int i = 0; i < 3; ++i)
      if (i != unused && args.map[i].of(sample) < 0) found |= POPNORM_DEVICE_LABEL;
    const std::int64_t group = args.groups.n > 0 ? args.groups.of(sample) : -1;
    if (group >= 0 && args.slots.of(sample) != args.slots.of(args.groups.members(group).at(std::int64_t{0})))
      found |= POPNORM_DEVICE_SLOT;
  }
  const std::int64_t weights = args.weights.kind == POPNORM_UNWEIGHTED             ? 0
                               : args.weights.kind == POPNORM_WEIGHTS_PER_POSITION ? n * args.weights.s
                                                                                   : n;
  for (std::int64_t i = first; i < weights; i += stride)
    if (!is_weight(args.weights, i)) found |= POPNORM_DEVICE_WEIGHT;
  if (found != 0) atomic_or(args.status, found);
}

}  // namespace popnorm::cuda

#endif
