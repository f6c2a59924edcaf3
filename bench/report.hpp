// build/bench/report.json and the table.
#ifndef POPNORM_BENCH_REPORT_HPP
#define POPNORM_BENCH_REPORT_HPP

#include <nlohmann/json.hpp>
#include <string>

namespace popnorm_bench {

// The share of the processors, in percent, that a row's others took meanwhile; whether that is little. A null row is not quiet.
double disturbance(const nlohmann::json& row);
bool is_quiet(const nlohmann::json& row);

// {"setup": {...}, "rows": [...], "summary": {operation: {layout: {network: {...}}}}}; README.md says what the keys
// mean.
class Report {
 public:
  // Goes on with the file at `path` if it is there, was written under the same `setup`, and `resume`; else starts anew.
  Report(std::string path, nlohmann::json setup, bool resume);

  [[nodiscard]] bool has(const std::string& name) const;
  [[nodiscard]] std::size_t rows() const { return rows_.size(); }
  // Adds the row, or replaces the one of the same name, and writes the file.
  void put(nlohmann::json row);
  // Table and summary on standard output.
  void print() const;

 private:
  [[nodiscard]] nlohmann::json summary() const;
  void write() const;

  std::string path_;
  nlohmann::json setup_;
  nlohmann::json rows_ = nlohmann::json::array();
};

}  // namespace popnorm_bench

#endif
