// Bad input to run entries: each is refused with its status and a message that names subject and value, and nothing is
// written.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "api/refusals.hpp"

namespace popnorm_test {
namespace {

// ---------------------------------------------------------------------------------------------------- every entry

TEST(EveryEntry, RefusesNullPlan) {
  Scene scene;
  scene.for_each_entry([&](const char* name, auto args, auto entry) {
    const auto before = scene.snapshot();
    EXPECT_TRUE(refused(entry(nullptr, &args, nullptr), POPNORM_INVALID, {name, "plan", "null"}));
    EXPECT_TRUE(scene.snapshot() == before);
  });
}

TEST(EveryEntry, RefusesNullArguments) {
  Scene scene;
  scene.for_each_entry([&](const char* name, auto args, auto entry) {
    using Args = decltype(args);
    const Args* none = nullptr;
    EXPECT_TRUE(refused(entry(scene.plan.get(), none, nullptr), POPNORM_INVALID, {name, "null"}));
  });
}

TEST(EveryEntry, RefusesShorterStructs) {
  Scene scene;
  scene.for_each_entry([&](const char* name, auto args, auto entry) {
    for (const std::size_t size : {std::size_t{0}, sizeof(std::size_t), sizeof(args) - 1}) {
      args.size = size;
      const auto before = scene.snapshot();
      EXPECT_TRUE(refused(entry(scene.plan.get(), &args, nullptr), POPNORM_INVALID,
                          {name, "size", "\\b" + std::to_string(size) + "\\b", std::to_string(sizeof(args))}));
      EXPECT_TRUE(scene.snapshot() == before);
    }
  });
}

TEST(EveryEntry, AcceptsLongerStructsOnlyWithAZeroTail) {
  Scene scene;
  scene.for_each_entry([&](const char* name, auto args, auto entry) {
    using Args = decltype(args);
    struct Later {
      Args args;
      std::byte tail[24];
    };
    // Exactly at a guard: the library must not read further than the size says.
    GuardedBuffer memory(sizeof(Later), alignof(Later), Placement::ends_at_guard);
    std::memset(memory.data(), 0, memory.size());
    auto* later = reinterpret_cast<Later*>(memory.data());
    later->args = args;
    later->args.size = sizeof(Later);
    EXPECT_TRUE(succeeded(entry(scene.plan.get(), &later->args, nullptr))) << name;
    const auto before = scene.snapshot();
    for (const std::size_t set : {std::size_t{0}, sizeof(later->tail) - 1}) {
      later->tail[set] = std::byte{1};
      EXPECT_TRUE(refused(entry(scene.plan.get(), &later->args, nullptr), POPNORM_UNSUPPORTED, {name, "byte"}));
      later->tail[set] = std::byte{0};
    }
    EXPECT_TRUE(scene.snapshot() == before);
  });
}

TEST(EveryEntry, RefusesBadWorkspace) {
  Scene scene;
  scene.for_each_entry([&](const char* name, auto args, auto entry) {
    using Args = decltype(args);
    if constexpr (requires { args.workspace; }) {
      const std::size_t needed = args.workspace_bytes;
      ASSERT_GT(needed, 0u);
      const std::string few = "\\b" + std::to_string(needed - 1) + " bytes.*\\b" + std::to_string(needed) + "\\b";
      expect_refusals<Args>(scene, name, args, entry,
                            {{"null", [](Args& a) { a.workspace = nullptr; }, {"workspace", "null"}},
                             {"too small", [=](Args& a) { a.workspace_bytes = needed - 1; }, {"workspace", few}},
                             {"none", [](Args& a) { a.workspace_bytes = 0; }, {"workspace", "\\b0 bytes"}},
                             {"unaligned",
                              [](Args& a) { a.workspace = static_cast<std::byte*>(a.workspace) + 8; },
                              {"workspace", "64"}}});
    }
  });
}

TEST(EveryEntry, RefusesBadReserve) {
  Scene scene;
  const std::size_t needed = scene.reserve.size();
  const std::string few = "\\b" + std::to_string(needed - 1) + " bytes.*\\b" + std::to_string(needed) + "\\b";
  scene.for_each_entry([&](const char* name, auto args, auto entry) {
    using Args = decltype(args);
    if constexpr (requires { args.reserve; }) {
      expect_refusals<Args>(
          scene, name, args, entry,
          {{"null", [](Args& a) { a.reserve = nullptr; }, {"reserve", "null"}},
           {"too small", [=](Args& a) { a.reserve_bytes = needed - 1; }, {"reserve", few}},
           {"unaligned",
            [](Args& a) {
              a.reserve = reinterpret_cast<decltype(a.reserve)>(reinterpret_cast<std::uintptr_t>(a.reserve) + 8);
            },
            {"reserve", "64"}}});
    }
  });
}

TEST(EveryEntry, RefusesAReserveThatNoForwardWrote) {
  Scene scene;
  GuardedBuffer poisoned(scene.reserve.size(), 64, Placement::ends_at_guard);
  GuardedBuffer zero(scene.reserve.size(), 64, Placement::ends_at_guard);
  std::memset(zero.data(), 0, zero.size());
  // Written by another problem: more channels, another storage type.
  const auto written_by = [](const popnorm_problem& problem) {
    const popnorm::plan plan(problem);
    const auto c = static_cast<std::size_t>(problem.c);
    std::vector<double> values(c, 1.0);
    GuardedBuffer reserve(plan.info().reserve_bytes, 64, Placement::ends_at_guard);
    popnorm_finalize_args args = POPNORM_FINALIZE_ARGS_INIT;
    args.moments = {values.data(), values.data(), values.data()};
    args.reserve = reserve.data();
    args.reserve_bytes = reserve.size();
    plan.finalize(args);
    return reserve;
  };
  GuardedBuffer more_channels = written_by(popnorm::problem_nchw(Scene::kN, Scene::kC + 1, Scene::kS));
  popnorm_problem in_doubles = popnorm::problem_nchw(Scene::kN, Scene::kC, Scene::kS);
  in_doubles.storage = POPNORM_F64;
  GuardedBuffer other_storage = written_by(in_doubles);

  for (GuardedBuffer* foreign :
       std::initializer_list<GuardedBuffer*>{&poisoned, &zero, &more_channels, &other_storage}) {
    const auto expect = [&]<class Args>(const char* name, const Args& valid, Entry<Args> entry) {
      expect_refusals<Args>(scene, name, valid, entry,
                            {{"foreign reserve",
                              [&](Args& a) {
                                a.reserve = foreign->data();
                                a.reserve_bytes = foreign->size();
                              },
                              {"reserve"}}});
    };
    expect("backward", scene.backward(), Entry<popnorm_backward_args>(popnorm_backward));
    expect("normalize", scene.normalize(), Entry<popnorm_normalize_args>(popnorm_normalize));
    expect("backward_reduce", scene.backward_reduce(), Entry<popnorm_backward_reduce_args>(popnorm_backward_reduce));
    expect("backward_apply", scene.backward_apply(), Entry<popnorm_backward_apply_args>(popnorm_backward_apply));
    expect("double_backward", scene.double_backward(), Entry<popnorm_double_backward_args>(popnorm_double_backward));
  }
}

// ---------------------------------------------------------------------------------------------------- forward,
// finalize

// What forward and finalize have in common.
template <class Args>
std::vector<Refusal<Args>> statistics_refusals(Scene& scene) {
  std::vector<Refusal<Args>> all;
  for (const double momentum : {-0.1, 1.5, kNaN, std::numeric_limits<double>::infinity()}) {
    all.push_back({"momentum", [=](Args& a) { a.update.momentum = momentum; }, {"momentum", "\\[0, 1\\]"}});
  }
  for (const int number : {-1, 4, 99}) {
    all.push_back({"statistics",
                   [=](Args& a) { a.source.statistics = static_cast<popnorm_statistics>(number); },
                   {"statistics is " + std::to_string(number)}});
  }
  for (const int number : {-1, 3}) {
    all.push_back({"feed",
                   [=](Args& a) { a.update.feed = static_cast<popnorm_feed>(number); },
                   {"feed is " + std::to_string(number)}});
    all.push_back({"given_estimator",
                   [=](Args& a) { a.source.estimator = static_cast<popnorm_estimator>(number); },
                   {"estimator is " + std::to_string(number)}});
  }
  all.push_back({"mean with BATCH", [&](Args& a) { a.source.mean = scene.mean.data(); }, {"mean", "BATCH"}});
  all.push_back(
      {"variance with BATCH", [&](Args& a) { a.source.variance = scene.variance.data(); }, {"variance", "BATCH"}});
  all.push_back({"given_population with BATCH",
                 [&](Args& a) {
                   a.source.population = scene.given_population.data();
                   a.source.population_bytes = scene.given_population.size();
                 },
                 {"source.population", "BATCH"}});
  all.push_back({"unaligned scale", [](Args& a) { a.scale = misaligned(a.scale); }, {"scale", "align"}});
  all.push_back({"unaligned shift", [](Args& a) { a.shift = misaligned(a.shift); }, {"shift", "align"}});
  all.push_back({"unaligned running_mean",
                 [](Args& a) { a.update.running_mean = misaligned(a.update.running_mean); },
                 {"running_mean", "align"}});
  all.push_back({"unaligned running_variance",
                 [](Args& a) { a.update.running_variance = misaligned(a.update.running_variance); },
                 {"running_variance", "align"}});
  all.push_back(
      {"unaligned saved_mean", [](Args& a) { a.saved_mean = misaligned(a.saved_mean); }, {"saved_mean", "align"}});
  all.push_back({"unaligned saved_invstd",
                 [](Args& a) { a.saved_invstd = misaligned(a.saved_invstd); },
                 {"saved_invstd", "align"}});
  all.push_back({"moments without weight", [](Args& a) { a.moments.weight = nullptr; }, {"moments", "weight"}});
  all.push_back({"moments without mean", [](Args& a) { a.moments.mean = nullptr; }, {"moments", "mean"}});
  all.push_back({"moments without m2", [](Args& a) { a.moments.m2 = nullptr; }, {"moments", "m2"}});
  all.push_back({"unaligned moments", [](Args& a) { a.moments.m2 = misaligned(a.moments.m2); }, {"m2", "align"}});
  return all;
}

template <class Args>
std::vector<Refusal<Args>> given_refusals(Scene& scene) {
  return {
      {"no mean", [](Args& a) { a.source.mean = nullptr; }, {"mean", "null"}},
      {"no variance", [](Args& a) { a.source.variance = nullptr; }, {"variance", "null"}},
      {"neither", [](Args& a) { a.source.mean = a.source.variance = nullptr; }, {"mean", "null"}},
      {"unaligned mean", [](Args& a) { a.source.mean = misaligned(a.source.mean); }, {"mean", "align"}},
      {"both sources",
       [&](Args& a) {
         a.source.population = scene.given_population.data();
         a.source.population_bytes = scene.given_population.size();
       },
       {"source.population", "mean"}},
      {"running_mean", [&](Args& a) { a.update.running_mean = scene.running_mean.data(); }, {"running_mean", "GIVEN"}},
      {"running_variance",
       [&](Args& a) { a.update.running_variance = scene.running_variance.data(); },
       {"running_variance", "GIVEN"}},
      {"population",
       [&](Args& a) {
         a.update.population = scene.population.data();
         a.update.population_bytes = scene.population.size();
       },
       {"population", "GIVEN"}},
      {"moments", [&](Args& a) { a.moments = scene.moments_out(); }, {"moments", "GIVEN"}},
  };
}

TEST(Forward, RefusesBadArguments) {
  using Args = popnorm_forward_args;
  Scene scene;
  std::vector<Refusal<Args>> refusals = statistics_refusals<Args>(scene);
  refusals.push_back({"null x", [](Args& a) { a.x = nullptr; }, {"\\bx\\b", "null"}});
  refusals.push_back({"null y", [](Args& a) { a.y = nullptr; }, {"\\by\\b", "null"}});
  refusals.push_back({"unaligned x", [](Args& a) { a.x = misaligned(a.x); }, {"\\bx\\b", "align", "\\b4\\b"}});
  refusals.push_back({"unaligned y", [](Args& a) { a.y = misaligned(a.y); }, {"\\by\\b", "align", "\\b4\\b"}});
  refusals.push_back({"bytes of a null reserve", [](Args& a) { a.reserve = nullptr; }, {"reserve", "null"}});
  expect_refusals<Args>(scene, "forward", scene.forward_batch(), popnorm_forward, refusals);
  expect_refusals<Args>(scene, "forward", scene.forward_given(), popnorm_forward, given_refusals<Args>(scene));
}

TEST(Finalize, RefusesBadArguments) {
  using Args = popnorm_finalize_args;
  Scene scene;
  expect_refusals<Args>(scene, "finalize", scene.finalize(), popnorm_finalize, statistics_refusals<Args>(scene));
  expect_refusals<Args>(scene, "finalize", scene.finalize_given(), popnorm_finalize, given_refusals<Args>(scene));
}

TEST(Combine, SaysWhichPartItRefuses) {
  Scene scene;
  Array negative(POPNORM_F64, Scene::kC, Placement::ends_at_guard);
  negative.assign(std::vector<double>{1, -0.5, 2});
  popnorm_combine_args args = scene.combine();
  popnorm_moment_arrays parts[2] = {args.parts[0], {negative.doubles(), negative.doubles(), negative.doubles()}};
  args.parts = parts;
  args.count = 2;
  EXPECT_TRUE(refused(popnorm_combine(scene.plan.get(), &args, nullptr), POPNORM_INVALID,
                      {"parts\\[1\\].weight\\[1\\] is -0.5"}));
  parts[1] = parts[0];
  parts[1].mean = nullptr;
  EXPECT_TRUE(
      refused(popnorm_combine(scene.plan.get(), &args, nullptr), POPNORM_INVALID, {"parts\\[1\\]", "mean is null"}));
}

TEST(Finalize, RefusesImpossibleMoments) {
  using Args = popnorm_finalize_args;
  Scene scene;
  Array negative(POPNORM_F64, Scene::kC, Placement::ends_at_guard);
  negative.assign(std::vector<double>{1, -0.5, 2});
  expect_refusals<Args>(
      scene, "finalize", scene.finalize(), popnorm_finalize,
      {{"negative weight", [&](Args& a) { a.moments.weight = negative.doubles(); }, {"weight", "\\b1\\b", "-0.5"}},
       {"negative m2", [&](Args& a) { a.moments.m2 = negative.doubles(); }, {"m2", "\\b1\\b", "-0.5"}},
       {"no moments",
        [](Args& a) {
          a.moments = {nullptr, nullptr, nullptr};
        },
        {"moments"}}});
}

// ---------------------------------------------------------------------------------------------------- populations

// Ways in which a population can be wrong: the buffer's header spoiled, or another shape.
struct BadPopulation {
  const char* what;
  std::function<void(popnorm_population_header&)> spoil;
  popnorm_status status;
};

std::vector<BadPopulation> bad_headers() {
  return {
      {"magic", [](popnorm_population_header& h) { h.magic[3] = 'x'; }, POPNORM_INVALID},
      {"foreign memory", [](popnorm_population_header& h) { std::memset(&h, 0xFF, sizeof(h)); }, POPNORM_INVALID},
      {"zero", [](popnorm_population_header& h) { std::memset(&h, 0, sizeof(h)); }, POPNORM_INVALID},
      {"byte order", [](popnorm_population_header& h) { h.byte_order = 0x04030201; }, POPNORM_INVALID},
      {"slots", [](popnorm_population_header& h) { h.slots = -1; }, POPNORM_INVALID},
      {"many slots", [](popnorm_population_header& h) { h.slots = INT64_MAX; }, POPNORM_INVALID},
      {"channels", [](popnorm_population_header& h) { h.c = 0; }, POPNORM_INVALID},
      {"more channels", [](popnorm_population_header& h) { h.c += 1; }, POPNORM_INVALID},
      {"steps", [](popnorm_population_header& h) { h.steps = -2; }, POPNORM_INVALID},
      {"bytes", [](popnorm_population_header& h) { h.bytes -= 8; }, POPNORM_INVALID},
      {"room", [](popnorm_population_header& h) { h.room[71] = 1; }, POPNORM_INVALID},
      {"a later version", [](popnorm_population_header& h) { h.version = 2; }, POPNORM_UNSUPPORTED},
  };
}

TEST(Population, CorruptedOrForeignOnesAreRefusedEverywhere) {
  for (const BadPopulation& bad : bad_headers()) {
    SCOPED_TRACE(bad.what);
    Scene scene;
    for (GuardedBuffer* p : {&scene.population, &scene.given_population}) {
      bad.spoil(*reinterpret_cast<popnorm_population_header*>(p->data()));
    }
    const auto before = scene.snapshot();
    const popnorm_forward_args feeding = scene.forward_feeding();
    EXPECT_TRUE(
        refused(popnorm_forward(scene.plan.get(), &feeding, nullptr), bad.status, {"^forward: update.population"}));
    const popnorm_forward_args given = scene.forward_given_population();
    EXPECT_TRUE(
        refused(popnorm_forward(scene.plan.get(), &given, nullptr), bad.status, {"^forward: source.population"}));
    popnorm_finalize_args finalize = scene.finalize_outputs();
    finalize.moments = scene.parts_in();
    finalize.update.population = scene.population.data();
    finalize.update.population_bytes = scene.population.size();
    EXPECT_TRUE(
        refused(popnorm_finalize(scene.plan.get(), &finalize, nullptr), bad.status, {"^finalize: update.population"}));
    const popnorm_population_feed_args feed = scene.feed();
    EXPECT_TRUE(refused(popnorm_population_feed(scene.population.data(), scene.population.size(), &feed), bad.status,
                        {"^population_feed: population"}));
    const popnorm_population_finalize_args read = scene.population_finalize();
    EXPECT_TRUE(refused(popnorm_population_finalize(scene.population.data(), scene.population.size(), &read),
                        bad.status, {"^population_finalize: population"}));
    EXPECT_TRUE(scene.snapshot() == before);
  }
}

TEST(Population, OfAnotherShapeIsRefused) {
  using Args = popnorm_forward_args;
  Scene scene;
  const auto population_of = [](std::int64_t slots, std::int64_t c) {
    std::size_t bytes = 0;
    popnorm::check(popnorm_population_size(slots, c, &bytes));
    GuardedBuffer p(bytes, 8, Placement::ends_at_guard);
    popnorm::check(popnorm_population_init(p.data(), bytes, slots, c));
    return p;
  };
  GuardedBuffer wide = population_of(1, Scene::kC + 1), tall = population_of(2, Scene::kC);
  const auto use = [](GuardedBuffer& p) {
    return [&p](Args& a) {
      a.update.population = p.data();
      a.update.population_bytes = p.size();
    };
  };
  expect_refusals<Args>(scene, "forward", scene.forward_feeding(), popnorm_forward,
                        {{"channels", use(wide), {"population", "\\b4\\b", "\\b3\\b"}},
                         {"slots", use(tall), {"population", "\\b2\\b", "\\b1\\b"}},
                         {"bytes", [](Args& a) { a.update.population_bytes -= 1; }, {"population", "bytes"}},
                         {"header only", [](Args& a) { a.update.population_bytes = 127; }, {"population", "127"}},
                         {"unaligned",
                          [](Args& a) { a.update.population = static_cast<std::byte*>(a.update.population) + 4; },
                          {"population", "align"}}});
}

TEST(Population, EntriesRefuseBadArguments) {
  Scene scene;
  void* population = scene.population.data();
  const std::size_t bytes = scene.population.size();
  std::size_t size = 7;
  EXPECT_TRUE(refused(popnorm_population_size(0, 3, &size), POPNORM_INVALID, {"slots", "\\b0\\b"}));
  EXPECT_TRUE(refused(popnorm_population_size(-1, 3, &size), POPNORM_INVALID, {"slots", "-1"}));
  EXPECT_TRUE(refused(popnorm_population_size(1, 0, &size), POPNORM_INVALID, {"\\bc\\b", "\\b0\\b"}));
  EXPECT_TRUE(refused(popnorm_population_size(std::int64_t{1} << 40, std::int64_t{1} << 40, &size), POPNORM_INVALID,
                      {"overflow"}));
  EXPECT_TRUE(refused(popnorm_population_size(1, 3, nullptr), POPNORM_INVALID, {"null"}));
  EXPECT_EQ(size, 7u);

  const auto before = scene.snapshot();
  EXPECT_TRUE(refused(popnorm_population_init(nullptr, bytes, 1, 3), POPNORM_INVALID, {"null"}));
  EXPECT_TRUE(refused(popnorm_population_init(population, bytes - 1, 1, 3), POPNORM_INVALID,
                      {std::to_string(bytes - 1), std::to_string(bytes)}));
  EXPECT_TRUE(refused(popnorm_population_init(static_cast<std::byte*>(population) + 4, bytes, 1, 3), POPNORM_INVALID,
                      {"align"}));
  EXPECT_TRUE(refused(popnorm_population_init(population, bytes, 0, 3), POPNORM_INVALID, {"slots"}));

  const auto refuse_feed = [&](auto spoil, std::vector<std::string> words) {
    popnorm_population_feed_args args = scene.feed();
    spoil(args);
    words.push_back("^population_feed:");
    EXPECT_TRUE(refused(popnorm_population_feed(population, bytes, &args), POPNORM_INVALID, words));
  };
  using Feed = popnorm_population_feed_args;
  Array negative(POPNORM_F64, Scene::kC, Placement::ends_at_guard);
  negative.assign(std::vector<double>{1, 2, -3});
  for (const double momentum : {-1e-9, 1.0000001, kNaN})
    refuse_feed([=](Feed& a) { a.momentum = momentum; }, {"momentum"});
  refuse_feed([](Feed& a) { a.feed = static_cast<popnorm_feed>(7); }, {"feed is 7"});
  refuse_feed([](Feed& a) { a.moments.weight = nullptr; }, {"weight", "null"});
  refuse_feed([](Feed& a) { a.moments.mean = nullptr; }, {"mean", "null"});
  refuse_feed([](Feed& a) { a.moments.m2 = nullptr; }, {"m2", "null"});
  refuse_feed([&](Feed& a) { a.moments.weight = negative.doubles(); }, {"weight", "\\b2\\b", "-3"});
  refuse_feed([&](Feed& a) { a.moments.m2 = negative.doubles(); }, {"m2", "\\b2\\b", "-3"});
  refuse_feed([](Feed& a) { a.size = 8; }, {"size", "\\b8\\b"});
  refuse_feed([&](Feed& a) { a.moments.m2 = reinterpret_cast<double*>(scene.population.data() + 128); }, {"overlap"});
  EXPECT_TRUE(refused(popnorm_population_feed(population, bytes, nullptr), POPNORM_INVALID, {"null"}));
  const Feed feed = scene.feed();
  EXPECT_TRUE(refused(popnorm_population_feed(nullptr, bytes, &feed), POPNORM_INVALID, {"population", "null"}));

  using Finalize = popnorm_population_finalize_args;
  const auto refuse_finalize = [&](auto spoil, std::vector<std::string> words,
                                   popnorm_status status = POPNORM_INVALID) {
    Finalize args = scene.population_finalize();
    spoil(args);
    words.push_back("^population_finalize:");
    EXPECT_TRUE(refused(popnorm_population_finalize(population, bytes, &args), status, words));
  };
  refuse_finalize([](Finalize& a) { a.estimator = static_cast<popnorm_estimator>(3); }, {"estimator is 3"});
  refuse_finalize([](Finalize& a) { a.type = static_cast<popnorm_type>(9); }, {"type is 9"});
  refuse_finalize([](Finalize& a) { a.type = POPNORM_BF16; }, {"type"}, POPNORM_UNSUPPORTED);
  refuse_finalize([](Finalize& a) { a.mean = a.variance; }, {"mean", "variance", "overlap"});
  refuse_finalize([&](Finalize& a) { a.mean = scene.population.data() + 132; }, {"mean", "population", "overlap"});
  refuse_finalize([](Finalize& a) { a.mean = misaligned(a.mean); }, {"mean", "align"});
  refuse_finalize([](Finalize& a) { a.size = 1; }, {"size", "\\b1\\b"});
  EXPECT_TRUE(scene.snapshot() == before);
}

// ---------------------------------------------------------------------------------------------------- backward and
// stages

TEST(Backward, RefusesBadArguments) {
  using Args = popnorm_backward_args;
  Scene scene;
  expect_refusals<Args>(
      scene, "backward", scene.backward(), popnorm_backward,
      {{"null x", [](Args& a) { a.x = nullptr; }, {"\\bx\\b", "null"}},
       {"null dy", [](Args& a) { a.dy = nullptr; }, {"\\bdy\\b", "null"}},
       {"no output", [](Args& a) { a.dx = a.dscale = a.dshift = nullptr; }, {"dx", "dscale", "dshift"}},
       {"accumulate 2", [](Args& a) { a.accumulate = 2; }, {"accumulate is 2"}},
       {"accumulate -1", [](Args& a) { a.accumulate = -1; }, {"accumulate is -1"}},
       {"both sources", [&](Args& a) { a.saved_mean = scene.saved_mean.data(); }, {"reserve", "saved_mean"}},
       {"scale with a reserve", [&](Args& a) { a.scale = scene.scale.data(); }, {"scale", "reserve"}},
       {"statistics with a reserve", [](Args& a) { a.statistics = POPNORM_GIVEN; }, {"statistics"}},
       {"unknown statistics", [](Args& a) { a.statistics = static_cast<popnorm_statistics>(5); }, {"statistics is 5"}},
       {"unaligned dx", [](Args& a) { a.dx = misaligned(a.dx); }, {"dx", "align"}},
       {"unaligned dscale", [](Args& a) { a.dscale = misaligned(a.dscale); }, {"dscale", "align"}},
       {"unaligned dshift", [](Args& a) { a.dshift = misaligned(a.dshift); }, {"dshift", "align"}}});
  expect_refusals<Args>(
      scene, "backward", scene.backward_saved(), popnorm_backward,
      {{"no saved_mean", [](Args& a) { a.saved_mean = nullptr; }, {"saved_mean", "null"}},
       {"no saved_invstd", [](Args& a) { a.saved_invstd = nullptr; }, {"saved_invstd", "null"}},
       {"neither", [](Args& a) { a.saved_mean = a.saved_invstd = nullptr; }, {"reserve", "null"}},
       {"unknown statistics",
        [](Args& a) { a.statistics = static_cast<popnorm_statistics>(-4); },
        {"statistics is -4"}},
       {"unaligned saved_mean", [](Args& a) { a.saved_mean = misaligned(a.saved_mean); }, {"saved_mean", "align"}},
       {"unaligned scale", [](Args& a) { a.scale = misaligned(a.scale); }, {"scale", "align"}}});
}

TEST(Stages, RefuseBadArguments) {
  Scene scene;
  using Moments = popnorm_moments_args;
  expect_refusals<Moments>(
      scene, "moments", scene.moments(), popnorm_moments,
      {{"null x", [](Moments& a) { a.x = nullptr; }, {"\\bx\\b", "null"}},
       {"no weight", [](Moments& a) { a.moments.weight = nullptr; }, {"weight", "null"}},
       {"no mean", [](Moments& a) { a.moments.mean = nullptr; }, {"mean", "null"}},
       {"no m2", [](Moments& a) { a.moments.m2 = nullptr; }, {"m2", "null"}},
       {"unaligned", [](Moments& a) { a.moments.mean = misaligned(a.moments.mean); }, {"mean", "align"}}});
  using Normalize = popnorm_normalize_args;
  expect_refusals<Normalize>(scene, "normalize", scene.normalize(), popnorm_normalize,
                             {{"null x", [](Normalize& a) { a.x = nullptr; }, {"\\bx\\b", "null"}},
                              {"null y", [](Normalize& a) { a.y = nullptr; }, {"\\by\\b", "null"}},
                              {"unaligned y", [](Normalize& a) { a.y = misaligned(a.y); }, {"\\by\\b", "align"}}});
  using Reduce = popnorm_backward_reduce_args;
  expect_refusals<Reduce>(
      scene, "backward_reduce", scene.backward_reduce(), popnorm_backward_reduce,
      {{"null x", [](Reduce& a) { a.x = nullptr; }, {"\\bx\\b", "null"}},
       {"null dy", [](Reduce& a) { a.dy = nullptr; }, {"\\bdy\\b", "null"}},
       {"null sum_dy", [](Reduce& a) { a.sum_dy = nullptr; }, {"sum_dy", "null"}},
       {"null sum_dy_xhat", [](Reduce& a) { a.sum_dy_xhat = nullptr; }, {"sum_dy_xhat", "null"}},
       {"unaligned sum_dy", [](Reduce& a) { a.sum_dy = misaligned(a.sum_dy); }, {"sum_dy", "align"}}});
  using Apply = popnorm_backward_apply_args;
  expect_refusals<Apply>(scene, "backward_apply", scene.backward_apply(), popnorm_backward_apply,
                         {{"null x", [](Apply& a) { a.x = nullptr; }, {"\\bx\\b", "null"}},
                          {"null dy", [](Apply& a) { a.dy = nullptr; }, {"\\bdy\\b", "null"}},
                          {"null dx", [](Apply& a) { a.dx = nullptr; }, {"\\bdx\\b", "null"}},
                          {"null sum_dy", [](Apply& a) { a.sum_dy = nullptr; }, {"sum_dy", "null"}},
                          {"null sum_dy_xhat", [](Apply& a) { a.sum_dy_xhat = nullptr; }, {"sum_dy_xhat", "null"}}});
}

TEST(Combine, RefusesBadArguments) {
  using Args = popnorm_combine_args;
  Scene scene;
  Array negative(POPNORM_F64, Scene::kC, Placement::ends_at_guard);
  negative.assign(std::vector<double>{-7, 1, 1});
  std::vector<popnorm_moment_arrays> parts(2, scene.parts_in());
  const auto with_part = [&](auto spoil) {
    return [&, spoil](Args& a) {
      parts.assign(2, scene.parts_in());
      spoil(parts[1]);
      a.parts = parts.data();
    };
  };
  expect_refusals<Args>(
      scene, "combine", scene.combine(), popnorm_combine,
      {{"count", [](Args& a) { a.count = -1; }, {"count is -1"}},
       {"null parts", [](Args& a) { a.parts = nullptr; }, {"parts", "null"}},
       {"null output", [](Args& a) { a.moments.mean = nullptr; }, {"moments", "mean", "null"}},
       {"null in a part", with_part([](popnorm_moment_arrays& m) { m.mean = nullptr; }), {"parts", "mean", "null"}},
       {"negative weight",
        with_part([&](popnorm_moment_arrays& m) { m.weight = negative.doubles(); }),
        {"weight", "-7"}},
       {"negative m2", with_part([&](popnorm_moment_arrays& m) { m.m2 = negative.doubles(); }), {"m2", "-7"}},
       {"outputs overlap", [](Args& a) { a.moments.mean = a.moments.weight + 1; }, {"overlap"}},
       {"a part overlaps an output",
        with_part([&](popnorm_moment_arrays& m) { m.m2 = scene.weight.doubles(); }),
        {"overlap"}},
       {"the list overlaps an output",
        [&](Args& a) {
          parts.assign(2, scene.parts_in());
          a.parts = parts.data();
          a.moments.m2 = reinterpret_cast<double*>(parts.data());
        },
        {"parts", "overlap"}}});
}

// ---------------------------------------------------------------------------------------------------- messages, status

TEST(Status, HasANameForEveryNumber) {
  EXPECT_STREQ(popnorm_status_string(POPNORM_SUCCESS), "POPNORM_SUCCESS");
  EXPECT_STREQ(popnorm_status_string(POPNORM_INVALID), "POPNORM_INVALID");
  EXPECT_STREQ(popnorm_status_string(POPNORM_UNSUPPORTED), "POPNORM_UNSUPPORTED");
  EXPECT_STREQ(popnorm_status_string(POPNORM_OUT_OF_MEMORY), "POPNORM_OUT_OF_MEMORY");
  EXPECT_STREQ(popnorm_status_string(POPNORM_INTERNAL), "POPNORM_INTERNAL");
  for (const int number : {-1, 5, 1 << 20}) {
    EXPECT_STREQ(popnorm_status_string(static_cast<popnorm_status>(number)), "unknown popnorm_status");
  }
}

TEST(Status, TheWrapperThrowsStatusAndMessage) {
  Scene scene;
  popnorm_forward_args args = scene.forward_batch();
  args.update.momentum = 3;
  try {
    scene.plan.forward(args);
    FAIL() << "not thrown";
  } catch (const popnorm::error& e) {
    EXPECT_EQ(e.status(), POPNORM_INVALID);
    EXPECT_NE(std::string(e.what()).find("momentum is 3"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace popnorm_test
