// Training by momentum SGD, and what one asks of a trained network: its error with given statistics, the statistics of
// its layers over a set of samples, and how far two such statistics lie apart.
#ifndef DIGITS_TRAINING_HPP
#define DIGITS_TRAINING_HPP

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "batch.hpp"
#include "digits.hpp"
#include "network.hpp"
#include "random.hpp"

namespace digits {

struct Recipe {
  Index samples;  // that train; the others are for validation
  Index batch;    // samples of a step of SGD
  double rate;    // learning rate at its highest
  int epochs;
  int warmup;               // epochs in which the rate rises linearly
  std::vector<int> decays;  // epochs (from 0) before which the rate falls to a tenth, ascending
  double momentum = 0.9;
  double weight_decay = 1e-4;
  double ema_momentum = 0.1;  // weight of the new batch in the running statistics
};

nlohmann::json to_json(const Recipe& recipe);

// Says what the batch is in one step of SGD. It may change the step's images, which are a copy.
using Compose = std::function<Batch(Digits& step, Random& random)>;

// All samples are normalized together.
Batch whole(const Digits& samples, Random& random);

class Trainer {
 public:
  // Draws weights and the order of samples from `seed`; `train` must outlive the trainer.
  Trainer(Recipe recipe, const Digits& train, std::uint64_t seed, Compose compose = whole, Index affine_slots = 1);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // One pass over the training samples in a new random order; returns the mean loss. Throws std::runtime_error if
  // training diverges.
  double epoch();
  // As many as are missing to `epochs`.
  void train_to(int epochs);
  void train() { train_to(recipe_.epochs); }
  // FrozenBN: from now on BN is normalized by `given`, which must outlive training, and the rate is multiplied.
  void freeze(const Populations& given, double rate_factor);

  [[nodiscard]] ConvNet& network() { return network_; }
  // The running statistics that training fed batch by batch.
  [[nodiscard]] const Populations& ema() const { return ema_; }

 private:
  double step(double rate);
  [[nodiscard]] double rate_at(double epoch) const;

  Recipe recipe_;
  const Digits& train_;
  Compose compose_;
  Random random_;
  ConvNet network_;
  Populations ema_;
  Statistics statistics_;
  std::vector<Matrix> velocity_;  // one per parameter
  std::vector<Index> order_;
  Digits step_;
  Tensor dlogits_;
  int epochs_done_ = 0;
};

// Per cent of the samples that are recognized wrongly.
double error_percent(ConvNet& network, const Digits& samples, const Batch& batch, const Statistics& statistics = {});

// The moments of every BN layer's input over `samples`, pooled exactly, with weights fixed, each group normalized by its
// own statistics: PreciseBN (Wu & Johnson 2021). With one group for all there is no error from the way samples are
// grouped.
Populations collect(ConvNet& network, const Digits& samples, const Batch& batch, Index slots = 1);

// Root mean square over layers and channels of (mean - reference mean) / reference standard deviation. Channels that
// are constant in the reference have no scale to measure by and are left out.
double drift(const Populations& populations, const Populations& reference);

}  // namespace digits

#endif
