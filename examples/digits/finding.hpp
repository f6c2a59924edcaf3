// A finding trains networks, fills a table, and says which of its claims hold.
#ifndef DIGITS_FINDING_HPP
#define DIGITS_FINDING_HPP

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "digits.hpp"
#include "jobs.hpp"
#include "table.hpp"
#include "training.hpp"

namespace digits {

struct Setting {
  const Digits& all;
  std::vector<std::uint64_t> seeds;
  bool quick = false;  // short runs that show how it works: nothing is claimed
};

// A figure that must lie on the right side of a bound.
struct Claim {
  std::string text;
  double value;
  bool at_least;  // else at most
  double bound;

  [[nodiscard]] bool holds() const { return at_least ? value >= bound : value <= bound; }
};

// A training that differs from the others of its finding in what the batch is; it fills a row.
struct Variant {
  const char* key;
  const char* name;
  Batch (*batch)(const Digits& samples, Random& random);
};

std::vector<Row> rows(std::span<const Variant> variants);

class Finding {
 public:
  virtual ~Finding() = default;

  // One job for every training and seed. Each depends on nothing but these two and fills cells of its own, so that they
  // may run in any order and side by side. The finding must stay where it is until they have run.
  [[nodiscard]] std::vector<Job> jobs(const std::string& name);
  // When all jobs have run:
  [[nodiscard]] const Table& table() const { return table_; }
  [[nodiscard]] virtual std::vector<Claim> claims() const { return {}; }
  [[nodiscard]] nlohmann::json report() const;

 protected:
  // `recipes`: of the trainings that every seed goes through.
  Finding(const Setting& setting, std::vector<Recipe> recipes, Table table)
      : setting_(setting), recipes_(std::move(recipes)), table_(std::move(table)) {}

  // Trains by recipes_[training] with setting_.seeds[seed] and fills the cells of that training and seed.
  virtual void run(std::size_t training, std::size_t seed) = 0;
  // What the report holds besides rows, recipes and seeds.
  virtual void add_details(nlohmann::json& /*report*/) const {}

  Setting setting_;
  std::vector<Recipe> recipes_;
  Table table_;
};

// The findings of Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm". Each file begins with what it finds.
std::unique_ptr<Finding> ema_vs_precise(const Setting& setting);
std::unique_ptr<Finding> nbs(const Setting& setting);
std::unique_ptr<Finding> scenes(const Setting& setting);
std::unique_ptr<Finding> leakage(const Setting& setting);
std::unique_ptr<Finding> domain_shift(const Setting& setting);
std::unique_ptr<Finding> domain_specific(const Setting& setting);
std::unique_ptr<Finding> estimators(const Setting& setting);

}  // namespace digits

#endif
