// popnorm_maps: what norm_group costs. Every form of the map against plain batch normalization of the same tensor, and
// against a loop of plain calls over the groups, which is what one writes without maps.
#include <oneapi/tbb/parallel_for.h>

#include <cstring>
#include <map>
#include <memory>
#include <popnorm/popnorm.hpp>
#include <random>
#include <string>
#include <vector>

#include "arena.hpp"
#include "comparison.hpp"
#include "layer.hpp"

namespace popnorm_bench {
namespace {

struct Shape {
  popnorm_layout layout;
  Layer layer;
};

// Channel rows of 1 KiB and more in NCHW and 32 rows and more in NHWC, where maps should cost next to nothing; smaller ones; and
// BatchNorm1d.
const Shape kShapes[] = {
    {POPNORM_NCHW, {50, 64, 56, 56, {}, 1}},   {POPNORM_NCHW, {50, 256, 28, 28, {}, 1}},
    {POPNORM_NCHW, {50, 512, 16, 16, {}, 1}},  {POPNORM_NCHW, {50, 512, 7, 7, {}, 1}},
    {POPNORM_NHWC, {50, 64, 56, 56, {}, 1}},   {POPNORM_NHWC, {50, 256, 14, 14, {}, 1}},
    {POPNORM_NHWC, {50, 2048, 7, 7, {}, 1}},   {POPNORM_NHWC, {1024, 64, 7, 7, {}, 1}},
    {POPNORM_NHWC, {1000000, 8, 1, 1, {}, 1}}, {POPNORM_NHWC, {1000000, 64, 1, 1, {}, 1}},
};

constexpr std::int64_t kDomains = 8;

struct Form {
  std::string name;
  popnorm_map map;
};

std::vector<Form> forms_for(const Layer& layer) {
  std::vector<Form> forms = {{"contiguous_10", popnorm::contiguous(10)},
                             {"contiguous_quarter", popnorm::contiguous((layer.n + 3) / 4)},
                             {"strided_8", popnorm::strided(kDomains)},
                             {"labels_8", popnorm::labels(kDomains)}};
  if (layer.s() > 1) forms.push_back({"per_sample", popnorm::per_sample()});
  return forms;
}

// One plan with what its calls need.
class Normalizer {
 public:
  explicit Normalizer(const popnorm_problem& problem)
      : plan_(problem), workspace_(plan_.make_workspace()), reserve_(plan_.make_reserve()) {}

  void run(Operation operation, const Tensors& t, ChannelArrays& arrays, const std::int32_t* labels, bool accumulate) {
    if (operation == Operation::backward) {
      popnorm_backward_args a = popnorm::backward_args(workspace_, reserve_);
      a.x = t.x;
      a.dy = t.dy;
      a.dx = t.out;
      a.dscale = arrays.dscale.data();
      a.dshift = arrays.dshift.data();
      a.accumulate = accumulate ? 1 : 0;
      a.batch.norm_group = labels;
      plan_.backward(a);
    } else {
      popnorm_forward_args a = popnorm::forward_args(workspace_, reserve_);
      a.x = t.x;
      a.y = t.out;
      a.scale = arrays.scale.data();
      a.shift = arrays.shift.data();
      a.batch.norm_group = labels;
      plan_.forward(a);
    }
  }

 private:
  popnorm::plan plan_;
  popnorm::buffer workspace_, reserve_;
};

// A plain call for every group: in place of a map with labels samples are gathered and scattered, by all threads; groups of
// samples at equal distances need only strides.
class Loop {
 public:
  Loop(const Shape& shape, const Form& form, const std::vector<std::int32_t>& labels) : shape_(shape) {
    const std::int64_t n = shape.layer.n;
    std::map<std::int64_t, std::vector<std::int64_t>> groups;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t id = form.map.kind == POPNORM_CONTIGUOUS ? i / form.map.k
                              : form.map.kind == POPNORM_STRIDED  ? i % form.map.k
                              : form.map.kind == POPNORM_LABELS   ? labels[static_cast<std::size_t>(i)]
                                                                  : i;
      groups[id].push_back(i);
    }
    const std::int64_t sample = shape.layer.c * shape.layer.s();
    for (auto& [id, samples] : groups) {
      const auto count = static_cast<std::int64_t>(samples.size());
      const std::int64_t step = count > 1 ? samples[1] - samples[0] : 1;
      const bool gathered = form.map.kind == POPNORM_LABELS;
      popnorm_problem problem =
          popnorm::problem(shape.layout, count, shape.layer.c, shape.layer.s(), static_cast<double>(kEpsilon));
      if (!gathered) problem.x.sample = problem.y.sample = problem.dy.sample = problem.dx.sample = step * sample;
      groups_.push_back({std::make_unique<Normalizer>(problem), std::move(samples)});
      if (gathered) largest_ = std::max(largest_, count);
    }
    for (std::vector<float>* copy : {&x_, &dy_, &out_}) copy->resize(static_cast<std::size_t>(largest_ * sample));
  }

  void run(Operation operation, const Tensors& t, ChannelArrays& arrays) {
    const std::int64_t sample = shape_.layer.c * shape_.layer.s();
    bool later = false;
    for (const Group& group : groups_) {
      if (largest_ == 0) {
        const std::int64_t at = group.samples[0] * sample;
        group.normalizer->run(operation, {t.x + at, t.dy != nullptr ? t.dy + at : nullptr, t.out + at}, arrays, nullptr,
                              later);
      } else {
        const auto copy = [&](const auto& one) {
          oneapi::tbb::parallel_for(std::size_t{0}, group.samples.size(), [&](std::size_t i) {
            one(static_cast<std::int64_t>(i) * sample, group.samples[i] * sample);
          });
        };
        const auto bytes = static_cast<std::size_t>(sample) * sizeof(float);
        copy([&](std::int64_t here, std::int64_t there) {
          std::memcpy(x_.data() + here, t.x + there, bytes);
          if (t.dy != nullptr) std::memcpy(dy_.data() + here, t.dy + there, bytes);
        });
        group.normalizer->run(operation, {x_.data(), dy_.data(), out_.data()}, arrays, nullptr, later);
        copy([&](std::int64_t here, std::int64_t there) { std::memcpy(t.out + there, out_.data() + here, bytes); });
      }
      later = true;
    }
  }

 private:
  struct Group {
    std::unique_ptr<Normalizer> normalizer;
    std::vector<std::int64_t> samples;
  };
  Shape shape_;
  std::vector<Group> groups_;
  std::int64_t largest_ = 0;
  std::vector<float> x_, dy_, out_;
};

// A loop of so many calls says nothing more.
constexpr std::int64_t kMostLoops = 2000;

Compared compared(Operation operation, const Shape& shape, const Form& form, Arena& arena) {
  const Layer& layer = shape.layer;
  struct Made {
    std::vector<std::int32_t> labels;
    Tensors tensors;
    ChannelArrays arrays;
    std::unique_ptr<Normalizer> plain, mapped;
    std::unique_ptr<Loop> loop;
  };
  const std::shared_ptr<Made> made(new Made{std::vector<std::int32_t>(static_cast<std::size_t>(layer.n)),
                                            arena.lay_out(layer, Operation::backward, 0)[0],
                                            ChannelArrays(layer.channels()),
                                            {},
                                            {},
                                            {}});
  std::mt19937 engine(5);
  for (std::int32_t& label : made->labels) label = static_cast<std::int32_t>(engine() % kDomains);
  popnorm_problem problem = popnorm::problem(shape.layout, layer.n, layer.c, layer.s(), static_cast<double>(kEpsilon));
  made->plain = std::make_unique<Normalizer>(problem);
  problem.norm_group = form.map;
  made->mapped = std::make_unique<Normalizer>(problem);
  const std::int64_t groups = form.map.kind == POPNORM_PER_SAMPLE   ? layer.n
                              : form.map.kind == POPNORM_CONTIGUOUS ? (layer.n + form.map.k - 1) / form.map.k
                                                                    : form.map.k;
  if (groups <= kMostLoops) made->loop = std::make_unique<Loop>(shape, form, made->labels);
  const bool labelled = form.map.kind == POPNORM_LABELS;
  const auto plain = [=](Operation o) { made->plain->run(o, made->tensors, made->arrays, nullptr, false); };
  const auto mapped = [=](Operation o) {
    made->mapped->run(o, made->tensors, made->arrays, labelled ? made->labels.data() : nullptr, false);
  };
  const auto loop = [=](Operation o) { made->loop->run(o, made->tensors, made->arrays); };
  Compared row{.reference = [=] { plain(operation); }, .subject = [=] { mapped(operation); }};
  row.prepare = [=] {  // backward goes through the reserve of a forward
    plain(Operation::forward_training);
    mapped(Operation::forward_training);
    if (made->loop) loop(Operation::forward_training);
  };
  if (made->loop) row.other = [=] { loop(operation); };
  return row;
}

int run(int argc, char** argv) {
  ComparisonOptions options;
  CLI::App app("What each form of norm_group costs against plain batch normalization.");
  options.add_to(app);
  CLI11_PARSE(app, argc, argv);
  Arena arena;
  std::vector<ComparedRow> rows;
  for (const Shape& shape : kShapes)
    for (const Operation operation : {Operation::forward_training, Operation::backward})
      for (const Form& form : forms_for(shape.layer))
        rows.push_back({std::string(name_of(operation)) + "/" + name_of(shape.layout) + "/" + shape.layer.dimensions() +
                            "/" + form.name,
                        [=, &arena] { return compared(operation, shape, form, arena); }});
  return compare(options, {"times plain", "loop of plain calls / map"}, rows);
}

}  // namespace
}  // namespace popnorm_bench

int main(int argc, char** argv) { return popnorm_bench::guarded(argc, argv, popnorm_bench::run); }
