// Training by momentum SGD, and what one asks of a trained network: its error with given statistics, the statistics of
// its layers over a set of samples, and how far two such statistics lie apart.
#ifndef DIGITS_TRAINING_HPP
#define DIGITS_TRAINING_HPP

#include <cstdint>
#include <vector>

#include "digits.hpp"
#include "network.hpp"

namespace digits {

struct Recipe {
  Index batch;
  double rate;  // learning rate at its highest
  int epochs;
  int warmup;               // epochs in which the rate rises linearly
  std::vector<int> decays;  // epochs (from 0) before which the rate falls to a tenth, ascending
  double momentum = 0.9;
  double weight_decay = 1e-4;
  double ema_momentum = 0.1;  // weight of the new batch in the running statistics
};

class Trainer {
 public:
  // Draws weights and the order of samples from `seed`; `train` must outlive the trainer.
  Trainer(Recipe recipe, const Digits& train, std::uint64_t seed);

  // One pass over the training samples in a new random order; returns the mean loss. Throws std::runtime_error if
  // training diverges.
  double epoch();
  [[nodiscard]] ConvNet& network() { return network_; }
  // The running statistics that training fed batch by batch.
  [[nodiscard]] const Populations& ema() const { return ema_; }

 private:
  double step(const Digits& batch, double rate);
  [[nodiscard]] double rate_at(double epoch) const;

  Recipe recipe_;
  const Digits& train_;
  Random random_;
  ConvNet network_;
  Populations ema_;
  std::vector<Matrix> velocity_;  // one per parameter
  std::vector<Index> order_;
  Digits batch_;
  Tensor dlogits_;
  int epochs_done_ = 0;
};

// Fraction of samples that are recognized wrongly when every BN layer is normalized by `given`.
double error(ConvNet& network, const Digits& samples, const Populations& given);

// The moments of every BN layer's input over `samples`, pooled exactly, with weights fixed, each mini-batch normalized
// by its own statistics. Many samples per layer make this PreciseBN (Wu & Johnson 2021); one mini-batch of all samples
// has no error from the way samples are grouped.
Populations collect(ConvNet& network, const Digits& samples, Index batch);

// Root mean square over layers and channels of (mean - reference mean) / reference standard deviation. Channels that
// are constant in the reference have no scale to measure by and are left out.
double drift(const Populations& populations, const Populations& reference);

}  // namespace digits

#endif
