// A problem with maps, weights and a source of statistics, its inputs in guarded memory, and a way to run it.
#ifndef POPNORM_TESTS_MAPS_CASE_HPP
#define POPNORM_TESTS_MAPS_CASE_HPP

#include <popnorm/popnorm.h>

#include <limits>
#include <memory>
#include <popnorm/popnorm.hpp>
#include <string>
#include <vector>

#include "maps/oracle.hpp"
#include "support/check.hpp"
#include "support/layer.hpp"
#include "support/random.hpp"
#include "support/tensor.hpp"

namespace popnorm_test {

struct MapSet {
  popnorm_map group = {POPNORM_WHOLE, 0};
  popnorm_map slot = {POPNORM_WHOLE, 0};
  popnorm_map affine = {POPNORM_WHOLE, 0};
  popnorm_weights weights = POPNORM_UNWEIGHTED;
  popnorm_statistics statistics = POPNORM_BATCH;
  bool one_scale = false;  // of the samples of a group, where affine slots are labels
  bool one_array = false;  // of labels, for all maps that have labels
  popnorm_activation activation = POPNORM_IDENTITY;
  double slope = 0.01;
  bool residual = false;
};

std::ostream& operator<<(std::ostream& out, const MapSet& m);

// Maps, weights and a source, and whether that needs a group's samples to have one slot.
MapSet random_maps(Random& random, std::int64_t n);
bool needs_one_slot(const MapSet& m);
// Has them followed by a residual, an activation or both.
void add_random_fusion(Random& random, MapSet& m);

// A map of n samples, and a layer of any type, layout, strides and alignment, small enough to be many.
popnorm_map random_map(Random& random, std::int64_t n);
Configuration random_configuration(Random& random);
// Of packed, aligned tensors, which vectors and packs reach whole: what layers mostly are.
Configuration random_aligned(Random& random);

struct MapForward {
  std::vector<double> y, saved_mean, saved_invstd, weight, mean, m2;
};
struct MapBackward {
  std::vector<double> dx, dscale, dshift, dresidual;
};

void expect_same(const MapForward& a, const MapForward& b);
void expect_same(const MapBackward& a, const MapBackward& b);

// Of dx, with its strides, and of dscale and dshift; null = 0.
struct Cotangents {
  const Tensor* v = nullptr;
  const Array* scale = nullptr;
  const Array* shift = nullptr;
};
struct MapDoubleBackward {
  std::vector<double> grad_x, grad_dy, grad_scale;
};

class MapCase {
 public:
  // Labels are drawn; where `one_slot`, the samples of a group have one population slot.
  MapCase(const Configuration& k, const MapSet& maps, bool one_slot, Random& random);

  [[nodiscard]] const Meaning& meaning() const { return meaning_; }
  [[nodiscard]] const Oracle& oracle() const { return *oracle_; }
  [[nodiscard]] const popnorm_problem& problem() const { return problem_; }
  [[nodiscard]] popnorm_batch batch() const;
  [[nodiscard]] popnorm_source source() const;
  [[nodiscard]] const Configuration& configuration() const { return k_; }
  [[nodiscard]] const MapSet& maps() const { return maps_; }

  // Other values of x and dy.
  void take(const std::vector<double>& x_by_channel, const std::vector<double>& dy_by_channel);

  // By one route; forward in training. With a population, forward feeds it by merging.
  [[nodiscard]] MapForward forward(const Route& route, popnorm::population* fed = nullptr);
  // After forward.
  [[nodiscard]] MapBackward backward(const Route& route);
  [[nodiscard]] MapDoubleBackward double_backward(const Route& route, const Cotangents& cotangents);
  // Both once more by the six operations.
  void run_operations(const Route& route, MapForward& forward, MapBackward& backward);

  // The same bits by some forced routes, on threads in any order, and by the six operations.
  void expect_same_by_every_route(const MapForward& f, const MapBackward& b, Random& random);
  // Every output within the oracle's bounds, which knows nothing of what follows normalization.
  void expect_promises(const MapForward& f, const MapBackward& b) const;

  std::vector<double> x_values, dy_values, residual_values;  // channel after channel
  Tensor x, dy, residual;                                    // residual and dresidual have the strides of dx and dy
  Array scale, shift, given_mean, given_variance;
  std::vector<std::int32_t> group, slot, affine;
  std::vector<float> weights;
  std::vector<std::int64_t> lengths;

 private:
  static popnorm_problem problem_of(const Configuration& k, const MapSet& maps);
  void draw(Random& random, bool one_slot);
  [[nodiscard]] Tensor tensor(Spacing spacing) const {
    return {{k_.layout, k_.n, k_.c, k_.s, spacing}, k_.storage, k_.where, k_.offset};
  }

  Configuration k_;
  MapSet maps_;
  popnorm_problem problem_;
  Meaning meaning_;
  GuardedBuffer reserve_;
  std::unique_ptr<Oracle> oracle_;
};

}  // namespace popnorm_test

#endif
