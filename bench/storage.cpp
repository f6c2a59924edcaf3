// popnorm_storage: what 16 bits per element bring: the time of a call in bf16 or f16 over that of the same call in f32.
#include <memory>

#include "calls.hpp"
#include "comparison.hpp"

namespace popnorm_bench {
namespace {

// Layers of 80 MB and more in f32, where bytes alone promise a half; one from each cache.
const Layer kLayers[] = {{50, 64, 112, 112, {}, 1},  {50, 256, 56, 56, {}, 1}, {64, 512, 28, 28, {}, 1},
                         {128, 1024, 14, 14, {}, 1}, {256, 2048, 7, 7, {}, 1}, {16, 512, 14, 14, {}, 1},
                         {8, 64, 14, 14, {}, 1}};

Call call(popnorm_layout layout, const Layer& layer, popnorm_type storage) {
  popnorm_problem problem = popnorm::problem(layout, layer.n, layer.c, layer.s());
  problem.storage = storage;
  return {std::make_shared<Calls>(problem), std::make_shared<Set>(storage, layer.elements())};
}

int run(int argc, char** argv) {
  ComparisonOptions options;
  CLI::App app("The time of a call in 16-bit storage over that of the same call in f32.");
  options.add_to(app);
  CLI11_PARSE(app, argc, argv);
  std::vector<ComparedRow> rows;
  for (const char* storage : {"bf16", "f16"})
    for (const Operation operation : kOperations)
      for (const popnorm_layout layout : kLayouts)
        for (const Layer& layer : kLayers)
          rows.push_back(
              {std::string(name_of(operation)) + "/" + name_of(layout) + "/" + layer.dimensions() + "/" + storage, [=] {
                 return compared(operation, call(layout, layer, POPNORM_F32),
                                 call(layout, layer, kStorages.at(storage)));
               }});
  return compare(options, {"times f32", ""}, rows);
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) { return popnorm_bench::guarded(argc, argv, popnorm_bench::run); }
