// The kernels of one ISA tier and storage type. Compiled once per tier, with POPNORM_ISA_NAME, POPNORM_ISA_ARCH and that tier's
// compiler flags, from a source file per storage type, which sets POPNORM_ISA_STORAGE and POPNORM_ISA_STORAGE_NAME: four
// smaller compilations go round on several cores. Everything but the table is in an anonymous namespace: an inline function
// with this tier's instructions must never serve the rest of the library.
#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <xsimd/xsimd.hpp>

#include "cpu/kernel_table.hpp"
#include "kernels/activation.hpp"
#include "kernels/affine.hpp"
#include "kernels/inline.hpp"
#include "kernels/storage.hpp"
#include "kernels/virtual_lanes.hpp"

#if defined(__AVX512BW__)
#define POPNORM_TIER_AVX512
#elif defined(__AVX2__)
#define POPNORM_TIER_AVX2
#endif

#define POPNORM_CAT_(a, b) a##b
#define POPNORM_CAT(a, b) POPNORM_CAT_(a, b)

namespace popnorm::cpu {
namespace {

using Arch = POPNORM_ISA_ARCH;

// Each layer builds on those before.
// clang-format off
#include "kernels/simd/lanes.hpp"
#include "kernels/simd/reduce.hpp"
#include "kernels/simd/moments.hpp"
#include "kernels/simd/mask.hpp"
#include "kernels/simd/gradient.hpp"
#include "kernels/simd/backward_reduce.hpp"
#include "kernels/simd/elementwise.hpp"
#include "kernels/simd/normalize.hpp"
#include "kernels/simd/backward_apply.hpp"
#include "kernels/simd/weighted.hpp"
#include "kernels/simd/coefficients.hpp"
// clang-format on

template <class T>
constexpr Kernels kRowKernels{moments_rows<T>,
                              normalize_rows<T>,
                              backward_reduce_rows<T>,
                              backward_apply_rows<T>,
                              fused_normalize_rows<T>,
                              fused_backward_reduce_rows<T>,
                              fused_backward_apply_rows<T>,
                              weighted_moments_rows<T>,
                              weighted_normalize<true, T>,
                              weighted_backward_reduce_rows<T>,
                              weighted_backward_apply<true, T>,
                              merge_moments,
                              statistics_rows<Arithmetic<T>>,
                              normalize_row_of<Arithmetic<T>>,
                              merge_sums<Arithmetic<T>>,
                              gradient_row_of<Arithmetic<T>>};

template <class T>
constexpr Kernels kColumnKernels{moments_columns<T>,
                                 normalize_columns<T>,
                                 backward_reduce_columns<T>,
                                 backward_apply_columns<T>,
                                 fused_normalize_columns<T>,
                                 fused_backward_reduce_columns<T>,
                                 fused_backward_apply_columns<T>,
                                 weighted_moments_columns<T>,
                                 weighted_normalize<false, T>,
                                 weighted_backward_reduce_columns<T>,
                                 weighted_backward_apply<false, T>,
                                 merge_moments,
                                 statistics_rows<Arithmetic<T>>,
                                 normalize_row_of<Arithmetic<T>>,
                                 merge_sums<Arithmetic<T>>,
                                 gradient_row_of<Arithmetic<T>>};

}  // namespace

#define POPNORM_ISA_TABLE POPNORM_CAT(POPNORM_CAT(kernels_, POPNORM_ISA_NAME), POPNORM_CAT(_, POPNORM_ISA_STORAGE_NAME))

extern const Kernels POPNORM_ISA_TABLE[kForms];
constinit const Kernels POPNORM_ISA_TABLE[kForms] = {kRowKernels<POPNORM_ISA_STORAGE>,
                                                     kColumnKernels<POPNORM_ISA_STORAGE>};

}  // namespace popnorm::cpu
