#include "network.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "digits.hpp"

namespace digits {
namespace {

constexpr Index kKernel = 3;
constexpr Index kPatchFloats = Index{1} << 17;

// What frameworks draw by default: uniform within 1 / sqrt(inputs of an output).
Matrix initial_weight(Index inputs, Index outputs, Random& random) {
  const float bound = 1.0F / std::sqrt(static_cast<float>(inputs));
  std::uniform_real_distribution<float> value(-bound, bound);
  return Matrix::NullaryExpr(inputs, outputs, [&] { return value(random); });
}

popnorm_batch labels(const Batch& batch) {
  const auto ids = [](const Map& map) { return map.ids.empty() ? nullptr : map.ids.data(); };
  return {ids(batch.norm_group), ids(batch.population_slot), ids(batch.affine_slot), nullptr};
}

// Calls visit(patch, pixels, floats) for every kernel row of every patch of one sample: where in the patch the row
// begins, where in the image, and how many floats lie inside the image, as offsets.
template <class Visit>
void for_each_kernel_row(Shape in, Shape out, Index stride, Visit visit) {
  const Index row = kKernel * in.channels;
  Index patch = 0;
  for (Index y = 0; y < out.height; ++y) {
    for (Index x = 0; x < out.width; ++x) {
      const Index left = x * stride - 1;
      const Index first = std::max<Index>(left, 0);
      const Index last = std::min(left + kKernel, in.width);
      for (Index k = 0; k < kKernel; ++k, patch += row) {
        const Index from = y * stride - 1 + k;
        if (from < 0 || from >= in.height) continue;
        visit(patch + (first - left) * in.channels, (from * in.width + first) * in.channels,
              (last - first) * in.channels);
      }
    }
  }
}

}  // namespace

popnorm::plan make_plan(const popnorm_problem& problem) {
  popnorm_executor executor = POPNORM_EXECUTOR_INIT;
  executor.parallel_for = [](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
    for (std::int64_t i = 0; i < count; ++i) task(argument, i);
  };
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.executor = &executor;
  return {problem, options};
}

Convolution::Convolution(Shape in, Index channels, Index stride, Random& random)
    : in_(in), out_{(in.height - 1) / stride + 1, (in.width - 1) / stride + 1, channels}, stride_(stride) {
  weight_.value = initial_weight(kKernel * kKernel * in.channels, channels, random);
}

Index Convolution::samples_at_once(Index samples) const {
  const Index floats = out_.positions() * weight_.value.rows();
  return std::clamp<Index>(kPatchFloats / floats, 1, samples);
}

void Convolution::gather(const float* x, Index samples, float* patches) const {
  const Index size = out_.positions() * weight_.value.rows();
  std::fill_n(patches, samples * size, 0.0F);
  for (Index n = 0; n < samples; ++n, x += in_.positions() * in_.channels, patches += size) {
    for_each_kernel_row(in_, out_, stride_, [&](Index patch, Index pixels, Index floats) {
      std::copy_n(x + pixels, floats, patches + patch);
    });
  }
}

void Convolution::scatter_add(const float* patches, Index samples, float* x) const {
  const Index size = out_.positions() * weight_.value.rows();
  for (Index n = 0; n < samples; ++n, x += in_.positions() * in_.channels, patches += size) {
    for_each_kernel_row(in_, out_, stride_, [&](Index patch, Index pixels, Index floats) {
      for (Index i = 0; i < floats; ++i) x[pixels + i] += patches[patch + i];
    });
  }
}

void Convolution::forward(const Tensor& x, Tensor& y) {
  const Index samples = x.rows() / in_.positions();
  const Index at_once = samples_at_once(samples);
  y.resize(samples * out_.positions(), out_.channels);
  for (Index first = 0; first < samples; first += at_once) {
    const Index count = std::min(at_once, samples - first);
    patches_.resize(count * out_.positions(), weight_.value.rows());
    gather(x.row(first * in_.positions()), count, patches_.data());
    y.matrix().middleRows(first * out_.positions(), patches_.rows()).noalias() = patches_.matrix() * weight_.value;
  }
}

void Convolution::backward(const Tensor& x, const Tensor& dy, Tensor* dx) {
  const Index samples = x.rows() / in_.positions();
  const Index at_once = samples_at_once(samples);
  weight_.gradient.setZero(weight_.value.rows(), weight_.value.cols());
  if (dx != nullptr) {
    dx->resize(x.rows(), x.cols());
    dx->matrix().setZero();
  }
  for (Index first = 0; first < samples; first += at_once) {
    const Index count = std::min(at_once, samples - first);
    patches_.resize(count * out_.positions(), weight_.value.rows());
    gather(x.row(first * in_.positions()), count, patches_.data());
    const auto dy_here = dy.matrix().middleRows(first * out_.positions(), patches_.rows());
    weight_.gradient.noalias() += patches_.matrix().transpose() * dy_here;
    if (dx == nullptr) continue;
    patches_.matrix().noalias() = dy_here * weight_.value.transpose();
    scatter_add(patches_.data(), count, dx->row(first * in_.positions()));
  }
}

BatchNorm::Prepared::Prepared(const popnorm_problem& problem)
    : plan(make_plan(problem)), workspace(plan.make_workspace()), reserve(plan.make_reserve()) {}

BatchNorm::BatchNorm(Shape shape, Index affine_slots) : shape_(shape) {
  scale_.value.setOnes(affine_slots, shape.channels);
  shift_.value.setZero(affine_slots, shape.channels);
  scale_.gradient.setZero(affine_slots, shape.channels);
  shift_.gradient.setZero(affine_slots, shape.channels);
}

BatchNorm::Prepared& BatchNorm::prepare(Index samples, const Batch& batch) {
  popnorm_problem problem = popnorm::problem_nhwc(samples, shape_.channels, shape_.positions());
  problem.norm_group = batch.norm_group.form;
  problem.population_slot = batch.population_slot.form;
  problem.affine_slot = batch.affine_slot.form;
  const Key key{samples,
                problem.norm_group.kind,
                problem.norm_group.k,
                problem.population_slot.kind,
                problem.population_slot.k,
                problem.affine_slot.kind,
                problem.affine_slot.k};
  Prepared& prepared = prepared_.try_emplace(key, problem).first->second;
  if (prepared.plan.info().affine_slots != scale_.value.rows()) {
    throw std::logic_error("the batch has " + std::to_string(prepared.plan.info().affine_slots) +
                           " affine slots, the network " + std::to_string(scale_.value.rows()));
  }
  return prepared;
}

void BatchNorm::forward(const Tensor& x, Tensor& y, const Batch& batch, const Statistics& statistics,
                        std::size_t layer) {
  last_ = &prepare(x.rows() / shape_.positions(), batch);
  y.resize(x.rows(), x.cols());

  popnorm_forward_args args = popnorm::forward_args(last_->workspace, last_->reserve);
  args.x = x.data();
  args.y = y.data();
  args.batch = labels(batch);
  args.scale = scale_.value.data();
  args.shift = shift_.value.data();
  if (statistics.given != nullptr) {
    const popnorm::population& given = statistics.given->at(layer);
    args.source.statistics = POPNORM_GIVEN;
    args.source.population = given.data();
    args.source.population_bytes = given.size();
  }
  if (statistics.fed != nullptr) {
    popnorm::population& fed = statistics.fed->at(layer);
    args.update.population = fed.data();
    args.update.population_bytes = fed.size();
    args.update.feed = statistics.feed;
    args.update.momentum = statistics.momentum;
  }
  last_->plan.forward(args);
}

void BatchNorm::backward(const Tensor& x, Tensor& dy, const Batch& batch) {
  popnorm_backward_args args = popnorm::backward_args(last_->workspace, last_->reserve);
  args.x = x.data();
  args.dy = dy.data();
  args.dx = dy.data();
  args.batch = labels(batch);
  args.dscale = scale_.gradient.data();
  args.dshift = shift_.gradient.data();
  last_->plan.backward(args);
}

ConvNet::ConvNet(Random& random, Index affine_slots) {
  struct Width {
    Index channels;
    Index stride;
  };
  Shape shape{kSide, kSide, 1};
  for (const Width width : {Width{16, 1}, Width{16, 1}, Width{32, 2}, Width{32, 1}, Width{32, 2}}) {
    layers_.emplace_back(shape, width.channels, width.stride, affine_slots, random);
    shape = layers_.back().convolution.out();
  }
  weight_.value = initial_weight(shape.channels, kClasses, random);
  bias_.value.setZero(1, kClasses);
}

const Tensor& ConvNet::forward(const Tensor& images, const Batch& batch, const Statistics& statistics) {
  const Tensor* x = &images;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    layer.convolution.forward(*x, layer.convolved);
    layer.norm.forward(layer.convolved, layer.activated, batch, statistics, i);
    layer.activated.matrix() = layer.activated.matrix().cwiseMax(0.0F);
    x = &layer.activated;
  }
  const Index positions = layers_.back().convolution.out().positions();
  pooled_.resize(x->rows() / positions, x->cols());
  for (Index n = 0; n < pooled_.rows(); ++n) {
    pooled_.matrix().row(n) = x->matrix().middleRows(n * positions, positions).colwise().mean();
  }
  logits_.resize(pooled_.rows(), kClasses);
  logits_.matrix().noalias() = pooled_.matrix() * weight_.value;
  logits_.matrix().rowwise() += bias_.value.row(0);
  return logits_;
}

void ConvNet::backward(const Tensor& images, const Batch& batch, const Tensor& dlogits) {
  weight_.gradient.noalias() = pooled_.matrix().transpose() * dlogits.matrix();
  bias_.gradient = dlogits.matrix().colwise().sum();

  const Tensor& top = layers_.back().activated;
  const Index positions = layers_.back().convolution.out().positions();
  const Matrix dpooled = dlogits.matrix() * weight_.value.transpose() / static_cast<float>(positions);
  gradient_.resize(top.rows(), top.cols());
  for (Index n = 0; n < dpooled.rows(); ++n) {
    gradient_.matrix().middleRows(n * positions, positions).rowwise() = dpooled.row(n);
  }
  for (std::size_t i = layers_.size(); i-- > 0;) {
    Layer& layer = layers_[i];
    gradient_.matrix().array() *= (layer.activated.matrix().array() > 0.0F).cast<float>();
    layer.norm.backward(layer.convolved, gradient_, batch);
    const bool lowest = i == 0;
    const Tensor& x = lowest ? images : layers_[i - 1].activated;
    layer.convolution.backward(x, gradient_, lowest ? nullptr : &gradient_below_);
    std::swap(gradient_, gradient_below_);
  }
}

std::vector<Parameter*> ConvNet::parameters() {
  std::vector<Parameter*> all;
  for (Layer& layer : layers_) {
    all.insert(all.end(), {&layer.convolution.weight(), &layer.norm.scale(), &layer.norm.shift()});
  }
  all.insert(all.end(), {&weight_, &bias_});
  return all;
}

Populations ConvNet::make_populations(Index slots) const {
  Populations all;
  for (const Layer& layer : layers_) all.emplace_back(slots, layer.norm.channels());
  return all;
}

}  // namespace digits
