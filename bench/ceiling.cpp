#include "ceiling.hpp"

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>

#include <cstring>
#include <functional>
#include <utility>

#include "ceiling_loops.hpp"

namespace popnorm_bench {
namespace {

constexpr std::size_t kLine = 64;

SweepFunction best_sweep() { return __builtin_cpu_supports("avx512f") ? sweep_avx512 : sweep_avx2; }

// The part [part, part + 1) of `parts`, in whole lines.
Sweep part_of(const Sweep& whole, std::size_t part, std::size_t parts) {
  const std::size_t lines = whole.bytes / kLine;
  const std::size_t first = lines * part / parts * kLine;
  Sweep s = whole;
  s.a += first;
  if (s.b != nullptr) s.b += first;
  s.out += first;
  s.bytes = lines * (part + 1) / parts * kLine - first;
  return s;
}

Sweep reading(Sweep s) {
  s.stores = Stores::none;
  s.backwards = false;
  return s;
}

template <class Body>
void in_parts(std::size_t parts, const Body& body) {
  oneapi::tbb::parallel_for(std::size_t{0}, parts, body, oneapi::tbb::static_partitioner());
}

struct Loop {
  const char* name;
  Sweep how;
};

std::vector<Loop> loops(const Pattern& pattern) {
  constexpr std::size_t kAhead = 4096;
  constexpr Stores kOrdinary = Stores::ordinary;
  constexpr Stores kStreaming = Stores::streaming;
  std::vector<Loop> all = {
      {"ordinary", {.stores = kOrdinary}},
      {"ordinary, 4 streams", {.stores = kOrdinary, .four_streams = true}},
      {"non-temporal", {.stores = kStreaming}},
      {"non-temporal, 4 streams", {.stores = kStreaming, .four_streams = true}},
      {"non-temporal, prefetch", {.stores = kStreaming, .prefetch = kAhead}},
  };
  if (pattern.two_sweeps) {
    all.push_back({"ordinary, prefetch", {.stores = kOrdinary, .prefetch = kAhead}});
    all.push_back({"ordinary, second sweep backwards", {.stores = kOrdinary, .backwards = true}});
    all.push_back({"non-temporal, second sweep backwards", {.stores = kStreaming, .backwards = true}});
  }
  return all;
}

}  // namespace

Pattern pattern_of(const Task& task) {
  // More than any per-core cache, less than any last-level cache that the slab would have to itself.
  constexpr std::size_t kLargestSlab = std::size_t{8} << 20;
  const std::size_t slab = task.layer.bytes() / task.layer.channels();
  const bool once = task.layout == POPNORM_NCHW && slab <= kLargestSlab;
  return {.two_inputs = task.operation == Operation::backward,
          .two_sweeps = task.operation != Operation::forward_inference && !once};
}

std::vector<Contender> ceiling_loops(const Task& task, int threads) {
  // Waking a second thread costs more than moving this much.
  constexpr std::size_t kSerial = std::size_t{1} << 20;
  const Pattern pattern = pattern_of(task);
  const SweepFunction sweep = best_sweep();
  const auto on = [&task](Sweep s, std::size_t set) {
    const Tensors& t = task.sets[set];
    s.a = reinterpret_cast<const char*>(t.x);
    s.b = reinterpret_cast<const char*>(t.dy);
    s.out = reinterpret_cast<char*>(t.out);
    s.bytes = task.layer.bytes();
    return s;
  };

  std::vector<std::pair<std::size_t, std::string>> divisions = {{static_cast<std::size_t>(threads), ""}};
  if (threads > 1 && task.layer.bytes() <= kSerial) divisions.emplace_back(1, ", one thread");
  std::vector<Contender> contenders;
  for (const auto& [parts, suffix] : divisions) {
    for (const Loop& loop : loops(pattern)) {
      contenders.push_back({loop.name + suffix, [=, how = loop.how, count = parts](std::size_t set) {
                              const Sweep whole = on(how, set);
                              in_parts(count, [&](std::size_t part) {
                                const Sweep mine = part_of(whole, part, count);
                                if (pattern.two_sweeps) sweep(reading(mine));
                                sweep(mine);
                              });
                            }});
    }
    if (pattern.two_inputs) continue;
    contenders.push_back({"memcpy" + suffix, [=, count = parts](std::size_t set) {
                            const Sweep whole = on({}, set);
                            in_parts(count, [&](std::size_t part) {
                              const Sweep mine = part_of(whole, part, count);
                              if (pattern.two_sweeps) sweep(reading(mine));
                              std::memcpy(mine.out, mine.a, mine.bytes);
                            });
                          }});
  }
  return contenders;
}

}  // namespace popnorm_bench
