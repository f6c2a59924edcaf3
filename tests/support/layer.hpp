// One batch normalization layer under test: a problem, inputs in guarded read-only memory, what the oracle promises for
// every output, and a way to run the library on it by any route.
#ifndef POPNORM_TESTS_SUPPORT_LAYER_HPP
#define POPNORM_TESTS_SUPPORT_LAYER_HPP

#include <popnorm/popnorm.h>

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <popnorm/popnorm.hpp>
#include <string>
#include <vector>

#include "support/check.hpp"
#include "support/random.hpp"
#include "support/tensor.hpp"

namespace popnorm_test {

struct Configuration {
  popnorm_layout layout = POPNORM_NCHW;
  std::int64_t n = 1;
  std::int64_t c = 1;
  std::int64_t s = 1;
  popnorm_type storage = POPNORM_F32;
  popnorm_type parameters = POPNORM_F32;
  popnorm_type statistics = POPNORM_F32;
  double epsilon = 1e-5;
  bool scale = true;
  bool shift = true;
  Spacing x = Spacing::packed;
  Spacing y = Spacing::packed;
  Spacing dy = Spacing::packed;
  Spacing dx = Spacing::packed;
  Placement where = Placement::ends_at_guard;
  std::int64_t offset = 0;  // of tensors, in elements, where they begin at the guard
};
std::ostream& operator<<(std::ostream& out, const Configuration& c);

// Everything that must not change a result by more than its bound (or at all).
struct Route {
  const char* isa = nullptr;
  popnorm_schedule schedule = POPNORM_SCHEDULE_AUTO;
  popnorm_stores stores = POPNORM_STORES_AUTO;
  const popnorm_executor* executor = nullptr;
};
std::ostream& operator<<(std::ostream& out, const Route& r);

// The tiers that this machine runs, best first. On the CUDA backend: null, the only one.
std::vector<const char*> runnable_tiers();
// Whether plans are made for the CUDA backend (POPNORM_BACKEND=cuda): a real device, or the emulator's module.
bool on_cuda();
inline constexpr popnorm_type kStorageTypes[] = {POPNORM_F32, POPNORM_F64, POPNORM_BF16, POPNORM_F16};
// All tiers, schedules and kinds of stores that can be forced here; on the CUDA backend nothing can.
std::vector<Route> forced_routes();

// A channel's elements, sample after sample (or the one element that a parameter has per channel).
using Content = std::function<std::vector<double>(Random& random, std::int64_t channel, std::int64_t count)>;
// Normal with the given mean and standard deviation.
Content normal(double mean, double deviation);
// Normal with a mean of its own for each channel.
Content ordinary();
Content constant(double value);
// Anything in [-2, 2], and now and then exactly zero: such a channel must still be written.
Content ordinary_scale();

struct Contents {
  Content x = ordinary();
  Content dy = normal(0.3, 1);
  Content scale = ordinary_scale();
  Content shift = normal(0, 3);
};

// What the oracle says of every output under one source of statistics.
struct Promises {
  Promise mean, variance, invstd;  // [C], as `statistics`
  Promise exact_mean, m2;          // [C], as double (statistics of the batch only)
  Promise y, dx;
  Promise dscale, dshift;
  Promise dscale_accumulated, dshift_accumulated;
  Promise dx_from_saved, dscale_from_saved;
};

// Which output tensor has the strides of which input, so that it may also be the input.
enum class Aliasing { none, y_is_x, dx_is_dy, dx_is_x };

class Layer {
 public:
  Layer(const Configuration& configuration, Random& random, const Contents& contents = {});

  [[nodiscard]] const Configuration& configuration() const { return configuration_; }
  [[nodiscard]] popnorm_problem problem(Aliasing aliasing = Aliasing::none) const;
  [[nodiscard]] std::int64_t count() const { return configuration_.n * configuration_.s; }  // per channel
  [[nodiscard]] const Promises& promises(popnorm_statistics source) const {
    return source == POPNORM_BATCH ? batch_ : given_;
  }

  Tensor x, dy;
  Array scale, shift;                  // null (empty) where the configuration has none
  Array given_mean, given_variance;    // near the batch's, but not equal
  Array dscale_before, dshift_before;  // what gradients are accumulated onto

  [[nodiscard]] const void* scale_or_null() const { return configuration_.scale ? scale.data() : nullptr; }
  [[nodiscard]] const void* shift_or_null() const { return configuration_.shift ? shift.data() : nullptr; }

 private:
  void promise(std::int64_t channel, popnorm_statistics source, const std::vector<double>& x_values,
               const std::vector<double>& dy_values);

  Configuration configuration_;
  Promises batch_, given_;
};

struct Forward {
  std::vector<double> y, saved_mean, saved_invstd;
  std::vector<double> weight, mean, m2;  // of the batch only
};

struct Backward {
  std::vector<double> dx, dscale, dshift;
};

// What a backward call is asked for.
struct Wish {
  bool dx = true;
  bool dscale = true;
  bool dshift = true;
  bool accumulate = false;
  bool from_saved = false;  // saved_mean and saved_invstd instead of the reserve
};

// Runs the library on a layer by one route, with all scratch and outputs in guarded memory. Every call also checks that
// margins and gaps stayed as they were; inputs are read-only.
class Runner {
 public:
  // With `in_place` the aliased output is the input's memory, else it has only its strides.
  Runner(const Layer& layer, const Route& route, Aliasing aliasing = Aliasing::none, bool in_place = false);

  [[nodiscard]] const popnorm::plan& plan() const { return plan_; }

  // With a reserve, saved outputs and moments if `training`, with nothing but y otherwise.
  Forward forward(popnorm_statistics source, bool training = true);
  // After a forward in training.
  Backward backward(const Wish& wish = {});

  // For calls the two above do not make.
  [[nodiscard]] GuardedBuffer& workspace() { return workspace_; }
  [[nodiscard]] GuardedBuffer& reserve() { return reserve_; }

 private:
  const Layer& layer_;
  Aliasing aliasing_;
  bool in_place_;
  popnorm::plan plan_;
  GuardedBuffer workspace_, reserve_;
  Array saved_mean_, saved_invstd_;
  popnorm_statistics source_ = POPNORM_BATCH;
};

// Runs forward in training and in inference, then backward, and expects every promise kept.
void expect_promises(const Layer& layer, Runner& runner, popnorm_statistics source);

}  // namespace popnorm_test

#endif
