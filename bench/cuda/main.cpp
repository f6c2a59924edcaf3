// popnorm_bench_cuda: popnorm's ways on a GPU against the device's ceiling and against cuDNN. ../README.md says how to run and read it.
#include <benchmark/benchmark.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <random>

#include "cuda/device.hpp"
#include "cuda/task.hpp"
#include "measure.hpp"

namespace popnorm_bench {
namespace {

struct Options {
  std::string layers = "shapes.tsv";
  std::string network = "resnet_50";
  std::vector<std::string> policies = {"measured", "plain"};
  std::vector<std::string> storages = {"f32", "bf16"};
  std::vector<std::string> variants = {"none"};
  int rounds = 7;
  double seconds = 360;  // rows that would begin later are left out, and said to be
};

popnorm_type storage_of(const std::string& name) {
  return name == "bf16" ? POPNORM_BF16 : name == "f16" ? POPNORM_F16 : POPNORM_F32;
}

std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const Variant variant : kVariants) names.emplace_back(name_of(variant));
  return names;
}

// An element of the storage type that was read back.
double value_of(popnorm_type storage, const std::vector<unsigned char>& bytes, std::size_t i) {
  if (storage == POPNORM_F32) return static_cast<double>(reinterpret_cast<const float*>(bytes.data())[i]);
  const std::uint32_t half = reinterpret_cast<const std::uint16_t*>(bytes.data())[i];
  if (storage == POPNORM_BF16) return static_cast<double>(std::bit_cast<float>(half << 16));
  const double fraction = half & 0x3FFU;
  const int exponent = static_cast<int>(half >> 10 & 0x1FU);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (half & 0x8000U) != 0 ? -magnitude : magnitude;
}

// Whether two outputs are the same as far as rounding explains generously: catches timing a wrong computation.
bool agree(popnorm_type storage, const std::vector<unsigned char>& a, const std::vector<unsigned char>& b) {
  const double limit = storage == POPNORM_F32 ? 2e-3 : 3e-2;
  const std::size_t count = a.size() / (storage == POPNORM_F32 ? 4 : 2);
  for (std::size_t i = 0; i < count; ++i) {
    const double p = value_of(storage, a, i), q = value_of(storage, b, i);
    if (!(std::fabs(p - q) <= limit * (1 + std::fabs(p)))) return false;
  }
  return true;
}

// Milliseconds of every round, cold and warm.
struct Times {
  std::vector<double> cold, warm;
  std::string note;
};

// One row: the times of all contenders, taken once; the ceiling's are those of its fastest way.
struct Row {
  GpuTask task;
  std::map<std::string, Times> times;
  std::string problem;  // why there is none
  double floor_bytes() const { return static_cast<double>(task.bytes()) * task.floor(); }
};

// Runs that take about two milliseconds together.
int runs_of(double milliseconds) { return static_cast<int>(std::clamp(2 / std::max(milliseconds, 1e-3), 3.0, 40.0)); }

void measure(Row& row, const Options& options, const DeviceBuffer& flush) {
  const GpuTask& task = row.task;
  const GpuMemory memory(task);
  std::vector<GpuContender> contenders;
  for (const std::string& policy : options.policies) {
    // Given statistics are one kernel whatever the policy.
    if (task.operation == Operation::forward_inference && policy != options.policies.front()) continue;
    contenders.push_back(make_popnorm(task, memory, policy));
  }
  std::string why_not;
  if (auto cudnn = task.variant == Variant::none ? make_cudnn(task, memory, why_not) : std::nullopt)
    contenders.push_back(*cudnn);
  else if (!why_not.empty())
    std::fprintf(stderr, "SKIP cudnn: %s\n", why_not.c_str());
  std::vector<unsigned char> expected(task.bytes()), got(task.bytes());
  for (const GpuContender& contender : contenders) {
    contender.run();
    synchronize();
    memory.out.get(&contender == contenders.data() ? expected.data() : got.data(), task.bytes());
    if (&contender != contenders.data() && !agree(task.storage, expected, got))
      throw std::runtime_error(contender.name + " and " + contenders.front().name + " differ");
  }
  // T there and T back: the floor's bytes at another number of tensors take as much longer.
  for (const Copy& copy : copies(memory.out, memory.x, task.bytes()))
    contenders.push_back({"copy_" + copy.name, "", copy.run});
  std::vector<int> runs;
  for (const GpuContender& contender : contenders) {
    time_runs(contender.run, 3, nullptr);
    runs.push_back(runs_of(time_runs(contender.run, 3, nullptr).front()));
  }
  std::mt19937 engine(20260517);
  std::vector<std::size_t> order(contenders.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (int round = 0; round < options.rounds; ++round) {
    std::shuffle(order.begin(), order.end(), engine);
    for (const std::size_t i : order) {
      Times& times = row.times[contenders[i].name];
      times.note = contenders[i].note;
      times.cold.push_back(median(time_runs(contenders[i].run, std::min(runs[i], 10), &flush)));
      times.warm.push_back(time_runs(contenders[i].run, runs[i], nullptr).front());
    }
  }
}

// The fastest way to copy, by its median.
const Times& ceiling(const Row& row, std::vector<double> Times::*column) {
  const Times* best = nullptr;
  for (const auto& [name, times] : row.times)
    if (name.starts_with("copy_") && (best == nullptr || median(times.*column) < median(best->*column))) best = &times;
  return *best;
}

// What one benchmark reports: its own time, the ceiling's share of it and the peer's multiple of it.
void report(benchmark::State& state, const std::shared_ptr<Row>& row, const std::string& name, bool cold,
            const std::function<void()>& measured) {
  measured();
  if (row->times.find(name) == row->times.end()) {
    state.SkipWithError(row->problem.empty() ? "not part of this row" : row->problem.c_str());
    return;
  }
  const auto column = cold ? &Times::cold : &Times::warm;
  const Times& own = row->times.at(name);
  for ([[maybe_unused]] const auto& iteration : state) state.SetIterationTime(median(own.*column) * 1e-3);
  const Estimate share = paired_ratio(ceiling(*row, column).*column, own.*column);
  const double tensors = row->task.floor() / 2.0;
  state.counters["percent_of_R"] = 100 * share.value * tensors;
  state.counters["percent_low"] = 100 * share.low * tensors;
  state.counters["percent_high"] = 100 * share.high * tensors;
  state.counters["floor_GB_per_s"] = row->floor_bytes() / (median(own.*column) * 1e6);
  if (const auto peer = row->times.find("cudnn"); peer != row->times.end() && name != "cudnn")
    state.counters["times_cudnn"] = paired_ratio(peer->second.*column, own.*column).value;
  state.SetLabel(own.note);
}

// `failed`, which must outlive the benchmarks, becomes true where a row could not be measured or contenders differ.
void register_rows(const Options& options, const DeviceInfo& device, bool& failed) {
  const auto flush = std::make_shared<DeviceBuffer>(2 * device.l2_bytes);
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::pair<popnorm_layout, Variant>> forms;
  for (const popnorm_layout layout : kLayouts)
    for (const Variant variant : kVariants)
      if (std::ranges::find(options.variants, name_of(variant)) != options.variants.end())
        forms.emplace_back(layout, variant);
  for (const std::string& storage : options.storages)
    for (const Layer& layer : read_layers(options.layers)) {
      if (options.network != "all" && layer.network != options.network) continue;
      for (const Operation operation : kOperations)
        for (const auto& [layout, variant] : forms) {
          const auto row = std::make_shared<Row>();
          row->task = {operation, layout, storage_of(storage), layer, variant};
          const auto measured = [row, options, flush, begin, &failed] {
            if (!row->times.empty() || !row->problem.empty()) return;
            const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
            try {
              if (spent.count() > options.seconds)
                row->problem = "left out: the time is spent";
              else
                measure(*row, options, *flush);
            } catch (const std::exception& error) {
              row->times.clear();
              row->problem = error.what();
              failed = true;
            }
          };
          std::vector<std::string> names;
          for (const std::string& policy : options.policies) names.push_back("popnorm_" + policy);
          names.emplace_back("cudnn");
          const std::string called =
              std::string(name_of(operation)) + (variant != Variant::none ? std::string("+") + name_of(variant) : "");
          for (const bool cold : {true, false})
            for (const std::string& name : names) {
              const std::string full = called + "/" + name_of(layout) + "/" + storage + "/" + layer.network + "/" +
                                       layer.dimensions() + "/" + (cold ? "cold" : "warm") + "/" + name;
              benchmark::RegisterBenchmark(full.c_str(),
                                           [=](benchmark::State& state) { report(state, row, name, cold, measured); })
                  ->UseManualTime()
                  ->Iterations(1)
                  ->Unit(benchmark::kMicrosecond);
            }
        }
    }
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("popnorm on a CUDA device against its ceiling and cuDNN; options of Google Benchmark work too");
  app.allow_extras();
  app.add_option("--layers", options.layers, "the shapes, one per line")->check(CLI::ExistingFile);
  app.add_option("--network", options.network, "one of the network column, or all");
  app.add_option("--policies", options.policies, "POPNORM_CUDA_POLICY of each contender")->delimiter(',');
  app.add_option("--storages", options.storages, "f32, bf16, f16")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  app.add_option("--variants", options.variants,
                 "none, misaligned, relu, add_relu, groups: all but the first without cuDNN")
      ->delimiter(',')
      ->check(CLI::IsMember(variant_names()));
  app.add_option("--rounds", options.rounds)->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "rows that would begin later are left out");
  CLI11_PARSE(app, argc, argv);
  DeviceInfo device;
  try {
    device = ask_device();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "SKIP popnorm_bench_cuda: %s\n", error.what());
    return 3;
  }
  benchmark::AddCustomContext("device", device.name);
  benchmark::AddCustomContext("driver", std::to_string(device.driver));
  benchmark::AddCustomContext("runtime", std::to_string(device.runtime));
  benchmark::AddCustomContext("multiprocessors", std::to_string(device.multiprocessors));
  benchmark::AddCustomContext("l2_bytes", std::to_string(device.l2_bytes));
  bool failed = false;
  register_rows(options, device, failed);
  // What is not ours is Google Benchmark's.
  std::vector<std::string> extras = app.remaining();
  std::vector<char*> rest = {argv[0]};
  for (std::string& extra : extras) rest.push_back(extra.data());
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) { return popnorm_bench::run(argc, argv); }
