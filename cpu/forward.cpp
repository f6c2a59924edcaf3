// The stages of moments, finalize, normalize and forward.
#include <cstring>

#include "core/error.hpp"
#include "core/fp_environment.hpp"
#include "core/population.hpp"
#include "core/reserve.hpp"
#include "cpu/call.hpp"
#include "cpu/operations.hpp"
#include "kernels/affine.hpp"
#include "kernels/moments.hpp"

namespace popnorm::cpu {
namespace {

// ---------------------------------------------------------------------------------------------------------- statistics

bool updates(const popnorm_update& u) {
  return u.running_mean != nullptr || u.running_variance != nullptr || u.population != nullptr;
}

MeanVariance given_of(const Problem& p, const popnorm_source& source, std::int64_t slot, std::int64_t c) {
  const std::int64_t i = slot * p.c + c;
  if (source.population != nullptr) return population_statistics(arrays_of(source.population), i, source.estimator);
  return {read(source.mean, p.statistics, i, 0), read(source.variance, p.statistics, i, 1)};
}

// What normalizes a row: of the batch's moments, of a slot, or of both.
Statistics statistics_of(const Problem& p, const popnorm_source& source, const Moments& batch, std::int64_t slot,
                         std::int64_t c) {
  switch (source.statistics) {
    case POPNORM_BATCH:
      return batch_statistics(batch, p.epsilon);
    case POPNORM_GIVEN:
      return given_statistics(given_of(p, source, slot, c), p.epsilon);
    case POPNORM_BLEND:
      return blended_statistics(batch, given_of(p, source, slot, c), source.share, p.epsilon);
    case POPNORM_RENORM:
      return renormalized_statistics(batch, given_of(p, source, slot, c), source.renorm_r, source.renorm_d, p.epsilon);
  }
  return {};
}

// Where statistics go besides into coefficients.
template <class T>
struct Saved {
  ReserveArrays<T, std::byte> reserve;
  void* mean;
  void* invstd;

  void put(const Problem& p, std::int64_t row, std::int64_t c, const Statistics& s,
           const StatisticsRow<T>& rounded) const {
    const std::int64_t i = row * p.c + c;
    if (reserve.weight != nullptr) {
      reserve.weight[i] = s.weight;
      reserve.hi[i] = rounded.hi;
      reserve.lo[i] = rounded.lo;
      reserve.invstd[i] = rounded.invstd;
      reserve.d[i] = round_to<T>(s.d);
      reserve.r2[i] = round_to<T>(s.r2);
    }
    if (mean != nullptr) write(mean, p.statistics, i, s.mean);
    if (invstd != nullptr)
      write(invstd, p.statistics, i,
            p.statistics == POPNORM_F64 ? s.invstd : static_cast<double>(round_saturated<float>(s.invstd)));
  }
};

template <class T>
struct Affine {
  T scale;
  T shift;
};

template <class T>
Affine<T> affine_of(const Problem& p, const void* scale, const void* shift, std::int64_t slot, std::int64_t c) {
  const std::int64_t i = slot * p.c + c;
  return {round_to<T>(read(scale, p.parameters, i, 1)), round_to<T>(read(shift, p.parameters, i, 0))};
}

// Scale and shift of channels [begin, end) into the reserve, all affine slots.
template <class T>
void put_affine(const Problem& p, const void* scale, const void* shift, const ReserveArrays<T, std::byte>& reserve,
                Channels channels) {
  if (reserve.weight == nullptr) return;
  for (std::int64_t slot = 0; slot < p.affine_slot.count; ++slot)
    for (std::int64_t c = channels.begin; c < channels.end; ++c) {
      const Affine<T> a = affine_of<T>(p, scale, shift, slot, c);
      reserve.scale[slot * p.c + c] = a.scale;
      reserve.shift[slot * p.c + c] = a.shift;
    }
}

void put_header(const Problem& p, void* reserve, popnorm_statistics statistics, std::uint64_t labels) {
  if (reserve == nullptr) return;
  const ReserveHeader header = make_reserve_header(p, statistics, labels);
  std::memcpy(reserve, &header, sizeof(header));
}

// What slots have been fed: after all channels are known, since a population takes a batch whole or not at all.
// moments_at(slot*c + channel).
template <class MomentsAt>
void publish_update(const Problem& p, const popnorm_update& u, const MomentsAt& moments_at) {
  if (!updates(u)) return;
  const FpEnvironment environment;
  for (std::int64_t i = 0; i < p.population_slot.count * p.c; ++i) {
    const Moments m = moments_at(i);
    const auto blend = [&](void* running, double now) {
      write(running, p.statistics, i, (1 - u.momentum) * read(running, p.statistics, i, 0) + u.momentum * now);
    };
    if (u.running_mean != nullptr && m.weight > 0) blend(u.running_mean, m.mean);
    if (u.running_variance != nullptr && m.weight > 1) blend(u.running_variance, unbiased_variance(m));
  }
  if (u.population != nullptr) feed_population(u.population, u.feed, u.momentum, moments_at);
}

// ------------------------------------------------------------------------------------------------------------- stages

template <class T>
struct Forward {
  const Plan& plan;
  const Kernels& kernels;
  const void* x;
  void* y;
  const popnorm_batch& batch;
  const ForwardSpace<T>& space;
  const Samples& samples;
  const Partition& groups;
  Stores stores = Stores::ordinary;

  static void reduce(void* context, std::int64_t slot, std::int64_t next, Channels c) {
    const Forward& f = *static_cast<const Forward*>(context);
    const Problem& p = f.plan.problem;
    const Slot s = f.groups[slot];
    const std::int64_t at = slot * p.c + c.begin;
    const MomentsArgs args{Samples::block(s, c),
                           f.samples.template input<T>(f.x, p.x, s, next >= 0 ? f.groups[next] : s, c),
                           f.space.mean + at, f.space.m2 + at};
    if (f.samples.weighted())
      f.kernels.weighted_moments({args, f.samples.weights(s), f.space.weight + at});
    else
      f.kernels.moments(args);
  }

  Moments slot_moments(std::int64_t slot, std::int64_t c) const {
    const std::int64_t i = slot * plan.problem.c + c;
    const double weight = samples.weighted() ? space.weight[i] : static_cast<double>(groups[slot].positions());
    return {weight, space.mean[i], space.m2[i]};
  }

  // A group's slots merged.
  Moments group_moments(std::int64_t row, std::int64_t c) const {
    const std::int64_t slots = groups.slots_of(row);
    if (slots == 0) return {};
    return balanced_tree(
        slots, [&](std::int64_t i) { return slot_moments(groups.slot_of(row, i), c); }, combine);
  }

  // The population slot of a group that has samples; 0 for an empty one.
  std::int64_t slot_of_group(std::int64_t row) const {
    const Problem& p = plan.problem;
    if (p.population_slot.count <= 1 || groups.slots_of(row) == 0) return 0;
    const std::int64_t n = samples.wave().n0 + groups[groups.slot_of(row, 0)].first;
    return id_of(p.population_slot, batch.population_slot, n);
  }

  // What a group's moments update, one group after the other.
  void feed(std::int64_t row, std::int64_t c, const Moments& m) const {
    const std::int64_t i = slot_of_group(row) * plan.problem.c + c;
    const Moments all = combine({space.fed[0][i], space.fed[1][i], space.fed[2][i]}, m);
    space.fed[0][i] = all.weight;
    space.fed[1][i] = all.mean;
    space.fed[2][i] = all.m2;
  }

  void set_row(std::int64_t cell, std::int64_t c, const NormalizeRow<T>& row) const {
    const std::int64_t i = cell * plan.problem.c + c;
    space.row[0][i] = row.hi;
    space.row[1][i] = row.s;
    space.row[2][i] = row.b;
  }

  static void apply(void* context, const Tile& box, Channels c, std::int64_t ahead) {
    const Forward& f = *static_cast<const Forward*>(context);
    const Problem& p = f.plan.problem;
    f.samples.for_each_part(box, [&](std::int64_t n, std::int64_t count, std::int64_t cell, const RowChoice& choice) {
      const T* x = f.samples.template at<T>(f.x, p.x, n, box.s0, c.begin);
      const std::int64_t at = cell * p.c + c.begin;
      const std::int64_t step = p.form == Form::rows ? p.x.row : 1;
      const NormalizeArgs args{{count, box.s1 - box.s0, c.end - c.begin, nullptr},
                               {x, p.x.sample, p.x.row, x + ahead * step},
                               {f.samples.template at<T>(f.y, p.y, n, box.s0, c.begin), p.y.sample, p.y.row},
                               f.space.row[0] + at,
                               f.space.row[1] + at,
                               f.space.row[2] + at,
                               f.stores,
                               choice};
      if (f.samples.weighted())
        f.kernels.weighted_normalize({args, f.samples.weights(n, box.s0)});
      else
        f.kernels.normalize(args);
    });
  }
};

void clear_fed(const Problem& p, double* const* fed) {
  for (int piece = 0; piece < 3; ++piece) std::fill(fed[piece], fed[piece] + p.population_slot.count * p.c, 0.0);
}

auto fed_moments(double* const* fed) {
  return [fed](std::int64_t i) { return Moments{fed[0][i], fed[1][i], fed[2][i]}; };
}

void put_moments(const popnorm_moment_arrays& out, std::int64_t i, const Moments& m) {
  if (out.weight == nullptr) return;
  out.weight[i] = m.weight;
  out.mean[i] = m.mean;
  out.m2[i] = m.m2;
}

template <class T>
struct WholeForward : Forward<T> {
  const popnorm_forward_args& args;
  const Saved<T>& saved;
  bool reduces;

  static void fold(void* context, Channels channels) {
    const WholeForward& f = *static_cast<const WholeForward*>(context);
    const Problem& p = f.plan.problem;
    const Cells& cells = f.samples.cells();
    const Wave& wave = f.samples.wave();
    if (wave.row0 == 0) put_affine(p, f.args.scale, f.args.shift, f.saved.reserve, channels);
    const bool feeds = f.reduces && updates(f.args.update);
    for (std::int64_t row = 0; row < wave.rows; ++row) {
      const std::int64_t of_all = wave.row0 + row;
      const std::int64_t slot = f.reduces ? f.slot_of_group(row) : of_all;
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        const Moments m = f.reduces ? f.group_moments(row, c) : Moments{};
        if (f.reduces) put_moments(f.args.moments, of_all * p.c + c, m);
        if (feeds) f.feed(row, c, m);
        const Statistics s = statistics_of(p, f.args.source, m, slot, c);
        const StatisticsRow<T> rounded = statistics_row<T>(s.mean, s.invstd);
        f.saved.put(p, of_all, c, s, rounded);
        if (cells.by_row())
          f.set_cell(row, c, rounded);
        else
          f.keep(row, c, rounded);
      }
    }
    if (cells.by_row()) return;
    for (std::int64_t cell = 0; cell < cells.count(); ++cell)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) f.set_cell(cell, c, f.kept(cells.row(cell), c));
  }

  void set_cell(std::int64_t cell, std::int64_t c, const StatisticsRow<T>& row) const {
    const Affine<T> a = affine_of<T>(this->plan.problem, args.scale, args.shift, this->samples.cells().affine(cell), c);
    this->set_row(cell, c, normalize_row(row, a.scale, a.shift));
  }

  // Rounded statistics of a row until its cells take them.
  void keep(std::int64_t row, std::int64_t c, const StatisticsRow<T>& s) const {
    const std::int64_t i = row * this->plan.problem.c + c;
    this->space.kept[0][i] = s.hi;
    this->space.kept[1][i] = s.lo;
    this->space.kept[2][i] = s.invstd;
  }
  StatisticsRow<T> kept(std::int64_t row, std::int64_t c) const {
    const std::int64_t i = row * this->plan.problem.c + c;
    return {this->space.kept[0][i], this->space.kept[1][i], this->space.kept[2][i]};
  }
};

}  // namespace

popnorm_status forward(const Plan& plan, const popnorm_forward_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = plan.problem;
    const popnorm_statistics statistics = a.source.statistics;
    const Rows& rows = rows_of(plan, statistics);
    const bool reduces = statistics != POPNORM_GIVEN;
    Arena arena(a.workspace);
    const ForwardSpace<T> space(arena, p, rows, reduces);
    const Saved<T> saved{{static_cast<std::byte*>(a.reserve), p, statistics}, a.saved_mean, a.saved_invstd};
    if (reduces) clear_fed(p, space.fed);
    for (std::int64_t i = 0; i < rows.waves(); ++i) {
      const Wave wave = rows.wave(p, i);
      const Samples samples(plan, a.batch, statistics, wave, space.cells);
      const Partition groups =
          reduces ? partition_of_rows(rows, wave, labelled_rows(p, statistics, a.batch), space.groups) : Partition();
      WholeForward<T> f{{plan, *state_of(plan).kernels, a.x, a.y, a.batch, space, samples, groups}, a, saved, reduces};
      const Placement at = place(plan, wave, groups.slots(), {1, reduces, true});
      f.stores = at.blocking.stores;
      const Stages stages{&f, reduces ? Forward<T>::reduce : nullptr, WholeForward<T>::fold, Forward<T>::apply};
      if (const popnorm_status status = run("forward", plan, at, stages, groups.slots()); status != POPNORM_SUCCESS)
        return status;
    }
    put_header(p, a.reserve, statistics, a.reserve != nullptr ? labels_of(p, statistics, a.batch) : 0);
    if (reduces) publish_update(p, a.update, fed_moments(space.fed));
    return POPNORM_SUCCESS;
  });
}

namespace {

template <class T>
struct MomentsOnly : Forward<T> {
  const popnorm_moments_args& args;

  static void fold(void* context, Channels channels) {
    const MomentsOnly& f = *static_cast<const MomentsOnly*>(context);
    const Wave& wave = f.samples.wave();
    const bool feeds = updates(f.args.update);
    for (std::int64_t row = 0; row < wave.rows; ++row)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        const Moments m = f.group_moments(row, c);
        put_moments(f.args.moments, (wave.row0 + row) * f.plan.problem.c + c, m);
        if (feeds) f.feed(row, c, m);
      }
  }
};

}  // namespace

popnorm_status moments(const Plan& plan, const popnorm_moments_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = plan.problem;
    const Rows& rows = rows_of(plan, POPNORM_BATCH);
    Arena arena(a.workspace);
    const ForwardSpace<T> space(arena, p, rows, true);
    clear_fed(p, space.fed);
    for (std::int64_t i = 0; i < rows.waves(); ++i) {
      const Wave wave = rows.wave(p, i);
      const Samples samples(plan, a.batch, POPNORM_BATCH, wave, space.cells);
      const Partition groups = partition_of_rows(rows, wave, labelled_rows(p, POPNORM_BATCH, a.batch), space.groups);
      MomentsOnly<T> f{{plan, *state_of(plan).kernels, a.x, nullptr, a.batch, space, samples, groups}, a};
      const Placement at = place(plan, wave, groups.slots(), {1, true, false});
      const Stages stages{&f, Forward<T>::reduce, MomentsOnly<T>::fold, nullptr};
      if (const popnorm_status status = run("moments", plan, at, stages, groups.slots()); status != POPNORM_SUCCESS)
        return status;
    }
    publish_update(p, a.update, fed_moments(space.fed));
    return POPNORM_SUCCESS;
  });
}

popnorm_status finalize(const Plan& plan, const popnorm_finalize_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const FpEnvironment environment;
    const Problem& p = plan.problem;
    const popnorm_statistics statistics = a.source.statistics;
    const Saved<T> saved{{static_cast<std::byte*>(a.reserve), p, statistics}, a.saved_mean, a.saved_invstd};
    const auto moments_of = [&](std::int64_t i) {
      return a.moments.weight != nullptr ? Moments{a.moments.weight[i], a.moments.mean[i], a.moments.m2[i]} : Moments{};
    };
    const auto slot_of = [&](std::int64_t row) {
      return statistics == POPNORM_GIVEN ? row : a.group_slot != nullptr ? a.group_slot[row] : 0;
    };
    for (std::int64_t row = 0; row < p.row_map(statistics).count; ++row)
      for (std::int64_t c = 0; c < p.c; ++c) {
        const Statistics s = statistics_of(p, a.source, moments_of(row * p.c + c), slot_of(row), c);
        saved.put(p, row, c, s, statistics_row<T>(s.mean, s.invstd));
      }
    put_affine(p, a.scale, a.shift, saved.reserve, {0, p.c});
    put_header(p, a.reserve, statistics, 0);
    // The groups of a slot are merged in ascending order, as forward does.
    const auto fed = [&](std::int64_t i) {
      Moments all{};
      for (std::int64_t row = 0; row < p.norm_group.count; ++row)
        if (slot_of(row) == i / p.c) all = combine(all, moments_of(row * p.c + i % p.c));
      return all;
    };
    if (statistics != POPNORM_GIVEN) publish_update(p, a.update, fed);
    return POPNORM_SUCCESS;
  });
}

popnorm_status combine_parts(const Plan& plan, const popnorm_combine_args& a, void* /*stream*/) {
  const FpEnvironment environment;
  for (std::int64_t i = 0; i < plan.problem.norm_group.count * plan.problem.c; ++i) {
    Moments all{};
    if (a.count > 0)
      all = balanced_tree(
          a.count,
          [&](std::int64_t part) {
            return Moments{a.parts[part].weight[i], a.parts[part].mean[i], a.parts[part].m2[i]};
          },
          combine);
    put_moments(a.moments, i, all);
  }
  return POPNORM_SUCCESS;
}

namespace {

template <class T>
struct NormalizeOnly : Forward<T> {
  ReserveArrays<T, const std::byte> reserve;

  static void fold(void* context, Channels channels) {
    const NormalizeOnly& f = *static_cast<const NormalizeOnly*>(context);
    const std::int64_t width = f.plan.problem.c;
    const Cells& cells = f.samples.cells();
    const auto& r = f.reserve;
    for (std::int64_t cell = 0; cell < cells.count(); ++cell)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        const std::int64_t row = (f.samples.wave().row0 + cells.row(cell)) * width + c;
        const std::int64_t affine = cells.affine(cell) * width + c;
        f.set_row(cell, c, normalize_row<T>({r.hi[row], r.lo[row], r.invstd[row]}, r.scale[affine], r.shift[affine]));
      }
  }
};

}  // namespace

popnorm_status normalize(const Plan& plan, const popnorm_normalize_args& a, void* /*stream*/) {
  return with_arithmetic_type(plan, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const Problem& p = plan.problem;
    const auto statistics = static_cast<popnorm_statistics>(static_cast<const ReserveHeader*>(a.reserve)->statistics);
    const Rows& rows = rows_of(plan, statistics);
    Arena arena(a.workspace);
    const ForwardSpace<T> space(arena, p, rows, false);
    for (std::int64_t i = 0; i < rows.waves(); ++i) {
      const Wave wave = rows.wave(p, i);
      const Samples samples(plan, a.batch, statistics, wave, space.cells);
      const Partition none;
      NormalizeOnly<T> f{{plan, *state_of(plan).kernels, a.x, a.y, a.batch, space, samples, none},
                         {static_cast<const std::byte*>(a.reserve), p, statistics}};
      const Placement at = place(plan, wave, 0, {1, false, true});
      f.stores = at.blocking.stores;
      const Stages stages{&f, nullptr, NormalizeOnly<T>::fold, Forward<T>::apply};
      if (const popnorm_status status = run("normalize", plan, at, stages, 0); status != POPNORM_SUCCESS) return status;
    }
    return POPNORM_SUCCESS;
  });
}

}  // namespace popnorm::cpu
