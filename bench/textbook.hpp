// What textbooks do in single precision: the formulas that the accuracy table must show failing.
#ifndef POPNORM_BENCH_TEXTBOOK_HPP
#define POPNORM_BENCH_TEXTBOOK_HPP

#include <cmath>
#include <cstddef>
#include <span>

namespace popnorm_bench::textbook {

struct Statistics {
  float mean = 0;
  float variance = 0;
};

// Welford 1962: one element after the other.
inline Statistics welford(std::span<const float> x) {
  float mean = 0;
  float m2 = 0;
  float count = 0;
  for (const float value : x) {
    count += 1;
    const float delta = value - mean;
    mean += delta / count;
    m2 += delta * (value - mean);
  }
  return {mean, m2 / count};
}

// E[x^2] - E[x]^2, kept from going negative.
inline Statistics square_of_means(std::span<const float> x) {
  float sum = 0;
  float squares = 0;
  for (const float value : x) {
    sum += value;
    squares += value * value;
  }
  const float count = static_cast<float>(x.size());
  const float mean = sum / count;
  return {mean, std::fmax(squares / count - mean * mean, 0.0F)};
}

inline Statistics two_pass(std::span<const float> x) {
  const float count = static_cast<float>(x.size());
  float sum = 0;
  for (const float value : x) sum += value;
  const float mean = sum / count;
  float m2 = 0;
  for (const float value : x) m2 += (value - mean) * (value - mean);
  return {mean, m2 / count};
}

inline void normalize(std::span<const float> x, const Statistics& s, float epsilon, float scale, float shift,
                      std::span<float> y) {
  const float invstd = 1 / std::sqrt(s.variance + epsilon);
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - s.mean) * invstd * scale + shift;
}

inline void backward(std::span<const float> x, std::span<const float> dy, const Statistics& s, float epsilon,
                     float scale, std::span<float> dx) {
  const float invstd = 1 / std::sqrt(s.variance + epsilon);
  const float count = static_cast<float>(x.size());
  float dshift = 0;
  float dscale = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    dshift += dy[i];
    dscale += dy[i] * ((x[i] - s.mean) * invstd);
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float xhat = (x[i] - s.mean) * invstd;
    dx[i] = scale * invstd * (dy[i] - dshift / count - xhat * (dscale / count));
  }
}

}  // namespace popnorm_bench::textbook

#endif
