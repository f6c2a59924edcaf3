// Bad input that says what the batch is: labels, weights, sources of statistics, slots. Each is refused with its status and a
// message that names subject and value, and nothing is written.
#include <gtest/gtest.h>

#include <cmath>

#include "api/refusals.hpp"

namespace popnorm_test {
namespace {

// ---------------------------------------------------------------------------------------------------- labels

using Ids = std::vector<std::int32_t>;
using Field = const std::int32_t* popnorm_batch::*;

std::string place(std::size_t i) { return "\\[" + std::to_string(i) + "\\]"; }

// Everything that can be wrong with `ids`, which the call needs and which must be below `count`.
template <class Args>
std::vector<Refusal<Args>> bad_labels(const std::string& name, Field field, const Ids& ids, std::int32_t count) {
  std::vector<Refusal<Args>> all = {
      {"null", [=](Args& a) { a.batch.*field = nullptr; }, {name, "null"}},
      {"unaligned", [=](Args& a) { a.batch.*field = misaligned(a.batch.*field); }, {name, "align", "\\b4\\b"}}};
  for (const std::size_t at : {std::size_t{0}, ids.size() - 1})
    for (const std::int32_t id : {-1, count, INT32_MIN, INT32_MAX}) {
      Ids bad = ids;
      bad[at] = id;
      all.push_back({"out of range",
                     [field, bad](Args& a) { a.batch.*field = bad.data(); },
                     {name + place(at) + " is " + std::to_string(id) + ",", "\\[0, " + std::to_string(count) + "\\)"}});
    }
  return all;
}

template <class Args>
constexpr bool kScales = !std::is_same_v<Args, popnorm_moments_args>;

TEST(Labels, AreCheckedByEveryEntryThatNeedsThem) {
  Scene scene(labelled());
  scene.for_each_entry([&]<class Args>(const char* name, Args args, auto entry) {
    if constexpr (requires { args.batch; }) {
      expect_refusals<Args>(scene, name, args, entry,
                            bad_labels<Args>("batch.norm_group", &popnorm_batch::norm_group, scene.group, kGroups));
      if constexpr (kScales<Args>)
        expect_refusals<Args>(
            scene, name, args, entry,
            bad_labels<Args>("batch.affine_slot", &popnorm_batch::affine_slot, scene.affine, kAffines));
    }
  });
}

TEST(Labels, OfSlotsAreCheckedWhereSlotsAreFedOrRead) {
  Scene scene(labelled());
  const auto bad = [&]<class Args>(const Args&) {
    return bad_labels<Args>("batch.population_slot", &popnorm_batch::population_slot, scene.slot, kSlots);
  };
  popnorm_forward_args fed = scene.forward_batch();
  fed.moments = {nullptr, nullptr, nullptr};
  popnorm_moments_args moments = scene.moments();
  moments.update = fed.update;
  popnorm_forward_args given = scene.forward_given();
  expect_refusals<popnorm_forward_args>(scene, "forward", fed, popnorm_forward, bad(fed));
  expect_refusals<popnorm_moments_args>(scene, "moments", moments, popnorm_moments, bad(moments));
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM, POPNORM_GIVEN}) {
    given.source.statistics = statistics;
    expect_refusals<popnorm_forward_args>(scene, "forward", given, popnorm_forward, bad(given));
  }
  // The reserve of GIVEN has a row per slot.
  const popnorm_backward_args backward = scene.backward();
  expect_refusals<popnorm_backward_args>(scene, "backward", backward, popnorm_backward, bad(backward));
}

TEST(Labels, ThatACallDoesNotNeedMayBeNull) {
  Scene scene(labelled());
  popnorm_forward_args plain = scene.forward_inputs();
  plain.batch.population_slot = nullptr;
  EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &plain, nullptr)));
  popnorm_backward_args backward = scene.backward();
  backward.batch.population_slot = nullptr;
  EXPECT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &backward, nullptr)));
  popnorm_moments_args moments = scene.moments();
  moments.batch.population_slot = moments.batch.affine_slot = nullptr;
  EXPECT_TRUE(succeeded(popnorm_moments(scene.plan.get(), &moments, nullptr)));
  popnorm_forward_args given = scene.forward_given();
  given.batch.norm_group = nullptr;
  EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &given, nullptr)));
}

TEST(Labels, OfMapsWithoutAreRefused) {
  Scene scene(unmapped());
  const Ids ids(kSamples, 0);
  const float weight = 1;
  scene.for_each_entry([&]<class Args>(const char* name, Args args, auto entry) {
    if constexpr (requires { args.batch; })
      expect_refusals<Args>(
          scene, name, args, entry,
          {{"norm_group", [&](Args& a) { a.batch.norm_group = ids.data(); }, {"batch.norm_group", "LABELS"}},
           {"population_slot",
            [&](Args& a) { a.batch.population_slot = ids.data(); },
            {"batch.population_slot", "LABELS"}},
           {"affine_slot", [&](Args& a) { a.batch.affine_slot = ids.data(); }, {"batch.affine_slot", "LABELS"}},
           {"weights", [&](Args& a) { a.batch.weights = &weight; }, {"batch.weights", "unweighted"}}});
  });
}

// A group has one population slot wherever its statistics meet one; the message names both.
TEST(Slots, OfAGroupMustBeOne) {
  struct Pair {
    const char* what;
    popnorm_map group, slot;
    Ids group_ids, slot_ids;
    std::vector<std::string> words;
  };
  const popnorm_map whole = {POPNORM_WHOLE, 0};
  const std::vector<Pair> pairs = {
      {"labels",
       popnorm::labels(3),
       popnorm::labels(2),
       {0, 1, 2, 0, 1, 2, 2, 1},
       {0, 1, 0, 0, 1, 0, 0, 0},
       {"norm_group 1 ", "population_slot 1 and 0"}},
      {"whole", whole, popnorm::contiguous(7), {}, {}, {"norm_group 0 ", "population_slot 0 and 1"}},
      {"contiguous",
       popnorm::contiguous(4),
       popnorm::contiguous(3),
       {},
       {},
       {"norm_group 0 ", "population_slot 0 and 1"}},
      {"strided",
       popnorm::strided(4),
       popnorm::labels(2),
       {},
       {0, 1, 0, 1, 0, 1, 0, 0},
       {"norm_group 3 ", "population_slot 1 and 0"}},
      {"few labels of many",
       popnorm::labels(10000),
       popnorm::labels(2),
       {9999, 1, 2, 3, 4, 5, 6, 9999},
       {1, 0, 0, 0, 0, 0, 0, 0},
       {"norm_group 9999 ", "population_slot 1 and 0"}},
  };
  for (const Pair& pair : pairs) {
    SCOPED_TRACE(pair.what);
    popnorm_problem problem = unmapped();
    problem.norm_group = pair.group;
    problem.population_slot = pair.slot;
    Scene scene(problem);  // with labels that are right
    const auto spoil = [&](auto& a) {
      if (!pair.group_ids.empty()) a.batch.norm_group = pair.group_ids.data();
      if (!pair.slot_ids.empty()) a.batch.population_slot = pair.slot_ids.data();
    };
    const auto before = [&] { return scene.snapshot(); };
    const auto expect = [&](auto entry, auto args, const char* operation) {
      spoil(args);
      const auto untouched = before();
      std::vector<std::string> words = pair.words;
      words.push_back("^" + std::string(operation) + ":");
      EXPECT_TRUE(refused(entry(scene.plan.get(), &args, nullptr), POPNORM_INVALID, words));
      EXPECT_TRUE(before() == untouched);
    };
    expect(popnorm_forward, scene.forward_feeding(), "forward");
    for (void* popnorm_update::*running : {&popnorm_update::running_mean, &popnorm_update::running_variance}) {
      popnorm_forward_args args = scene.forward_inputs();
      args.update.*running = scene.running_mean.data();
      expect(popnorm_forward, args, "forward");
    }
    popnorm_moments_args moments = scene.moments();
    moments.update.running_mean = scene.running_mean.data();
    expect(popnorm_moments, moments, "moments");
    for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM}) {
      popnorm_forward_args args = scene.forward_given();
      args.source.statistics = statistics;
      expect(popnorm_forward, args, "forward");
    }
    // Where groups meet no slot, or samples are normalized by their slots, any slots are right.
    popnorm_forward_args alone = scene.forward_inputs(), given = scene.forward_given();
    spoil(alone);
    spoil(given);
    EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &alone, nullptr)));
    EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &given, nullptr)));
  }
}

// ---------------------------------------------------------------------------------------------------- weights

// Every entry with a batch, of a problem with weights: `count` of them, good ones at `good`.
template <class T>
void expect_weights_checked(popnorm_weights kind, const std::vector<T>& good, const std::vector<T>& bad_values,
                            const std::string& rule) {
  Scene scene(weighted(kind));
  scene.for_each_entry([&]<class Args>(const char* name, Args args, auto entry) {
    if constexpr (requires { args.batch; } && !std::is_same_v<Args, popnorm_double_backward_args>) {
      std::vector<Refusal<Args>> all = {{"null", [](Args& a) { a.batch.weights = nullptr; }, {"batch.weights", "null"}},
                                        {"unaligned",
                                         [](Args& a) { a.batch.weights = misaligned(a.batch.weights); },
                                         {"batch.weights", "align", "\\b" + std::to_string(sizeof(T)) + "\\b"}}};
      for (const std::size_t at : {std::size_t{0}, good.size() - 1})
        for (const T value : bad_values) {
          std::vector<T> bad = good;
          bad[at] = value;
          all.push_back({"a bad weight",
                         [bad](Args& a) { a.batch.weights = bad.data(); },
                         {"batch.weights" + place(at) + " is ", rule}});
        }
      expect_refusals<Args>(scene, name, args, entry, all);
    }
  });
}

TEST(Weights, AreCheckedByEveryEntry) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> bad = {-1, -std::numeric_limits<float>::denorm_min(), nan, infinity, -infinity};
  expect_weights_checked<float>(POPNORM_WEIGHTS_PER_SAMPLE, std::vector<float>(kSamples, 1), bad, "finite and >= 0");
  expect_weights_checked<float>(POPNORM_WEIGHTS_PER_POSITION, std::vector<float>(kSamples * Scene::kS, 1), bad,
                                "finite and >= 0");
  expect_weights_checked<std::int64_t>(POPNORM_LENGTHS, std::vector<std::int64_t>(kSamples, Scene::kS),
                                       {-1, Scene::kS + 1, INT64_MIN, INT64_MAX},
                                       "\\[0, S = " + std::to_string(Scene::kS) + "\\]");
}

TEST(Weights, MayBeZeroLargeOrOfNegativeZero) {
  for (const popnorm_weights kind : {POPNORM_WEIGHTS_PER_SAMPLE, POPNORM_WEIGHTS_PER_POSITION}) {
    Scene scene(weighted(kind));
    for (const float value :
         {0.0F, -0.0F, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max()}) {
      scene.weights.assign(scene.weights.size(), value);
      const popnorm_forward_args args = scene.forward_inputs();
      EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr))) << value;
    }
  }
}

// ---------------------------------------------------------------------------------------------------- sources

template <class Args>
std::vector<Refusal<Args>> bad_sources(Scene& scene, popnorm_statistics statistics) {
  std::vector<Refusal<Args>> all = {
      {"no mean", [](Args& a) { a.source.mean = nullptr; }, {"source.mean", "null"}},
      {"no variance", [](Args& a) { a.source.variance = nullptr; }, {"source.variance", "null"}},
      {"neither", [](Args& a) { a.source.mean = a.source.variance = nullptr; }, {"source.mean", "null"}},
      {"unaligned mean", [](Args& a) { a.source.mean = misaligned(a.source.mean); }, {"source.mean", "align"}},
      {"unaligned variance",
       [](Args& a) { a.source.variance = misaligned(a.source.variance); },
       {"source.variance", "align"}},
      {"both",
       [&](Args& a) {
         a.source.population = scene.given_population.data();
         a.source.population_bytes = scene.given_population.size();
       },
       {"source.population", "source.mean"}},
  };
  const auto numbers = [&](const char* name, double popnorm_source::*field, std::initializer_list<double> values,
                           const char* rule) {
    for (const double value : values) all.push_back({name, [=](Args& a) { a.source.*field = value; }, {name, rule}});
  };
  if (statistics == POPNORM_BLEND)
    numbers("source.share", &popnorm_source::share, {-0.01, -kInfinity, 1.01, kInfinity, kNaN}, "\\[0, 1\\]");
  if (statistics == POPNORM_RENORM) {
    numbers("source.renorm_r", &popnorm_source::renorm_r, {0.99, 0, -2, -kInfinity, kNaN}, ">= 1");
    numbers("source.renorm_d", &popnorm_source::renorm_d, {-1e-300, -5, -kInfinity, kNaN}, ">= 0");
  }
  return all;
}

TEST(Source, OfBlendAndRenormIsChecked) {
  Scene scene(labelled());
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM}) {
    popnorm_forward_args forward = scene.forward_given();
    popnorm_finalize_args finalize = scene.finalize_given();
    forward.source.statistics = finalize.source.statistics = statistics;
    finalize.moments = scene.parts_in();
    finalize.group_slot = scene.group_slot.data();
    expect_refusals<popnorm_forward_args>(scene, "forward", forward, popnorm_forward,
                                          bad_sources<popnorm_forward_args>(scene, statistics));
    expect_refusals<popnorm_finalize_args>(scene, "finalize", finalize, popnorm_finalize,
                                           bad_sources<popnorm_finalize_args>(scene, statistics));
  }
}

// What belongs to another source is not read.
TEST(Source, NumbersOfAnotherSourceAreNotRead) {
  Scene scene(labelled());
  for (const popnorm_statistics statistics : {POPNORM_BATCH, POPNORM_GIVEN, POPNORM_BLEND, POPNORM_RENORM}) {
    popnorm_forward_args args = statistics == POPNORM_BATCH ? scene.forward_batch() : scene.forward_given();
    args.source.statistics = statistics;
    if (statistics != POPNORM_BLEND) args.source.share = kNaN;
    if (statistics != POPNORM_RENORM) args.source.renorm_r = args.source.renorm_d = -1;
    EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
  }
}

// Limits that clip nothing, or everything.
TEST(Source, ExtremesAreAccepted) {
  Scene scene(labelled());
  popnorm_forward_args args = scene.forward_given();
  args.source.statistics = POPNORM_RENORM;
  for (const double r : {1.0, 1e300, kInfinity})
    for (const double d : {0.0, 1e300, kInfinity}) {
      args.source.renorm_r = r;
      args.source.renorm_d = d;
      EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
    }
  args.source.statistics = POPNORM_BLEND;
  for (const double share : {0.0, -0.0, 1.0}) {
    args.source.share = share;
    EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
  }
}

// A negative or non-finite given variance is the caller's own fault: it spoils its channel of its slot and nothing else.
TEST(Source, BadGivenStatisticsStayInTheirChannel) {
  popnorm_problem problem = unmapped();
  problem.population_slot = popnorm::strided(2);
  Scene scene(problem);
  const popnorm_forward_args args = scene.forward_given();
  const auto run = [&] {
    EXPECT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &args, nullptr)));
    const popnorm_backward_args backward = scene.backward();
    EXPECT_TRUE(succeeded(popnorm_backward(scene.plan.get(), &backward, nullptr)));
    return std::pair(scene.y.by_channel(), scene.dx.by_channel());
  };
  const auto [y, dx] = run();
  for (Array* given : {&scene.mean, &scene.variance})
    for (const double bad : {-7.0, kNaN, kInfinity}) {
      const double good = given->get(Scene::kC + 1);  // slot 1, channel 1
      given->set(Scene::kC + 1, bad);
      const auto [spoiled_y, spoiled_dx] = run();
      given->set(Scene::kC + 1, good);
      for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t channel = i / (kSamples * Scene::kS), sample = i / Scene::kS % kSamples;
        if (channel == 1 && sample % 2 == 1) continue;
        EXPECT_TRUE(same_bits(y[i], spoiled_y[i]) && same_bits(dx[i], spoiled_dx[i])) << i;
      }
    }
}

// ---------------------------------------------------------------------------------------------------- group_slot

TEST(GroupSlot, IsNeededWhereGroupsMeetSeveralSlots) {
  using Args = popnorm_finalize_args;
  Scene scene(labelled());
  const std::string name = "group_slot";
  std::vector<Refusal<Args>> bad = {
      {"null", [](Args& a) { a.group_slot = nullptr; }, {name, "null"}},
      {"unaligned", [](Args& a) { a.group_slot = misaligned(a.group_slot); }, {name, "align", "\\b4\\b"}}};
  for (const std::size_t at : {std::size_t{0}, std::size_t{kGroups - 1}})
    for (const std::int32_t slot : {-1, kSlots, INT32_MIN, INT32_MAX}) {
      Ids ids = scene.group_slot;
      ids[at] = slot;
      bad.push_back({"out of range",
                     [ids](Args& a) { a.group_slot = ids.data(); },
                     {name + place(at) + " is " + std::to_string(slot) + ",", "\\[0, 2\\)"}});
    }
  expect_refusals<Args>(scene, "finalize", scene.finalize(), popnorm_finalize, bad);
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM}) {
    Args args = scene.finalize_given();
    args.source.statistics = statistics;
    args.moments = scene.parts_in();
    args.group_slot = scene.group_slot.data();
    expect_refusals<Args>(scene, "finalize", args, popnorm_finalize, bad);
  }
}

TEST(GroupSlot, IsRefusedWhereItSaysNothing) {
  using Args = popnorm_finalize_args;
  Scene scene(labelled());
  const Refusal<Args> present = {
      "group_slot", [&](Args& a) { a.group_slot = scene.group_slot.data(); }, {"group_slot", "not null"}};
  Args nothing_fed = scene.finalize_outputs();
  nothing_fed.moments = scene.parts_in();
  expect_refusals<Args>(scene, "finalize", nothing_fed, popnorm_finalize, {present});
  expect_refusals<Args>(scene, "finalize", scene.finalize_given(), popnorm_finalize, {present});
  popnorm_problem one_slot = unmapped();
  one_slot.norm_group = popnorm::contiguous(3);
  Scene other(one_slot);
  expect_refusals<Args>(other, "finalize", other.finalize(), popnorm_finalize, {present});
}

// ---------------------------------------------------------------------------------------------------- reserve

// Every entry that reads a reserve.
template <class Visit>
void for_each_reader(Scene& scene, const Visit& visit) {
  scene.for_each_entry([&]<class Args>(const char* name, Args args, auto entry) {
    if constexpr (
        requires { args.batch; } && requires { args.reserve; } && !std::is_same_v<Args, popnorm_forward_args>)
      visit.template operator()<Args>(name, args, Entry<Args>(entry));
  });
}

TEST(Reserve, OfOtherLabelsIsRefused) {
  Scene scene(labelled());
  for_each_reader(scene, [&]<class Args>(const char* name, const Args& args, Entry<Args> entry) {
    std::vector<Refusal<Args>> all;
    const auto change = [&](Field field, const Ids& ids, std::int32_t count) {
      for (std::size_t at = 0; at < ids.size(); ++at) {
        Ids other = ids;
        other[at] = (other[at] + 1) % count;
        all.push_back({"another label", [field, other](Args& a) { a.batch.*field = other.data(); }, {"other labels"}});
      }
    };
    change(&popnorm_batch::norm_group, scene.group, kGroups);
    change(&popnorm_batch::affine_slot, scene.affine, kAffines);
    expect_refusals<Args>(scene, name, args, entry, all);
  });
}

// Copies of the labels are the same labels.
TEST(Reserve, OfEqualLabelsElsewhereIsAccepted) {
  Scene scene(labelled());
  const Ids group = scene.group, affine = scene.affine;
  for_each_reader(scene, [&]<class Args>(const char* name, Args args, Entry<Args> entry) {
    args.batch.norm_group = group.data();
    args.batch.affine_slot = affine.data();
    EXPECT_TRUE(succeeded(entry(scene.plan.get(), &args, nullptr))) << name;
  });
}

// Given statistics have rows by slot: the slots count as the groups do otherwise.
TEST(Reserve, OfOtherSlotsIsRefusedWithGivenStatistics) {
  Scene scene(labelled());
  const popnorm_forward_args given = scene.forward_given();
  ASSERT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &given, nullptr)));
  Ids group = scene.group, slot = scene.slot;
  std::swap(group[0], group[1]);
  slot.back() = (slot.back() + 1) % kSlots;
  for_each_reader(scene, [&]<class Args>(const char* name, Args args, Entry<Args> entry) {
    expect_refusals<Args>(scene, name, args, entry,
                          {{"slots", [&](Args& a) { a.batch.population_slot = slot.data(); }, {"other labels"}}});
    args.batch.norm_group = group.data();
    EXPECT_TRUE(succeeded(entry(scene.plan.get(), &args, nullptr))) << name << ": groups do not matter";
  });
}

// finalize is not told labels: normalize and backward may then have any.
TEST(Reserve, OfFinalizeServesAnyLabels) {
  Scene scene(labelled());
  const popnorm_finalize_args finalize = scene.finalize();
  ASSERT_TRUE(succeeded(popnorm_finalize(scene.plan.get(), &finalize, nullptr)));
  const Ids group(kSamples, 2), affine(kSamples, 1);
  for_each_reader(scene, [&]<class Args>(const char* name, Args args, Entry<Args> entry) {
    args.batch.norm_group = group.data();
    args.batch.affine_slot = affine.data();
    EXPECT_TRUE(succeeded(entry(scene.plan.get(), &args, nullptr))) << name;
  });
}

// One group is one group, by whichever map of however many samples.
TEST(Reserve, OfOneGroupServesAnother) {
  const auto problem_of = [](std::int64_t n, popnorm_map group) {
    popnorm_problem problem = popnorm::problem_nchw(n, 3, 4);
    problem.norm_group = group;
    return problem;
  };
  const std::vector<float> x(8 * 3 * 4, 1.5f);
  const std::vector<std::int32_t> labels(8, 0);
  const auto batch_of = [&](popnorm_map group) {
    popnorm_batch batch = POPNORM_BATCH_INIT;
    if (group.kind == POPNORM_LABELS) batch.norm_group = labels.data();
    return batch;
  };
  const auto maps = {popnorm_map{POPNORM_WHOLE, 0}, popnorm::contiguous(16), popnorm::strided(1), popnorm::labels(1)};
  for (const popnorm_map written : maps)
    for (const popnorm_map read : maps) {
      const popnorm::plan writer(problem_of(8, written)), reader(problem_of(4, read));
      popnorm::buffer reserve = writer.make_reserve(), workspace = writer.make_workspace();
      std::vector<float> y(x.size());
      popnorm_forward_args forward = popnorm::forward_args(workspace, reserve);
      forward.x = x.data();
      forward.y = y.data();
      forward.batch = batch_of(written);
      writer.forward(forward);
      popnorm::buffer own = reader.make_workspace();
      popnorm_normalize_args normalize = POPNORM_NORMALIZE_ARGS_INIT;
      normalize.x = x.data();
      normalize.y = y.data();
      normalize.batch = batch_of(read);
      normalize.reserve = reserve.data();
      normalize.reserve_bytes = reserve.size();
      normalize.workspace = own.data();
      normalize.workspace_bytes = own.size();
      EXPECT_TRUE(succeeded(popnorm_normalize(reader.get(), &normalize, nullptr))) << written.kind << " " << read.kind;
    }
}

TEST(Reserve, OfAnotherProblemIsRefused) {
  popnorm_problem ours = unmapped();
  ours.norm_group = popnorm::contiguous(4);
  ours.affine_slot = popnorm::strided(2);
  Scene scene(ours);
  const auto written_by = [&](popnorm_map group, popnorm_map affine) {
    popnorm_problem problem = ours;
    problem.norm_group = group;
    problem.affine_slot = affine;
    Scene other(problem);
    return std::move(other.reserve);
  };
  const popnorm_map whole = {POPNORM_WHOLE, 0};
  struct Foreign {
    const char* what;
    popnorm_map group, affine;
    const char* word;
  };
  for (const Foreign& foreign :
       {Foreign{"more groups", popnorm::contiguous(2), popnorm::strided(2), "reserve"},
        Foreign{"one group", whole, popnorm::strided(2), "reserve"},
        Foreign{"one scale", popnorm::contiguous(4), whole, "reserve"},
        Foreign{"as many groups, dealt", popnorm::strided(2), popnorm::strided(2), "reserve"},
        Foreign{"as many groups, cut elsewhere", popnorm::contiguous(5), popnorm::strided(2), "reserve"},
        Foreign{"as many groups, by label", popnorm::labels(2), popnorm::strided(2), "reserve"},
        Foreign{"as many scales, in order", popnorm::contiguous(4), popnorm::contiguous(4), "reserve"}}) {
    GuardedBuffer reserve = written_by(foreign.group, foreign.affine);
    for_each_reader(scene, [&]<class Args>(const char* name, const Args& valid, Entry<Args> entry) {
      if constexpr (std::is_same_v<Args, popnorm_double_backward_args>) return;  // several scales in a group
      expect_refusals<Args>(scene, name, valid, entry,
                            {{foreign.what,
                              [&](Args& a) {
                                a.reserve = reserve.data();
                                a.reserve_bytes = reserve.size();
                              },
                              {foreign.word}}});
    });
  }
}

// ------------------------------------------------------------------------------------------ saved statistics, double backward

TEST(Saved, AreRefusedForWhatTheyDoNotTell) {
  using Args = popnorm_backward_args;
  const auto refuse = [](const popnorm_problem& problem, popnorm_statistics statistics) {
    Scene scene(problem);
    Args args = scene.backward_saved();
    args.statistics = statistics;
    const auto before = scene.snapshot();
    EXPECT_TRUE(refused(popnorm_backward(scene.plan.get(), &args, nullptr), POPNORM_UNSUPPORTED,
                        {"^backward:", "saved_mean", "reserve"}));
    EXPECT_TRUE(scene.snapshot() == before);
  };
  for (popnorm_map popnorm_problem::*map :
       {&popnorm_problem::norm_group, &popnorm_problem::population_slot, &popnorm_problem::affine_slot}) {
    popnorm_problem problem = unmapped();
    problem.*map = popnorm::contiguous(3);
    refuse(problem, POPNORM_BATCH);
  }
  for (const popnorm_weights weights : {POPNORM_WEIGHTS_PER_SAMPLE, POPNORM_WEIGHTS_PER_POSITION, POPNORM_LENGTHS})
    refuse(weighted(weights), POPNORM_BATCH);
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM}) refuse(unmapped(), statistics);
}

TEST(DoubleBackward, RefusesBadArguments) {
  using Args = popnorm_double_backward_args;
  Scene scene(labelled());
  expect_refusals<Args>(
      scene, "double_backward", scene.double_backward(), popnorm_double_backward,
      {{"null x", [](Args& a) { a.x = nullptr; }, {"\\bx\\b", "null"}},
       {"null dy", [](Args& a) { a.dy = nullptr; }, {"\\bdy\\b", "null"}},
       {"null grad_x", [](Args& a) { a.grad_x = nullptr; }, {"grad_x", "null"}},
       {"unaligned v", [](Args& a) { a.v = misaligned(a.v); }, {"\\bv\\b", "align"}},
       {"unaligned v_scale", [](Args& a) { a.v_scale = misaligned(a.v_scale); }, {"v_scale", "align"}},
       {"unaligned v_shift", [](Args& a) { a.v_shift = misaligned(a.v_shift); }, {"v_shift", "align"}},
       {"unaligned grad_x", [](Args& a) { a.grad_x = misaligned(a.grad_x); }, {"grad_x", "align"}},
       {"unaligned grad_dy", [](Args& a) { a.grad_dy = misaligned(a.grad_dy); }, {"grad_dy", "align"}},
       {"unaligned grad_scale", [](Args& a) { a.grad_scale = misaligned(a.grad_scale); }, {"grad_scale", "align"}},
       {"the workspace of backward",
        [&](Args& a) { a.workspace_bytes = scene.workspace.size(); },
        {"workspace", std::to_string(scene.workspace.size()), std::to_string(scene.double_workspace.size())}}});
}

TEST(DoubleBackward, SaysWhatItDoesNotServe) {
  const auto refuse = [](Scene& scene, const std::vector<std::string>& words) {
    const popnorm_double_backward_args args = scene.double_backward();
    const auto before = scene.snapshot();
    EXPECT_TRUE(refused(popnorm_double_backward(scene.plan.get(), &args, nullptr), POPNORM_UNSUPPORTED, words));
    EXPECT_TRUE(scene.snapshot() == before);
  };
  for (const popnorm_weights weights : {POPNORM_WEIGHTS_PER_SAMPLE, POPNORM_WEIGHTS_PER_POSITION, POPNORM_LENGTHS}) {
    Scene scene(weighted(weights));
    refuse(scene, {"^double_backward:", "weights"});
  }
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM}) {
    Scene scene(labelled());
    popnorm_forward_args forward = scene.forward_given();
    forward.source.statistics = statistics;
    ASSERT_TRUE(succeeded(popnorm_forward(scene.plan.get(), &forward, nullptr)));
    refuse(scene, {"^double_backward:", "statistics"});
  }
  popnorm_problem problem = unmapped();
  problem.affine_slot = popnorm::strided(2);
  Scene scene(problem);
  refuse(scene, {"^double_backward:", "norm_group 0 ", "affine_slot 0 and 1"});
}

// ---------------------------------------------------------------------------------------------------- populations

TEST(Populations, OfAnotherShapeAreRefusedByEveryEntryThatTakesOne) {
  Scene scene(labelled());
  const auto population_of = [](std::int64_t slots, std::int64_t c) {
    std::size_t bytes = 0;
    popnorm::check(popnorm_population_size(slots, c, &bytes));
    GuardedBuffer p(bytes, 8, Placement::ends_at_guard);
    popnorm::check(popnorm_population_init(p.data(), bytes, slots, c));
    return p;
  };
  GuardedBuffer one_slot = population_of(1, Scene::kC), more_slots = population_of(kSlots + 1, Scene::kC),
                fewer_channels = population_of(kSlots, Scene::kC - 1), right = population_of(kSlots, Scene::kC);
  // expect_refusals in the two places where a call may have a population.
  const auto check = [&]<class Args>(const char* name, Args args, Entry<Args> entry, const std::string& place,
                                     auto set) {
    std::vector<Refusal<Args>> all;
    const auto add = [&](const char* what, GuardedBuffer& p, std::size_t bytes, std::vector<std::string> words) {
      words.push_back(place);
      all.push_back({what, [&p, bytes, set](Args& a) { set(a, p.data(), bytes); }, words});
    };
    add("one slot", one_slot, one_slot.size(), {"\\b1 slots", "= 2"});
    add("more slots", more_slots, more_slots.size(), {"\\b3 slots", "= 2"});
    add("fewer channels", fewer_channels, fewer_channels.size(), {"\\b2 channels", "= 3"});
    add("truncated", right, right.size() - 1, {std::to_string(right.size() - 1), std::to_string(right.size())});
    add("a header alone", right, 128, {"\\b128 bytes", std::to_string(right.size())});
    set(args, right.data(), right.size());
    expect_refusals<Args>(scene, name, args, entry, all);
  };
  const auto fed = [](auto& a, void* p, std::size_t bytes) {
    a.update.population = p;
    a.update.population_bytes = bytes;
  };
  const auto source = [](popnorm_statistics statistics) {
    return [statistics](auto& a, void* p, std::size_t bytes) {
      a.source.statistics = statistics;
      a.source.population = p;
      a.source.population_bytes = bytes;
    };
  };
  popnorm_finalize_args finalize = scene.finalize_outputs();
  finalize.moments = scene.parts_in();
  finalize.group_slot = scene.group_slot.data();
  check("forward", scene.forward_inputs(), Entry<popnorm_forward_args>(popnorm_forward), "update.population", fed);
  check("moments", scene.moments(), Entry<popnorm_moments_args>(popnorm_moments), "update.population", fed);
  check("finalize", finalize, Entry<popnorm_finalize_args>(popnorm_finalize), "update.population", fed);
  for (const popnorm_statistics statistics : {POPNORM_GIVEN, POPNORM_BLEND, POPNORM_RENORM})
    check("forward", scene.forward_inputs(), Entry<popnorm_forward_args>(popnorm_forward), "source.population",
          source(statistics));
  for (const popnorm_statistics statistics : {POPNORM_BLEND, POPNORM_RENORM})
    check("finalize", finalize, Entry<popnorm_finalize_args>(popnorm_finalize), "source.population",
          source(statistics));
}

TEST(Moments, WithNothingToDoAreRefused) {
  Scene scene(labelled());
  expect_refusals<popnorm_moments_args>(
      scene, "moments", scene.moments(), popnorm_moments,
      {{"neither moments nor an update",
        [](popnorm_moments_args& a) {
          a.moments = {nullptr, nullptr, nullptr};
        },
        {"moments", "null"}},
       {"momentum", [](popnorm_moments_args& a) { a.update.momentum = 2; }, {"update.momentum is 2"}}});
}

}  // namespace
}  // namespace popnorm_test
