// popnorm_bench: popnorm against the machine's ceilings and against oneDNN. README.md says how to run and read it.
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/version.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "arena.hpp"
#include "ceiling.hpp"
#include "layer.hpp"
#include "measure.hpp"
#include "peers/onednn.hpp"
#include "report.hpp"
#include "subject.hpp"

namespace popnorm_bench {
namespace {

using nlohmann::json;

struct Options {
  std::string layers = POPNORM_BENCH_LAYERS;
  std::string report = "report.json";
  bool full = false;
  bool restart = false;
  bool cold = false;
  bool show_peer = false;
  PeerLayout peer_layout = PeerLayout::plain;
  int threads = 2;
  std::size_t cold_megabytes = 0;
  Protocol protocol;
};

// What the processors did since boot, in seconds over all cores.
struct ProcessorTime {
  double total = 0;
  double stolen = 0;  // by the hypervisor
  double others = 0;  // busy, but not with this program

  static ProcessorTime now() {
    enum { kUser, kNice, kSystem, kIdle, kIoWait, kIrq, kSoftIrq, kSteal, kFields };
    std::ifstream file("/proc/stat");
    std::string word;
    file >> word;
    ProcessorTime time;
    double busy = 0;
    double ticks = 0;
    for (int field = 0; field < kFields && file >> ticks; ++field) {
      const double seconds = ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
      time.total += seconds;
      if (field == kSteal) time.stolen = seconds;
      if (field != kIdle && field != kIoWait && field != kSteal) busy += seconds;
    }
    rusage own{};
    getrusage(RUSAGE_SELF, &own);
    const auto seconds = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
    };
    time.others = busy - seconds(own.ru_utime) - seconds(own.ru_stime);
    return time;
  }
};

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

// Tells builds of the library apart, so that no report mixes rows of two: FNV-1a over the file that holds it.
std::string library_build() {
  Dl_info where{};
  if (dladdr(reinterpret_cast<const void*>(&popnorm_version), &where) == 0) return "unknown";
  std::ifstream file(where.dli_fname, std::ios::binary);
  std::uint64_t hash = 0xcbf29ce484222325;
  for (char byte = 0; file.get(byte);) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::size_t last_level_cache() {
  std::size_t largest = 0;
  for (const auto& cache : benchmark::CPUInfo::Get().caches) {
    largest = std::max(largest, static_cast<std::size_t>(cache.size));
  }
  return largest;
}

// How far apart two implementations of the task are, in units of what rounding in float explains generously: 1 is the
// limit. It is there to catch timing a wrong or absent computation; tests/ judge accuracy.
double disagreement(const Task& task, const ChannelArrays& a, const std::vector<float>& out_a, const ChannelArrays& b,
                    const float* out_b) {
  constexpr double kElement = 2e-3;
  constexpr double kMean = 1e-5;
  double worst = 0;
  const auto compare = [&worst](double p, double q, double limit) {
    const double distance = std::fabs(p - q) / limit;
    worst = std::isnan(distance) ? HUGE_VAL : std::max(worst, distance);
  };
  for (std::size_t i = 0; i < out_a.size(); ++i) {
    compare(out_a[i], out_b[i], kElement * (1 + std::fabs(static_cast<double>(out_a[i]))));
  }
  const double weight = static_cast<double>(task.layer.n * task.layer.s());
  for (std::size_t i = 0; i < a.scale.size(); ++i) {
    if (task.operation == Operation::forward_training) compare(a.mean[i], b.mean[i], kElement);
    if (task.operation == Operation::backward) {
      compare(a.dscale[i], b.dscale[i], kElement + kMean * weight);
      compare(a.dshift[i], b.dshift[i], kElement + kMean * weight);
    }
  }
  return worst;
}

constexpr int kAttempts = 3;

class Bench {
 public:
  Bench(const Options& options, std::optional<PeerFacts> peer)
      : options_(options),
        peer_(std::move(peer)),
        limit_(oneapi::tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(options.threads)),
        threads_(options.threads),
        report_(options.report, setup(), !options.restart) {}

  // Returns how many rows there are to measure.
  std::size_t register_rows() {
    for (const Layer& layer : read_layers(options_.layers)) {
      if (!options_.full && layer.network != "resnet_50") continue;
      for (const Operation operation : kOperations) {
        for (const popnorm_layout layout : kLayouts) {
          const std::string name =
              std::string(name_of(operation)) + "/" + name_of(layout) + "/" + layer.network + "/" + layer.dimensions();
          if (options_.full && report_.has(name)) continue;
          ++registered_;
          benchmark::RegisterBenchmark(name.c_str(),
                                       [=, this](benchmark::State& state) {
                                         measure(state, name, Task{operation, layout, layer, {}});
                                       })
              ->Iterations(1)
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond);
        }
      }
    }
    return registered_;
  }

  [[nodiscard]] const Report& report() const { return report_; }
  [[nodiscard]] bool agreed() const { return agreed_; }

 private:
  [[nodiscard]] json setup() const {
    return {{"processor", processor()},
            {"cores", benchmark::CPUInfo::Get().num_cpus},
            {"last_level_cache_bytes", last_level_cache()},
            {"threads", options_.threads},
            {"seconds", options_.protocol.seconds},
            {"popnorm_version", popnorm_version()},
            {"library_build", library_build()},
            {"popnorm_numerics_version", popnorm_numerics_version()},
            {"isa", popnorm::plan(popnorm::problem_nchw(1, 1, 1)).info().isa},
            {"onednn_version", peer_ ? json(peer_->version) : json()},
            {"onednn_threading", peer_ ? json(peer_->threading) : json()},
            {"onednn_layout", options_.peer_layout == PeerLayout::plain ? "plain" : "blocked"},
            {"tbb", TBB_runtime_version()},
            {"compiler", POPNORM_BENCH_COMPILER},
            {"alignment", Arena::kAlignment},
            {"cold_rotation_bytes", options_.cold ? json(rotation()) : json()}};
  }

  // Twice the last-level cache, within what is sane to allocate.
  [[nodiscard]] std::size_t rotation() const {
    constexpr std::size_t kMost = std::size_t{1} << 30;
    if (options_.cold_megabytes != 0) return options_.cold_megabytes << 20;
    return std::min(2 * last_level_cache(), kMost);
  }

  // Runs what must happen on the threads under measurement.
  template <class Body>
  auto inside(const Body& body) {
    return threads_.execute(body);
  }

  // The times of one temperature: the keys that end up in the row itself (warm) or in its "cold".
  json compare(const std::vector<Contender>& main, const Task& task) {
    // Which loop is the ceiling shows in a few rounds; the two best then take part in all.
    const std::vector<Contender> loops = ceiling_loops(task, options_.threads);
    const Protocol brief{.seconds = 0, .rounds = 3, .limit = 3, .block_ms = options_.protocol.block_ms / 2};
    const auto scan = inside([&] { return interleave(loops, task.sets.size(), brief); });
    std::vector<std::size_t> order(loops.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return median(scan[a]) < median(scan[b]); });

    json scanned = json::object();
    for (const std::size_t i : order) scanned[loops[i].name] = median(scan[i]);

    std::vector<Contender> contenders = main;
    contenders.push_back(loops[order[0]]);
    contenders.push_back(loops[order[1]]);
    const auto times = inside([&] { return interleave(contenders, task.sets.size(), options_.protocol); });
    const std::vector<double>& ours = times[0];
    const std::size_t first = main.size();
    const std::size_t best = median(times[first]) <= median(times[first + 1]) ? first : first + 1;
    const Pattern pattern = pattern_of(task);
    const double ceiling_ms = median(times[best]);
    const Estimate of_ceiling = paired_ratio(times[best], ours);
    json result = {{"popnorm_ms", median(ours)},
                   {"ceiling_ms", ceiling_ms},
                   {"ceiling_kind", pattern.name()},
                   {"ceiling_loop", contenders[best].name},
                   {"ceiling_scan_ms", scanned},
                   {"ceiling_ratio", of_ceiling.value},
                   {"ceiling_ci95", {of_ceiling.low, of_ceiling.high}},
                   {"ceiling_gbs", static_cast<double>(task.layer.bytes()) * pattern.tensors() / ceiling_ms / 1e6},
                   {"broken_ceiling", of_ceiling.value > 1.02},
                   {"null_ratio", paired_ratio(times[1], ours).value},
                   {"onednn_ms", nullptr},
                   {"onednn_ratio", nullptr},
                   {"ci95", nullptr},
                   {"rounds", ours.size()},
                   {"sets", task.sets.size()}};
    if (main.size() > 2) {
      const Estimate over_peer = paired_ratio(times[2], ours);
      result["onednn_ms"] = median(times[2]);
      result["onednn_ratio"] = over_peer.value;
      result["ci95"] = {over_peer.low, over_peer.high};
    }
    return result;
  }

  // popnorm twice, under two names: what their ratio is off 1 is noise. Then oneDNN, if it computes the same.
  std::vector<Contender> contenders(const Task& task, ChannelArrays& ours, ChannelArrays& theirs, json& row) {
    const Subject subject = inside([&] { return make_popnorm(task, ours); });
    std::vector<Contender> all = {{"popnorm", subject.run}, {"popnorm again", subject.run}};
    row["isa"] = subject.isa;
    if (!peer_) return all;
    const Peer peer = inside([&] { return make_onednn(task, theirs, options_.threads, options_.peer_layout); });
    row["onednn_version"] = peer_->version;
    row["onednn_implementation"] = peer.implementation;
    inside([&] { subject.run(0); });
    const float* out = task.sets[0].out;
    const std::vector<float> kept(out, out + task.layer.elements());
    inside([&] {
      peer.run(0);
      peer.deliver();
    });
    const double distance = disagreement(task, ours, kept, theirs, out);
    if (distance > 1) {
      row["onednn_mismatch"] = distance;
      agreed_ = false;
    } else {
      all.push_back({"oneDNN", peer.run, peer_->spins});
    }
    return all;
  }

  void measure(benchmark::State& state, const std::string& name, Task task) {
    const Layer& layer = task.layer;
    json row = {{"name", name},
                {"op", name_of(task.operation)},
                {"layout", name_of(task.layout)},
                {"dtype", "f32"},
                {"n", layer.n},
                {"c", layer.c},
                {"s", layer.s()},
                {"dimensions", layer.dimensions()},
                {"network", layer.network},
                {"layers", layer.count},
                {"threads", options_.threads},
                {"tensor_bytes", layer.bytes()},
                {"alignment", Arena::kAlignment},
                {"onednn_version", nullptr},
                {"onednn_implementation", nullptr},
                {"onednn_mismatch", nullptr},
                {"cold", nullptr}};
    ChannelArrays ours(layer.channels());
    ChannelArrays theirs(layer.channels());
    const auto at = [&](std::size_t rotation) {
      task.sets = arena_.lay_out(layer, task.operation, rotation);
      return compare(contenders(task, ours, theirs, row), task);
    };
    for (auto iteration : state) {
      (void)iteration;
      try {
        // While others are busy, again; the quietest attempt counts.
        json quietest;
        for (int attempt = 0; attempt < kAttempts && !is_quiet(quietest); ++attempt) {
          const ProcessorTime before = ProcessorTime::now();
          row.update(at(0));
          if (options_.cold) row["cold"] = at(rotation());
          const ProcessorTime after = ProcessorTime::now();
          const double percent = 100 / std::max(0.1, after.total - before.total);
          row["steal_percent"] = percent * (after.stolen - before.stolen);
          row["others_percent"] = percent * std::max(0.0, after.others - before.others);
          if (quietest.is_null() || disturbance(row) < disturbance(quietest)) quietest = row;
        }
        row = std::move(quietest);
      } catch (const std::exception& error) {
        state.SkipWithError(error.what());
        return;
      }
      state.SetIterationTime(row["popnorm_ms"].get<double>() / 1000);
    }
    for (const char* counter : {"ceiling_ms", "ceiling_ratio", "onednn_ms", "onednn_ratio", "null_ratio"}) {
      if (!row[counter].is_null()) state.counters[counter] = row[counter].get<double>();
    }
    report_.put(std::move(row));
  }

  Options options_;
  std::optional<PeerFacts> peer_;
  oneapi::tbb::global_control limit_;
  oneapi::tbb::task_arena threads_;
  Report report_;
  Arena arena_;
  std::size_t registered_ = 0;
  bool agreed_ = true;
};

// One line a row, as soon as it is measured.
class Progress : public benchmark::BenchmarkReporter {
 public:
  // A filter leaves fewer than `registered` rows, and only Google Benchmark knows how many.
  explicit Progress(std::size_t registered) {
    const std::string filter = benchmark::GetBenchmarkFilter();
    if (filter.empty() || filter == ".") of_ = "/" + std::to_string(registered);
  }

  [[nodiscard]] bool failed() const { return failed_; }

  bool ReportContext(const Context&) override { return true; }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      std::printf("[%3zu%s] %-52s", ++done_, of_.c_str(), run.run_name.function_name.c_str());
      if (run.error_occurred) {
        failed_ = true;
        std::printf(" %s\n", run.error_message.c_str());
        continue;
      }
      const auto counter = [&](const char* name) {
        const auto found = run.counters.find(name);
        return found == run.counters.end() ? std::nan("") : static_cast<double>(found->second);
      };
      std::printf(" %9.3f ms %6.1f %% of ceiling", run.GetAdjustedRealTime(), 100 * counter("ceiling_ratio"));
      if (!std::isnan(counter("onednn_ratio"))) std::printf(" %6.2fx oneDNN", counter("onednn_ratio"));
      std::printf("\n");
      std::fflush(stdout);
    }
  }

 private:
  std::string of_;
  std::size_t done_ = 0;
  bool failed_ = false;
};

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  Options options;
  CLI::App app(
      "popnorm against the machine's ceilings and oneDNN. --benchmark_filter=REGEX and the other flags of "
      "Google Benchmark work too.");
  app.add_flag("--full", options.full, "every layer of the list instead of ResNet-50's; goes on where it stopped");
  app.add_flag("--restart", options.restart, "forget the rows that the report has");
  app.add_flag("--cold", options.cold, "measure each row a second time with rotating sets of buffers");
  app.add_option("--cold-mb", options.cold_megabytes, "MB to rotate through (default: 2x last-level cache, <= 1 GB)");
  app.add_option("--threads", options.threads, "threads of every contender")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--seconds", options.protocol.seconds, "per row")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rounds", options.protocol.rounds, "at least, per row")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--layers", options.layers, "list of layers")->check(CLI::ExistingFile);
  app.add_option("--report", options.report, "the JSON file to write")->capture_default_str();
  app.add_option("--peer-layout", options.peer_layout,
                 "what oneDNN is given where rows are NCHW: plain or blocked (nChw16c)")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, PeerLayout>{{"plain", PeerLayout::plain}, {"blocked", PeerLayout::blocked}}))
      ->default_str("plain");
  app.add_flag("--show-peer", options.show_peer, "only say which oneDNN is there; exit status 1 if none");
  CLI11_PARSE(app, argc, argv);
  options.protocol.limit = std::max(options.protocol.limit, options.protocol.rounds);

  std::string why;
  const std::optional<PeerFacts> peer = onednn_facts(why);
  if (peer) {
    std::cout << "peer: oneDNN " << peer->version << " (" << peer->threading << ")\n";
  } else {
    std::cout << "peer: none (" << why << ")\n";
  }
  if (options.show_peer) return peer ? 0 : 1;

  Bench bench(options, peer);
  Progress progress(bench.register_rows());
  if (bench.report().rows() > 0)
    std::cout << bench.report().rows() << " rows are already in " << options.report << "\n";
  benchmark::RunSpecifiedBenchmarks(&progress);
  bench.report().print();
  std::cout << "\nwritten: " << options.report << "\n";
  if (!bench.agreed()) std::cout << "oneDNN and popnorm disagree in some rows, which were not timed against it\n";
  return bench.agreed() && !progress.failed() ? 0 : 1;
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
