// The stages of everything that goes backward.
#ifndef POPNORM_CPU_BACKWARD_STAGES_HPP
#define POPNORM_CPU_BACKWARD_STAGES_HPP

#include <algorithm>

#include "core/reserve.hpp"
#include "cpu/call.hpp"
#include "kernels/affine.hpp"

namespace popnorm::cpu {

// What forward left, or what was made of its saved outputs.
template <class T>
struct Source {
  popnorm_statistics statistics;
  double weight;  // where `of` has none
  ReserveArrays<T, const std::byte> of;
  const std::byte* mask = nullptr;  // of what the activation did not stop

  bool through() const { return statistics != POPNORM_GIVEN; }
  double weight_of(std::int64_t i) const { return of.weight != nullptr ? of.weight[i] : weight; }
};

template <class T>
Source<T> reserved(const Problem& p, const void* reserve) {
  const auto statistics = static_cast<popnorm_statistics>(static_cast<const ReserveHeader*>(reserve)->statistics);
  const auto* bytes = static_cast<const std::byte*>(reserve);
  return {statistics, 0, reserve_arrays<T>(bytes, p, statistics), mask_of(bytes, p)};
}

template <class T>
struct Backward {
  const Plan& plan;
  const Kernels& kernels;
  const void* x;
  const void* dy;
  void* dx;
  void* dresidual;
  const BackwardSpace<T>& space;
  const Source<T>& source;
  const Samples& samples;
  const Partition& slots;
  Stores stores = Stores::ordinary;

  const Cells& cells() const { return samples.cells(); }
  // Entry of channel c of a cell's row in what forward left, and of its scale.
  std::int64_t row_entry(std::int64_t cell, std::int64_t c) const {
    return (samples.wave().row0 + cells().row(cell)) * plan.problem.c + c;
  }
  double scale_of(std::int64_t cell, std::int64_t c) const {
    return static_cast<double>(source.of.scale[cells().affine(cell) * plan.problem.c + c]);
  }

  static void reduce(void* context, std::int64_t unit, std::int64_t next, Channels c) {
    static_cast<const Backward*>(context)->reduce_unit(unit, next, c);
  }

  void reduce_unit(std::int64_t unit, std::int64_t next, Channels c) const {
    const Problem& p = plan.problem;
    const Slot after = next >= 0 ? slots.first_slot(next) : Slot{};
    slots.for_each_slot(unit, [&](std::int64_t slot, const Slot& s) {
      const std::int64_t at = slot * p.c + c.begin;
      if (s.samples == 0) {
        std::fill_n(space.dy + at, c.end - c.begin, 0.0);
        std::fill_n(space.dy_d + at, c.end - c.begin, 0.0);
        return;
      }
      const Slot& n = next >= 0 ? after : s;
      const FusedBackwardReduceArgs args{
          {Samples::block(s, c), samples.input(x, p.x, s, n, c), samples.input(dy, p.dy, s, n, c),
           source.of.hi + row_entry(s.of, c.begin), space.dy + at, space.dy_d + at},
          gradient(samples.mask(source.mask, s, c), s.of, c)};
      if (samples.weighted())
        kernels.weighted_backward_reduce({args, samples.weights(s)});
      else if (p.activation != POPNORM_IDENTITY)
        kernels.fused_backward_reduce(args);
      else
        kernels.backward_reduce(args.of);
    });
  }

  // What kernels need to know of the activation, for a cell; with a choice of cells, for the first.
  GradientArgs gradient(const Input& mask, std::int64_t cell, Channels c) const {
    const Problem& p = plan.problem;
    GradientArgs args{activation_of(p), mask};
    if (p.recomputes()) {
      args.s = space.forward[0] + cell * p.c + c.begin;
      args.b = space.forward[1] + cell * p.c + c.begin;
    }
    return args;
  }

  // The coefficients that forward had, of channels [c, c + n) of a cell.
  void recompute_row(std::int64_t cell, std::int64_t c, std::int64_t n) const {
    const std::int64_t entry = row_entry(cell, c);
    const std::int64_t affine = cells().affine(cell) * plan.problem.c + c;
    const std::int64_t to = cell * plan.problem.c + c;
    kernels.normalize_row({n, source.of.hi + entry, source.of.lo + entry, source.of.invstd + entry,
                           source.of.scale + affine, source.of.shift + affine, sizeof(T) == sizeof(double),
                           space.row[0] + to, space.forward[0] + to, space.forward[1] + to});
  }

  // The sums of a cell, channels [c, c + n).
  void cell_sums(std::int64_t cell, std::int64_t c, std::int64_t n, double* of_dy, double* of_dy_xhat) const {
    const std::int64_t entry = row_entry(cell, c);
    kernels.merge_sums({slot_list(slots, cell, plan.problem.c), n, space.dy + c, space.dy_d + c, source.of.lo + entry,
                        source.of.invstd + entry, of_dy, of_dy_xhat});
  }

  // The rows' sums of channels [c, c + n), of scale*dy where `scaled`, and what the wave adds to the affine slots' sums.
  void reduce_cells(std::int64_t c, std::int64_t n, bool scaled) const {
    const std::int64_t width = plan.problem.c;
    const bool by_row = cells().by_row() && !scaled;
    for (std::int64_t row = 0; !by_row && row < samples.wave().rows; ++row) {
      std::fill_n(space.row_dy + row * width + c, n, 0.0);
      std::fill_n(space.row_dy_xhat + row * width + c, n, 0.0);
    }
    for (std::int64_t cell = 0; cell < cells().count(); ++cell) {
      const std::int64_t row = cells().row(cell) * width + c;
      const std::int64_t affine = cells().affine(cell) * width + c;
      if (by_row) {
        cell_sums(cell, c, n, space.row_dy + row, space.row_dy_xhat + row);
        add_to_affine(affine, n, space.row_dy + row, space.row_dy_xhat + row);
        continue;
      }
      double of_dy[kFoldChannels];
      double of_dy_xhat[kFoldChannels];
      cell_sums(cell, c, n, of_dy, of_dy_xhat);
      for (std::int64_t i = 0; i < n; ++i) {
        const double factor = scaled ? scale_of(cell, c + i) : 1;
        space.row_dy[row + i] += factor * of_dy[i];
        space.row_dy_xhat[row + i] += factor * of_dy_xhat[i];
      }
      add_to_affine(affine, n, of_dy, of_dy_xhat);
    }
  }

  void add_to_affine(std::int64_t affine, std::int64_t n, const double* of_dy, const double* of_dy_xhat) const {
    if (space.affine_dy == space.row_dy) return;
    for (std::int64_t i = 0; i < n; ++i) {
      space.affine_dy[affine + i] += of_dy[i];
      space.affine_dy_xhat[affine + i] += of_dy_xhat[i];
    }
  }

  // The coefficients of a cell, channels [c, c + n). The sums are those of its row, of scale*dy where `scaled`.
  void set_row(std::int64_t cell, std::int64_t c, std::int64_t n, const double* sum_dy, const double* sum_dy_xhat,
               bool scaled) const {
    const std::int64_t entry = row_entry(cell, c);
    const auto at = [&](const auto* array, std::int64_t i) { return array != nullptr ? array + i : nullptr; };
    // Without a reserve these lie where coefficients go.
    T own[4][kFoldChannels];
    std::copy_n(source.of.hi + entry, n, own[0]);
    std::copy_n(source.of.lo + entry, n, own[1]);
    std::copy_n(source.of.invstd + entry, n, own[2]);
    std::copy_n(source.of.scale + cells().affine(cell) * plan.problem.c + c, n, own[3]);
    const std::int64_t to = cell * plan.problem.c + c;
    kernels.gradient_row({n, own[0], own[1], own[2], own[3], at(source.of.weight, entry), source.weight,
                          at(source.of.d, entry), at(source.of.r2, entry), sum_dy, sum_dy_xhat, scaled,
                          !source.through(), space.row[0] + to, space.row[1] + to, space.row[2] + to, space.row[3] + to,
                          space.row[4] + to});
  }

  // Coefficients of a cell that make dx the gradient itself.
  void set_identity(std::int64_t cell, std::int64_t c, std::int64_t n) const {
    const std::int64_t to = cell * plan.problem.c + c;
    std::copy_n(source.of.hi + row_entry(cell, c), n, space.row[0] + to);
    std::fill_n(space.row[1] + to, n, T(0));
    std::fill_n(space.row[2] + to, n, T(1));
    std::fill_n(space.row[3] + to, n, T(0));
    std::fill_n(space.row[4] + to, n, T(0));
  }

  static void apply(void* context, const Tile& box, Channels c, std::int64_t ahead) {
    const Backward& b = *static_cast<const Backward*>(context);
    const Problem& p = b.plan.problem;
    b.samples.for_each_part(box, [&](std::int64_t n, std::int64_t count, std::int64_t cell, const RowChoice& choice) {
      const Block block{count, box.s1 - box.s0, c.end - c.begin, nullptr};
      const auto input = [&](const void* tensor, const Strides& strides) {
        return b.samples.input(tensor, strides, n, box.s0, c.begin, ahead * (p.form == Form::rows ? strides.row : 1));
      };
      const Output out = b.samples.output(b.dx, p.dx, n, box.s0, c.begin);
      const std::int64_t at = cell * p.c + c.begin;
      T* const* row = b.space.row;
      if (p.fused() || b.samples.weighted()) {
        const Output residual = b.samples.output(b.dresidual, p.dresidual, n, box.s0, c.begin);
        // x is not read where nothing depends on it. With no dx, dresidual is the output: the gradient times 1.
        const bool needs_x = (b.source.through() && b.dx != nullptr) || p.recomputes();
        const FusedBackwardApplyArgs args{
            {block, needs_x ? input(b.x, p.x) : input(b.dy, p.dy), input(b.dy, p.dy), b.dx != nullptr ? out : residual,
             row[0] + at, row[1] + at, row[2] + at, row[3] + at, row[4] + at, b.stores, choice},
            b.gradient(b.samples.template mask<Input>(b.source.mask, n, box.s0, c.begin), cell, c),
            b.dx != nullptr ? residual : Output{},
            !b.source.through() || b.dx == nullptr};
        if (b.samples.weighted())
          b.kernels.weighted_backward_apply({args, b.samples.weights(n, box.s0)});
        else
          b.kernels.fused_backward_apply(args);
        return;
      }
      if (!b.source.through()) {
        // dx = a*dy: normalize with k1 = k2 = 0, which does not read x.
        b.kernels.normalize({block, input(b.dy, p.dy), out, row[3] + at, row[2] + at, row[4] + at, b.stores, choice});
        return;
      }
      b.kernels.backward_apply({block, input(b.x, p.x), input(b.dy, p.dy), out, row[0] + at, row[1] + at, row[2] + at,
                                row[3] + at, row[4] + at, b.stores, choice});
    });
  }
};

// What differs between the three operations.
struct Wanted {
  bool reduces;
  bool applies;
  bool scaled;                     // the sums of rows are those of scale*dy
  const double* sum_dy = nullptr;  // from elsewhere, [rows][c]; null: this batch's own
  const double* sum_dy_xhat = nullptr;
  double* out_dy = nullptr;  // [rows][c]
  double* out_dy_xhat = nullptr;
};

template <class T>
struct Staged : Backward<T> {
  const Wanted& wanted;

  static void fold(void* context, Channels channels) {
    const Staged& b = *static_cast<const Staged*>(context);
    for_each_piece(channels, [&](std::int64_t c, std::int64_t n) {
      if (b.wanted.reduces) b.reduce_cells(c, n, b.wanted.scaled);
      for (std::int64_t row = 0; row < b.samples.wave().rows; ++row) b.put_sums(row, c, n);
      for (std::int64_t cell = 0; b.wanted.applies && cell < b.cells().count(); ++cell) b.fold_cell(cell, c, n);
    });
  }

  // One row, which is one cell, from its slots to its output.
  static void whole_row(void* context, std::int64_t row) {
    const Staged& b = *static_cast<const Staged*>(context);
    const Problem& p = b.plan.problem;
    const Channels all{0, p.c};
    if (p.recomputes()) b.recompute_row(row, 0, p.c);
    const Partition::Of slots = b.slots.slots_of(row);
    for (std::int64_t i = 0; i < slots.count; ++i)
      b.reduce_unit(slots.first + i, i + 1 < slots.count ? slots.first + i + 1 : -1, all);
    for_each_piece(all, [&](std::int64_t c, std::int64_t n) {
      const std::int64_t at = row * p.c + c;
      b.cell_sums(row, c, n, b.space.row_dy + at, b.space.row_dy_xhat + at);
      b.put_sums(row, c, n);
      b.fold_cell(row, c, n);
    });
    const Tile box{b.slots.begin_of(row), b.slots.begin_of(row + 1), 0, p.s};
    if (box.n1 > box.n0 && p.s > 0) Backward<T>::apply(context, box, all, 0);
  }

  // Before the stages.
  void recompute_rows() const {
    if (!this->plan.problem.recomputes()) return;
    const FpEnvironment environment;
    for (std::int64_t cell = 0; cell < this->cells().count(); ++cell)
      this->recompute_row(cell, 0, this->plan.problem.c);
  }

  // After rows were run one by one: what they add to the affine slot that they share.
  void add_rows() const {
    const FpEnvironment environment;
    for (std::int64_t row = 0; row < this->samples.wave().rows; ++row)
      this->add_to_affine(0, this->plan.problem.c, this->space.row_dy + row * this->plan.problem.c,
                          this->space.row_dy_xhat + row * this->plan.problem.c);
  }

  void put_sums(std::int64_t row, std::int64_t c, std::int64_t n) const {
    if (wanted.out_dy == nullptr) return;
    const std::int64_t from = row * this->plan.problem.c + c;
    const std::int64_t to = (this->samples.wave().row0 + row) * this->plan.problem.c + c;
    std::copy_n(this->space.row_dy + from, n, wanted.out_dy + to);
    std::copy_n(this->space.row_dy_xhat + from, n, wanted.out_dy_xhat + to);
  }

  void fold_cell(std::int64_t cell, std::int64_t c, std::int64_t n) const {
    if (this->dx == nullptr) return this->set_identity(cell, c, n);
    const bool theirs = wanted.sum_dy != nullptr;
    const std::int64_t at = theirs ? this->row_entry(cell, c) : this->cells().row(cell) * this->plan.problem.c + c;
    this->set_row(cell, c, n, (theirs ? wanted.sum_dy : this->space.row_dy) + at,
                  (theirs ? wanted.sum_dy_xhat : this->space.row_dy_xhat) + at, wanted.scaled);
  }
};

template <class T>
popnorm_status run_backward(const char* operation, const Plan& plan, const popnorm_batch& batch, const void* x,
                            const void* dy, void* dx, void* dresidual, const BackwardSpace<T>& space,
                            const Source<T>& source, const Wanted& wanted) {
  const Problem& p = plan.problem;
  const Rows& rows = rows_of(plan, source.statistics);
  const std::int64_t affine = space.affine_dy == space.row_dy ? 0 : p.affine_slot.count * p.c;
  if (wanted.reduces) {
    std::fill_n(space.affine_dy, affine, 0.0);
    std::fill_n(space.affine_dy_xhat, affine, 0.0);
  }
  for (std::int64_t i = 0; i < rows.waves(); ++i) {
    const Wave wave = rows.wave(p, i);
    const Samples samples(plan, batch, source.statistics, wave, space.cells);
    const Partition slots =
        wanted.reduces ? partition_of_cells(rows, wave, samples.cells(), space.slots_of_cells) : Partition();
    Staged<T> b{{plan, *state_of(plan).kernels, x, dy, dx, dresidual, space, source, samples, slots}, wanted};
    const bool independent = wanted.reduces && wanted.applies && source.through() && in_order(rows.map) &&
                             samples.cells().by_row() && p.affine_slot.count == 1;
    const Placement at =
        place(plan, wave, slots.units(), {2, wanted.reduces, wanted.applies}, independent ? wave.rows : 0);
    b.stores = at.blocking.stores;
    if (at.blocking.rows == 0) b.recompute_rows();
    const Stages stages{&b,
                        slots.units(),
                        wanted.reduces ? Backward<T>::reduce : nullptr,
                        Staged<T>::fold,
                        wanted.applies ? Backward<T>::apply : nullptr,
                        wave.rows,
                        Staged<T>::whole_row};
    if (const popnorm_status status = run(operation, plan, at, stages); status != POPNORM_SUCCESS) return status;
    if (at.blocking.rows > 0) b.add_rows();
  }
  return POPNORM_SUCCESS;
}

}  // namespace popnorm::cpu

#endif
