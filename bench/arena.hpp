// The memory that all contenders of a row share.
#ifndef POPNORM_BENCH_ARENA_HPP
#define POPNORM_BENCH_ARENA_HPP

#include <cstddef>
#include <popnorm/popnorm.hpp>
#include <vector>

#include "layer.hpp"

namespace popnorm_bench {

// One set of a layer's large tensors. `out` is y or dx.
struct Tensors {
  float* x = nullptr;
  float* dy = nullptr;  // null except for backward
  float* out = nullptr;
};

// The small tensors, each [c]. A contender reads those that its operation takes and writes those that it makes.
struct ChannelArrays {
  explicit ChannelArrays(std::size_t channels);

  std::vector<float> scale, shift, mean, variance, dscale, dshift;
};

// Hands out sets from one pre-faulted allocation, which grows to what the largest row needs and stays.
class Arena {
 public:
  static constexpr std::size_t kAlignment = 64;

  // As many sets as it takes to rotate through `rotation_bytes`, at least one; every set holds the same values. Sets of
  // an earlier call are gone.
  std::vector<Tensors> lay_out(const Layer& layer, Operation operation, std::size_t rotation_bytes);

 private:
  popnorm::buffer memory_;
};

}  // namespace popnorm_bench

#endif
