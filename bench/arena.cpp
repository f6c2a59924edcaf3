#include "arena.hpp"

#include <algorithm>
#include <cstring>
#include <random>

namespace popnorm_bench {
namespace {

// Tensors of equal size end up this far apart modulo 4 KB. Without it a store to y and the load of x that follows it
// would have the same low address bits for many layers, which x86 takes for a dependence.
constexpr std::size_t kGap = 33 * Arena::kAlignment;

std::size_t footprint(std::size_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment + kGap;
}

// Normal values of mean 0.25. The period is prime so that it shares no factor with C or S: every channel meets all of
// it.
std::vector<float> make_pattern() {
  std::vector<float> pattern(65537);
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(0.25F, 1.0F);
  for (float& value : pattern) value = normal(engine);
  return pattern;
}

void fill(float* values, std::size_t count, std::size_t phase) {
  static const std::vector<float> pattern = make_pattern();
  for (std::size_t done = 0; done < count;) {
    const std::size_t piece = std::min(count - done, pattern.size() - phase);
    std::memcpy(values + done, pattern.data() + phase, piece * sizeof(float));
    done += piece;
    phase = 0;
  }
}

}  // namespace

ChannelArrays::ChannelArrays(std::size_t channels)
    : scale(channels), shift(channels), mean(channels), variance(channels), dscale(channels), dshift(channels) {
  for (std::size_t i = 0; i < channels; ++i) {
    scale[i] = 0.5F + 0.125F * static_cast<float>(i % 9);
    shift[i] = 0.25F * static_cast<float>(i % 5) - 0.5F;
    mean[i] = 0.25F;
    variance[i] = 1.0F + 0.125F * static_cast<float>(i % 3);
  }
}

std::vector<Tensors> Arena::lay_out(const Layer& layer, Operation operation, std::size_t rotation_bytes) {
  const bool backward = operation == Operation::backward;
  const std::size_t tensor = footprint(layer.bytes());
  const std::size_t set = tensor * (backward ? 3 : 2);
  const std::size_t count = std::max<std::size_t>(1, (rotation_bytes + set - 1) / set);
  if (memory_.size() < set * count) {
    memory_ = {};
    memory_ = popnorm::buffer(set * count, kAlignment);
    std::memset(memory_.data(), 0, memory_.size());
  }
  std::vector<Tensors> sets(count);
  auto* at = static_cast<std::byte*>(memory_.data());
  const auto take = [&] {
    auto* taken = reinterpret_cast<float*>(at);
    at += tensor;
    return taken;
  };
  for (Tensors& t : sets) {
    t.x = take();
    fill(t.x, layer.elements(), 0);
    if (backward) {
      t.dy = take();
      fill(t.dy, layer.elements(), 32768);
    }
    t.out = take();
  }
  return sets;
}

}  // namespace popnorm_bench
