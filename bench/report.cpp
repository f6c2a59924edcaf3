#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <utility>
#include <vector>

#include "layer.hpp"
#include "measure.hpp"

namespace popnorm_bench {
namespace {

using nlohmann::json;

// Above this the machine is not ours.
constexpr double kQuietPercent = 5;

std::string fixed(const json& value, int digits, double factor = 1) {
  if (value.is_null()) return "-";
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value.get<double>() * factor;
  return text.str();
}

std::string interval(const json& pair, int digits, double factor = 1) {
  if (pair.is_null()) return {};
  std::ostringstream text;
  text << '[' << fixed(pair[0], digits, factor) << ", " << fixed(pair[1], digits, factor) << ']';
  return text.str();
}

// Geometric mean and worst row of a ratio, null where no row has it.
json digest(const std::vector<json>& rows, const char* ratio) {
  std::vector<double> values;
  const json* worst = nullptr;
  for (const json& row : rows) {
    if (row[ratio].is_null()) continue;
    values.push_back(row[ratio]);
    if (worst == nullptr || row[ratio] < (*worst)[ratio]) worst = &row;
  }
  if (worst == nullptr) return {{"geomean", nullptr}, {"worst", nullptr}, {"worst_row", nullptr}};
  return {{"geomean", geometric_mean(values)}, {"worst", (*worst)[ratio]}, {"worst_row", (*worst)["name"]}};
}

}  // namespace

double disturbance(const json& row) { return row["others_percent"].get<double>() + row["steal_percent"].get<double>(); }

bool is_quiet(const json& row) { return !row.is_null() && disturbance(row) <= kQuietPercent; }

Report::Report(std::string path, json setup, bool resume) : path_(std::move(path)), setup_(std::move(setup)) {
  std::ifstream file(path_);
  if (!resume || !file) return;
  const json before = json::parse(file, nullptr, false);
  if (before.is_discarded() || before["setup"] != setup_) {
    const std::string kept = path_ + ".before";
    std::filesystem::rename(path_, kept);
    std::cout << path_ << " was written under another setup: it is " << kept << " now\n";
    return;
  }
  rows_ = before["rows"];
}

bool Report::has(const std::string& name) const {
  return std::any_of(rows_.begin(), rows_.end(), [&](const json& row) { return row["name"] == name; });
}

void Report::put(json row) {
  const auto same =
      std::find_if(rows_.begin(), rows_.end(), [&](const json& other) { return other["name"] == row["name"]; });
  if (same == rows_.end()) {
    rows_.push_back(std::move(row));
  } else {
    *same = std::move(row);
  }
  write();
}

json Report::summary() const {
  json result = json::object();
  for (const Operation operation : kOperations) {
    for (const popnorm_layout layout : kLayouts) {
      std::vector<std::pair<std::string, std::vector<json>>> networks;
      for (const json& row : rows_) {
        if (row["op"] != name_of(operation) || row["layout"] != name_of(layout)) continue;
        const std::string network = row["network"];
        if (networks.empty() || networks.back().first != network) networks.push_back({network, {}});
        networks.back().second.push_back(row);
      }
      for (const auto& [network, rows] : networks) {
        result[name_of(operation)][name_of(layout)][network] = {{"rows", rows.size()},
                                                                {"of_ceiling", digest(rows, "ceiling_ratio")},
                                                                {"over_onednn", digest(rows, "onednn_ratio")},
                                                                {"null", digest(rows, "null_ratio")}};
      }
    }
  }
  return result;
}

void Report::write() const {
  const std::filesystem::path path(path_);
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path());
  // Renamed into place, so that an interrupted run leaves the rows it had.
  const std::filesystem::path next = path_ + ".next";
  // A row a line, so that revisions of a file can be compared.
  std::ofstream file(next);
  file << "{\"setup\": " << setup_.dump(1) << ",\n\"rows\": [";
  for (const json& row : rows_) file << (&row == &rows_.front() ? "\n" : ",\n") << row.dump();
  file << "\n],\n\"summary\": " << summary().dump(1) << "}\n";
  file.close();
  std::filesystem::rename(next, path);
}

void Report::print() const {
  constexpr const char* kColumns = "%-20s %7s %10s  %6s %-12s %-3s %6s %10s  %6s %-14s %5s  %s\n";
  const auto print_times = [&](const std::string& label, const std::string& megabytes, const json& times,
                               const char* remark) {
    std::printf(kColumns, label.c_str(), megabytes.c_str(), fixed(times["popnorm_ms"], 3).c_str(),
                fixed(times["ceiling_ratio"], 1, 100).c_str(), interval(times["ceiling_ci95"], 0, 100).c_str(),
                times["ceiling_kind"].get<std::string>().c_str(), fixed(times["ceiling_gbs"], 1).c_str(),
                fixed(times["onednn_ms"], 3).c_str(), fixed(times["onednn_ratio"], 2).c_str(),
                interval(times["ci95"], 2).c_str(), fixed(times["null_ratio"], 2).c_str(),
                times["broken_ceiling"].get<bool>() ? "BROKEN CEILING" : remark);
  };
  for (const Operation operation : kOperations) {
    for (const popnorm_layout layout : kLayouts) {
      bool titled = false;
      for (const json& row : rows_) {
        if (row["op"] != name_of(operation) || row["layout"] != name_of(layout)) continue;
        if (!std::exchange(titled, true)) {
          std::printf("\n%s %s\n", name_of(operation), name_of(layout));
          std::printf(kColumns, "layer", "T in MB", "popnorm ms", "% of", "the ceiling", "", "GB/s", "oneDNN ms",
                      "/ ours", "", "null", "");
        }
        print_times(row["dimensions"], fixed(row["tensor_bytes"], 1, 1e-6), row,
                    row["onednn_mismatch"].is_null() ? "" : "oneDNN DISAGREES");
        if (!row["cold"].is_null()) print_times("  cold", "", row["cold"], "");
      }
    }
  }
  std::printf("\n%-18s %-6s %-14s %5s  %-30s %s\n", "geometric means", "", "", "rows", "of the ceiling (worst)",
              "over oneDNN (worst)");
  const json digests = summary();
  for (const auto& [operation, layouts] : digests.items()) {
    for (const auto& [layout, networks] : layouts.items()) {
      for (const auto& entry : networks.items()) {
        const json& s = entry.value();
        const auto text = [&](const char* key, int digits, double factor, const char* unit) {
          const json& d = s[key];
          if (d["geomean"].is_null()) return std::string("-");
          return fixed(d["geomean"], digits, factor) + unit + " (" + fixed(d["worst"], digits, factor) + unit + ")";
        };
        std::printf("%-18s %-6s %-14s %5d  %-30s %s\n", operation.c_str(), layout.c_str(), entry.key().c_str(),
                    s["rows"].get<int>(), text("of_ceiling", 1, 100, " %").c_str(),
                    text("over_onednn", 2, 1, "x").c_str());
      }
    }
  }
  const auto busy = std::count_if(rows_.begin(), rows_.end(), [](const json& row) { return !is_quiet(row); });
  if (busy > 0) {
    std::printf(
        "\n%td of %zu rows were measured while others used more than %.0f %% of the processors: do not trust them\n",
        busy, rows_.size(), kQuietPercent);
  }
}

}  // namespace popnorm_bench
