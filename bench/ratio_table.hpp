// What rows of comparisons with plain batch normalization print: one line each.
#ifndef POPNORM_BENCH_RATIO_TABLE_HPP
#define POPNORM_BENCH_RATIO_TABLE_HPP

#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <utility>

namespace popnorm_bench {

// A row has the counters of_plain, low and high: its time over the plain call's and the interval of that; and perhaps another
// ratio, the counter `extra`, under the heading `title`.
class RatioTable : public benchmark::BenchmarkReporter {
 public:
  RatioTable(std::string title, std::string extra) : title_(std::move(title)), extra_(std::move(extra)) {}

  bool ReportContext(const Context&) override {
    std::printf("%-62s %10s  %-18s %s\n", "", "ms", "times plain", title_.c_str());
    return true;
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const auto counter = [&](const std::string& name) { return static_cast<double>(run.counters.at(name)); };
      std::printf("%-62s %10.3f  %.2f [%.2f, %.2f] ", run.run_name.function_name.c_str(), run.GetAdjustedRealTime(),
                  counter("of_plain"), counter("low"), counter("high"));
      if (run.counters.contains(extra_)) std::printf("%8.2fx", counter(extra_));
      std::printf("\n");
      std::fflush(stdout);
    }
  }

 private:
  std::string title_, extra_;
};

}  // namespace popnorm_bench

#endif
