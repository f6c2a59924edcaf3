// Folding: the weights and bias that make a layer give what inference would make of its output.
#include <gtest/gtest.h>
#include <popnorm/popnorm.h>

#include <cmath>
#include <functional>
#include <popnorm/popnorm.hpp>
#include <string>
#include <vector>

#include "kernels/reference.hpp"
#include "support/check.hpp"
#include "support/random.hpp"
#include "support/tensor.hpp"

namespace popnorm_test {
namespace {

namespace reference = popnorm::reference;
using reference::Real;
using Values = std::vector<double>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A convolution with 1 x `row` taps, or a linear layer, and what normalizes its output.
struct Folded {
  static constexpr std::int64_t kC = 5, kRow = 12;

  Folded(popnorm_type type_, std::int64_t slots_) : type(type_), slots(slots_) {
    Random random("Folded");
    for (Array* a : {&weights, &bias, &mean, &scale, &shift})
      for (std::int64_t i = 0; i < a->count(); ++i) a->set(i, random.normal());
    for (std::int64_t c = 0; c < kC; ++c) variance.set(c, random.uniform(0.1, 4));
  }

  [[nodiscard]] popnorm_fold_args args() {
    popnorm_fold_args a = POPNORM_FOLD_ARGS_INIT;
    a.c = kC;
    a.row = kRow;
    a.affine_slots = slots;
    a.type = type;
    a.epsilon = kEpsilon;
    a.weights = weights.data();
    a.bias = bias.data();
    a.mean = mean.data();
    a.variance = variance.data();
    a.scale = scale.data();
    a.shift = shift.data();
    a.folded_weights = folded_weights.data();
    a.folded_bias = folded_bias.data();
    return a;
  }

  [[nodiscard]] Array array(std::int64_t count) const { return {type, count, Placement::ends_at_guard}; }
  [[nodiscard]] std::vector<std::vector<std::byte>> snapshot() const {
    std::vector<std::vector<std::byte>> all;
    for (const Array* a : {&weights, &bias, &mean, &variance, &scale, &shift, &folded_weights, &folded_bias})
      all.push_back(a->buffer().snapshot());
    return all;
  }

  static constexpr double kEpsilon = 1e-3;
  popnorm_type type;
  std::int64_t slots;
  Array weights = array(kC * kRow), bias = array(kC), mean = array(kC), variance = array(kC);
  Array scale = array(slots * kC), shift = array(slots * kC);
  Array folded_weights = array(slots * kC * kRow), folded_bias = array(slots * kC);
};

class Fold : public testing::TestWithParam<std::tuple<popnorm_type, std::int64_t>> {
 protected:
  Folded folded_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

// A few roundings in double, one to the type.
TEST_P(Fold, IsTheFormula) {
  popnorm_fold_args args = folded_.args();
  ASSERT_TRUE(succeeded(popnorm_fold(&args)));
  Promise weights, bias;
  weights.type = bias.type = folded_.type;
  const auto add = [&](Promise& to, Real exact, Real size) {
    to.add(exact, reference::rounded(8 * reference::kF64.unit * size, exact, format_of(folded_.type)));
  };
  for (std::int64_t a = 0; a < folded_.slots; ++a)
    for (std::int64_t c = 0; c < Folded::kC; ++c) {
      const std::int64_t i = a * Folded::kC + c;
      const Real s = folded_.scale.get(i) / std::sqrt(static_cast<Real>(folded_.variance.get(c)) + Folded::kEpsilon);
      for (std::int64_t k = 0; k < Folded::kRow; ++k) {
        const Real exact = folded_.weights.get(c * Folded::kRow + k) * s;
        add(weights, exact, std::fabs(exact));
      }
      const Real of_bias = folded_.bias.get(c), mean = folded_.mean.get(c), shift = folded_.shift.get(i);
      add(bias, (of_bias - mean) * s + shift, (std::fabs(of_bias) + std::fabs(mean)) * std::fabs(s) + std::fabs(shift));
    }
  EXPECT_TRUE(within(weights, folded_.folded_weights.values(), Folded::kRow));
  EXPECT_TRUE(within(bias, folded_.folded_bias.values()));
}

// A layer of folded weights, one set per affine slot, against the layer and popnorm_forward with GIVEN statistics.
TEST_P(Fold, OfALayerIsTheLayerThenInference) {
  popnorm_fold_args fold = folded_.args();
  ASSERT_TRUE(succeeded(popnorm_fold(&fold)));
  const std::int64_t samples = 4 * folded_.slots;
  popnorm_problem problem = popnorm::problem_nhwc(samples, Folded::kC, 1, Folded::kEpsilon);
  problem.storage = problem.parameters = problem.statistics = folded_.type;
  problem.affine_slot = popnorm::strided(folded_.slots);
  Random random("input");
  Array input = folded_.array(samples * Folded::kRow);
  for (std::int64_t i = 0; i < input.count(); ++i) input.set(i, random.normal());
  // Sum of weights*input, and of its absolute values.
  const auto layer = [&](const Array& weights, std::int64_t row, std::int64_t n) {
    std::pair<Real, Real> sum;
    for (std::int64_t k = 0; k < Folded::kRow; ++k) {
      const Real term = static_cast<Real>(weights.get(row * Folded::kRow + k)) * input.get(n * Folded::kRow + k);
      sum.first += term;
      sum.second += std::fabs(term);
    }
    return sum;
  };
  Array x = folded_.array(samples * Folded::kC), y = folded_.array(samples * Folded::kC);
  for (std::int64_t n = 0; n < samples; ++n)
    for (std::int64_t c = 0; c < Folded::kC; ++c)
      x.set(n * Folded::kC + c, static_cast<double>(layer(folded_.weights, c, n).first + folded_.bias.get(c)));
  const popnorm::plan plan(problem);
  popnorm::buffer workspace = plan.make_workspace();
  popnorm_forward_args forward = popnorm::forward_args(workspace);
  forward.x = x.data();
  forward.y = y.data();
  forward.scale = folded_.scale.data();
  forward.shift = folded_.shift.data();
  forward.source.statistics = POPNORM_GIVEN;
  forward.source.mean = folded_.mean.data();
  forward.source.variance = folded_.variance.data();
  plan.forward(forward);
  const reference::Format& format = format_of(folded_.type);
  for (std::int64_t n = 0; n < samples; ++n)
    for (std::int64_t c = 0; c < Folded::kC; ++c) {
      const std::int64_t i = n % folded_.slots * Folded::kC + c;
      const Real got = layer(folded_.folded_weights, i, n).first + folded_.folded_bias.get(i);
      const auto s = reference::statistics_of(folded_.mean.get(c), folded_.variance.get(c), Folded::kEpsilon);
      const Real scale = folded_.scale.get(i), shift = folded_.shift.get(i), gain = std::fabs(scale * s.invstd);
      // The bound of inference; x, the folded weights and the folded bias were rounded too, the latter two after a few
      // roundings in double.
      const double stored_x = x.get(n * Folded::kC + c);
      const Real size = gain * (layer(folded_.weights, c, n).second + std::fabs(folded_.bias.get(c)) +
                                std::fabs(folded_.mean.get(c))) +
                        std::fabs(shift);
      const Real bound = reference::Bounds(format, s, {scale, shift}).y(stored_x, format) + 2 * format.unit * size +
                         8 * reference::kF64.unit * size;
      EXPECT_LE(std::fabs(got - y.get(n * Folded::kC + c)), bound) << "sample " << n << " channel " << c;
    }
}

// Null is a bias of 0, a scale of 1, a shift of 0, to the bit.
TEST_P(Fold, TakesNullForTheIdentity) {
  for (int absent = 1; absent < 8; ++absent) {
    SCOPED_TRACE(absent);
    Folded filled(folded_.type, folded_.slots);
    popnorm_fold_args a = folded_.args(), b = filled.args();
    const auto leave_out = [&](int bit, const void* popnorm_fold_args::*field, Array& array, double value) {
      if ((absent >> bit & 1) == 0) return;
      a.*field = nullptr;
      array.assign(Values(static_cast<std::size_t>(array.count()), value));
    };
    leave_out(0, &popnorm_fold_args::bias, filled.bias, 0);
    leave_out(1, &popnorm_fold_args::scale, filled.scale, 1);
    leave_out(2, &popnorm_fold_args::shift, filled.shift, 0);
    ASSERT_TRUE(succeeded(popnorm_fold(&a)));
    ASSERT_TRUE(succeeded(popnorm_fold(&b)));
    EXPECT_TRUE(same_bits(folded_.folded_weights.values(), filled.folded_weights.values()));
    EXPECT_TRUE(same_bits(folded_.folded_bias.values(), filled.folded_bias.values()));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Fold,
                         testing::Combine(testing::Values(POPNORM_F32, POPNORM_F64),
                                          testing::Values<std::int64_t>(1, 3)));

TEST(FoldInPlace, GivesTheSameBits) {
  for (const popnorm_type type : {POPNORM_F32, POPNORM_F64}) {
    Folded apart(type, 1), in_place(type, 1);
    popnorm_fold_args a = apart.args(), b = in_place.args();
    b.folded_weights = in_place.weights.data();
    b.folded_bias = in_place.bias.data();
    ASSERT_TRUE(succeeded(popnorm_fold(&a)));
    ASSERT_TRUE(succeeded(popnorm_fold(&b)));
    EXPECT_TRUE(same_bits(apart.folded_weights.values(), in_place.weights.values()));
    EXPECT_TRUE(same_bits(apart.folded_bias.values(), in_place.bias.values()));
  }
}

// As in inference: invstd is 0 where variance and epsilon are.
TEST(FoldOfAConstantChannel, WithoutEpsilonIsItsShift) {
  Folded folded(POPNORM_F32, 1);
  folded.variance.set(2, 0);
  popnorm_fold_args args = folded.args();
  args.epsilon = 0;
  ASSERT_TRUE(succeeded(popnorm_fold(&args)));
  for (std::int64_t k = 0; k < Folded::kRow; ++k) EXPECT_EQ(folded.folded_weights.get(2 * Folded::kRow + k), 0);
  EXPECT_EQ(folded.folded_bias.get(2), folded.shift.get(2));
}

TEST(FoldArguments, ThatBreakARuleAreRefused) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 31;
  struct Fault {
    const char* what;
    std::function<void(popnorm_fold_args&)> spoil;
    std::vector<std::string> words;
    popnorm_status status = POPNORM_INVALID;
  };
  Folded folded(POPNORM_F32, 1);
  std::vector<Fault> faults = {
      {"no channels", [](auto& a) { a.c = 0; }, {"\\bc is 0\\b", ">= 1"}},
      {"no weights in a row", [](auto& a) { a.row = -1; }, {"row is -1", ">= 1"}},
      {"no affine slots", [](auto& a) { a.affine_slots = 0; }, {"affine_slots is 0", ">= 1"}},
      {"sizes that overflow", [](auto& a) { a.c = a.row = a.affine_slots = kHuge; }, {"overflow"}},
      {"bytes that overflow", [](auto& a) { a.c = a.row = kHuge; }, {"overflow"}},
      {"an unknown type", [](auto& a) { a.type = static_cast<popnorm_type>(9); }, {"type is 9"}},
      {"a reserved type", [](auto& a) { a.type = POPNORM_BF16; }, {"type 3"}, POPNORM_UNSUPPORTED},
      {"negative epsilon", [](auto& a) { a.epsilon = -1e-5; }, {"epsilon is -1e-05"}},
      {"NaN epsilon", [](auto& a) { a.epsilon = kNaN; }, {"epsilon is -?nan"}},
      {"infinite epsilon", [](auto& a) { a.epsilon = kInfinity; }, {"epsilon is inf"}},
      {"an older struct", [](auto& a) { a.size = 8; }, {"size", "\\b8\\b"}},
      {"a negative variance", [&](auto&) { folded.variance.set(3, -1); }, {"variance\\[3\\] is -1", ">= 0"}},
      {"a variance that is NaN", [&](auto&) { folded.variance.set(3, kNaN); }, {"variance\\[3\\] is -?nan"}}};
  using Args = popnorm_fold_args;
  const auto unaligned = [](const void* p) { return static_cast<const void*>(static_cast<const char*>(p) + 1); };
  const auto input = [&](const char* name, const void* Args::*field, bool required) {
    if (required)
      faults.push_back({name, [=](Args& a) { a.*field = nullptr; }, {"\\b" + std::string(name) + " is null"}});
    faults.push_back({name, [=](Args& a) { a.*field = unaligned(a.*field); }, {std::string(name), "align"}});
  };
  input("weights", &Args::weights, true);
  input("bias", &Args::bias, false);
  input("mean", &Args::mean, true);
  input("variance", &Args::variance, true);
  input("scale", &Args::scale, false);
  input("shift", &Args::shift, false);
  const auto output = [&](const char* name, void* Args::*field) {
    faults.push_back({name, [=](Args& a) { a.*field = nullptr; }, {std::string(name) + " is null"}});
    faults.push_back(
        {name, [=](Args& a) { a.*field = const_cast<void*>(unaligned(a.*field)); }, {std::string(name), "align"}});
  };
  output("folded_weights", &Args::folded_weights);
  output("folded_bias", &Args::folded_bias);
  const double variance = folded.variance.get(3);
  for (Fault& fault : faults) {
    SCOPED_TRACE(fault.what);
    popnorm_fold_args args = folded.args();
    folded.variance.set(3, variance);
    fault.spoil(args);
    const auto before = folded.snapshot();
    fault.words.push_back("^fold:");
    EXPECT_TRUE(refused(popnorm_fold(&args), fault.status, fault.words));
    EXPECT_TRUE(folded.snapshot() == before) << "written in spite of the refusal";
  }
  EXPECT_TRUE(refused(popnorm_fold(nullptr), POPNORM_INVALID, {"^fold:", "null"}));
}

// Any output with any other array, but in place where there is one set of scales.
TEST(FoldArguments, MayNotOverlap) {
  using Args = popnorm_fold_args;
  const std::vector<std::pair<const char*, const void* Args::*>> inputs = {
      {"weights", &Args::weights},   {"bias", &Args::bias},   {"mean", &Args::mean},
      {"variance", &Args::variance}, {"scale", &Args::scale}, {"shift", &Args::shift}};
  for (const std::int64_t slots : {1, 2})
    for (const auto& [name, field] : inputs)
      for (const bool of_weights : {true, false}) {
        Folded folded(POPNORM_F32, slots);
        popnorm_fold_args args = folded.args();
        const char* output = of_weights ? "folded_weights" : "folded_bias";
        SCOPED_TRACE(std::string(output) + " is " + name);
        // Inputs are the smaller: they lie inside an output that has its size.
        Array shared = folded.array(slots * Folded::kC * Folded::kRow);
        shared.assign(Values(static_cast<std::size_t>(shared.count()), 1));
        args.*field = (of_weights ? args.folded_weights : args.folded_bias) = shared.data();
        const bool in_place = slots == 1 && std::string(output) == "folded_" + std::string(name);
        const popnorm_status status = popnorm_fold(&args);
        if (in_place)
          EXPECT_TRUE(succeeded(status));
        else
          EXPECT_TRUE(
              refused(status, POPNORM_INVALID, {"^fold:", "overlap", output, "\\b" + std::string(name) + "\\b"}));
      }
  Folded folded(POPNORM_F32, 1);
  popnorm_fold_args args = folded.args();
  args.folded_bias = args.folded_weights;
  EXPECT_TRUE(refused(popnorm_fold(&args), POPNORM_INVALID, {"^fold:", "overlap", "folded_weights", "folded_bias"}));
  args = folded.args();
  args.weights = static_cast<const float*>(args.folded_weights) + 1;
  EXPECT_TRUE(refused(popnorm_fold(&args), POPNORM_INVALID, {"^fold:", "overlap"})) << "in place, but not at one place";
}

}  // namespace
}  // namespace popnorm_test
