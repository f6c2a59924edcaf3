// Programs that time a call over a reference, row by row: popnorm_maps, popnorm_fusions, popnorm_storage, popnorm_edges,
// popnorm_against.
#ifndef POPNORM_BENCH_COMPARISON_HPP
#define POPNORM_BENCH_COMPARISON_HPP

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "measure.hpp"

namespace popnorm_bench {

// What a row times; its functions own what they work on.
struct Compared {
  std::function<void()> reference;
  std::function<void()> subject;
  std::function<void()> prepare = [] {};  // once, before
  // Another number of the row, if `other` has no function; else the time of `other` over the subject's.
  std::function<void()> other = nullptr;
  double extra = 0;
  double work = 1;  // the subject's elements over the reference's, by which the ratio is divided
};

struct ComparedRow {
  std::string name;
  std::function<Compared()> make;
};

// What the columns of the two ratios are called. Of an empty one there is none.
struct Titles {
  std::string ratio;
  std::string extra;
};

// --threads and --seconds; every flag of Google Benchmark works besides.
struct ComparisonOptions {
  int threads = 2;
  Protocol protocol{.seconds = 0.6, .rounds = 7, .limit = 25, .block_ms = 4};

  void add_to(CLI::App& app);
};

// Prints a line per row and, at the end, the geometric mean of the ratio and how many rows are slower or faster beyond doubt.
// Google Benchmark's own report has the same numbers as counters. Returns what main does: 1 if a row could not be run.
int compare(const ComparisonOptions& options, const Titles& titles, const std::vector<ComparedRow>& rows);

// main's body: an exception becomes a message and 2.
int guarded(int argc, char** argv, int (*run)(int, char**));

}  // namespace popnorm_bench

#endif
