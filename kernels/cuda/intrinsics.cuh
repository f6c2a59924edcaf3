// The only place where kernels meet the machine. Compiled by nvcc they are CUDA; compiled as C++ they run on the tests' emulator
// (tests/support/simt), which defines what nvcc knows by itself.
#ifndef POPNORM_KERNELS_CUDA_INTRINSICS_CUH
#define POPNORM_KERNELS_CUDA_INTRINSICS_CUH

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/inline.hpp"
#include "kernels/storage.hpp"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#else
#include "support/simt/simt.hpp"
#endif

namespace popnorm::cuda {

// Whether this compilation is for a device before sm_80, or from sm_100 on, whose code takes a few more registers.
#ifdef __CUDA_ARCH__
inline constexpr bool kBeforeSm80 = __CUDA_ARCH__ < 800, kSinceSm100 = __CUDA_ARCH__ >= 1000;
#else
inline constexpr bool kBeforeSm80 = false, kSinceSm100 = false;
#endif

// The upper half of a product of 128 bits.
POPNORM_INLINE std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<std::uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

POPNORM_INLINE std::uint32_t multiply_high(std::uint32_t a, std::uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return static_cast<std::uint32_t>(std::uint64_t{a} * b >> 32);
#endif
}

// Of a number that is not 0.
POPNORM_INLINE int lowest_bit(unsigned bits) {
#ifdef __CUDA_ARCH__
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// What a word is read for: soon to be read again; not soon, so that what will be stays in the L2 cache; or early, before this kernel has
// waited for the launches before it. A launch that has ended may have written that, but nothing promises that this multiprocessor's L1
// cache has heard of it: it is read from L2.
enum class Use { again, last, early };

#ifdef __CUDACC__

// The value, of which the compiler does not know that it is the same each time: what is computed from it in a loop is computed there,
// instead of once before and kept in registers that the loop needs.
template <class V>
__device__ __forceinline__ V renewed(V value) {
  static_assert(sizeof(V) == 4 || std::is_same_v<V, double>);
  if constexpr (std::is_same_v<V, float>)
    asm volatile("" : "+f"(value));
  else if constexpr (std::is_same_v<V, double>)
    asm volatile("" : "+d"(value));
  else
    asm volatile("" : "+r"(value));
  return value;
}

// The block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char popnorm_shared_memory[];
  return reinterpret_cast<T*>(popnorm_shared_memory);
}

// Swaps values with the lane whose number differs by `mask`. All lanes of the warp take part.
template <int N>
__device__ __forceinline__ void shuffle_xor(double (&value)[N], int mask) {
#pragma unroll
  for (int i = 0; i < N; ++i) value[i] = __shfl_xor_sync(0xFFFFFFFFU, value[i], mask);
}

template <int N>
__device__ __forceinline__ void shuffle_xor(float (&value)[N], int mask) {
#pragma unroll
  for (int i = 0; i < N; ++i) value[i] = __shfl_xor_sync(0xFFFFFFFFU, value[i], mask);
}

__device__ __forceinline__ unsigned shuffle_xor(unsigned value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFU, value, mask);
}

// a*b + c rounded once, a*b rounded before anything is added: where the same bits are needed in several kernels.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// Comes in every kernel before it touches what the launch before it writes, and in every thread. From sm_90 on a launch begins while
// that one ends (programmatic dependent launch); here it waits until all of that is written, and lets the next one begin: when a
// kernel begins, all launches but the last before it have ended.
__device__ __forceinline__ void wait_for_earlier_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// A barrier of the block's threads that tells whether something is so for any of them.
__device__ __forceinline__ bool block_any(bool value) { return __syncthreads_or(value ? 1 : 0) != 0; }

// Until all threads of the cluster (none before sm_90), or of a grid that was launched cooperatively, have come: what they wrote
// to memory before is then seen by all of them.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __trap();
#endif
}
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

// 16, 8, 4 or 2 bytes, both addresses aligned to that.
template <int kBytes>
using Word = std::conditional_t<kBytes == 16, int4,
                                std::conditional_t<kBytes == 8, int2, std::conditional_t<kBytes == 4, int, short>>>;
template <int kBytes>
__device__ __forceinline__ void load_word(void* to, const void* from, Use use) {
  const auto* memory = static_cast<const Word<kBytes>*>(from);
  *static_cast<Word<kBytes>*>(to) = use == Use::early ? __ldcg(memory) : use == Use::last ? __ldcs(memory) : *memory;
}
template <int kBytes>
__device__ __forceinline__ void store_word(void* to, const void* from) {
  __stcs(static_cast<Word<kBytes>*>(to), *static_cast<const Word<kBytes>*>(from));
}

// Begins to copy 4, 8 or 16 bytes, both addresses aligned to that, from memory to shared memory, where the thread that began it may
// read them when it has waited. Copies begun between two commits are a group. Before sm_80 a copy is done at once.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes) : "memory");
#else
  __builtin_memcpy(__builtin_assume_aligned(to, kBytes), __builtin_assume_aligned(from, kBytes), kBytes);
#endif
}
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `kept` groups, those begun last, are under way; or fewer, if `kept` is beyond kMost.
template <int kMost, int kLeast = 0>
__device__ __forceinline__ void wait_for_copies([[maybe_unused]] int kept) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kLeast == kMost) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kMost) : "memory");
  } else {
    constexpr int kMiddle = (kLeast + kMost) / 2;
    if (kept <= kMiddle)
      wait_for_copies<kMiddle, kLeast>(kept);
    else
      wait_for_copies<kMost, kMiddle + 1>(kept);
  }
#endif
}

__device__ __forceinline__ void atomic_or(unsigned* to, unsigned bits) { atomicOr(to, bits); }
// Of a number that some threads read while another writes it. Whether it was there already is known only behind a barrier or launch.
template <class T>
__device__ __forceinline__ T load_relaxed(const T* from) {
  return *static_cast<const volatile T*>(from);
}
template <class T>
__device__ __forceinline__ void store_relaxed(T* to, T value) {
  *static_cast<volatile T*>(to) = value;
}

// Between f16 and float by one instruction; the bits are those of kernels/storage.hpp.
__device__ __forceinline__ float widen_f16(F16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
__device__ __forceinline__ F16 narrow_f16(float value) {
  F16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
  return half;
}

// The same of bf16, in one instruction since sm_80.
__device__ __forceinline__ Bf16 narrow_bf16(float value) {
#if __CUDA_ARCH__ >= 800
  Bf16 half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
  return half;
#else
  return to_bf16(value);
#endif
}

#else

template <class V>
V renewed(V value) {
  return value;
}
template <class T>
T* shared_memory() {
  return static_cast<T*>(simt::shared_memory());
}
template <int N>
void shuffle_xor(double (&value)[N], int mask) {
  simt::shuffle_xor(value, N, mask);
}
template <int N>
void shuffle_xor(float (&value)[N], int mask) {
  double wide[N];
  for (int i = 0; i < N; ++i) wide[i] = static_cast<double>(value[i]);
  simt::shuffle_xor(wide, N, mask);
  for (int i = 0; i < N; ++i) value[i] = static_cast<float>(wide[i]);
}
inline unsigned shuffle_xor(unsigned value, int mask) {
  double exact[] = {static_cast<double>(value)};
  simt::shuffle_xor(exact, 1, mask);
  return static_cast<unsigned>(exact[0]);
}
template <class A>
A multiply_add(A a, A b, A c) {
  return std::fma(a, b, c);
}
template <class A>
A rounded_product(A a, A b) {
  return a * b;
}
inline void wait_for_earlier_launches() { simt::wait_for_earlier_launches(); }
inline bool block_any(bool value) { return simt::block_any(value); }
inline void cluster_barrier() { simt::cluster_barrier(); }
inline void grid_barrier() { simt::grid_barrier(); }
template <int kBytes>
void load_word(void* to, const void* from, Use /*use*/) {
  simt::expect_aligned(from, kBytes);
  __builtin_memcpy(to, from, kBytes);
}
template <int kBytes>
void store_word(void* to, const void* from) {
  simt::expect_aligned(to, kBytes);
  __builtin_memcpy(to, from, kBytes);
}
template <int kBytes>
void copy_async(void* to, const void* from) {
  simt::copy_async(to, from, kBytes);
}
inline void commit_copies() { simt::commit_copies(); }
template <int kMost>
void wait_for_copies(int kept) {
  simt::wait_for_copies(static_cast<std::size_t>(kept < kMost ? kept : kMost));
}
inline float widen_f16(F16 value) { return to_float(value); }
inline F16 narrow_f16(float value) { return to_f16(value); }
inline Bf16 narrow_bf16(float value) { return to_bf16(value); }
inline void atomic_or(unsigned* to, unsigned bits) { __atomic_fetch_or(to, bits, __ATOMIC_RELAXED); }
template <class T>
T load_relaxed(const T* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}
template <class T>
void store_relaxed(T* to, T value) {
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

#endif

}  // namespace popnorm::cuda

#endif
