// The only place where kernels meet the machine. Compiled by nvcc they are CUDA; compiled as C++ they run on the tests' emulator
// (tests/support/simt), which defines what nvcc knows by itself.
#ifndef POPNORM_KERNELS_CUDA_INTRINSICS_CUH
#define POPNORM_KERNELS_CUDA_INTRINSICS_CUH

#ifndef __CUDACC__
#include "support/simt/simt.hpp"
#endif

namespace popnorm::cuda {

#ifdef __CUDACC__

// The block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char popnorm_shared_memory[];
  return reinterpret_cast<T*>(popnorm_shared_memory);
}

#else

template <class T>
T* shared_memory() {
  return static_cast<T*>(simt::shared_memory());
}

#endif

}  // namespace popnorm::cuda

#endif
