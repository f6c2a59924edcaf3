// popnorm_against: one build of the library against another, in one process, interleaved.
#include <memory>

#include "calls.hpp"
#include "comparison.hpp"

namespace popnorm_bench {
namespace {

int run(int argc, char** argv) {
  ComparisonOptions options;
  std::string layers = POPNORM_BENCH_LAYERS, network = "resnet_50", reference, subject;
  popnorm_type storage = POPNORM_F32;
  popnorm_weights weights = POPNORM_UNWEIGHTED;
  CLI::App app("The time of one build of libpopnorm over that of another. The same file twice shows the noise.");
  options.add_to(app);
  app.add_option("reference", reference, "a libpopnorm.so")->required()->check(CLI::ExistingFile);
  app.add_option("subject", subject, "the one that is judged")->required()->check(CLI::ExistingFile);
  app.add_option("--layers", layers, "list of layers")->check(CLI::ExistingFile);
  app.add_option("--network", network, "of the list; all of it: any")->capture_default_str();
  app.add_option("--storage", storage, "of all tensors: f32, f64, bf16, f16")
      ->transform(CLI::CheckedTransformer(kStorages));
  app.add_option("--weights", weights, "none, per_sample, per_position, lengths")
      ->transform(CLI::CheckedTransformer(kWeights))
      ->default_str("none");
  CLI11_PARSE(app, argc, argv);
  const Library old = Library::opened(reference), changed = Library::opened(subject);
  std::vector<ComparedRow> rows;
  for (const Layer& layer : read_layers(layers)) {
    if (network != "any" && layer.network != network) continue;
    for (const Operation operation : kOperations)
      for (const popnorm_layout layout : kLayouts) {
        popnorm_problem problem = popnorm::problem(layout, layer.n, layer.c, layer.s());
        problem.storage = storage;
        problem.weights = weights;
        rows.push_back(
            {std::string(name_of(operation)) + "/" + name_of(layout) + "/" + layer.network + "/" + layer.dimensions(),
             [=] {
               const auto set = std::make_shared<Set>(problem.storage, layer.elements());
               return compared(operation, {std::make_shared<Calls>(problem, old), set},
                               {std::make_shared<Calls>(problem, changed), set});
             }});
      }
  }
  return compare(options, {"times reference", ""}, rows);
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) { return popnorm_bench::guarded(argc, argv, popnorm_bench::run); }
