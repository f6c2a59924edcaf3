// The handwritten digits: 8x8 images with pixels 0..16 and the digit each one shows.
#ifndef DIGITS_DIGITS_HPP
#define DIGITS_DIGITS_HPP

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "tensor.hpp"

namespace digits {

inline constexpr Index kSide = 8;
inline constexpr Index kPixels = kSide * kSide;
inline constexpr Index kClasses = 10;

struct Digits {
  Tensor images;            // [size * kPixels][1], scaled to 0..1
  std::vector<int> labels;  // [size], 0..9

  [[nodiscard]] Index size() const { return static_cast<Index>(labels.size()); }
};

// Reads the comma-separated rows of 64 pixels and a label, gzipped or plain. Throws std::runtime_error naming the file,
// the line and what is wrong with it.
Digits load(const std::filesystem::path& file);

// The samples at `indices`, in that order. Memory of `out` is used again.
void select(const Digits& from, std::span<const Index> indices, Digits& out);

// Changes the light on `count` samples from `first` on: pixel = brightness + contrast * (pixel - 1/2). A negative contrast
// inverts them.
inline constexpr float kGrey = 0.5F;
void light(Digits& samples, Index first, Index count, float contrast, float brightness = kGrey);

struct Split {
  Digits train;
  Digits validation;
};

// `train` samples chosen at random by `seed`; the others are for validation.
Split split(const Digits& all, Index train, std::uint64_t seed);

}  // namespace digits

#endif
