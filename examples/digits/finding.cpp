#include "finding.hpp"

namespace digits {

using nlohmann::json;

std::vector<Row> rows(std::span<const Variant> variants) {
  std::vector<Row> all;
  for (const Variant& variant : variants) all.push_back({variant.name, {{"variant", variant.key}}});
  return all;
}

std::vector<Job> Finding::jobs(const std::string& name) {
  std::vector<Job> all;
  for (std::size_t training = 0; training < recipes_.size(); ++training) {
    const Recipe& recipe = recipes_[training];
    for (std::size_t seed = 0; seed < setting_.seeds.size(); ++seed) {
      all.push_back(
          {name + ", training " + std::to_string(training + 1) + " with seed " + std::to_string(setting_.seeds[seed]),
           recipe.samples * recipe.epochs, [this, training, seed] { run(training, seed); }});
    }
  }
  return all;
}

json Finding::report() const {
  json recipes = json::array();
  for (const Recipe& recipe : recipes_) recipes.push_back(to_json(recipe));
  json report = {{"seeds", setting_.seeds}, {"recipes", std::move(recipes)}, {"rows", table_.to_json()}};
  add_details(report);
  return report;
}

}  // namespace digits
