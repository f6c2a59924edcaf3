// Operands of a call, of any floating-point type, in guarded memory.
#ifndef POPNORM_TESTS_SUPPORT_TENSOR_HPP
#define POPNORM_TESTS_SUPPORT_TENSOR_HPP

#include <popnorm/popnorm.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/reference.hpp"
#include "support/guarded_buffer.hpp"

namespace popnorm_test {

std::size_t size_of(popnorm_type type);
// What a type is computed in, which parameters and statistics are where a test does not choose.
inline popnorm_type arithmetic_type(popnorm_type storage) { return storage == POPNORM_F64 ? POPNORM_F64 : POPNORM_F32; }
// Of the type itself, and of what it is computed in.
const popnorm::reference::Format& format_of(popnorm_type type);
inline const popnorm::reference::Format& arithmetic_of(popnorm_type type) { return format_of(arithmetic_type(type)); }
const char* name_of(popnorm_type type);

// `value` as `type` holds it.
double stored(popnorm_type type, double value);

// Contiguous numbers, each NaN until it is written.
class Array {
 public:
  Array() noexcept = default;
  Array(popnorm_type type, std::int64_t count, Placement where, std::int64_t offset = 0)
      : type_(type),
        count_(count),
        buffer_(static_cast<std::size_t>(count) * size_of(type), size_of(type), where,
                static_cast<std::size_t>(offset) * size_of(type)) {}

  [[nodiscard]] popnorm_type type() const noexcept { return type_; }
  [[nodiscard]] std::int64_t count() const noexcept { return count_; }
  [[nodiscard]] void* data() noexcept { return buffer_.data(); }
  [[nodiscard]] const void* data() const noexcept { return buffer_.data(); }
  [[nodiscard]] double* doubles() noexcept { return reinterpret_cast<double*>(buffer_.data()); }
  [[nodiscard]] GuardedBuffer& buffer() noexcept { return buffer_; }
  [[nodiscard]] const GuardedBuffer& buffer() const noexcept { return buffer_; }

  [[nodiscard]] double get(std::int64_t i) const;
  void set(std::int64_t i, double value);

  [[nodiscard]] std::vector<double> values() const;
  void assign(std::span<const double> values);

 private:
  popnorm_type type_ = POPNORM_F32;
  std::int64_t count_ = 0;
  GuardedBuffer buffer_;
};

// Ways to lay an N x C x S tensor into memory.
enum class Spacing {
  packed,
  channel_slice,   // part of the channels of a concatenated tensor
  padded_rows,     // every row followed by a gap
  padded_samples,  // every sample followed by a gap
  samples_inside   // [C][N][S] for channels first, [S][N][C] for channels last: a permuted tensor
};
const char* name_of(Spacing kind);

// Where the elements of a tensor are, in elements from its base.
struct Geometry {
  popnorm_layout layout = POPNORM_NCHW;
  std::int64_t n = 0;
  std::int64_t c = 0;
  std::int64_t s = 0;
  popnorm_strides strides = {0, 0};

  Geometry(popnorm_layout layout, std::int64_t n, std::int64_t c, std::int64_t s, Spacing kind);

  [[nodiscard]] std::int64_t index(std::int64_t sample, std::int64_t channel, std::int64_t position) const {
    return layout == POPNORM_NCHW ? sample * strides.sample + channel * strides.row + position
                                  : sample * strides.sample + position * strides.row + channel;
  }
  // Elements from the first to the last, both included.
  [[nodiscard]] std::int64_t extent() const { return n == 0 || c == 0 || s == 0 ? 0 : index(n - 1, c - 1, s - 1) + 1; }
  [[nodiscard]] bool operator==(const Geometry& other) const {
    return layout == other.layout && n == other.n && c == other.c && s == other.s &&
           strides.sample == other.strides.sample && strides.row == other.strides.row;
  }
};

class Tensor : public Array {
 public:
  Tensor() : shape_(POPNORM_NCHW, 0, 0, 0, Spacing::packed) {}
  Tensor(const Geometry& shape, popnorm_type type, Placement where, std::int64_t offset = 0)
      : Array(type, shape.extent(), where, offset), shape_(shape) {}

  [[nodiscard]] const Geometry& shape() const noexcept { return shape_; }

  // All elements without the gaps, channel after channel, in each sample after sample: the order in which the oracle
  // and every comparison sees a tensor.
  [[nodiscard]] std::vector<double> by_channel() const;
  void assign_by_channel(std::span<const double> values);

  // False if anything was written between the elements.
  [[nodiscard]] bool gaps_intact() const;

 private:
  template <class Visit>
  void for_each(Visit visit) const {
    std::int64_t i = 0;
    for (std::int64_t c = 0; c < shape_.c; ++c) {
      for (std::int64_t n = 0; n < shape_.n; ++n) {
        for (std::int64_t s = 0; s < shape_.s; ++s) visit(i++, shape_.index(n, c, s));
      }
    }
  }

  Geometry shape_;
};

}  // namespace popnorm_test

#endif
