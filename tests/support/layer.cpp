#include "support/layer.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <string>

#include "support/skips.hpp"

namespace popnorm_test {

namespace reference = popnorm::reference;
using reference::Real;

// ---------------------------------------------------------------------------------------------------- printing

std::ostream& operator<<(std::ostream& out, const Configuration& c) {
  out << (c.layout == POPNORM_NCHW ? "NCHW" : "NHWC") << " N=" << c.n << " C=" << c.c << " S=" << c.s << ' '
      << name_of(c.storage) << " (parameters " << name_of(c.parameters) << ", statistics " << name_of(c.statistics)
      << ") epsilon=" << c.epsilon << (c.scale ? "" : " no scale") << (c.shift ? "" : " no shift");
  const auto spacing = [&](const char* what, Spacing kind) {
    if (kind != Spacing::packed) out << ", " << what << ' ' << name_of(kind);
  };
  spacing("x", c.x);
  spacing("y", c.y);
  spacing("dy", c.dy);
  spacing("dx", c.dx);
  if (c.where == Placement::ends_at_guard) return out << ", ends at guard";
  return out << ", begins at guard + " << c.offset;
}

std::ostream& operator<<(std::ostream& out, const Route& r) {
  static constexpr const char* schedules[] = {"auto", "slab", "phases"};
  static constexpr const char* stores[] = {"auto", "ordinary", "streaming"};
  return out << (r.isa == nullptr ? "best" : r.isa) << ", schedule " << schedules[r.schedule] << ", stores "
             << stores[r.stores];
}

bool on_cuda() {
  const char* backend = std::getenv("POPNORM_BACKEND");
  return backend != nullptr && std::strcmp(backend, "cuda") == 0;
}

std::vector<const char*> runnable_tiers() {
  if (on_cuda()) return {nullptr};
  std::vector<const char*> names;
  for (std::int32_t i = 0; i < popnorm_isa_count(); ++i) {
    if (popnorm_isa_available(i) == 1)
      names.push_back(popnorm_isa_name(i));
    else
      skip(std::string("tier ") + popnorm_isa_name(i), "this machine does not run it");
  }
  return names;
}

std::vector<Route> forced_routes() {
  if (on_cuda()) return {Route{}};
  std::vector<Route> routes;
  for (const char* isa : runnable_tiers()) {
    for (const popnorm_schedule schedule : {POPNORM_SCHEDULE_AUTO, POPNORM_SLAB, POPNORM_PHASES}) {
      for (const popnorm_stores stores : {POPNORM_STORES_ORDINARY, POPNORM_STORES_STREAMING}) {
        routes.push_back({isa, schedule, stores, nullptr});
      }
    }
  }
  return routes;
}

// ---------------------------------------------------------------------------------------------------- contents

Content normal(double mean, double deviation) {
  return [=](Random& random, std::int64_t, std::int64_t count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& v : values) v = mean + deviation * random.normal();
    return values;
  };
}

Content constant(double value) { return normal(value, 0); }

Content ordinary_scale() {
  return [](Random& random, std::int64_t channel, std::int64_t count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& v : values) v = channel % 7 == 5 ? 0 : random.uniform(-2, 2);
    return values;
  };
}

Content ordinary() {
  return [](Random& random, std::int64_t channel, std::int64_t count) {
    return normal(random.uniform(-3, 3), random.uniform(0.1, 4))(random, channel, count);
  };
}

// ---------------------------------------------------------------------------------------------------- Layer

Layer::Layer(const Configuration& k, Random& random, const Contents& contents)
    : x({k.layout, k.n, k.c, k.s, k.x}, k.storage, k.where, k.offset),
      dy({k.layout, k.n, k.c, k.s, k.dy}, k.storage, k.where, k.offset),
      scale(k.parameters, k.scale ? k.c : 0, k.where),
      shift(k.parameters, k.shift ? k.c : 0, k.where),
      given_mean(k.statistics, k.c, k.where),
      given_variance(k.statistics, k.c, k.where),
      dscale_before(k.parameters, k.c, k.where),
      dshift_before(k.parameters, k.c, k.where),
      configuration_(k) {
  const auto per_channel = static_cast<std::size_t>(count());
  std::vector<double> all_x, all_dy;
  for (std::int64_t c = 0; c < k.c; ++c) {
    std::vector<double> x_values = contents.x(random, c, count());
    std::vector<double> dy_values = contents.dy(random, c, count());
    for (std::size_t i = 0; i < per_channel; ++i) {
      x_values[i] = stored(k.storage, x_values[i]);
      dy_values[i] = stored(k.storage, dy_values[i]);
    }
    all_x.insert(all_x.end(), x_values.begin(), x_values.end());
    all_dy.insert(all_dy.end(), dy_values.begin(), dy_values.end());

    const reference::Moments m = reference::moments_of(x_values);
    const double mean = static_cast<double>(m.mean);
    const double variance = m.weight == 0 ? 1 : static_cast<double>(m.m2 / m.weight);
    const bool usable = std::isfinite(variance) && (k.statistics == POPNORM_F64 || variance < 1e38);
    given_mean.set(c, usable ? mean + 0.25 * std::sqrt(variance) : 0);
    given_variance.set(c, usable ? 1.5 * variance : 1);
    if (k.scale) scale.set(c, contents.scale(random, c, 1).front());
    if (k.shift) shift.set(c, contents.shift(random, c, 1).front());
    dscale_before.set(c, 10 * random.normal());
    dshift_before.set(c, 10 * random.normal());
    promise(c, POPNORM_BATCH, x_values, dy_values);
    promise(c, POPNORM_GIVEN, x_values, dy_values);
  }
  x.assign_by_channel(all_x);
  dy.assign_by_channel(all_dy);
  for (Array* input :
       {static_cast<Array*>(&x), static_cast<Array*>(&dy), &scale, &shift, &given_mean, &given_variance}) {
    input->buffer().make_read_only();
  }
}

popnorm_problem Layer::problem(Aliasing aliasing) const {
  const Configuration& k = configuration_;
  popnorm_problem p = popnorm::problem(k.layout, k.n, k.c, k.s, k.epsilon);
  p.storage = k.storage;
  p.parameters = k.parameters;
  p.statistics = k.statistics;
  const auto strides = [&](Spacing kind) {
    // Packed tensors exercise the default.
    return kind == Spacing::packed ? popnorm_strides{0, 0} : Geometry(k.layout, k.n, k.c, k.s, kind).strides;
  };
  p.x = strides(k.x);
  p.y = strides(aliasing == Aliasing::y_is_x ? k.x : k.y);
  p.dy = strides(k.dy);
  p.dx = strides(aliasing == Aliasing::dx_is_dy ? k.dy : aliasing == Aliasing::dx_is_x ? k.x : k.dx);
  return p;
}

void Layer::promise(std::int64_t channel, popnorm_statistics source, const std::vector<double>& x_values,
                    const std::vector<double>& dy_values) {
  const Configuration& k = configuration_;
  const reference::Format& storage = format_of(k.storage);
  const reference::Format& statistics_type = format_of(k.statistics);
  const reference::Format& parameters_type = format_of(k.parameters);
  Promises& p = source == POPNORM_BATCH ? batch_ : given_;

  const reference::Moments m = reference::moments_of(x_values);
  const reference::Statistics s =
      source == POPNORM_BATCH
          ? reference::statistics_of(m, k.epsilon)
          : reference::statistics_of(given_mean.get(channel), given_variance.get(channel), k.epsilon);
  const reference::Affine a = {k.scale ? scale.get(channel) : 1, k.shift ? shift.get(channel) : 0};
  const reference::Bounds bounds(arithmetic_of(k.storage), s, a);

  for (Promise* of_statistics : {&p.mean, &p.variance, &p.invstd}) of_statistics->type = k.statistics;
  if (source == POPNORM_BATCH) {
    p.mean.add(s.mean, bounds.mean(statistics_type));
    p.variance.add(s.variance, bounds.relative(s.variance, statistics_type));
    p.exact_mean.type = p.m2.type = POPNORM_F64;
    p.exact_mean.add(m.mean, bounds.mean(reference::kF64));
    p.m2.add(m.m2, bounds.relative(m.m2, reference::kF64));
  } else {
    p.mean.add(s.mean, 0);
    p.variance.add(s.variance, 0);
  }
  p.invstd.add(s.invstd, bounds.relative(s.invstd, statistics_type));

  p.y.type = p.dx.type = p.dx_from_saved.type = k.storage;
  const std::vector<Real> y = reference::forward(x_values, s, a);
  for (std::size_t i = 0; i < y.size(); ++i) p.y.add(y[i], bounds.y(x_values[i], storage));

  // The accuracy of saved statistics is that of their type; rounded to f32 they make even an f64 layer an f32 one.
  const reference::Format& saved_type = k.statistics == POPNORM_F32 ? reference::kF32 : arithmetic_of(k.storage);
  const reference::Bounds from_saved(saved_type, s, a, statistics_type.unit * std::fabs(s.mean) * s.invstd);
  const reference::Sums sums = reference::sums_of(x_values, dy_values, s);
  const std::vector<Real> dx = source == POPNORM_BATCH
                                   ? reference::backward_batch(x_values, dy_values, s, a.scale, sums, m.weight)
                                   : reference::backward_given(dy_values, s, a.scale);
  for (std::size_t i = 0; i < dx.size(); ++i) {
    if (source == POPNORM_BATCH) {
      p.dx.add(dx[i], bounds.dx(x_values[i], dy_values[i], dx[i], sums, m.weight, storage));
      p.dx_from_saved.add(dx[i], from_saved.dx(x_values[i], dy_values[i], dx[i], sums, m.weight, storage));
    } else {
      p.dx.add(dx[i], bounds.dx_given(dy_values[i], dx[i], storage));
      p.dx_from_saved.add(dx[i], from_saved.dx_given(dy_values[i], dx[i], storage));
    }
  }
  for (Promise* gradient : {&p.dscale, &p.dshift, &p.dscale_accumulated, &p.dshift_accumulated, &p.dscale_from_saved}) {
    gradient->type = k.parameters;
  }
  const double dscale_start = dscale_before.get(channel);
  const double dshift_start = dshift_before.get(channel);
  p.dscale.add(sums.dy_xhat, bounds.dscale(sums, 0, parameters_type));
  p.dshift.add(sums.dy, bounds.dshift(sums, 0, parameters_type));
  p.dscale_accumulated.add(dscale_start + sums.dy_xhat, bounds.dscale(sums, dscale_start, parameters_type));
  p.dshift_accumulated.add(dshift_start + sums.dy, bounds.dshift(sums, dshift_start, parameters_type));
  p.dscale_from_saved.add(sums.dy_xhat, from_saved.dscale(sums, 0, parameters_type));
}

// ---------------------------------------------------------------------------------------------------- Runner

namespace {

popnorm_options options_of(const Route& route) {
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.isa = route.isa;
  options.schedule = route.schedule;
  options.stores = route.stores;
  options.executor = route.executor;
  return options;
}

// A writable tensor with the elements of another.
Tensor copy_of(const Tensor& original, const Configuration& k) {
  Tensor copy(original.shape(), original.type(), k.where, k.offset);
  copy.assign_by_channel(original.by_channel());
  return copy;
}

void expect_untouched_elsewhere(const Tensor& t, const char* what) {
  EXPECT_TRUE(t.gaps_intact()) << what << ": written between its elements";
  EXPECT_TRUE(t.buffer().margins_intact()) << what << ": written beside it";
}

void expect_untouched_elsewhere(const Array& a, const char* what) {
  EXPECT_TRUE(a.buffer().margins_intact()) << what << ": written beside it";
}

}  // namespace

Runner::Runner(const Layer& layer, const Route& route, Aliasing aliasing, bool in_place)
    : layer_(layer), aliasing_(aliasing), in_place_(in_place), plan_(layer.problem(aliasing), options_of(route)) {
  if (route.isa != nullptr) {
    EXPECT_STREQ(plan_.info().isa, route.isa);
  }
  const Configuration& k = layer.configuration();
  workspace_ = GuardedBuffer(plan_.info().workspace_bytes, plan_.info().workspace_alignment, k.where);
  reserve_ = GuardedBuffer(plan_.info().reserve_bytes, plan_.info().reserve_alignment, k.where);
}

Forward Runner::forward(popnorm_statistics source, bool training) {
  const Configuration& k = layer_.configuration();
  const bool like_x = aliasing_ == Aliasing::y_is_x;
  const bool in_place = like_x && in_place_;
  Tensor y = in_place ? copy_of(layer_.x, k)
                      : Tensor({k.layout, k.n, k.c, k.s, like_x ? k.x : k.y}, k.storage, k.where, k.offset);
  Array weight(POPNORM_F64, k.c, k.where), mean(POPNORM_F64, k.c, k.where), m2(POPNORM_F64, k.c, k.where);

  popnorm_forward_args args = POPNORM_FORWARD_ARGS_INIT;
  args.x = in_place ? y.data() : layer_.x.data();
  args.y = y.data();
  args.scale = layer_.scale_or_null();
  args.shift = layer_.shift_or_null();
  args.source.statistics = source;
  if (source == POPNORM_GIVEN) {
    args.source.mean = layer_.given_mean.data();
    args.source.variance = layer_.given_variance.data();
  }
  workspace_.poison();
  args.workspace = workspace_.data();
  args.workspace_bytes = workspace_.size();
  if (training) {
    saved_mean_ = Array(k.statistics, k.c, k.where);
    saved_invstd_ = Array(k.statistics, k.c, k.where);
    args.saved_mean = saved_mean_.data();
    args.saved_invstd = saved_invstd_.data();
    if (source == POPNORM_BATCH) args.moments = {weight.doubles(), mean.doubles(), m2.doubles()};
    reserve_.poison();
    args.reserve = reserve_.data();
    args.reserve_bytes = reserve_.size();
    source_ = source;
  }
  plan_.forward(args);

  expect_untouched_elsewhere(y, "y");
  expect_untouched_elsewhere(saved_mean_, "saved_mean");
  expect_untouched_elsewhere(saved_invstd_, "saved_invstd");
  expect_untouched_elsewhere(mean, "moments.mean");
  EXPECT_TRUE(workspace_.margins_intact() && reserve_.margins_intact());
  Forward result;
  result.y = y.by_channel();
  if (training) {
    result.saved_mean = saved_mean_.values();
    result.saved_invstd = saved_invstd_.values();
    if (source == POPNORM_BATCH) {
      result.weight = weight.values();
      result.mean = mean.values();
      result.m2 = m2.values();
    }
  }
  return result;
}

Backward Runner::backward(const Wish& wish) {
  const Configuration& k = layer_.configuration();
  const bool in_dy = aliasing_ == Aliasing::dx_is_dy && in_place_ && wish.dx;
  const bool in_x = aliasing_ == Aliasing::dx_is_x && in_place_ && wish.dx;
  const Spacing spacing = aliasing_ == Aliasing::dx_is_dy ? k.dy : aliasing_ == Aliasing::dx_is_x ? k.x : k.dx;
  Tensor dx = in_dy  ? copy_of(layer_.dy, k)
              : in_x ? copy_of(layer_.x, k)
                     : Tensor({k.layout, k.n, k.c, k.s, spacing}, k.storage, k.where, k.offset);
  Array dscale(k.parameters, k.c, k.where), dshift(k.parameters, k.c, k.where);
  if (wish.accumulate) {
    dscale.assign(layer_.dscale_before.values());
    dshift.assign(layer_.dshift_before.values());
  }

  popnorm_backward_args args = POPNORM_BACKWARD_ARGS_INIT;
  args.x = in_x ? dx.data() : layer_.x.data();
  args.dy = in_dy ? dx.data() : layer_.dy.data();
  args.dx = wish.dx ? dx.data() : nullptr;
  args.dscale = wish.dscale ? dscale.data() : nullptr;
  args.dshift = wish.dshift ? dshift.data() : nullptr;
  args.accumulate = wish.accumulate ? 1 : 0;
  if (wish.from_saved) {
    args.saved_mean = saved_mean_.data();
    args.saved_invstd = saved_invstd_.data();
    args.scale = layer_.scale_or_null();
    args.statistics = source_;
  } else {
    args.reserve = reserve_.data();
    args.reserve_bytes = reserve_.size();
  }
  workspace_.poison();
  args.workspace = workspace_.data();
  args.workspace_bytes = workspace_.size();
  reserve_.make_read_only();
  plan_.backward(args);
  reserve_.make_writable();

  expect_untouched_elsewhere(dx, "dx");
  expect_untouched_elsewhere(dscale, "dscale");
  expect_untouched_elsewhere(dshift, "dshift");
  EXPECT_TRUE(workspace_.margins_intact());
  Backward result;
  if (wish.dx) result.dx = dx.by_channel();
  if (wish.dscale) result.dscale = dscale.values();
  if (wish.dshift) result.dshift = dshift.values();
  return result;
}

void expect_promises(const Layer& layer, Runner& runner, popnorm_statistics source) {
  SCOPED_TRACE(source == POPNORM_BATCH ? "batch statistics" : "given statistics");
  const Promises& p = layer.promises(source);
  const auto per_channel = static_cast<std::size_t>(layer.count());

  const Forward training = runner.forward(source);
  EXPECT_TRUE(within(p.y, training.y, per_channel)) << "y";
  if (layer.count() > 0 || source == POPNORM_GIVEN) {
    EXPECT_TRUE(within(p.mean, training.saved_mean)) << "saved_mean";
    EXPECT_TRUE(within(p.invstd, training.saved_invstd)) << "saved_invstd";
  }
  if (source == POPNORM_BATCH) {
    EXPECT_TRUE(within(p.exact_mean, training.mean)) << "moments.mean";
    EXPECT_TRUE(within(p.m2, training.m2)) << "moments.m2";
    for (const double w : training.weight) EXPECT_EQ(w, static_cast<double>(layer.count()));
  }
  const Forward inference = runner.forward(source, false);
  EXPECT_TRUE(same_bits(training.y, inference.y)) << "y of training and of inference";

  const Backward all = runner.backward();
  EXPECT_TRUE(within(p.dx, all.dx, per_channel)) << "dx";
  EXPECT_TRUE(within(p.dscale, all.dscale)) << "dscale";
  EXPECT_TRUE(within(p.dshift, all.dshift)) << "dshift";
}

}  // namespace popnorm_test
