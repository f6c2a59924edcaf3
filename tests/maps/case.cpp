#include "maps/case.hpp"

#include <array>
#include <cmath>

#include "support/executors.hpp"

namespace popnorm_test {

namespace reference = popnorm::reference;

namespace {

std::size_t size(std::int64_t i) { return static_cast<std::size_t>(i); }

std::int64_t ids_of(const popnorm_map& map, std::int64_t n) {
  switch (map.kind) {
    case POPNORM_WHOLE:
      return 1;
    case POPNORM_CONTIGUOUS:
      return (n + map.k - 1) / map.k;
    case POPNORM_PER_SAMPLE:
      return n;
    default:
      return map.k;
  }
}

// Ids of a closed form, or drawn ones.
std::vector<std::int32_t> ids(const popnorm_map& map, std::int64_t n, Random& random) {
  std::vector<std::int32_t> result;
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t id = 0;
    if (map.kind == POPNORM_CONTIGUOUS) id = i / map.k;
    if (map.kind == POPNORM_STRIDED) id = i % map.k;
    if (map.kind == POPNORM_PER_SAMPLE) id = i;
    if (map.kind == POPNORM_LABELS && map.k > 1) id = random.below(map.k);
    result.push_back(static_cast<std::int32_t>(id));
  }
  return result;
}

popnorm_options options_of(const Route& route) {
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.isa = route.isa;
  options.schedule = route.schedule;
  options.stores = route.stores;
  options.executor = route.executor;
  return options;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const MapSet& m) {
  static constexpr const char* kinds[] = {"whole", "contiguous", "strided", "per_sample", "labels"};
  static constexpr const char* weights[] = {"unweighted", "weights per sample", "weights per position", "lengths"};
  static constexpr const char* statistics[] = {"batch", "given", "blend", "renorm"};
  const auto map = [&](const char* name, const popnorm_map& p) {
    out << name << ' ' << kinds[p.kind] << '(' << p.k << ") ";
  };
  map("groups", m.group);
  map("slots", m.slot);
  map("affine", m.affine);
  static constexpr const char* activations[] = {"", ", relu", ", leaky relu"};
  return out << weights[m.weights] << ", " << statistics[m.statistics] << (m.one_array ? ", one array of labels" : "")
             << (m.residual ? ", residual" : "") << activations[m.activation];
}

popnorm_map random_map(Random& random, std::int64_t n) {
  switch (random.below(6)) {
    case 0:
      return {POPNORM_WHOLE, 0};
    case 1:
      return {POPNORM_CONTIGUOUS, 1 + random.below(n + 2)};
    case 2:
      return {POPNORM_STRIDED, 1 + random.below(9)};
    case 3:
      return {POPNORM_PER_SAMPLE, 0};
    case 4:
      return {POPNORM_LABELS, 1 + random.below(5)};
    default:
      return {POPNORM_LABELS, 1 + random.below(40)};
  }
}

// A source that is blended needs a group's samples to have one slot: then slots are a function of groups.
MapSet random_maps(Random& random, std::int64_t n) {
  MapSet m;
  m.group = random_map(random, n);
  m.affine = random.coin() ? random_map(random, n) : popnorm_map{POPNORM_WHOLE, 0};
  m.weights = random.coin() ? POPNORM_UNWEIGHTED
                            : random.pick({POPNORM_WEIGHTS_PER_SAMPLE, POPNORM_WEIGHTS_PER_POSITION, POPNORM_LENGTHS});
  m.statistics = random.pick({POPNORM_BATCH, POPNORM_BATCH, POPNORM_GIVEN, POPNORM_BLEND, POPNORM_RENORM});
  const bool blended = m.statistics == POPNORM_BLEND || m.statistics == POPNORM_RENORM;
  if (blended)
    m.slot = random.coin() ? m.group : popnorm_map{POPNORM_LABELS, 1 + random.below(4)};
  else
    m.slot = random_map(random, n);
  m.one_array = random.below(4) == 0 && (!blended || m.group.kind == POPNORM_LABELS || m.slot.kind != POPNORM_LABELS);
  return m;
}

bool needs_one_slot(const MapSet& m) { return m.statistics == POPNORM_BLEND || m.statistics == POPNORM_RENORM; }

void add_random_fusion(Random& random, MapSet& m) {
  m.activation = random.pick({POPNORM_IDENTITY, POPNORM_RELU, POPNORM_RELU, POPNORM_LEAKY_RELU});
  m.slope = random.pick({0.01, -0.5, 2.0});
  m.residual = m.activation == POPNORM_IDENTITY || random.coin();
}

void expect_same(const MapForward& a, const MapForward& b) {
  EXPECT_TRUE(same_bits(a.y, b.y)) << "y";
  EXPECT_TRUE(same_bits(a.saved_mean, b.saved_mean)) << "saved_mean";
  EXPECT_TRUE(same_bits(a.saved_invstd, b.saved_invstd)) << "saved_invstd";
  EXPECT_TRUE(same_bits(a.weight, b.weight) && same_bits(a.mean, b.mean) && same_bits(a.m2, b.m2)) << "moments";
}

void expect_same(const MapBackward& a, const MapBackward& b) {
  EXPECT_TRUE(same_bits(a.dx, b.dx)) << "dx";
  EXPECT_TRUE(same_bits(a.dscale, b.dscale)) << "dscale";
  EXPECT_TRUE(same_bits(a.dshift, b.dshift)) << "dshift";
  EXPECT_TRUE(same_bits(a.dresidual, b.dresidual)) << "dresidual";
}

Configuration random_configuration(Random& random) {
  Configuration k;
  k.layout = random.coin() ? POPNORM_NCHW : POPNORM_NHWC;
  const auto shape = random.pick({std::array<std::int64_t, 3>{1, 3, 5},
                                  {7, 5, 1},
                                  {61, 8, 1},
                                  {45, 4, 1},
                                  {31, 2, 1},
                                  {40, 64, 1},
                                  {400, 3, 1},
                                  {33, 17, 4},
                                  {24, 6, 49},
                                  {9, 33, 16},
                                  {5, 2, 700},
                                  {3, 2, 5000},
                                  {50, 70, 3},
                                  {17, 1, 30}});
  k.n = shape[0];
  k.c = shape[1];
  k.s = shape[2];
  k.storage = random.pick({POPNORM_F32, POPNORM_F64, POPNORM_BF16, POPNORM_F16});
  k.parameters = random.coin() ? POPNORM_F32 : POPNORM_F64;
  k.statistics = random.coin() ? POPNORM_F32 : POPNORM_F64;
  const auto spacing = [&] {
    return random.coin() ? Spacing::packed
                         : random.pick({Spacing::channel_slice, Spacing::padded_rows, Spacing::padded_samples});
  };
  k.x = spacing();
  k.y = spacing();
  k.dy = spacing();
  k.dx = spacing();
  k.where = random.coin() ? Placement::ends_at_guard : Placement::begins_at_guard;
  k.offset = random.below(5);
  return k;
}

Configuration random_aligned(Random& random) {
  Configuration k;
  k.layout = random.coin() ? POPNORM_NCHW : POPNORM_NHWC;
  const auto shape = random.pick(
      {std::array<std::int64_t, 3>{12, 64, 16}, {20, 128, 4}, {6, 24, 64}, {200, 32, 2}, {70, 8, 49}, {3, 16, 1024}});
  k.n = shape[0];
  k.c = shape[1];
  k.s = shape[2];
  k.storage = random.pick({POPNORM_F32, POPNORM_BF16, POPNORM_F16});
  k.parameters = random.coin() ? POPNORM_F32 : POPNORM_F64;
  k.statistics = random.coin() ? POPNORM_F32 : POPNORM_F64;
  k.where = Placement::begins_at_guard;
  return k;
}

popnorm_problem MapCase::problem_of(const Configuration& k, const MapSet& maps) {
  popnorm_problem p = popnorm::problem(k.layout, k.n, k.c, k.s, k.epsilon);
  p.storage = k.storage;
  p.parameters = k.parameters;
  p.statistics = k.statistics;
  p.x = Geometry(k.layout, k.n, k.c, k.s, k.x).strides;
  p.y = Geometry(k.layout, k.n, k.c, k.s, k.y).strides;
  p.dy = Geometry(k.layout, k.n, k.c, k.s, k.dy).strides;
  p.dx = Geometry(k.layout, k.n, k.c, k.s, k.dx).strides;
  p.norm_group = maps.group;
  p.population_slot = maps.slot;
  p.affine_slot = maps.affine;
  p.weights = maps.weights;
  p.activation = maps.activation;
  p.slope = maps.slope;
  p.adds_residual = maps.residual ? 1 : 0;
  p.residual = p.dx;
  p.dresidual = p.dy;
  return p;
}

MapCase::MapCase(const Configuration& k, const MapSet& maps, bool one_slot, Random& random)
    : x({k.layout, k.n, k.c, k.s, k.x}, k.storage, k.where, k.offset),
      dy({k.layout, k.n, k.c, k.s, k.dy}, k.storage, k.where, k.offset),
      residual({k.layout, k.n, k.c, k.s, k.dx}, k.storage, k.where, k.offset),
      scale(k.parameters, ids_of(maps.affine, k.n) * k.c, k.where),
      shift(k.parameters, ids_of(maps.affine, k.n) * k.c, k.where),
      given_mean(k.statistics, ids_of(maps.slot, k.n) * k.c, k.where),
      given_variance(k.statistics, ids_of(maps.slot, k.n) * k.c, k.where),
      k_(k),
      maps_(maps),
      problem_(problem_of(k, maps)),
      reserve_(popnorm::plan(problem_).info().reserve_bytes, 64, k.where) {
  draw(random, one_slot);
  oracle_ = std::make_unique<Oracle>(meaning_, x_values, dy_values);
}

void MapCase::draw(Random& random, bool one_slot) {
  const Configuration& k = k_;
  Meaning& m = meaning_;
  m = {};
  m.n = k.n;
  m.c = k.c;
  m.s = k.s;
  m.groups = ids_of(maps_.group, k.n);
  m.slots = ids_of(maps_.slot, k.n);
  m.affine_slots = ids_of(maps_.affine, k.n);
  m.statistics = maps_.statistics;
  m.epsilon = k.epsilon;
  m.share = random.pick({0.0, 0.25, 0.7, 1.0});
  m.renorm_r = random.pick({1.0, 1.5, 3.0});
  m.renorm_d = random.pick({0.0, 0.5, 5.0});
  m.storage = arithmetic_of(k.storage);
  m.group = ids(maps_.group, k.n, random);
  m.slot = ids(maps_.slot, k.n, random);
  m.affine = ids(maps_.affine, k.n, random);
  if (one_slot && maps_.slot.kind == POPNORM_LABELS)
    for (std::int64_t n = 0; n < k.n; ++n)
      m.slot[size(n)] = static_cast<std::int32_t>((m.group[size(n)] * 7 + 1) % maps_.slot.k);
  if (maps_.one_scale && maps_.affine.kind == POPNORM_LABELS)
    for (std::int64_t n = 0; n < k.n; ++n)
      m.affine[size(n)] = static_cast<std::int32_t>((m.group[size(n)] * 5 + 2) % maps_.affine.k);
  if (maps_.one_array) {
    std::int64_t smallest = std::numeric_limits<std::int32_t>::max();
    for (const popnorm_map& map : {maps_.group, maps_.slot, maps_.affine})
      if (map.kind == POPNORM_LABELS) smallest = std::min(smallest, map.k);
    const std::vector<std::int32_t> labels = ids({POPNORM_LABELS, smallest}, k.n, random);
    if (maps_.group.kind == POPNORM_LABELS) m.group = labels;
    if (maps_.slot.kind == POPNORM_LABELS) m.slot = labels;
    if (maps_.affine.kind == POPNORM_LABELS) m.affine = labels;
  }
  group = m.group;
  slot = m.slot;
  affine = m.affine;

  m.weight.assign(size(k.n * k.s), 1);
  const auto weight_of = [&] { return random.below(4) == 0 ? 0.0 : random.pick({0.5, 1.0, 3.0, 0.1}); };
  for (std::int64_t n = 0; n < k.n; ++n) {
    const double of_sample = stored(POPNORM_F32, weight_of());
    const std::int64_t length = random.below(k.s + 1);
    if (maps_.weights == POPNORM_WEIGHTS_PER_SAMPLE) weights.push_back(static_cast<float>(of_sample));
    if (maps_.weights == POPNORM_LENGTHS) lengths.push_back(length);
    for (std::int64_t s = 0; s < k.s; ++s) {
      double& w = m.weight[size(n * k.s + s)];
      if (maps_.weights == POPNORM_WEIGHTS_PER_SAMPLE) w = of_sample;
      if (maps_.weights == POPNORM_LENGTHS) w = s < length ? 1 : 0;
      if (maps_.weights == POPNORM_WEIGHTS_PER_POSITION) {
        w = stored(POPNORM_F32, weight_of());
        weights.push_back(static_cast<float>(w));
      }
    }
  }

  // Groups differ in mean and spread, and absent elements hold what must never be read.
  const double absent = std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t c = 0; c < k.c; ++c)
    for (std::int64_t n = 0; n < k.n; ++n)
      for (std::int64_t s = 0; s < k.s; ++s) {
        const bool there = m.weight[size(n * k.s + s)] != 0;
        const double mean = 2.5 * static_cast<double>(m.group[size(n)] % 5) - 3 + static_cast<double>(c % 3);
        const double spread = 0.5 + static_cast<double>(m.group[size(n)] % 3);
        const double value = mean + spread * random.normal(), gradient = 0.3 + random.normal();
        x_values.push_back(there ? stored(k.storage, value) : absent);
        dy_values.push_back(there ? stored(k.storage, gradient) : absent);
      }
  x.assign_by_channel(x_values);
  dy.assign_by_channel(dy_values);
  for (std::int64_t i = 0; i < scale.count(); ++i) {
    scale.set(i, random.below(6) == 0 ? 0 : random.uniform(-2, 2));
    shift.set(i, random.normal());
  }
  m.scale = scale.values();
  m.shift = shift.values();
  for (std::int64_t i = 0; i < given_mean.count(); ++i) {
    given_mean.set(i, random.uniform(-3, 4));
    given_variance.set(i, random.uniform(0.2, 6));
  }
  m.given_mean = given_mean.values();
  m.given_variance = given_variance.values();
  // Where a residual cancels what is normalized, or is all that there is, signs are decided by the last bit.
  if (maps_.residual) {
    for (const double value : x_values)
      residual_values.push_back(std::isnan(value) ? absent
                                                  : stored(k.storage, random.pick({0.0, 1.0, -1.0}) + random.normal()));
    residual.assign_by_channel(residual_values);
  }
  for (Array* input : {static_cast<Array*>(&x), static_cast<Array*>(&dy), static_cast<Array*>(&residual), &scale,
                       &shift, &given_mean, &given_variance})
    input->buffer().make_read_only();
}

void MapCase::take(const std::vector<double>& x_by_channel, const std::vector<double>& dy_by_channel) {
  x_values = x_by_channel;
  dy_values = dy_by_channel;
  for (Tensor* tensor : {&x, &dy}) tensor->buffer().make_writable();
  x.assign_by_channel(x_values);
  dy.assign_by_channel(dy_values);
  oracle_ = std::make_unique<Oracle>(meaning_, x_values, dy_values);
}

popnorm_batch MapCase::batch() const {
  popnorm_batch b = POPNORM_BATCH_INIT;
  const std::int32_t* labels = nullptr;
  const auto take = [&](const popnorm_map& map, const std::vector<std::int32_t>& own) -> const std::int32_t* {
    if (map.kind != POPNORM_LABELS) return nullptr;
    if (labels == nullptr || !maps_.one_array) labels = own.data();
    return labels;
  };
  b.norm_group = take(maps_.group, group);
  b.population_slot = take(maps_.slot, slot);
  b.affine_slot = take(maps_.affine, affine);
  if (maps_.weights == POPNORM_LENGTHS)
    b.weights = lengths.data();
  else if (maps_.weights != POPNORM_UNWEIGHTED)
    b.weights = weights.data();
  return b;
}

popnorm_source MapCase::source() const {
  popnorm_source s = POPNORM_SOURCE_INIT;
  s.statistics = maps_.statistics;
  s.share = meaning_.share;
  s.renorm_r = meaning_.renorm_r;
  s.renorm_d = meaning_.renorm_d;
  if (maps_.statistics != POPNORM_BATCH) {
    s.mean = given_mean.data();
    s.variance = given_variance.data();
  }
  return s;
}

MapForward MapCase::forward(const Route& route, popnorm::population* fed) {
  const popnorm::plan plan(problem_, options_of(route));
  const Meaning& m = meaning_;
  GuardedBuffer workspace(plan.info().workspace_bytes, 64, k_.where);
  Tensor y = tensor(k_.y);
  Array saved_mean(k_.statistics, m.rows() * m.c, k_.where), saved_invstd(k_.statistics, m.rows() * m.c, k_.where);
  Array weight(POPNORM_F64, m.groups * m.c, k_.where), mean(POPNORM_F64, m.groups * m.c, k_.where),
      m2(POPNORM_F64, m.groups * m.c, k_.where);
  workspace.poison();
  reserve_.poison();
  popnorm_forward_args a = POPNORM_FORWARD_ARGS_INIT;
  a.x = x.data();
  a.y = y.data();
  a.scale = scale.data();
  a.shift = shift.data();
  a.batch = batch();
  a.source = source();
  a.saved_mean = saved_mean.data();
  a.saved_invstd = saved_invstd.data();
  if (m.statistics != POPNORM_GIVEN) a.moments = {weight.doubles(), mean.doubles(), m2.doubles()};
  if (fed != nullptr) {
    a.update.population = fed->data();
    a.update.population_bytes = fed->size();
    a.update.feed = POPNORM_FEED_MERGE;
  }
  a.reserve = reserve_.data();
  a.reserve_bytes = reserve_.size();
  a.workspace = workspace.data();
  a.workspace_bytes = workspace.size();
  if (maps_.residual) a.residual = residual.data();
  plan.forward(a);
  EXPECT_TRUE(workspace.margins_intact() && reserve_.margins_intact() && y.buffer().margins_intact());
  EXPECT_TRUE(y.gaps_intact());
  MapForward f{y.by_channel(), saved_mean.values(), saved_invstd.values(), {}, {}, {}};
  if (m.statistics != POPNORM_GIVEN) {
    f.weight = weight.values();
    f.mean = mean.values();
    f.m2 = m2.values();
  }
  return f;
}

MapBackward MapCase::backward(const Route& route) {
  const popnorm::plan plan(problem_, options_of(route));
  const Meaning& m = meaning_;
  GuardedBuffer workspace(plan.info().workspace_bytes, 64, k_.where);
  Tensor dx = tensor(k_.dx);
  Array dscale(k_.parameters, m.affine_slots * m.c, k_.where), dshift(k_.parameters, m.affine_slots * m.c, k_.where);
  workspace.poison();
  popnorm_backward_args a = POPNORM_BACKWARD_ARGS_INIT;
  a.x = x.data();
  a.dy = dy.data();
  a.batch = batch();
  a.dx = dx.data();
  a.dscale = dscale.data();
  a.dshift = dshift.data();
  a.reserve = reserve_.data();
  a.reserve_bytes = reserve_.size();
  a.workspace = workspace.data();
  a.workspace_bytes = workspace.size();
  Tensor dresidual = tensor(k_.dy);
  if (maps_.residual) a.dresidual = dresidual.data();
  plan.backward(a);
  EXPECT_TRUE(workspace.margins_intact() && dx.buffer().margins_intact() && dscale.buffer().margins_intact());
  EXPECT_TRUE(dx.gaps_intact() && dresidual.buffer().margins_intact() && dresidual.gaps_intact());
  return {dx.by_channel(), dscale.values(), dshift.values(),
          maps_.residual ? dresidual.by_channel() : std::vector<double>{}};
}

MapDoubleBackward MapCase::double_backward(const Route& route, const Cotangents& cotangents) {
  const popnorm::plan plan(problem_, options_of(route));
  const Meaning& m = meaning_;
  GuardedBuffer workspace(plan.info().double_backward_workspace_bytes, 64, k_.where);
  Tensor grad_x = tensor(k_.y);
  Tensor grad_dy = tensor(k_.dx);
  Array grad_scale(k_.parameters, m.affine_slots * m.c, k_.where);
  workspace.poison();
  popnorm_double_backward_args a = POPNORM_DOUBLE_BACKWARD_ARGS_INIT;
  const auto or_null = [](const Array* array) { return array != nullptr ? array->data() : nullptr; };
  a.x = x.data();
  a.dy = dy.data();
  a.v = or_null(cotangents.v);
  a.v_scale = or_null(cotangents.scale);
  a.v_shift = or_null(cotangents.shift);
  a.batch = batch();
  a.reserve = reserve_.data();
  a.reserve_bytes = reserve_.size();
  a.grad_x = grad_x.data();
  a.grad_dy = grad_dy.data();
  a.grad_scale = grad_scale.data();
  a.workspace = workspace.data();
  a.workspace_bytes = workspace.size();
  plan.double_backward(a);
  EXPECT_TRUE(workspace.margins_intact() && grad_x.buffer().margins_intact() && grad_dy.buffer().margins_intact());
  EXPECT_TRUE(grad_x.gaps_intact() && grad_dy.gaps_intact());
  return {grad_x.by_channel(), grad_dy.by_channel(), grad_scale.values()};
}

void MapCase::run_operations(const Route& route, MapForward& forward, MapBackward& backward) {
  const popnorm::plan plan(problem_, options_of(route));
  const Meaning& m = meaning_;
  popnorm::buffer workspace = plan.make_workspace(), reserve = plan.make_reserve();
  const auto with_workspace = [&](auto& args) {
    args.batch = batch();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
  };
  forward.weight.resize(size(m.groups * m.c));
  forward.mean.resize(size(m.groups * m.c));
  forward.m2.resize(size(m.groups * m.c));
  const popnorm_moment_arrays arrays{forward.weight.data(), forward.mean.data(), forward.m2.data()};
  popnorm_finalize_args finalize = POPNORM_FINALIZE_ARGS_INIT;
  if (m.statistics != POPNORM_GIVEN) {
    popnorm_moments_args moments = POPNORM_MOMENTS_ARGS_INIT;
    with_workspace(moments);
    moments.x = x.data();
    moments.moments = arrays;
    plan.moments(moments);
    finalize.moments = arrays;
  }
  std::vector<std::int32_t> group_slot(size(m.groups));
  for (std::int64_t n = m.n - 1; n >= 0; --n) group_slot[size(m.group[size(n)])] = m.slot[size(n)];
  const bool blended = m.statistics == POPNORM_BLEND || m.statistics == POPNORM_RENORM;
  if (blended && m.slots > 1) finalize.group_slot = group_slot.data();
  Array saved_mean(k_.statistics, m.rows() * m.c, k_.where), saved_invstd(k_.statistics, m.rows() * m.c, k_.where);
  finalize.scale = scale.data();
  finalize.shift = shift.data();
  finalize.source = source();
  finalize.saved_mean = saved_mean.data();
  finalize.saved_invstd = saved_invstd.data();
  finalize.reserve = reserve.data();
  finalize.reserve_bytes = reserve.size();
  plan.finalize(finalize);
  Tensor y = tensor(k_.y);
  popnorm_normalize_args normalize = POPNORM_NORMALIZE_ARGS_INIT;
  with_workspace(normalize);
  normalize.x = x.data();
  normalize.y = y.data();
  normalize.reserve = reserve.data();
  normalize.reserve_bytes = reserve.size();
  if (maps_.residual) normalize.residual = residual.data();
  plan.normalize(normalize);
  forward.y = y.by_channel();
  forward.saved_mean = saved_mean.values();
  forward.saved_invstd = saved_invstd.values();
  if (m.statistics == POPNORM_GIVEN) forward.weight = forward.mean = forward.m2 = {};

  std::vector<double> sum_dy(size(m.rows() * m.c)), sum_dy_xhat(size(m.rows() * m.c));
  Array dscale(k_.parameters, m.affine_slots * m.c, k_.where), dshift(k_.parameters, m.affine_slots * m.c, k_.where);
  popnorm_backward_reduce_args reduce = POPNORM_BACKWARD_REDUCE_ARGS_INIT;
  with_workspace(reduce);
  reduce.x = x.data();
  reduce.dy = dy.data();
  reduce.reserve = reserve.data();
  reduce.reserve_bytes = reserve.size();
  reduce.sum_dy = sum_dy.data();
  reduce.sum_dy_xhat = sum_dy_xhat.data();
  reduce.dscale = dscale.data();
  reduce.dshift = dshift.data();
  plan.backward_reduce(reduce);
  Tensor dx = tensor(k_.dx);
  popnorm_backward_apply_args apply = POPNORM_BACKWARD_APPLY_ARGS_INIT;
  with_workspace(apply);
  apply.x = x.data();
  apply.dy = dy.data();
  apply.dx = dx.data();
  apply.reserve = reserve.data();
  apply.reserve_bytes = reserve.size();
  apply.sum_dy = sum_dy.data();
  apply.sum_dy_xhat = sum_dy_xhat.data();
  Tensor dresidual = tensor(k_.dy);
  if (maps_.residual) apply.dresidual = dresidual.data();
  plan.backward_apply(apply);
  backward = {dx.by_channel(), dscale.values(), dshift.values(),
              maps_.residual ? dresidual.by_channel() : std::vector<double>{}};
}

void MapCase::expect_same_by_every_route(const MapForward& f, const MapBackward& b, Random& random) {
  const std::vector<Route> routes = forced_routes();
  ShuffledExecutor executor(static_cast<int>(2 + random.below(6)));
  const popnorm_executor interface = executor.interface();
  for (int r = 0; r < (on_cuda() ? 1 : 4); ++r) {
    Route route = routes[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(routes.size())))];
    if (r % 2 == 1) route.executor = &interface;
    SCOPED_TRACE(testing::Message() << route);
    expect_same(forward(route), f);
    expect_same(backward(route), b);
  }
  MapForward parts;
  MapBackward gradients;
  run_operations({}, parts, gradients);
  SCOPED_TRACE("by the six operations");
  expect_same(parts, f);
  expect_same(gradients, b);
}

void MapCase::expect_promises(const MapForward& f, const MapBackward& b) const {
  const Meaning& m = meaning_;
  const auto promise = [&](popnorm_type type, std::int64_t count, const auto& exact_at) {
    Promise p;
    p.type = type;
    const reference::Format& format = format_of(type);
    for (std::int64_t i = 0; i < count; ++i) {
      const Exact e = exact_at(i);
      p.add(e.value, reference::rounded(e.bound, e.value, format));
    }
    return p;
  };
  const std::int64_t elements = m.c * m.n * m.s;
  const auto per_channel = size(m.n * m.s);
  const auto place = [&](std::int64_t i, const auto& of) { return of(i / (m.n * m.s), i / m.s % m.n, i % m.s); };
  EXPECT_TRUE(within(
      promise(k_.storage, elements,
              [&](std::int64_t i) { return place(i, [&](auto c, auto n, auto s) { return oracle_->y(c, n, s); }); }),
      f.y, per_channel))
      << "y";
  EXPECT_TRUE(within(
      promise(k_.storage, elements,
              [&](std::int64_t i) { return place(i, [&](auto c, auto n, auto s) { return oracle_->dx(c, n, s); }); }),
      b.dx, per_channel))
      << "dx";
  EXPECT_TRUE(within(
      promise(k_.parameters, m.affine_slots * m.c, [&](std::int64_t i) { return oracle_->dscale(i / m.c, i % m.c); }),
      b.dscale))
      << "dscale";
  EXPECT_TRUE(within(
      promise(k_.parameters, m.affine_slots * m.c, [&](std::int64_t i) { return oracle_->dshift(i / m.c, i % m.c); }),
      b.dshift))
      << "dshift";
  if (m.statistics == POPNORM_GIVEN) return;
  const auto of_group = [&](std::int64_t i) {
    const Oracle::Row& r = oracle_->group(i / m.c, i % m.c);
    const Real variance = r.weight > 0 ? r.m2 / r.weight : 0;
    return std::pair{r, reference::Bounds(m.storage, {r.mean, variance, 0}, {})};
  };
  EXPECT_TRUE(within(promise(POPNORM_F64, m.groups * m.c,
                             [&](std::int64_t i) {
                               const auto [r, bounds] = of_group(i);
                               return Exact{r.mean, bounds.mean(reference::kF64)};
                             }),
                     f.mean))
      << "moments.mean";
  EXPECT_TRUE(within(promise(POPNORM_F64, m.groups * m.c,
                             [&](std::int64_t i) {
                               const auto [r, bounds] = of_group(i);
                               return Exact{r.m2, bounds.relative(r.m2, reference::kF64)};
                             }),
                     f.m2))
      << "moments.m2";
  EXPECT_TRUE(within(promise(POPNORM_F64, m.groups * m.c,
                             [&](std::int64_t i) {
                               const Real w = of_group(i).first.weight;
                               return Exact{w, w * static_cast<Real>(m.n * m.s) * 0x1p-53L};
                             }),
                     f.weight))
      << "moments.weight";
}

}  // namespace popnorm_test
