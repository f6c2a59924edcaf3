// The network: five layers of 3x3 convolution, batch normalization and ReLU, global average pooling, and a linear map.
// Convolutions are matrix products of Eigen; batch normalization, forward and backward, is popnorm's.
#ifndef DIGITS_NETWORK_HPP
#define DIGITS_NETWORK_HPP

#include <cstdint>
#include <map>
#include <popnorm/popnorm.hpp>
#include <random>
#include <vector>

#include "tensor.hpp"

namespace digits {

using Random = std::mt19937_64;

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

// What the BN layers of one forward pass are normalized by, and what they feed.
struct Statistics {
  const Populations* given = nullptr;  // null: those of the batch
  Populations* fed = nullptr;          // null: none; only with the batch's statistics
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

// Batch normalization by popnorm, with a plan for every batch size it meets.
class BatchNorm {
 public:
  explicit BatchNorm(Shape shape);

  [[nodiscard]] Index channels() const { return shape_.channels; }
  [[nodiscard]] Parameter& scale() { return scale_; }
  [[nodiscard]] Parameter& shift() { return shift_; }
  // `layer` is this layer's place in `statistics`.
  void forward(const Tensor& x, Tensor& y, const Statistics& statistics, std::size_t layer);
  // For the x of the last forward; fills the gradients of scale and shift, and turns dy into dx.
  void backward(const Tensor& x, Tensor& dy);

 private:
  struct Prepared {
    explicit Prepared(const popnorm_problem& problem);
    popnorm::plan plan;
    popnorm::buffer workspace;
    popnorm::buffer reserve;
  };

  Shape shape_;
  Parameter scale_;
  Parameter shift_;
  std::map<Index, Prepared> prepared_;  // by batch size
  Prepared* last_ = nullptr;
};

class ConvNet {
 public:
  explicit ConvNet(Random& random);

  // Logits [samples][classes], valid until the next forward.
  const Tensor& forward(const Tensor& images, const Statistics& statistics);
  // For the images of the last forward; dlogits is the loss's gradient by the logits.
  void backward(const Tensor& images, const Tensor& dlogits);

  [[nodiscard]] std::vector<Parameter*> parameters();
  // Empty populations, one for each BN layer.
  [[nodiscard]] Populations make_populations() const;

 private:
  struct Layer {
    Layer(Shape in, Index channels, Index stride, Random& random)
        : convolution(in, channels, stride, random), norm(convolution.out()) {}
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
