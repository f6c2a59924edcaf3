// How contenders are timed and compared. An absolute time says little on a machine whose memory bandwidth moves by a
// factor within seconds; ratios taken within one round do.
#ifndef POPNORM_BENCH_MEASURE_HPP
#define POPNORM_BENCH_MEASURE_HPP

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "arena.hpp"
#include "layer.hpp"

namespace popnorm_bench {

// One implementation of one operation on one layer, and where its arguments lie.
struct Task {
  Operation operation = Operation::forward_training;
  popnorm_layout layout = POPNORM_NCHW;
  Layer layer;
  std::vector<Tensors> sets;
};

inline constexpr float kEpsilon = 1e-5F;

struct Contender {
  std::string name;
  std::function<void(std::size_t set)> run;
  // Leaves threads behind that wait actively and would slow down whoever runs next.
  bool spins = false;
};

struct Protocol {
  double seconds = 2.5;    // rounds go on until this is spent,
  std::size_t rounds = 7;  // but at least this many are made,
  std::size_t limit = 25;  // and at most this many
  double block_ms = 4;     // short runs are repeated within a block until it lasts this long
};

// Milliseconds of each contender in each round: result[contender][round]. A round runs every contender once, in random
// order, in a block of its own: idle, one discarded run, timed runs (their median counts). Consecutive runs take
// consecutive sets.
std::vector<std::vector<double>> interleave(const std::vector<Contender>& contenders, std::size_t sets,
                                            const Protocol& protocol);

double median(std::vector<double> values);
double geometric_mean(std::span<const double> values);

// Median with its bootstrap 95 % interval.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
};

// Of numerator[round] / denominator[round].
Estimate paired_ratio(std::span<const double> numerator, std::span<const double> denominator);

}  // namespace popnorm_bench

#endif
