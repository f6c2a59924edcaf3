// What the batch is: maps from a sample to an id, and the cells of a call, sets of samples that are treated alike.
#ifndef POPNORM_CORE_MAPS_HPP
#define POPNORM_CORE_MAPS_HPP

#include <popnorm/popnorm.h>

#include <algorithm>
#include <cstdint>

#include "core/problem.hpp"

namespace popnorm {

inline std::int64_t id_of(const Map& map, const std::int32_t* labels, std::int64_t n) {
  switch (map.kind) {
    case POPNORM_WHOLE:
      return 0;
    case POPNORM_CONTIGUOUS:
      return n / map.k;
    case POPNORM_STRIDED:
      return n % map.k;
    case POPNORM_PER_SAMPLE:
      return n;
    case POPNORM_LABELS:
      return labels[n];
  }
  return 0;
}

// Samples of an id follow one another in memory, and so do the ids.
inline bool in_order(const Map& map) {
  return map.kind == POPNORM_WHOLE || map.kind == POPNORM_CONTIGUOUS || map.kind == POPNORM_PER_SAMPLE;
}

// Samples per id of a map that is in order.
inline std::int64_t samples_per_id(const Map& map, std::int64_t n) {
  return map.kind == POPNORM_WHOLE ? n : map.kind == POPNORM_CONTIGUOUS ? map.k : 1;
}

// A map with the labels of a call.
struct Labelled {
  Map map;
  const std::int32_t* labels = nullptr;

  std::int64_t operator()(std::int64_t n) const { return id_of(map, labels, n); }

  // Whether both are known to give every sample the same id. Labels are the same if they are the same array.
  bool same_as(const Labelled& other) const {
    return map.kind == other.map.kind && map.k == other.map.k && labels == other.labels;
  }
};

// The part of a call that runs at once: samples [n0, n0 + n) and the statistics rows [row0, row0 + rows) that they, and no
// other samples, have. A call is one wave, except where rows follow one another in memory and their scratch would be large.
struct Wave {
  std::int64_t n0 = 0;
  std::int64_t n = 0;
  std::int64_t row0 = 0;
  std::int64_t rows = 0;
};

// Cells: the distinct pairs of a statistics row and an affine slot that a wave's samples have. A cell has one row of
// coefficients; rows and cells are counted from the wave's first.
class Cells {
 public:
  // How many cells a wave of n samples and so many rows can have.
  static std::int64_t most(const Map& row, const Map& affine, std::int64_t n, std::int64_t rows) {
    if (affine.count <= 1 || row.kind == POPNORM_WHOLE) return std::max<std::int64_t>(rows, affine.count);
    if (!is_listed(row, affine)) return rows;
    const std::int64_t listed = std::max<std::int64_t>(std::min(n, rows * affine.count), 1);
    const bool labels_may_be_the_same = Labelled{row}.same_as({affine});
    return labels_may_be_the_same ? std::max(listed, rows) : listed;
  }
  // Whether the constructor needs arrays, unless labels turn out to be the same.
  static bool is_listed(const Map& row, const Map& affine) {
    return affine.kind != POPNORM_WHOLE && row.kind != POPNORM_WHOLE &&
           (row.kind == POPNORM_LABELS || !Labelled{row}.same_as({affine}));
  }
  // Entries of each array.
  struct Arrays {
    std::int32_t* cell;    // [n]
    std::int32_t* row;     // [most]
    std::int32_t* affine;  // [most]
    std::int32_t* next;    // [most]: of the same bucket
    std::int32_t* bucket;  // [most]
  };

  Cells(const Labelled& row, const Labelled& affine, const Wave& wave, const Arrays& arrays)
      : row_(row), affine_(affine), wave_(wave) {
    if (affine.map.kind == POPNORM_WHOLE || row.same_as(affine)) {
      kind_ = Kind::by_row;
      count_ = wave.rows;
    } else if (row.map.kind == POPNORM_WHOLE) {
      kind_ = Kind::by_affine;
      count_ = affine.map.count;
    } else {
      kind_ = Kind::listed;
      list(arrays);
    }
  }

  std::int64_t count() const { return count_; }
  // One for one with the wave's statistics rows.
  bool by_row() const { return kind_ == Kind::by_row; }
  // The cell of the wave's n-th sample.
  std::int64_t of(std::int64_t n) const {
    switch (kind_) {
      case Kind::by_row:
        return row_(wave_.n0 + n) - wave_.row0;
      case Kind::by_affine:
        return affine_(wave_.n0 + n);
      default:
        return arrays_.cell[n];
    }
  }
  // of() as an array, where there is one.
  const std::int32_t* labels() const {
    const Labelled m = map();
    return m.map.kind == POPNORM_LABELS ? m.labels : nullptr;
  }
  std::int64_t row(std::int64_t cell) const {
    return kind_ == Kind::by_row ? cell : kind_ == Kind::by_affine ? 0 : arrays_.row[cell];
  }
  std::int64_t affine(std::int64_t cell) const {
    if (kind_ == Kind::by_row) return affine_.map.kind == POPNORM_WHOLE ? 0 : wave_.row0 + cell;
    return kind_ == Kind::by_affine ? cell : arrays_.affine[cell];
  }
  // The map behind of(), for a partition: labels from the wave's first sample on where it is LABELS.
  Labelled map() const {
    switch (kind_) {
      case Kind::by_row:
        return {row_.map, row_.labels != nullptr ? row_.labels + wave_.n0 : nullptr};
      case Kind::by_affine:
        return {affine_.map, affine_.labels != nullptr ? affine_.labels + wave_.n0 : nullptr};
      default:
        return {{POPNORM_LABELS, count_, count_}, arrays_.cell};
    }
  }

 private:
  enum class Kind { by_row, by_affine, listed };

  // In the order in which each row meets its affine slots, which no sample of another row changes.
  void list(const Arrays& arrays) {
    arrays_ = arrays;
    const auto buckets = static_cast<std::uint64_t>(most(row_.map, affine_.map, wave_.n, wave_.rows));
    std::fill_n(arrays.bucket, buckets, -1);
    for (std::int64_t n = 0; n < wave_.n; ++n) {
      const auto row = static_cast<std::int32_t>(row_(wave_.n0 + n) - wave_.row0);
      const auto affine = static_cast<std::int32_t>(affine_(wave_.n0 + n));
      const std::uint64_t pair = static_cast<std::uint64_t>(row) * static_cast<std::uint64_t>(affine_.map.count) +
                                 static_cast<std::uint64_t>(affine);
      const std::uint64_t hash = pair * 0x9e3779b97f4a7c15U >> 32;  // Fibonacci hashing (Knuth 6.4)
      std::int32_t* link = &arrays.bucket[hash * buckets >> 32];
      while (*link >= 0 && (arrays.row[*link] != row || arrays.affine[*link] != affine)) link = &arrays.next[*link];
      if (*link < 0) {
        const auto cell = static_cast<std::int32_t>(count_++);
        *link = cell;
        arrays.row[cell] = row;
        arrays.affine[cell] = affine;
        arrays.next[cell] = -1;
      }
      arrays.cell[n] = *link;
    }
  }

  Labelled row_;
  Labelled affine_;
  Wave wave_;
  Kind kind_ = Kind::by_row;
  std::int64_t count_ = 0;
  Arrays arrays_{};
};

}  // namespace popnorm

#endif
