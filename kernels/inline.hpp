// Arithmetic that is compiled once per ISA tier, once for the rest, and once for GPUs: always inlined, so that no copy with one
// tier's instructions is left for the linker to choose.
#ifndef POPNORM_KERNELS_INLINE_HPP
#define POPNORM_KERNELS_INLINE_HPP

#ifdef __CUDACC__
#define POPNORM_INLINE __host__ __device__ __forceinline__
#else
#define POPNORM_INLINE [[gnu::always_inline]] inline
#endif

// For what is used at so many places that copies cost more to compile than a call costs to run. Only in anonymous namespaces.
#define POPNORM_OUTLINED [[gnu::noinline]] inline

#endif
