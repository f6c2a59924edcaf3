#include "support/tensor.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/storage.hpp"

namespace popnorm_test {

namespace {

// Calls body(T{}) with the type that stores such numbers.
template <class Body>
auto with_type(popnorm_type type, const Body& body) {
  switch (type) {
    case POPNORM_F64:
      return body(double{});
    case POPNORM_BF16:
      return body(popnorm::Bf16{});
    case POPNORM_F16:
      return body(popnorm::F16{});
    default:
      return body(float{});
  }
}

template <class T>
T narrowed(double value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return popnorm::narrow<T>(static_cast<float>(value));
}
template <class T>
double widened(T value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return static_cast<double>(popnorm::widen<float>(value));
}

}  // namespace

std::size_t size_of(popnorm_type type) {
  return with_type(type, [](auto zero) { return sizeof(zero); });
}

const popnorm::reference::Format& format_of(popnorm_type type) {
  // Of 8 and 11 digits.
  static constexpr popnorm::reference::Format kBf16{0x1p-8L, 0x1p-134L, 0x1.FEp127L}, kF16{0x1p-11L, 0x1p-25L, 65504};
  return type == POPNORM_BF16  ? kBf16
         : type == POPNORM_F16 ? kF16
         : type == POPNORM_F64 ? popnorm::reference::kF64
                               : popnorm::reference::kF32;
}

const char* name_of(popnorm_type type) {
  return type == POPNORM_F64 ? "f64" : type == POPNORM_BF16 ? "bf16" : type == POPNORM_F16 ? "f16" : "f32";
}

double stored(popnorm_type type, double value) {
  return with_type(type, [&](auto zero) { return widened(narrowed<decltype(zero)>(value)); });
}

double Array::get(std::int64_t i) const {
  return with_type(type_,
                   [&](auto zero) { return widened(reinterpret_cast<const decltype(zero)*>(buffer_.data())[i]); });
}

void Array::set(std::int64_t i, double value) {
  with_type(type_,
            [&](auto zero) { reinterpret_cast<decltype(zero)*>(buffer_.data())[i] = narrowed<decltype(zero)>(value); });
}

std::vector<double> Array::values() const {
  std::vector<double> result(static_cast<std::size_t>(count_));
  for (std::int64_t i = 0; i < count_; ++i) result[static_cast<std::size_t>(i)] = get(i);
  return result;
}

void Array::assign(std::span<const double> values) {
  for (std::int64_t i = 0; i < count_; ++i) set(i, values[static_cast<std::size_t>(i)]);
}

const char* name_of(Spacing kind) {
  switch (kind) {
    case Spacing::packed:
      return "packed";
    case Spacing::channel_slice:
      return "channel slice";
    case Spacing::padded_rows:
      return "padded rows";
    case Spacing::padded_samples:
      return "padded samples";
    case Spacing::samples_inside:
      return "samples inside";
  }
  return "unknown Spacing";
}

Geometry::Geometry(popnorm_layout layout_, std::int64_t n_, std::int64_t c_, std::int64_t s_, Spacing kind)
    : layout(layout_), n(n_), c(c_), s(s_) {
  const std::int64_t length = layout == POPNORM_NCHW ? s : c;
  const std::int64_t rows = layout == POPNORM_NCHW ? c : s;
  strides = {rows * length, length};
  switch (kind) {
    case Spacing::packed:
      break;
    case Spacing::channel_slice:
      if (layout == POPNORM_NCHW) {
        strides.sample = (c + 3) * s;
      } else {
        strides = {s * (c + 3), c + 3};
      }
      break;
    case Spacing::padded_rows:
      strides = {rows * (length + 5), length + 5};
      break;
    case Spacing::padded_samples:
      strides.sample += 7;
      break;
    case Spacing::samples_inside:
      strides = {length, n * length};
      break;
  }
}

std::vector<double> Tensor::by_channel() const {
  std::vector<double> result(static_cast<std::size_t>(shape_.n * shape_.c * shape_.s));
  for_each([&](std::int64_t i, std::int64_t at) { result[static_cast<std::size_t>(i)] = get(at); });
  return result;
}

void Tensor::assign_by_channel(std::span<const double> values) {
  for_each([&](std::int64_t i, std::int64_t at) { set(at, values[static_cast<std::size_t>(i)]); });
}

bool Tensor::gaps_intact() const {
  std::vector<bool> element(static_cast<std::size_t>(count()), false);
  for_each([&](std::int64_t, std::int64_t at) { element[static_cast<std::size_t>(at)] = true; });
  const std::size_t width = size_of(type());
  for (std::size_t i = 0; i < element.size(); ++i) {
    if (element[i]) continue;
    const std::byte* gap = buffer().data() + i * width;
    if (!std::all_of(gap, gap + width, [](std::byte b) { return b == std::byte{0xFF}; })) return false;
  }
  return true;
}

}  // namespace popnorm_test
