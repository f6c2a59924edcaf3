#include "comparison.hpp"

#include <benchmark/benchmark.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>

#include <cstdio>
#include <iostream>
#include <utility>

namespace popnorm_bench {
namespace {

class Table : public benchmark::BenchmarkReporter {
 public:
  explicit Table(Titles titles) : titles_(std::move(titles)) {}

  bool ReportContext(const Context&) override {
    std::printf("%-62s %10s  %-20s %s\n", "", "ms", titles_.ratio.c_str(), titles_.extra.c_str());
    return true;
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const auto counter = [&](const char* name) { return static_cast<double>(run.counters.at(name)); };
      std::printf("%-62s", run.run_name.function_name.c_str());
      if (run.error_occurred) {
        std::printf(" %s\n", run.error_message.c_str());
        ++failed_;
        continue;
      }
      ratios_.push_back(counter("ratio"));
      faster_ += counter("high") < 1;
      slower_ += counter("low") > 1;
      std::printf(" %10.4f  %.3f [%.3f, %.3f] ", run.GetAdjustedRealTime(), counter("ratio"), counter("low"),
                  counter("high"));
      if (run.counters.contains("extra")) std::printf("%8.2f", counter("extra"));
      std::printf("\n");
      std::fflush(stdout);
    }
  }
  void Finalize() override {
    if (ratios_.empty()) return;
    std::printf(
        "%s: geometric mean %.3f; of %zu rows %d are faster and %d slower, their 95 %% interval on one side of 1\n",
        titles_.ratio.c_str(), geometric_mean(ratios_), ratios_.size(), faster_, slower_);
  }
  [[nodiscard]] bool failed() const { return failed_ > 0; }

 private:
  Titles titles_;
  std::vector<double> ratios_;
  int faster_ = 0, slower_ = 0, failed_ = 0;
};

void measure(benchmark::State& state, const Compared& row, const Protocol& protocol, oneapi::tbb::task_arena& threads) {
  const auto contender = [](const char* name, const std::function<void()>& run) {
    return Contender{name, [&run](std::size_t) { run(); }};
  };
  std::vector<Contender> contenders = {contender("reference", row.reference), contender("subject", row.subject)};
  if (row.other) contenders.push_back(contender("other", row.other));
  const auto times = threads.execute([&] {
    row.prepare();
    return interleave(contenders, 1, protocol);
  });
  const Estimate ratio = paired_ratio(times[1], times[0]);
  state.counters["ratio"] = ratio.value / row.work;
  state.counters["low"] = ratio.low / row.work;
  state.counters["high"] = ratio.high / row.work;
  const double extra = row.other ? paired_ratio(times[2], times[1]).value : row.extra;
  if (extra != 0) state.counters["extra"] = extra;
  state.SetIterationTime(median(times[1]) / 1000);
}

}  // namespace

void ComparisonOptions::add_to(CLI::App& app) {
  app.footer("--benchmark_filter=REGEX, --benchmark_out=FILE and the other flags of Google Benchmark work too.");
  app.add_option("--threads", threads, "threads of every contender")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--seconds", protocol.seconds, "per row")->check(CLI::PositiveNumber)->capture_default_str();
}

int compare(const ComparisonOptions& options, const Titles& titles, const std::vector<ComparedRow>& rows) {
  const oneapi::tbb::global_control limit(oneapi::tbb::global_control::max_allowed_parallelism,
                                          static_cast<std::size_t>(options.threads));
  oneapi::tbb::task_arena threads(options.threads);
  for (const ComparedRow& row : rows)
    benchmark::RegisterBenchmark(row.name.c_str(),
                                 [&](benchmark::State& state) {
                                   for (auto iteration : state) {
                                     static_cast<void>(iteration);
                                     try {
                                       measure(state, row.make(), options.protocol, threads);
                                     } catch (const std::exception& error) {
                                       state.SkipWithError(error.what());
                                       return;
                                     }
                                   }
                                 })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  Table table(titles);
  benchmark::RunSpecifiedBenchmarks(&table);
  return table.failed() ? 1 : 0;
}

int guarded(int argc, char** argv, int (*run)(int, char**)) {
  try {
    benchmark::Initialize(&argc, argv);
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}

}  // namespace popnorm_bench
