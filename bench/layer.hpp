// Which batch-normalization layers are measured.
#ifndef POPNORM_BENCH_LAYER_HPP
#define POPNORM_BENCH_LAYER_HPP

#include <popnorm/popnorm.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace popnorm_bench {

enum class Operation { forward_training, forward_inference, backward };

inline constexpr Operation kOperations[] = {Operation::forward_training, Operation::forward_inference,
                                            Operation::backward};
inline constexpr popnorm_layout kLayouts[] = {POPNORM_NCHW, POPNORM_NHWC};

// The words of the report.
const char* name_of(Operation operation);
const char* name_of(popnorm_layout layout);

// One line of shapes.tsv: a layer of a network at its usual batch size; `count` of its layers have this shape.
struct Layer {
  std::int64_t n = 0;
  std::int64_t c = 0;
  std::int64_t h = 0;
  std::int64_t w = 0;
  std::string network;
  int count = 0;

  [[nodiscard]] std::int64_t s() const { return h * w; }
  [[nodiscard]] std::size_t channels() const { return static_cast<std::size_t>(c); }
  [[nodiscard]] std::size_t elements() const { return static_cast<std::size_t>(n * c * s()); }
  [[nodiscard]] std::size_t bytes() const { return elements() * sizeof(float); }
  // "50x64x112x112"
  [[nodiscard]] std::string dimensions() const;
};

// Throws std::runtime_error, naming file and line, on a line that is not n, c, h, w, network, count.
std::vector<Layer> read_layers(const std::string& path);

}  // namespace popnorm_bench

#endif
