// The canonical problem: what validation makes of a popnorm_problem. Everything behind validate.cpp may trust it.
#ifndef POPNORM_CORE_PROBLEM_HPP
#define POPNORM_CORE_PROBLEM_HPP

#include <popnorm/popnorm.h>

#include <cstdint>

namespace popnorm {

// Which dimension vectors run over. Rows: positions of one (sample, channel). Columns: channels of one (sample,
// position).
enum class Form { rows, columns };

// Element strides of one tensor. `row` separates channels in the rows form, positions in the columns form.
struct Strides {
  std::int64_t sample = 0;
  std::int64_t row = 0;
};

// A popnorm_map with the number of its ids.
struct Map {
  popnorm_map_kind kind = POPNORM_WHOLE;
  std::int64_t k = 0;
  std::int64_t count = 1;
};

struct Problem {
  std::int64_t n = 0;
  std::int64_t c = 0;
  std::int64_t s = 0;
  popnorm_layout layout = POPNORM_NCHW;
  Form form = Form::rows;
  popnorm_type storage = POPNORM_F32;
  popnorm_type parameters = POPNORM_F32;
  popnorm_type statistics = POPNORM_F32;
  double epsilon = 0;
  Strides x, y, dy, dx;
  Map norm_group;
  Map population_slot;
  Map affine_slot;
  popnorm_weights weights = POPNORM_UNWEIGHTED;
  popnorm_activation activation = POPNORM_IDENTITY;
  double slope = 1;  // of LEAKY_RELU
  bool adds_residual = false;
  Strides residual, dresidual;

  std::int64_t elements() const { return n * c * s; }
  double weight() const { return static_cast<double>(n * s); }
  // Plain batch normalization: one group, one slot of each kind.
  bool plain() const {
    return norm_group.kind == POPNORM_WHOLE && population_slot.kind == POPNORM_WHOLE &&
           affine_slot.kind == POPNORM_WHOLE;
  }
  // What says which statistics row a sample has.
  const Map& row_map(popnorm_statistics source) const { return source == POPNORM_GIVEN ? population_slot : norm_group; }
  // Whether anything follows normalization; whether its gradient needs a mask, or can recompute from x what was stopped.
  bool fused() const { return activation != POPNORM_IDENTITY || adds_residual; }
  bool masked() const { return activation != POPNORM_IDENTITY && adds_residual; }
  bool recomputes() const { return activation != POPNORM_IDENTITY && !adds_residual; }
  // Rows of one sample, and elements of a row.
  std::int64_t rows() const { return form == Form::rows ? c : s; }
  std::int64_t row_length() const { return form == Form::rows ? s : c; }
};

constexpr bool is_16_bits(popnorm_type type) { return type == POPNORM_BF16 || type == POPNORM_F16; }
constexpr std::int64_t size_of(popnorm_type type) { return type == POPNORM_F64 ? 8 : is_16_bits(type) ? 2 : 4; }
// What a storage type is computed in.
constexpr popnorm_type arithmetic_of(popnorm_type storage) {
  return storage == POPNORM_F64 ? POPNORM_F64 : POPNORM_F32;
}
constexpr const char* name_of(popnorm_type type) {
  return type == POPNORM_F64 ? "f64" : type == POPNORM_BF16 ? "bf16" : type == POPNORM_F16 ? "f16" : "f32";
}

inline bool updates(const popnorm_update& u) {
  return u.running_mean != nullptr || u.running_variance != nullptr || u.population != nullptr;
}

}  // namespace popnorm

#endif
