// Figures over seeds, and the table of them that a finding fills, prints and reports.
#ifndef DIGITS_TABLE_HPP
#define DIGITS_TABLE_HPP

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace digits {

// A figure over the seeds.
struct Summary {
  explicit Summary(std::vector<double> of);
  std::vector<double> values;
  double mean;
  double deviation = 0;  // of a sample; 0 for one seed
};

struct Row {
  std::string name;
  nlohmann::json settings;  // what sets this row apart, for programs that read the report
};

struct Column {
  std::string key;      // in the report
  std::string heading;  // in the printed table
  int places = 2;
  bool scientific = false;
};

// Each cell has a value per seed. Cells are distinct objects: threads may fill different ones at the same time.
class Table {
 public:
  Table(std::string title, std::vector<Row> rows, std::vector<Column> columns, std::size_t seeds);

  [[nodiscard]] double& at(std::size_t row, std::size_t column, std::size_t seed);
  [[nodiscard]] double mean(std::size_t row, std::size_t column) const;
  [[nodiscard]] std::string draw() const;
  [[nodiscard]] nlohmann::json to_json() const;  // an array of rows

 private:
  [[nodiscard]] Summary summary(std::size_t row, std::size_t column) const;
  [[nodiscard]] std::string cell(std::size_t row, std::size_t column) const;

  std::string title_;
  std::vector<Row> rows_;
  std::vector<Column> columns_;
  std::vector<std::vector<double>> values_;  // [row * columns + column][seed]
};

}  // namespace digits

#endif
