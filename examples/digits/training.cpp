#include "training.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

namespace digits {
namespace {

using nlohmann::json;

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

json to_json(const Recipe& r) {
  return {{"samples", r.samples},
          {"batch", r.batch},
          {"rate", r.rate},
          {"epochs", r.epochs},
          {"warmup", r.warmup},
          {"decays", r.decays},
          {"momentum", r.momentum},
          {"weight_decay", r.weight_decay},
          {"ema_momentum", r.ema_momentum}};
}

Batch whole(const Digits& /*samples*/, Random& /*random*/) { return {}; }

Trainer::Trainer(Recipe recipe, const Digits& train, std::uint64_t seed, Compose compose, Index affine_slots)
    : recipe_(std::move(recipe)),
      train_(train),
      compose_(std::move(compose)),
      random_(seed),
      network_(random_, affine_slots),
      ema_(network_.make_populations(1)),
      statistics_{.fed = &ema_, .feed = POPNORM_FEED_EMA, .momentum = recipe_.ema_momentum},
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

double Trainer::step(double rate) {
  const Batch batch = compose_(step_, random_);
  const double loss = cross_entropy(network_.forward(step_.images, batch, statistics_), step_.labels, dlogits_);
  if (!std::isfinite(loss)) throw std::runtime_error("diverged in epoch " + std::to_string(epochs_done_ + 1));
  network_.backward(step_.images, batch, dlogits_);
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
    select(train_, std::span(order_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), step_);
    const double progress = static_cast<double>(first + count) / static_cast<double>(size);
    loss += step(rate_at(epochs_done_ + progress)) * static_cast<double>(count);
  }
  ++epochs_done_;
  return loss / static_cast<double>(size);
}

void Trainer::train_to(int epochs) {
  while (epochs_done_ < epochs) epoch();
}

void Trainer::freeze(const Populations& given, double rate_factor) {
  statistics_ = {.given = &given};
  recipe_.rate *= rate_factor;
}

double error_percent(ConvNet& network, const Digits& samples, const Batch& batch, const Statistics& statistics) {
  const Tensor& logits = network.forward(samples.images, batch, statistics);
  Index wrong = 0;
  for (Index n = 0; n < logits.rows(); ++n) {
    Index answer = 0;
    logits.matrix().row(n).maxCoeff(&answer);
    if (answer != samples.labels[static_cast<std::size_t>(n)]) ++wrong;
  }
  return 100 * static_cast<double>(wrong) / static_cast<double>(samples.size());
}

Populations collect(ConvNet& network, const Digits& samples, const Batch& batch, Index slots) {
  Populations collected = network.make_populations(slots);
  network.forward(samples.images, batch, {.fed = &collected});
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
