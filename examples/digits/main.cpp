// Trains small networks on handwritten digits with popnorm and reports what their batch statistics show.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/timer/progress_display.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <popnorm/popnorm.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "digits.hpp"
#include "finding.hpp"

namespace {

using nlohmann::json;

constexpr int kClaimFailed = 1;
constexpr int kError = 2;

struct NamedFinding {
  const char* name;
  std::unique_ptr<digits::Finding> (*make)(const digits::Setting&);
};

constexpr NamedFinding kFindings[] = {
    {"ema_vs_precise", digits::ema_vs_precise},
    {"nbs", digits::nbs},
    {"scenes", digits::scenes},
    {"leakage", digits::leakage},
    {"domain_shift", digits::domain_shift},
    {"domain_specific", digits::domain_specific},
    {"estimators", digits::estimators},
};

using Chosen = std::pair<const char*, std::unique_ptr<digits::Finding>>;  // its name, and it

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const NamedFinding& finding : kFindings) all.emplace_back(finding.name);
  return all;
}

struct Arguments {
  std::filesystem::path digits;
  std::filesystem::path report;
  std::vector<std::string> findings = names();
  std::vector<std::uint64_t> seeds{1, 2, 3};
  int jobs = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  bool quick = false;
};

json describe_popnorm() {
  const popnorm_problem problem = popnorm::problem_nhwc(1, 1, 1);
  const int version = popnorm_version();
  return {{"version", std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
                          std::to_string(version % 100)},
          {"numerics_version", popnorm_numerics_version()},
          {"isa", popnorm::plan(problem).info().isa}};
}

// Prints the claims and returns them for the report; `hold` becomes false if one fails.
json judge(const std::vector<digits::Claim>& claims, bool& hold) {
  json report = json::array();
  if (!claims.empty()) std::puts("");
  for (const digits::Claim& claim : claims) {
    const char* relation = claim.at_least ? ">=" : "<=";
    std::printf("  %-5s %-60s %8.3g  (%s %g)\n", claim.holds() ? "holds" : "FAILS", claim.text.c_str(), claim.value,
                relation, claim.bound);
    report.push_back({{"claim", claim.text},
                      {"value", claim.value},
                      {"relation", relation},
                      {"bound", claim.bound},
                      {"holds", claim.holds()}});
    hold = hold && claim.holds();
  }
  return report;
}

void write(const std::filesystem::path& file, const json& report) {
  if (file.has_parent_path()) std::filesystem::create_directories(file.parent_path());
  std::ofstream out(file);
  out << report.dump(1) << '\n';
  out.close();
  if (!out) throw std::runtime_error(file.string() + ": cannot be written");
}

// All trainings of all findings in one pool, so that every thread has work until the end.
void train(const std::vector<digits::Job>& jobs, int threads) {
  std::int64_t work = 0;
  for (const digits::Job& job : jobs) work += job.work;
  boost::timer::progress_display progress(static_cast<unsigned long>(work), std::cerr);
  digits::run_jobs(jobs, threads, [&](const digits::Job& job) { progress += static_cast<unsigned long>(job.work); });
}

// Prints the tables and claims and adds them to the report. Returns whether all claims hold.
bool tell(const std::vector<Chosen>& findings, const Arguments& arguments, json& report) {
  if (arguments.seeds.size() > 1) {
    std::printf("\nFigures are means ± standard deviations over %zu seeds.\n", arguments.seeds.size());
  }
  bool hold = true;
  for (const auto& [name, finding] : findings) {
    std::printf("\n%s: %s", name, finding->table().draw().c_str());
    report[name] = finding->report();
    report[name]["claims"] = arguments.quick ? json::array() : judge(finding->claims(), hold);
  }
  const char* verdict = hold ? "All claims hold." : "Not all claims hold.";
  std::printf("\n%s\n", arguments.quick ? "A quick run claims nothing." : verdict);
  return hold;
}

int run(const Arguments& arguments) {
  const auto start = std::chrono::steady_clock::now();
  const digits::Digits all = digits::load(arguments.digits);
  const digits::Setting setting{all, arguments.seeds, arguments.quick};
  std::vector<Chosen> findings;
  std::vector<digits::Job> jobs;
  for (const NamedFinding& named : kFindings) {
    if (std::ranges::find(arguments.findings, named.name) == arguments.findings.end()) continue;
    const auto& [name, finding] = findings.emplace_back(named.name, named.make(setting));
    std::ranges::move(finding->jobs(name), std::back_inserter(jobs));
  }
  train(jobs, arguments.jobs);

  json report = {
      {"popnorm", describe_popnorm()}, {"samples", all.size()}, {"seeds", arguments.seeds}, {"quick", arguments.quick}};
  const bool hold = tell(findings, arguments, report);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  report["seconds"] = taken.count();
  write(arguments.report, report);
  return hold ? 0 : kClaimFailed;
}

int parse_and_run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app(
      "Trains small networks on handwritten digits with popnorm and reports what their batch statistics show.");
  app.add_option("digits", arguments.digits, "digits.csv.gz: rows of 64 pixels 0..16 and a label")->required();
  app.add_option("--report", arguments.report, "the report to write (JSON)")->required();
  app.add_option("--finding", arguments.findings, "which to find, may be repeated")
      ->check(CLI::IsMember(names()))
      ->allow_extra_args(false)
      ->default_str("all");
  app.add_option("--seeds", arguments.seeds, "one run per seed and setting")->capture_default_str();
  app.add_option("--jobs", arguments.jobs, "runs at a time; results do not depend on it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_flag("--quick", arguments.quick, "short runs that show how it works; nothing is claimed");
  CLI11_PARSE(app, argc, argv);
  return run(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "digits: %s\n", error.what());
    return kError;
  }
}
