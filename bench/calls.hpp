// Calls of popnorm as contenders make them, of any storage type, by this program's library or by another build of it.
#ifndef POPNORM_BENCH_CALLS_HPP
#define POPNORM_BENCH_CALLS_HPP

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <popnorm/popnorm.hpp>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "layer.hpp"

namespace popnorm_bench {

// The entries of a library.
struct Library {
  decltype(&popnorm_plan_create) plan_create = &popnorm_plan_create;
  decltype(&popnorm_plan_query) plan_query = &popnorm_plan_query;
  decltype(&popnorm_plan_destroy) plan_destroy = &popnorm_plan_destroy;
  decltype(&popnorm_forward) forward = &popnorm_forward;
  decltype(&popnorm_backward) backward = &popnorm_backward;
  decltype(&popnorm_last_error) last_error = &popnorm_last_error;

  // A shared library by its file name, beside the one that is linked. Throws std::runtime_error.
  static Library opened(const std::string& path);
};

// What --storage and names of rows call the types.
extern const std::map<std::string, popnorm_type> kStorages;
std::size_t size_of(popnorm_type storage);

// Elements with numbers of either sign between a half and two that every type holds exactly, `offset` elements behind a page's begin.
class Values {
 public:
  Values(popnorm_type storage, std::size_t elements, std::size_t offset, std::uint32_t seed);
  void* data() { return static_cast<std::byte*>(memory_.data()) + offset_; }

 private:
  popnorm::buffer memory_;
  std::size_t offset_;  // bytes
};

// The tensors of a layer.
struct Set {
  Values x, residual, y, dy, dx, dresidual;
  Set(popnorm_type storage, std::size_t elements, std::size_t offset = 0);
};

// What --weights and names of rows call the kinds.
extern const std::map<std::string, popnorm_weights> kWeights;

// One plan with what its calls need. Statistics of inference are given: a mean of 0 and a variance of 1. Of weights an eighth are 0,
// lengths are 0 to S.
class Calls {
 public:
  explicit Calls(const popnorm_problem& problem, const Library& library = {},
                 const popnorm_options& options = POPNORM_OPTIONS_INIT);

  // backward goes through the reserve of the last forward_training.
  void run(Operation operation, Set& t);

 private:
  void check(popnorm_status status) const;

  Library library_;
  popnorm_problem problem_;
  std::unique_ptr<popnorm_plan, decltype(&popnorm_plan_destroy)> plan_;
  popnorm::buffer workspace_, reserve_;
  std::vector<double> mean_, variance_;
  std::vector<float> weights_;
  std::vector<std::int64_t> lengths_;
  popnorm_batch batch_{};
};

// One call with its tensors, which it shares with others or has for itself.
struct Call {
  std::shared_ptr<Calls> calls;
  std::shared_ptr<Set> set;
};

// A row of the subject's time over the reference's, both after a forward.
Compared compared(Operation operation, const Call& reference, const Call& subject);

}  // namespace popnorm_bench

#endif
