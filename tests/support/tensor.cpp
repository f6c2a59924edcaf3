#include "support/tensor.hpp"

#include <algorithm>
#include <cstring>

namespace popnorm_test {

double Array::get(std::int64_t i) const {
  if (type_ == POPNORM_F64) return reinterpret_cast<const double*>(buffer_.data())[i];
  return static_cast<double>(reinterpret_cast<const float*>(buffer_.data())[i]);
}

void Array::set(std::int64_t i, double value) {
  if (type_ == POPNORM_F64) {
    reinterpret_cast<double*>(buffer_.data())[i] = value;
  } else {
    reinterpret_cast<float*>(buffer_.data())[i] = static_cast<float>(value);
  }
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
