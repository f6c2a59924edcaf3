// popnorm_edges: what is not a large, aligned layer. The time per element of odd sizes and of tensors that are not aligned, over that of
// their friendly neighbour; of calls on 64 KB with all threads, over that with the caller's alone; of making a plan, over that of such a call.
#include <memory>

#include "calls.hpp"
#include "comparison.hpp"

namespace popnorm_bench {
namespace {

Call call(popnorm_layout layout, const Layer& layer, std::size_t offset = 0, bool alone = false) {
  // Tasks in the caller's thread.
  popnorm_executor caller = POPNORM_EXECUTOR_INIT;
  caller.concurrency = 1;
  caller.parallel_for = [](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
    for (std::int64_t i = 0; i < count; ++i) task(argument, i);
  };
  popnorm_options options = POPNORM_OPTIONS_INIT;
  if (alone) options.executor = &caller;
  return {std::make_shared<Calls>(popnorm::problem(layout, layer.n, layer.c, layer.s()), Library{}, options),
          std::make_shared<Set>(POPNORM_F32, layer.elements(), offset)};
}

struct Neighbour {
  std::string what;
  Layer friendly;
  Layer odd;
  std::size_t offset = 0;  // of all tensors, in elements
};

// From memory, and from the last-level cache.
const Neighbour kNeighbours[] = {
    {"one channel less", {50, 256, 56, 56, {}, 1}, {50, 255, 56, 56, {}, 1}},
    {"one channel less", {50, 512, 14, 14, {}, 1}, {50, 511, 14, 14, {}, 1}},
    {"odd channels, few", {50, 24, 112, 112, {}, 1}, {50, 23, 112, 112, {}, 1}},
    {"one position more", {50, 256, 56, 56, {}, 1}, {50, 256, 57, 57, {}, 1}},
    {"one position more", {50, 512, 14, 14, {}, 1}, {50, 512, 15, 15, {}, 1}},
    {"not aligned", {50, 256, 56, 56, {}, 1}, {50, 256, 56, 56, {}, 1}, 1},
    {"not aligned", {50, 512, 14, 14, {}, 1}, {50, 512, 14, 14, {}, 1}, 1},
};

Compared neighbours(Operation operation, popnorm_layout layout, const Neighbour& n) {
  Compared row = compared(operation, call(layout, n.friendly), call(layout, n.odd, n.offset));
  row.work = static_cast<double>(n.odd.elements()) / static_cast<double>(n.friendly.elements());
  return row;
}

// 64 KB in f32.
const Layer kSmall[] = {{1, 64, 16, 16, {}, 1}, {4, 256, 4, 4, {}, 1}, {64, 256, 1, 1, {}, 1}, {1, 16, 32, 32, {}, 1}};

Compared small(Operation operation, popnorm_layout layout, const Layer& layer) {
  return compared(operation, call(layout, layer, 0, true), call(layout, layer));
}

Compared plan(popnorm_layout layout, const Layer& layer) {
  const Call reference = call(layout, layer, 0, true);
  return {.reference = [=] { reference.calls->run(Operation::forward_inference, *reference.set); },
          .subject =
              [=] {
                const popnorm_problem problem = popnorm::problem(layout, layer.n, layer.c, layer.s());
                popnorm_plan* made = nullptr;
                popnorm_plan_create(&problem, nullptr, &made);
                popnorm_plan_destroy(made);
              }};
}

int run(int argc, char** argv) {
  ComparisonOptions options;
  CLI::App app(
      "Odd sizes, small calls and plans: times per element over a friendly neighbour's, over one thread's, over a "
      "call's.");
  options.add_to(app);
  CLI11_PARSE(app, argc, argv);
  std::vector<ComparedRow> rows;
  for (const popnorm_layout layout : kLayouts) {
    for (const Operation operation : kOperations) {
      const std::string prefix = std::string(name_of(operation)) + "/" + name_of(layout) + "/";
      for (const Neighbour& n : kNeighbours)
        rows.push_back({prefix + n.odd.dimensions() + "/" + n.what, [=] { return neighbours(operation, layout, n); }});
      for (const Layer& layer : kSmall)
        rows.push_back({prefix + layer.dimensions() + "/64 KB", [=] { return small(operation, layout, layer); }});
    }
    rows.push_back({std::string("plan/") + name_of(layout), [=] { return plan(layout, kSmall[0]); }});
  }
  return compare(options, {"times reference", ""}, rows);
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) { return popnorm_bench::guarded(argc, argv, popnorm_bench::run); }
