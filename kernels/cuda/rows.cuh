// The rows of statistics, scale and shift that normalize a sample: the reserve's, or a call's own.
#ifndef POPNORM_KERNELS_CUDA_ROWS_CUH
#define POPNORM_KERNELS_CUDA_ROWS_CUH

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>

#include "kernels/affine.hpp"
#include "kernels/cuda/layout.cuh"
#include "kernels/reserve_layout.hpp"

namespace popnorm::cuda {

// Samples are classed by their row of statistics (what dx needs), or by their affine slot (what dscale and dshift are).
enum class Classes { rows, affine };

// Rows of statistics: [rows][c], as in the reserve. A forward without one has neither weight nor d nor r2.
template <class A>
struct RowArrays {
  double* weight = nullptr;
  A* hi = nullptr;
  A* lo = nullptr;
  A* invstd = nullptr;
  A* d = nullptr;
  A* r2 = nullptr;
};

template <class A>
inline constexpr popnorm_type kTypeOf = sizeof(A) == sizeof(double) ? POPNORM_F64 : POPNORM_F32;

// What a kernel works with.
template <class A>
struct Rows {
  bool given;     // the statistics are constants
  Groups map;     // which row a sample has
  Groups affine;  // which scale and shift
  RowArrays<A> of;
  Values scale;
  Values shift;
  bool masked = false;  // the reserve says where the activation stopped, in the bits that these kernels know

  POPNORM_INLINE Groups of_class(Classes classes) const { return classes == Classes::affine ? affine : map; }
  POPNORM_INLINE StatisticsRow<A> row(std::int64_t i) const { return {of.hi[i], of.lo[i], of.invstd[i]}; }
};

// What the host knows of them. The source of a reserve's statistics is written in the reserve, which only kernels can read: it
// says whether rows are those of groups or of population slots, and with their number where the arrays begin.
template <class A>
struct RowSource {
  Groups groups;
  Groups slots;
  Groups affine;
  std::int64_t c = 0;
  std::uint32_t mask_shape = 0;
  std::byte* reserve = nullptr;  // or null, and then:
  popnorm_statistics statistics = POPNORM_BATCH;
  RowArrays<A> own{};
  Values scale{};
  Values shift{};

  // What only a kernel knows, of two bits. kMasks: another thread of the launch may be saying meanwhile that there is a mask, of
  // which shape.
  static constexpr unsigned kGiven = 1, kMasked = 2;
  template <bool kMasks = false>
  __device__ __forceinline__ unsigned known() const {
    if (reserve == nullptr) return statistics == POPNORM_GIVEN ? kGiven : 0;
    const auto* const header = reinterpret_cast<const ReserveHeader*>(reserve);
    const auto read = [](const auto& field) { return kMasks ? load_relaxed(&field) : field; };
    return (static_cast<popnorm_statistics>(header->statistics) == POPNORM_GIVEN ? kGiven : 0) |
           (read(header->masked) != 0 && read(header->mask_shape) == mask_shape ? kMasked : 0);
  }
  __device__ __forceinline__ Rows<A> rows(unsigned known) const {
    const bool given = (known & kGiven) != 0;
    Rows<A> rows{given, given ? slots : groups, affine, own, scale, shift};
    if (reserve == nullptr) return rows;
    const ReserveArrays<A, std::byte> r(reserve, rows.map.count * c, affine.count * c);
    rows.of = {r.weight, r.hi, r.lo, r.invstd, r.d, r.r2};
    rows.scale = {r.scale, kTypeOf<A>};
    rows.shift = {r.shift, kTypeOf<A>};
    rows.masked = (known & kMasked) != 0;
    return rows;
  }
  template <bool kMasks = false>
  __device__ __forceinline__ Rows<A> get() const {
    return rows(known<kMasks>());
  }
};

// The row and affine slot of the elements at hand. Samples, rows and slots are counted in Index. kAlike: the host knows that all samples
// have the same.
template <class A, class Index, bool kAlike>
class Place {
 public:
  POPNORM_INLINE explicit Place(const Rows<A>& rows, bool of_one_class = false)
      : rows_(rows), alike_(of_one_class || (rows.map.kind == POPNORM_WHOLE && rows.affine.kind == POPNORM_WHOLE)) {}

  // Whether those of this sample have others.
  POPNORM_INLINE bool enter(std::int64_t sample) {
    if (sample == sample_) return false;
    sample_ = static_cast<Index>(sample);
    const auto its_row = static_cast<Index>(rows_.map.of(sample));
    const auto its_affine = static_cast<Index>(rows_.affine.of(sample));
    if ((its_row == row_ && its_affine == affine_) || its_row < 0 || its_affine < 0) return false;
    row_ = its_row;
    affine_ = its_affine;
    return true;
  }
  // Whether all samples have the same; one of them is then entered before the first element.
  POPNORM_INLINE bool alike() const { return kAlike || alike_; }
  POPNORM_INLINE std::int64_t row() const { return row_; }
  POPNORM_INLINE std::int64_t affine() const { return affine_; }

 private:
  const Rows<A>& rows_;
  bool alike_;
  Index sample_ = -1, row_ = -1, affine_ = -1;
};

}  // namespace popnorm::cuda

#endif
