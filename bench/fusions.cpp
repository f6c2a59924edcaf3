// popnorm_fusions: what a residual and an activation cost in the sweep of normalization, against plain batch normalization of
// the same tensor, beside the ratio of the bytes that the two move.
#include <benchmark/benchmark.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <popnorm/popnorm.hpp>
#include <random>
#include <string>
#include <vector>

#include "layer.hpp"
#include "measure.hpp"
#include "ratio_table.hpp"

namespace popnorm_bench {
namespace {

struct Shape {
  popnorm_layout layout;
  Layer layer;
};

// From memory, from the last-level cache, and from the second-level cache; rows whose bits fill bytes and rows whose do not.
const Shape kShapes[] = {
    {POPNORM_NCHW, {32, 64, 112, 112, {}, 1}}, {POPNORM_NCHW, {32, 256, 56, 56, {}, 1}},
    {POPNORM_NCHW, {64, 512, 14, 14, {}, 1}},  {POPNORM_NCHW, {128, 512, 7, 7, {}, 1}},
    {POPNORM_NCHW, {8, 64, 14, 14, {}, 1}},    {POPNORM_NHWC, {64, 24, 112, 112, {}, 1}},
    {POPNORM_NHWC, {32, 256, 56, 56, {}, 1}},  {POPNORM_NHWC, {64, 512, 14, 14, {}, 1}},
    {POPNORM_NHWC, {128, 2048, 7, 7, {}, 1}},  {POPNORM_NHWC, {8, 64, 14, 14, {}, 1}},
};

struct Fusion {
  std::string name;
  popnorm_activation activation;
  bool residual;
};
const Fusion kFusions[] = {{"relu", POPNORM_RELU, false},
                           {"leaky_relu", POPNORM_LEAKY_RELU, false},
                           {"add", POPNORM_IDENTITY, true},
                           {"add_relu", POPNORM_RELU, true}};

const std::map<std::string, popnorm_type> kStorages = {
    {"f32", POPNORM_F32}, {"f64", POPNORM_F64}, {"bf16", POPNORM_BF16}, {"f16", POPNORM_F16}};

std::size_t size_of(popnorm_type storage) { return storage == POPNORM_F64 ? 8 : storage == POPNORM_F32 ? 4 : 2; }

// Numbers of either sign between a half and two.
popnorm::buffer tensor(popnorm_type storage, std::size_t elements, std::uint32_t seed) {
  popnorm::buffer values(elements * size_of(storage), 4096);
  std::mt19937 engine(seed);
  for (std::size_t i = 0; i < elements; ++i) {
    const auto bits = static_cast<std::uint32_t>(engine());
    const double magnitude = std::ldexp(1 + (bits & 0x7F) / 128.0, static_cast<int>(bits >> 8 & 1) - 1);
    const double value = (bits & 0x80) != 0 ? -magnitude : magnitude;
    const auto single = static_cast<float>(value);
    std::uint32_t pattern = 0;
    std::memcpy(&pattern, &single, sizeof(single));
    // Seven binary digits are exact in every type; in 16 bits they are those of f32, cut or with another exponent.
    const std::uint32_t as_f16 = (pattern >> 16 & 0x8000U) | ((pattern >> 13 & 0x3FFFFU) - (112U << 10));
    const auto half = static_cast<std::uint16_t>(storage == POPNORM_BF16 ? pattern >> 16 : as_f16);
    std::byte* to = static_cast<std::byte*>(values.data()) + i * size_of(storage);
    if (storage == POPNORM_F64) std::memcpy(to, &value, sizeof(value));
    if (storage == POPNORM_F32) std::memcpy(to, &single, sizeof(single));
    if (size_of(storage) == 2) std::memcpy(to, &half, sizeof(half));
  }
  return values;
}

struct Set {
  popnorm::buffer x, residual, y, dy, dx, dresidual;
  Set(popnorm_type storage, std::size_t elements)
      : x(tensor(storage, elements, 1)),
        residual(tensor(storage, elements, 2)),
        y(tensor(storage, elements, 3)),
        dy(tensor(storage, elements, 4)),
        dx(tensor(storage, elements, 5)),
        dresidual(tensor(storage, elements, 6)) {}
};

// One plan with what its calls need.
class Normalizer {
 public:
  explicit Normalizer(const popnorm_problem& problem)
      : adds_(problem.adds_residual != 0),
        plan_(problem),
        workspace_(plan_.make_workspace()),
        reserve_(plan_.make_reserve()) {}

  void run(Operation operation, Set& t) {
    if (operation == Operation::backward) {
      popnorm_backward_args a = popnorm::backward_args(workspace_, reserve_);
      a.x = t.x.data();
      a.dy = t.dy.data();
      a.dx = t.dx.data();
      if (adds_) a.dresidual = t.dresidual.data();
      plan_.backward(a);
    } else {
      popnorm_forward_args a = popnorm::forward_args(workspace_, reserve_);
      a.x = t.x.data();
      a.y = t.y.data();
      if (adds_) a.residual = t.residual.data();
      plan_.forward(a);
    }
  }

 private:
  bool adds_;
  popnorm::plan plan_;
  popnorm::buffer workspace_, reserve_;
};

// Bytes that a fused call moves over those of the plain one, if slabs (NCHW) are read from memory once, and all else twice.
double bytes_ratio(Operation operation, popnorm_layout layout, const Fusion& fusion, popnorm_type storage) {
  if (!fusion.residual) return 1;
  const double again = layout == POPNORM_NCHW ? 0 : 1;
  const double plain = operation == Operation::backward ? 3 + 2 * again : 2 + again;
  const double mask = fusion.activation != POPNORM_IDENTITY ? 1 / (8.0 * static_cast<double>(size_of(storage))) : 0;
  const double times_read = operation == Operation::backward ? 1 + again : 1;
  return (plain + 1 + times_read * mask) / plain;
}

class Fusions {
 public:
  Fusions(int threads, popnorm_type storage, Protocol protocol)
      : limit_(oneapi::tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(threads)),
        threads_(threads),
        storage_(storage),
        protocol_(protocol) {
    for (const Shape& shape : kShapes)
      for (const Operation operation : {Operation::forward_training, Operation::backward})
        for (const Fusion& fusion : kFusions) {
          const std::string name = std::string(name_of(operation)) + "/" + name_of(shape.layout) + "/" +
                                   shape.layer.dimensions() + "/" + fusion.name;
          benchmark::RegisterBenchmark(name.c_str(),
                                       [=, this](benchmark::State& state) { measure(state, operation, shape, fusion); })
              ->Iterations(1)
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond);
        }
  }

 private:
  void measure(benchmark::State& state, Operation operation, const Shape& shape, const Fusion& fusion) {
    const Layer& layer = shape.layer;
    Set set(storage_, layer.elements());
    popnorm_problem problem = popnorm::problem(shape.layout, layer.n, layer.c, layer.s());
    problem.storage = storage_;
    Normalizer plain(problem);
    problem.activation = fusion.activation;
    problem.adds_residual = fusion.residual ? 1 : 0;
    Normalizer fused(problem);
    std::vector<Contender> contenders = {{"plain", [&](std::size_t) { plain.run(operation, set); }},
                                         {"fused", [&](std::size_t) { fused.run(operation, set); }}};
    for (auto iteration : state) {
      (void)iteration;
      const auto times = threads_.execute([&] {
        for (Normalizer* contender : {&plain, &fused})  // backward goes through the reserve of a forward
          contender->run(Operation::forward_training, set);
        return interleave(contenders, 1, protocol_);
      });
      const Estimate of_plain = paired_ratio(times[1], times[0]);
      state.counters["of_plain"] = of_plain.value;
      state.counters["low"] = of_plain.low;
      state.counters["high"] = of_plain.high;
      state.counters["by_bytes"] = bytes_ratio(operation, shape.layout, fusion, storage_);
      state.SetIterationTime(median(times[1]) / 1000);
    }
  }

  oneapi::tbb::global_control limit_;
  oneapi::tbb::task_arena threads_;
  popnorm_type storage_;
  Protocol protocol_;
};

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  int threads = 2;
  popnorm_type storage = POPNORM_F32;
  Protocol protocol{.seconds = 0.6, .rounds = 7, .limit = 25, .block_ms = 4};
  CLI::App app(
      "What a residual and an activation cost against plain batch normalization. --benchmark_filter=REGEX, "
      "--benchmark_out=FILE and the other flags of Google Benchmark work too.");
  app.add_option("--threads", threads, "threads of every contender")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--storage", storage, "of all tensors: f32, f64, bf16, f16")
      ->transform(CLI::CheckedTransformer(kStorages));
  app.add_option("--seconds", protocol.seconds, "per row")->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  Fusions fusions(threads, storage, protocol);
  RatioTable table("by bytes", "by_bytes");
  benchmark::RunSpecifiedBenchmarks(&table);
  return 0;
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) {
  try {
    return popnorm_bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
