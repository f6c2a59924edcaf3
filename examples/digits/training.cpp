#include "training.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

namespace digits {
namespace {

// Mean softmax cross entropy, and its gradient by the logits.
double cross_entropy(const Tensor& logits, const std::vector<int>& labels, Tensor& dlogits) {
  dlogits.resize(logits.rows(), logits.cols());
  auto probability = dlogits.matrix();
  probability = (logits.matrix().colwise() - logits.matrix().rowwise().maxCoeff()).array().exp();
  double loss = 0;
  for (Index n = 0; n < logits.rows(); ++n) {
    auto row = probability.row(n);
    row /= row.sum();
    float& right = row(labels[static_cast<std::size_t>(n)]);
    loss -= std::log(static_cast<double>(right));
    right -= 1.0F;
  }
  const auto samples = static_cast<double>(logits.rows());
  probability /= static_cast<float>(samples);
  return loss / samples;
}

}  // namespace

Trainer::Trainer(Recipe recipe, const Digits& train, std::uint64_t seed)
    : recipe_(std::move(recipe)),
      train_(train),
      random_(seed),
      network_(random_),
      ema_(network_.make_populations()),
      order_(train.labels.size()) {
  for (const Parameter* parameter : network_.parameters()) {
    velocity_.emplace_back(Matrix::Zero(parameter->value.rows(), parameter->value.cols()));
  }
  std::iota(order_.begin(), order_.end(), Index{0});
}

double Trainer::rate_at(double epoch) const {
  double rate = recipe_.rate;
  if (epoch < recipe_.warmup) rate *= epoch / recipe_.warmup;
  for (const int decay : recipe_.decays) {
    if (epoch >= decay) rate *= 0.1;
  }
  return rate;
}

double Trainer::step(const Digits& batch, double rate) {
  Statistics statistics;
  statistics.fed = &ema_;
  statistics.feed = POPNORM_FEED_EMA;
  statistics.momentum = recipe_.ema_momentum;
  const double loss = cross_entropy(network_.forward(batch.images, statistics), batch.labels, dlogits_);
  if (!std::isfinite(loss)) {
    throw std::runtime_error("training at batch " + std::to_string(recipe_.batch) + " diverged in epoch " +
                             std::to_string(epochs_done_ + 1));
  }
  network_.backward(batch.images, dlogits_);
  const std::vector<Parameter*> parameters = network_.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    Matrix& value = parameters[i]->value;
    Matrix& velocity = velocity_[i];
    velocity = static_cast<float>(recipe_.momentum) * velocity + parameters[i]->gradient +
               static_cast<float>(recipe_.weight_decay) * value;
    value -= static_cast<float>(rate) * velocity;
  }
  return loss;
}

double Trainer::epoch() {
  std::shuffle(order_.begin(), order_.end(), random_);
  const Index size = train_.size();
  double loss = 0;
  for (Index first = 0; first < size; first += recipe_.batch) {
    const Index count = std::min(recipe_.batch, size - first);
    select(train_, std::span(order_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), batch_);
    const double progress = static_cast<double>(first + count) / static_cast<double>(size);
    loss += step(batch_, rate_at(epochs_done_ + progress)) * static_cast<double>(count);
  }
  ++epochs_done_;
  return loss / static_cast<double>(size);
}

double error(ConvNet& network, const Digits& samples, const Populations& given) {
  Statistics statistics;
  statistics.given = &given;
  const Tensor& logits = network.forward(samples.images, statistics);
  Index wrong = 0;
  for (Index n = 0; n < logits.rows(); ++n) {
    Index answer = 0;
    logits.matrix().row(n).maxCoeff(&answer);
    if (answer != samples.labels[static_cast<std::size_t>(n)]) ++wrong;
  }
  return static_cast<double>(wrong) / static_cast<double>(samples.size());
}

Populations collect(ConvNet& network, const Digits& samples, Index batch) {
  Populations collected = network.make_populations();
  Statistics statistics;
  statistics.fed = &collected;
  Tensor images;
  for (Index first = 0; first < samples.size(); first += batch) {
    const Index count = std::min(batch, samples.size() - first);
    images.resize(count * kPixels, 1);
    std::copy_n(samples.images.row(first * kPixels), count * kPixels, images.data());
    network.forward(images, statistics);
  }
  return collected;
}

double drift(const Populations& populations, const Populations& reference) {
  double squares = 0;
  std::int64_t channels = 0;
  for (std::size_t layer = 0; layer < reference.size(); ++layer) {
    const popnorm_drift here = populations.at(layer).drift_from(reference[layer]);
    squares += here.mean_rms * here.mean_rms * static_cast<double>(here.channels);
    channels += here.channels;
  }
  return channels > 0 ? std::sqrt(squares / static_cast<double>(channels)) : 0.0;
}

}  // namespace digits
