// How a call's scratch is laid out. The same functions size the workspace when a plan is made and hand it out in a call.
#ifndef POPNORM_CPU_SPACE_HPP
#define POPNORM_CPU_SPACE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/arena.hpp"
#include "core/backend.hpp"
#include "core/maps.hpp"
#include "core/partition.hpp"

namespace popnorm::cpu {

// How a problem is run with one source of rows (groups, or population slots): in how many waves, and the shapes of a full one.
struct Rows {
  Map map;
  std::int64_t per_wave = 1;
  std::int64_t samples_per_wave = 0;
  Partition::Shape by_row;   // slots of moments
  Partition::Shape by_cell;  // slots of the sums of backward
  std::int64_t most_cells = 1;

  Rows() = default;
  Rows(const Problem& p, const Map& row_map, std::int64_t rows_in_flight)
      : map(row_map), per_wave(row_map.count), samples_per_wave(p.n) {
    if (in_order(map) && map.kind != POPNORM_WHOLE && rows_in_flight < map.count) {
      per_wave = rows_in_flight;
      samples_per_wave = std::min(p.n, per_wave * samples_per_id(map, p.n));
    }
    by_row = Partition::shape(p, map, samples_per_wave, per_wave);
    most_cells = Cells::most(map, p.affine_slot, samples_per_wave, per_wave);
    by_cell = Partition::shape(p, cell_map(p), samples_per_wave, most_cells);
  }

  std::int64_t waves() const { return map.count == 0 ? 0 : (map.count + per_wave - 1) / per_wave; }
  Wave wave(const Problem& p, std::int64_t i) const {
    const std::int64_t n0 = i * samples_per_wave;
    const std::int64_t row0 = i * per_wave;
    return {n0, std::min(samples_per_wave, p.n - n0), row0, std::min(per_wave, map.count - row0)};
  }
  bool cells_are_listed(const Problem& p) const { return Cells::is_listed(map, p.affine_slot); }

 private:
  Map cell_map(const Problem& p) const {
    if (map.kind == POPNORM_WHOLE) return p.affine_slot;
    return cells_are_listed(p) ? Map{POPNORM_LABELS, most_cells, most_cells} : map;
  }
};

inline Partition::Arrays take_partition(Arena& arena, const Partition::Shape& shape) {
  if (shape.in_order || shape.shared()) return {};
  const std::int64_t bundles = shape.most_bundles();
  return {arena.take<std::int32_t>(shape.n), arena.take<std::int32_t>(bundles + 1), arena.take<std::int32_t>(bundles),
          arena.take<std::int32_t>(shape.classes + 1)};
}

inline Cells::Arrays take_cells(Arena& arena, const Problem& p, const Rows& rows) {
  if (!rows.cells_are_listed(p)) return {};
  return {arena.take<std::int32_t>(rows.samples_per_wave), arena.take<std::int32_t>(rows.most_cells),
          arena.take<std::int32_t>(rows.most_cells), arena.take<std::int32_t>(rows.most_cells),
          arena.take<std::int32_t>(rows.most_cells)};
}

inline constexpr int kCoefficients = 5;
inline constexpr int kRecomputed = 2;

// T: arithmetic type. Pieces that a call does not need have no bytes.
template <class T>
struct ForwardSpace {
  Cells::Arrays cells;
  Partition::Arrays groups;
  double* weight;  // [slots][c] with weights, else [slots]
  double* mean;    // [slots][c]
  double* m2;
  double* group[3];  // [rows][c]: weight, mean, m2 of groups
  double*
      fed[3];  // [population_slots][c]: weight, mean, m2 of what a slot is fed; the group's where there is one of each
  T* row[3];   // [cells][c]: hi, s, b
  T* kept[3];  // [rows][c]: hi, lo, invstd, where a row may have several cells

  ForwardSpace(Arena& arena, const Problem& p, const Rows& rows, bool reduces) {
    const std::int64_t slots = reduces ? rows.by_row.most_slots() : 0;
    weight = arena.take<double>(p.weights != POPNORM_UNWEIGHTED ? slots * p.c : slots);
    mean = arena.take<double>(slots * p.c);
    m2 = arena.take<double>(slots * p.c);
    const bool one = rows.map.count == 1 && p.population_slot.count == 1;
    for (int i = 0; i < 3; ++i) {
      group[i] = arena.take<double>(reduces ? rows.per_wave * p.c : 0);
      fed[i] = one ? group[i] : arena.take<double>(reduces ? p.population_slot.count * p.c : 0);
    }
    for (T*& piece : row) piece = arena.take<T>(rows.most_cells * p.c);
    const std::int64_t several = p.affine_slot.kind != POPNORM_WHOLE ? rows.per_wave * p.c : 0;
    for (T*& piece : kept) piece = arena.take<T>(several);
    cells = take_cells(arena, p, rows);
    if (reduces) groups = take_partition(arena, rows.by_row);
  }
};

template <class T>
struct BackwardSpace {
  Cells::Arrays cells;
  Partition::Arrays slots_of_cells;
  double* dy;               // [slots][c]
  double* dy_d;             // [slots][c]
  double* row_dy;           // [rows][c]
  double* row_dy_xhat;      // [rows][c]
  double* affine_dy;        // [affine_slots][c]; the row's where there is one of each
  double* affine_dy_xhat;   // [affine_slots][c]
  T* row[kCoefficients];    // [cells][c]: hi, invstd, a, k1, k2
  T* forward[kRecomputed];  // [cells][c]: s, b, where what was activated is recomputed

  BackwardSpace(Arena& arena, const Problem& p, const Rows& rows) {
    const std::int64_t slots = rows.by_cell.most_slots();
    dy = arena.take<double>(slots * p.c);
    dy_d = arena.take<double>(slots * p.c);
    row_dy = arena.take<double>(rows.per_wave * p.c);
    row_dy_xhat = arena.take<double>(rows.per_wave * p.c);
    const bool one = rows.map.count == 1 && p.affine_slot.count == 1;
    affine_dy = one ? row_dy : arena.take<double>(p.affine_slot.count * p.c);
    affine_dy_xhat = one ? row_dy_xhat : arena.take<double>(p.affine_slot.count * p.c);
    for (T*& piece : row) piece = arena.take<T>(rows.most_cells * p.c);
    for (T*& piece : forward) piece = p.recomputes() ? arena.take<T>(rows.most_cells * p.c) : nullptr;
    cells = take_cells(arena, p, rows);
    slots_of_cells = take_partition(arena, rows.by_cell);
  }
};

}  // namespace popnorm::cpu

#endif
