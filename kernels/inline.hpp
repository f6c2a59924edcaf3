// Arithmetic that is compiled once per ISA tier and once for the rest: always inlined, so that no copy with one tier's
// instructions is left for the linker to choose.
#ifndef POPNORM_KERNELS_INLINE_HPP
#define POPNORM_KERNELS_INLINE_HPP

#define POPNORM_INLINE [[gnu::always_inline]] inline

#endif
