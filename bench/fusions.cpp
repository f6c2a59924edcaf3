// popnorm_fusions: what a residual, an activation and weights cost in the sweeps of normalization, against plain batch normalization of
// the same tensor, beside the ratio of the bytes that the two move.
#include <memory>

#include "calls.hpp"
#include "comparison.hpp"

namespace popnorm_bench {
namespace {

struct Shape {
  popnorm_layout layout;
  Layer layer;
};

// From memory, from the last-level cache, and from the second-level cache; rows whose bits fill bytes and rows whose do not.
const Shape kShapes[] = {
    {POPNORM_NCHW, {32, 64, 112, 112, {}, 1}}, {POPNORM_NCHW, {32, 256, 56, 56, {}, 1}},
    {POPNORM_NCHW, {64, 512, 14, 14, {}, 1}},  {POPNORM_NCHW, {128, 512, 7, 7, {}, 1}},
    {POPNORM_NCHW, {8, 64, 14, 14, {}, 1}},    {POPNORM_NHWC, {64, 24, 112, 112, {}, 1}},
    {POPNORM_NHWC, {32, 256, 56, 56, {}, 1}},  {POPNORM_NHWC, {64, 512, 14, 14, {}, 1}},
    {POPNORM_NHWC, {128, 2048, 7, 7, {}, 1}},  {POPNORM_NHWC, {8, 64, 14, 14, {}, 1}},
};

struct Fusion {
  std::string name;
  popnorm_activation activation;
  bool residual;
  popnorm_weights weights = POPNORM_UNWEIGHTED;
};
const Fusion kFusions[] = {{"relu", POPNORM_RELU, false},
                           {"leaky_relu", POPNORM_LEAKY_RELU, false},
                           {"add", POPNORM_IDENTITY, true},
                           {"add_relu", POPNORM_RELU, true},
                           {"weights_per_sample", POPNORM_IDENTITY, false, POPNORM_WEIGHTS_PER_SAMPLE},
                           {"weights_per_position", POPNORM_IDENTITY, false, POPNORM_WEIGHTS_PER_POSITION},
                           {"lengths", POPNORM_IDENTITY, false, POPNORM_LENGTHS}};

// Bytes that a fused call moves over those of the plain one, if slabs (NCHW) are read from memory once, and all else twice.
double bytes_ratio(Operation operation, popnorm_layout layout, const Fusion& fusion, popnorm_type storage) {
  if (!fusion.residual) return 1;
  const double again = layout == POPNORM_NCHW ? 0 : 1;
  const double plain = operation == Operation::backward ? 3 + 2 * again : 2 + again;
  const double mask = fusion.activation != POPNORM_IDENTITY ? 1 / (8.0 * static_cast<double>(size_of(storage))) : 0;
  const double times_read = operation == Operation::backward ? 1 + again : 1;
  return (plain + 1 + times_read * mask) / plain;
}

Compared fused(Operation operation, const Shape& shape, const Fusion& fusion, popnorm_type storage) {
  const Layer& layer = shape.layer;
  popnorm_problem problem = popnorm::problem(shape.layout, layer.n, layer.c, layer.s());
  problem.storage = storage;
  popnorm_problem with = problem;
  with.activation = fusion.activation;
  with.adds_residual = fusion.residual ? 1 : 0;
  with.weights = fusion.weights;
  const auto set = std::make_shared<Set>(storage, layer.elements());
  Compared row = compared(operation, {std::make_shared<Calls>(problem), set}, {std::make_shared<Calls>(with), set});
  row.extra = bytes_ratio(operation, shape.layout, fusion, storage);
  return row;
}

int run(int argc, char** argv) {
  ComparisonOptions options;
  popnorm_type storage = POPNORM_F32;
  CLI::App app("What a residual, an activation and weights cost against plain batch normalization.");
  options.add_to(app);
  app.add_option("--storage", storage, "of all tensors: f32, f64, bf16, f16")
      ->transform(CLI::CheckedTransformer(kStorages));
  CLI11_PARSE(app, argc, argv);
  std::vector<ComparedRow> rows;
  for (const Shape& shape : kShapes)
    for (const Operation operation : {Operation::forward_training, Operation::backward})
      for (const Fusion& fusion : kFusions)
        rows.push_back({std::string(name_of(operation)) + "/" + name_of(shape.layout) + "/" + shape.layer.dimensions() +
                            "/" + fusion.name,
                        [=] { return fused(operation, shape, fusion, storage); }});
  return compare(options, {"times plain", "by bytes"}, rows);
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) { return popnorm_bench::guarded(argc, argv, popnorm_bench::run); }
