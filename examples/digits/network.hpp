// The network: five layers of 3x3 convolution, batch normalization and ReLU, global average pooling, and a linear map.
// Convolutions are matrix products of Eigen; batch normalization, forward and backward, is popnorm's.
#ifndef DIGITS_NETWORK_HPP
#define DIGITS_NETWORK_HPP

#include <array>
#include <cstdint>
#include <map>
#include <popnorm/popnorm.hpp>
#include <vector>

#include "batch.hpp"
#include "random.hpp"
#include "tensor.hpp"

namespace digits {

// Plans for calls that run in the thread that makes them: trainings go side by side, and their layers are so small that
// sharing one out among threads would cost more than it gives.
popnorm::plan make_plan(const popnorm_problem& problem);

struct Parameter {
  Matrix value;
  Matrix gradient;
};

// Height, width and channels of a feature map.
struct Shape {
  Index height;
  Index width;
  Index channels;

  [[nodiscard]] Index positions() const { return height * width; }
};

// One population per BN layer, in the order of the layers.
using Populations = std::vector<popnorm::population>;

// What the BN layers of one forward pass are normalized by, and what they feed. By default they are normalized by the
// statistics of the batch and feed nothing.
struct Statistics {
  const Populations* given = nullptr;
  Populations* fed = nullptr;  // only with the batch's statistics
  popnorm_feed feed = POPNORM_FEED_MERGE;
  double momentum = 0.1;  // POPNORM_FEED_EMA only
};

// 3x3, padding 1, without bias: the shift of the BN layer that follows takes its place.
class Convolution {
 public:
  Convolution(Shape in, Index channels, Index stride, Random& random);

  [[nodiscard]] Shape out() const { return out_; }
  [[nodiscard]] Parameter& weight() { return weight_; }
  void forward(const Tensor& x, Tensor& y);
  // Fills the weight's gradient and, unless dx is null, dx.
  void backward(const Tensor& x, const Tensor& dy, Tensor* dx);

 private:
  // How many samples go through one matrix product: their patches should stay in the second-level cache.
  [[nodiscard]] Index samples_at_once(Index samples) const;
  void gather(const float* x, Index samples, float* patches) const;
  void scatter_add(const float* patches, Index samples, float* x) const;

  Shape in_;
  Shape out_;
  Index stride_;
  Parameter weight_;  // [3 * 3 * channels in][channels out]
  Tensor patches_;
};

// Batch normalization by popnorm, with a plan for every batch size and every form of the batch's maps that it meets.
class BatchNorm {
 public:
  BatchNorm(Shape shape, Index affine_slots);

  [[nodiscard]] Index channels() const { return shape_.channels; }
  [[nodiscard]] Parameter& scale() { return scale_; }
  [[nodiscard]] Parameter& shift() { return shift_; }
  // `layer` is this layer's place in `statistics`.
  void forward(const Tensor& x, Tensor& y, const Batch& batch, const Statistics& statistics, std::size_t layer);
  // For the x and batch of the last forward; fills the gradients of scale and shift, and turns dy into dx.
  void backward(const Tensor& x, Tensor& dy, const Batch& batch);

 private:
  struct Prepared {
    explicit Prepared(const popnorm_problem& problem);
    popnorm::plan plan;
    popnorm::buffer workspace;
    popnorm::buffer reserve;
  };
  using Key = std::array<std::int64_t, 7>;  // samples, kind and k of the three maps

  Prepared& prepare(Index samples, const Batch& batch);

  Shape shape_;
  Parameter scale_;  // [affine_slots][channels]
  Parameter shift_;
  std::map<Key, Prepared> prepared_;
  Prepared* last_ = nullptr;
};

class ConvNet {
 public:
  explicit ConvNet(Random& random, Index affine_slots = 1);

  // Logits [samples][classes], valid until the next forward.
  const Tensor& forward(const Tensor& images, const Batch& batch, const Statistics& statistics);
  // For the images and batch of the last forward; dlogits is the loss's gradient by the logits.
  void backward(const Tensor& images, const Batch& batch, const Tensor& dlogits);

  [[nodiscard]] std::vector<Parameter*> parameters();
  // Empty populations, one for each BN layer.
  [[nodiscard]] Populations make_populations(Index slots) const;
  // What the highest BN layer normalized in the last forward.
  [[nodiscard]] const Tensor& highest_features() const { return layers_.back().convolved; }

 private:
  struct Layer {
    Layer(Shape in, Index channels, Index stride, Index affine_slots, Random& random)
        : convolution(in, channels, stride, random), norm(convolution.out(), affine_slots) {}
    Convolution convolution;
    BatchNorm norm;
    Tensor convolved;
    Tensor activated;
  };

  std::vector<Layer> layers_;
  Parameter weight_;
  Parameter bias_;
  Tensor pooled_;
  Tensor logits_;
  Tensor gradient_;
  Tensor gradient_below_;
};

}  // namespace digits

#endif
