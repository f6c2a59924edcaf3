// The stages of moments, finalize, normalize and forward.
#include <algorithm>
#include <cstring>

#include "core/error.hpp"
#include "core/fp_environment.hpp"
#include "core/population.hpp"
#include "core/reserve.hpp"
#include "cpu/call.hpp"
#include "cpu/operations.hpp"
#include "kernels/affine.hpp"
#include "kernels/moments.hpp"
#include "kernels/statistics.hpp"

namespace popnorm::cpu {
namespace {

// ---------------------------------------------------------------------------------------------------------- statistics

MeanVariance given_of(const Problem& p, const popnorm_source& source, std::int64_t slot, std::int64_t c) {
  const std::int64_t i = slot * p.c + c;
  if (source.population != nullptr) return population_statistics(arrays_of(source.population), i, source.estimator);
  return {read(source.mean, p.statistics, i, 0), read(source.variance, p.statistics, i, 1)};
}

// What normalizes a row: of the batch's moments, of a slot, or of both.
Statistics statistics_of(const Problem& p, const popnorm_source& source, const Moments& batch, std::int64_t slot,
                         std::int64_t c) {
  const MeanVariance given = source.statistics == POPNORM_BATCH ? MeanVariance{} : given_of(p, source, slot, c);
  return row_statistics({source.statistics, source.share, source.renorm_r, source.renorm_d}, batch, given, p.epsilon);
}

// What a row's statistics are for n channels, as kernels and backward want them.
template <class T>
struct Piece {
  double weight[kFoldChannels];  // of the gradient
  double mean[kFoldChannels];
  double invstd[kFoldChannels];
  T hi[kFoldChannels];
  T lo[kFoldChannels];
  T rounded_invstd[kFoldChannels];
  T d[kFoldChannels];
  T r2[kFoldChannels];

  void put(std::int64_t i, const Statistics& s) {
    const StatisticsRow<T> row = statistics_row<T>(s.mean, s.invstd);
    weight[i] = s.weight;
    mean[i] = s.mean;
    invstd[i] = s.invstd;
    hi[i] = row.hi;
    lo[i] = row.lo;
    rounded_invstd[i] = row.invstd;
    d[i] = round_to<T>(s.d);
    r2[i] = round_to<T>(s.r2);
  }
};

// Where statistics go besides into coefficients.
template <class T>
struct Saved {
  ReserveArrays<T, std::byte> reserve;
  void* mean;
  void* invstd;

  // Channels [c, c + n) of a row.
  void put(const Problem& p, std::int64_t row, std::int64_t c, std::int64_t n, const Piece<T>& piece) const {
    const std::int64_t at = row * p.c + c;
    if (reserve.weight != nullptr) {
      std::copy_n(piece.weight, n, reserve.weight + at);
      std::copy_n(piece.hi, n, reserve.hi + at);
      std::copy_n(piece.lo, n, reserve.lo + at);
      std::copy_n(piece.rounded_invstd, n, reserve.invstd + at);
      std::copy_n(piece.d, n, reserve.d + at);
      std::copy_n(piece.r2, n, reserve.r2 + at);
    }
    for (std::int64_t i = 0; mean != nullptr && i < n; ++i) write(mean, p.statistics, at + i, piece.mean[i]);
    for (std::int64_t i = 0; invstd != nullptr && i < n; ++i)
      write(
          invstd, p.statistics, at + i,
          p.statistics == POPNORM_F64 ? piece.invstd[i] : static_cast<double>(round_saturated<float>(piece.invstd[i])));
  }
};

template <class T>
T parameter(const Problem& p, const void* array, std::int64_t i, double absent) {
  return round_to<T>(read(array, p.parameters, i, absent));
}

// Scale and shift of channels [begin, end) into the reserve, all affine slots.
template <class T>
void put_affine(const Problem& p, const void* scale, const void* shift, const ReserveArrays<T, std::byte>& reserve,
                Channels channels) {
  if (reserve.weight == nullptr) return;
  for (std::int64_t slot = 0; slot < p.affine_slot.count; ++slot)
    for (std::int64_t c = channels.begin; c < channels.end; ++c) {
      reserve.scale[slot * p.c + c] = parameter<T>(p, scale, slot * p.c + c, 1);
      reserve.shift[slot * p.c + c] = parameter<T>(p, shift, slot * p.c + c, 0);
    }
}

// A call that fails on its way leaves none that backward takes.
void invalidate(void* reserve) {
  if (reserve != nullptr) std::memset(reserve, 0, sizeof(ReserveHeader));
}

void put_header(const Problem& p, void* reserve, popnorm_statistics statistics, std::uint64_t labels) {
  if (reserve == nullptr) return;
  const ReserveHeader header = make_reserve_header(p, statistics, labels);
  std::memcpy(reserve, &header, sizeof(header));
}

// Whether the mask is complete.
void put_masked(const Problem& p, void* reserve, bool masked) {
  if (p.masked()) static_cast<ReserveHeader*>(reserve)->masked = masked ? 1 : 0;
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
  const void* residual = nullptr;
  std::byte* mask = nullptr;
  Stores stores = Stores::ordinary;
  bool weighs = false;  // reduce tells what slots weigh

  static void reduce(void* context, std::int64_t unit, std::int64_t next, Channels c) {
    static_cast<const Forward*>(context)->reduce_unit(unit, next, c);
  }

  void reduce_unit(std::int64_t unit, std::int64_t next, Channels c) const {
    const Problem& p = plan.problem;
    const Slot after = next >= 0 ? groups.first_slot(next) : Slot{};
    groups.for_each_slot(unit, [&](std::int64_t slot, const Slot& s) {
      const std::int64_t at = slot * p.c + c.begin;
      if (weighs && c.begin == 0) space.weight[slot] = static_cast<double>(s.positions());
      if (s.samples == 0) {
        if (samples.weighted()) std::fill_n(space.weight + at, c.end - c.begin, 0.0);
        return;
      }
      const MomentsArgs args{Samples::block(s, c), samples.input(x, p.x, s, next >= 0 ? after : s, c), space.mean + at,
                             space.m2 + at};
      if (samples.weighted())
        kernels.weighted_moments({args, samples.weights(s), space.weight + at});
      else
        kernels.moments(args);
    });
  }

  // Where there are no weights a slot weighs its positions, in all channels. In phases a tile's own task can say so, if it is
  // one that many classes share; otherwise it must be known before.
  void weigh_slots(const Blocking& blocking) {
    if (samples.weighted()) return;
    weighs = groups.shares_tiles() && !blocking.slabs && blocking.rows == 0;
    if (weighs) return;
    groups.for_each_weight(
        [&](std::int64_t slot, std::int64_t positions) { space.weight[slot] = static_cast<double>(positions); });
  }

  // Mean and m2 of a group's slots merged, channels [c, c + n); returns the weight.
  double group_moments(std::int64_t row, std::int64_t c, std::int64_t n, double* mean, double* m2) const {
    const std::int64_t width = plan.problem.c;
    double weight = 0;
    const double* slot_weight = samples.weighted() ? space.weight + c : space.weight;
    kernels.merge_moments({slot_list(groups, row, width), n, slot_weight, samples.weighted() ? width : 1,
                           space.mean + c, space.m2 + c, &weight, mean, m2});
    return weight;
  }

  // The population slot of a group that has samples; 0 for an empty one.
  std::int64_t slot_of_group(std::int64_t row) const {
    const Problem& p = plan.problem;
    const std::int64_t n = p.population_slot.count > 1 ? groups.first_sample(row) : -1;
    return n < 0 ? 0 : id_of(p.population_slot, batch.population_slot, samples.wave().n0 + n);
  }

  // A group's moments until their slot is fed.
  void keep_moments(std::int64_t row, std::int64_t c, std::int64_t n, double weight, const double* mean,
                    const double* m2) const {
    const std::int64_t at = row * plan.problem.c + c;
    std::fill_n(space.group[0] + at, n, weight);
    std::copy_n(mean, n, space.group[1] + at);
    std::copy_n(m2, n, space.group[2] + at);
  }

  // What a wave's groups update, one group after the other.
  void feed() const {
    if (space.fed[0] == space.group[0]) return;
    const FpEnvironment environment;
    const std::int64_t width = plan.problem.c;
    for (std::int64_t row = 0; row < samples.wave().rows; ++row) {
      const std::int64_t slot = slot_of_group(row);
      for (std::int64_t c = 0; c < width; ++c) {
        const std::int64_t from = row * width + c;
        const std::int64_t to = slot * width + c;
        const Moments all = combine({space.fed[0][to], space.fed[1][to], space.fed[2][to]},
                                    {space.group[0][from], space.group[1][from], space.group[2][from]});
        space.fed[0][to] = all.weight;
        space.fed[1][to] = all.mean;
        space.fed[2][to] = all.m2;
      }
    }
  }

  // Coefficients of a cell, channels [c, c + n), of its row's statistics and of parameters of type `type`.
  void set_row(std::int64_t cell, std::int64_t c, std::int64_t n, const T* hi, const T* lo, const T* invstd,
               const void* scale, const void* shift, popnorm_type type) const {
    const std::int64_t at = cell * plan.problem.c + c;
    const std::int64_t affine = samples.cells().affine(cell) * plan.problem.c + c;
    const auto from = [&](const void* array) -> const void* {
      return array != nullptr ? static_cast<const std::byte*>(array) + affine * size_of(type) : nullptr;
    };
    kernels.normalize_row({n, hi, lo, invstd, from(scale), from(shift), type == POPNORM_F64, space.row[0] + at,
                           space.row[1] + at, space.row[2] + at});
  }

  static void apply(void* context, const Tile& box, Channels c, std::int64_t ahead) {
    const Forward& f = *static_cast<const Forward*>(context);
    const Problem& p = f.plan.problem;
    f.samples.for_each_part(box, [&](std::int64_t n, std::int64_t count, std::int64_t cell, const RowChoice& choice) {
      const std::int64_t at = cell * p.c + c.begin;
      const std::int64_t step = p.form == Form::rows ? p.x.row : 1;
      FusedNormalizeArgs args{{{count, box.s1 - box.s0, c.end - c.begin, nullptr},
                               f.samples.input(f.x, p.x, n, box.s0, c.begin, ahead * step),
                               f.samples.output(f.y, p.y, n, box.s0, c.begin),
                               f.space.row[0] + at,
                               f.space.row[1] + at,
                               f.space.row[2] + at,
                               f.stores,
                               choice},
                              activation_of(p)};
      if (p.adds_residual) args.residual = f.samples.input(f.residual, p.residual, n, box.s0, c.begin, 0);
      args.mask = f.samples.template mask<Output>(f.mask, n, box.s0, c.begin);
      if (f.samples.weighted())
        f.kernels.weighted_normalize({args, f.samples.weights(n, box.s0)});
      else if (p.fused())
        f.kernels.fused_normalize(args);
      else
        f.kernels.normalize(args.of);
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
    for_each_piece(channels, [&](std::int64_t c, std::int64_t n) {
      for (std::int64_t row = 0; row < f.samples.wave().rows; ++row) f.fold_row(row, c, n);
      if (cells.by_row()) return;
      for (std::int64_t cell = 0; cell < cells.count(); ++cell) {
        const std::int64_t at = cells.row(cell) * p.c + c;
        T* const* kept = f.space.kept;
        f.set_row(cell, c, n, kept[0] + at, kept[1] + at, kept[2] + at, f.args.scale, f.args.shift, p.parameters);
      }
    });
  }

  // One group from its slots to its output.
  static void whole_row(void* context, std::int64_t row) {
    const WholeForward& f = *static_cast<const WholeForward*>(context);
    const Problem& p = f.plan.problem;
    const Channels all{0, p.c};
    const Partition::Of slots = f.groups.slots_of(row);
    for (std::int64_t i = 0; i < slots.count; ++i)
      f.reduce_unit(slots.first + i, i + 1 < slots.count ? slots.first + i + 1 : -1, all);
    for_each_piece(all, [&](std::int64_t c, std::int64_t n) { f.fold_row(row, c, n); });
    const Tile box{f.groups.begin_of(row), f.groups.begin_of(row + 1), 0, p.s};
    if (box.n1 > box.n0 && p.s > 0) Forward<T>::apply(context, box, all, 0);
  }

  void fold_row(std::int64_t row, std::int64_t c, std::int64_t n) const {
    const Problem& p = this->plan.problem;
    const popnorm_source& source = args.source;
    const std::int64_t of_all = this->samples.wave().row0 + row;
    double mean[kFoldChannels];
    double m2[kFoldChannels];
    std::fill_n(mean, n, 0.0);
    std::fill_n(m2, n, 0.0);
    const double weight = reduces ? this->group_moments(row, c, n, mean, m2) : 0;
    for (std::int64_t i = 0; reduces && args.moments.weight != nullptr && i < n; ++i)
      put_moments(args.moments, of_all * p.c + c + i, {weight, mean[i], m2[i]});
    if (reduces && updates(args.update)) this->keep_moments(row, c, n, weight, mean, m2);

    Piece<T> piece;
    if (source.statistics == POPNORM_BATCH || source.statistics == POPNORM_GIVEN) {
      // What is given is like the moments of one element, but constant to the gradient.
      const bool given = source.statistics == POPNORM_GIVEN;
      for (std::int64_t i = 0; given && i < n; ++i) {
        const MeanVariance of_slot = given_of(p, source, of_all, c + i);
        mean[i] = of_slot.mean;
        m2[i] = of_slot.variance;
      }
      this->kernels.statistics(
          {n, p.epsilon, given ? 1 : weight, mean, m2, piece.invstd, piece.hi, piece.lo, piece.rounded_invstd});
      std::copy_n(mean, n, piece.mean);
      std::fill_n(piece.weight, n, given ? 0 : weight);
      std::fill_n(piece.d, n, T(0));
      std::fill_n(piece.r2, n, T(1));
    } else {
      const std::int64_t slot = this->slot_of_group(row);
      for (std::int64_t i = 0; i < n; ++i)
        piece.put(i, statistics_of(p, source, {weight, mean[i], m2[i]}, slot, c + i));
    }
    saved.put(p, of_all, c, n, piece);
    if (this->samples.cells().by_row()) {
      this->set_row(row, c, n, piece.hi, piece.lo, piece.rounded_invstd, args.scale, args.shift, p.parameters);
      return;
    }
    const std::int64_t at = row * p.c + c;
    std::copy_n(piece.hi, n, this->space.kept[0] + at);
    std::copy_n(piece.lo, n, this->space.kept[1] + at);
    std::copy_n(piece.rounded_invstd, n, this->space.kept[2] + at);
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
    const Saved<T> saved{reserve_arrays<T>(static_cast<std::byte*>(a.reserve), p, statistics), a.saved_mean,
                         a.saved_invstd};
    invalidate(a.reserve);
    if (reduces) clear_fed(p, space.fed);
    for (std::int64_t i = 0; i < rows.waves(); ++i) {
      const Wave wave = rows.wave(p, i);
      const Samples samples(plan, a.batch, statistics, wave, space.cells);
      const Partition groups =
          reduces ? partition_of_rows(rows, wave, labelled_rows(p, statistics, a.batch), space.groups) : Partition();
      WholeForward<T> f{{plan, *state_of(plan).kernels, a.x, a.y, a.batch, space, samples, groups}, a, saved, reduces};
      f.residual = a.residual;
      f.mask = mask_of(static_cast<std::byte*>(a.reserve), p);
      const std::int64_t independent = reduces && in_order(rows.map) && samples.cells().by_row() ? wave.rows : 0;
      const Placement at = place(plan, wave, groups.units(), {1, reduces, true}, independent);
      f.stores = at.blocking.stores;
      if (reduces) f.weigh_slots(at.blocking);
      const Stages stages{&f,
                          groups.units(),
                          reduces ? Forward<T>::reduce : nullptr,
                          WholeForward<T>::fold,
                          Forward<T>::apply,
                          independent,
                          WholeForward<T>::whole_row};
      if (const popnorm_status status = run("forward", plan, at, stages); status != POPNORM_SUCCESS) return status;
      if (reduces && updates(a.update)) f.feed();
    }
    put_affine(p, a.scale, a.shift, saved.reserve, {0, p.c});
    put_header(p, a.reserve, statistics, a.reserve != nullptr ? labels_of(p, statistics, a.batch) : 0);
    if (a.reserve != nullptr) put_masked(p, a.reserve, true);
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
    for_each_piece(channels, [&](std::int64_t c, std::int64_t n) {
      double mean[kFoldChannels];
      double m2[kFoldChannels];
      for (std::int64_t row = 0; row < wave.rows; ++row) {
        const double weight = f.group_moments(row, c, n, mean, m2);
        for (std::int64_t i = 0; i < n; ++i)
          put_moments(f.args.moments, (wave.row0 + row) * f.plan.problem.c + c + i, {weight, mean[i], m2[i]});
        if (feeds) f.keep_moments(row, c, n, weight, mean, m2);
      }
    });
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
      const Samples samples(plan, a.batch, POPNORM_BATCH, wave, space.cells, false);
      const Partition groups = partition_of_rows(rows, wave, labelled_rows(p, POPNORM_BATCH, a.batch), space.groups);
      MomentsOnly<T> f{{plan, *state_of(plan).kernels, a.x, nullptr, a.batch, space, samples, groups}, a};
      const Placement at = place(plan, wave, groups.units(), {1, true, false}, 0);
      f.weigh_slots(at.blocking);
      const Stages stages{&f, groups.units(), Forward<T>::reduce, MomentsOnly<T>::fold, nullptr};
      if (const popnorm_status status = run("moments", plan, at, stages); status != POPNORM_SUCCESS) return status;
      if (updates(a.update)) f.feed();
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
    const Saved<T> saved{reserve_arrays<T>(static_cast<std::byte*>(a.reserve), p, statistics), a.saved_mean,
                         a.saved_invstd};
    const auto moments_of = [&](std::int64_t i) {
      return a.moments.weight != nullptr ? Moments{a.moments.weight[i], a.moments.mean[i], a.moments.m2[i]} : Moments{};
    };
    const auto slot_of = [&](std::int64_t row) {
      return statistics == POPNORM_GIVEN ? row : a.group_slot != nullptr ? a.group_slot[row] : 0;
    };
    for (std::int64_t row = 0; row < p.row_map(statistics).count; ++row)
      for_each_piece({0, p.c}, [&](std::int64_t c, std::int64_t n) {
        Piece<T> piece;
        for (std::int64_t i = 0; i < n; ++i)
          piece.put(i, statistics_of(p, a.source, moments_of(row * p.c + c + i), slot_of(row), c + i));
        saved.put(p, row, c, n, piece);
      });
    put_affine(p, a.scale, a.shift, saved.reserve, {0, p.c});
    put_header(p, a.reserve, statistics, 0);
    // The groups of a slot are merged in ascending order, as forward does; a piece of channels at once, which are asked for one by one.
    std::int64_t merged = -1;
    Moments piece[kFoldChannels];
    const auto fed = [&](std::int64_t i) {
      const std::int64_t c = i % p.c, in_piece = c % kFoldChannels, first = i - in_piece;
      if (merged != first) {
        merged = first;
        const std::int64_t n = std::min(kFoldChannels, p.c - (c - in_piece));
        std::fill_n(piece, n, Moments{});
        for (std::int64_t row = 0; row < p.norm_group.count; ++row)
          for (std::int64_t k = 0; slot_of(row) == i / p.c && k < n; ++k)
            piece[k] = combine(piece[k], moments_of(row * p.c + c - in_piece + k));
      }
      return piece[in_piece];
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
    const Cells& cells = f.samples.cells();
    const auto& r = f.reserve;
    constexpr popnorm_type type = sizeof(T) == sizeof(double) ? POPNORM_F64 : POPNORM_F32;
    for (std::int64_t cell = 0; cell < cells.count(); ++cell) {
      const std::int64_t row = (f.samples.wave().row0 + cells.row(cell)) * f.plan.problem.c + channels.begin;
      f.set_row(cell, channels.begin, channels.end - channels.begin, r.hi + row, r.lo + row, r.invstd + row, r.scale,
                r.shift, type);
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
    put_masked(p, a.reserve, false);
    for (std::int64_t i = 0; i < rows.waves(); ++i) {
      const Wave wave = rows.wave(p, i);
      const Samples samples(plan, a.batch, statistics, wave, space.cells);
      const Partition none;
      NormalizeOnly<T> f{{plan, *state_of(plan).kernels, a.x, a.y, a.batch, space, samples, none},
                         reserve_arrays<T>(static_cast<const std::byte*>(a.reserve), p, statistics)};
      f.residual = a.residual;
      f.mask = mask_of(static_cast<std::byte*>(a.reserve), p);
      const Placement at = place(plan, wave, 0, {1, false, true}, 0);
      f.stores = at.blocking.stores;
      const Stages stages{&f, 0, nullptr, NormalizeOnly<T>::fold, Forward<T>::apply};
      if (const popnorm_status status = run("normalize", plan, at, stages); status != POPNORM_SUCCESS) return status;
    }
    put_masked(p, a.reserve, true);
    return POPNORM_SUCCESS;
  });
}

}  // namespace popnorm::cpu
