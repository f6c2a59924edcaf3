#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <string_view>
#include <utility>

namespace digits {
namespace {

using nlohmann::json;

std::string print(const Column& column, double value) {
  char text[32];
  std::snprintf(text, sizeof text, column.scientific ? "%.*e" : "%.*f", column.places, value);
  return text;
}

// Characters that a terminal shows: bytes of UTF-8 that do not continue one.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char byte) { return (byte & '\xC0') != '\x80'; }));
}

std::string pad(std::size_t by) { return std::string(by, ' '); }

}  // namespace

Summary::Summary(std::vector<double> of) : values(std::move(of)) {
  const auto n = static_cast<double>(values.size());
  mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double v : values) squares += (v - mean) * (v - mean);
  if (values.size() > 1) deviation = std::sqrt(squares / (n - 1));
}

Table::Table(std::string title, std::vector<Row> rows, std::vector<Column> columns, std::size_t seeds)
    : title_(std::move(title)),
      rows_(std::move(rows)),
      columns_(std::move(columns)),
      values_(rows_.size() * columns_.size(), std::vector<double>(seeds, std::numeric_limits<double>::quiet_NaN())) {}

double& Table::at(std::size_t row, std::size_t column, std::size_t seed) {
  return values_.at(row * columns_.size() + column).at(seed);
}

Summary Table::summary(std::size_t row, std::size_t column) const {
  return Summary(values_.at(row * columns_.size() + column));
}

double Table::mean(std::size_t row, std::size_t column) const { return summary(row, column).mean; }

std::string Table::cell(std::size_t row, std::size_t column) const {
  const Summary s = summary(row, column);
  std::string text = print(columns_[column], s.mean);
  if (s.values.size() > 1) text += " ± " + print(columns_[column], s.deviation);
  return text;
}

std::string Table::draw() const {
  constexpr std::size_t kGap = 3;
  std::vector<std::vector<std::string>> lines(rows_.size() + 1);
  lines[0].emplace_back();
  for (const Column& column : columns_) lines[0].push_back(column.heading);
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    lines[r + 1].push_back(rows_[r].name);
    for (std::size_t c = 0; c < columns_.size(); ++c) lines[r + 1].push_back(cell(r, c));
  }
  std::vector<std::size_t> widths(columns_.size() + 1);
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], width(line[i]));
  }

  std::string text = title_ + "\n\n";
  for (const auto& line : lines) {
    text += "  " + line[0] + pad(widths[0] - width(line[0]));
    for (std::size_t i = 1; i < line.size(); ++i) text += pad(kGap + widths[i] - width(line[i])) + line[i];
    text += '\n';
  }
  return text;
}

json Table::to_json() const {
  json rows = json::array();
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    json row = {{"name", rows_[r].name}, {"settings", rows_[r].settings}};
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const Summary s = summary(r, c);
      row[columns_[c].key] = {{"values", s.values}, {"mean", s.mean}, {"deviation", s.deviation}};
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace digits
