// The slots of a wave: which samples and positions each partial result is of, and which class (group or cell) it belongs to.
//
// Classes whose samples follow one another in memory are tiled as they lie. A few classes dealt among one another share
// tiles in memory order, with a slot per class present, so that memory is read once. Many are ordered first, by a stable
// counting sort, and tiled class by class. Either way a class's slots, and so its bits, depend on its own samples and
// their places alone.
#ifndef POPNORM_CORE_PARTITION_HPP
#define POPNORM_CORE_PARTITION_HPP

#include <algorithm>
#include <cstdint>

#include "core/maps.hpp"
#include "core/tiling.hpp"

namespace popnorm {

// More classes than this are ordered instead of sharing tiles, and so are tiles of more samples.
inline constexpr std::int64_t kMostInterleaved = 16;
inline constexpr std::int64_t kMostTogether = 8192;

struct Slot {
  std::int64_t of;            // its class
  std::int64_t first;         // its first sample
  std::int64_t samples;       // how many; 0: the class is absent from the tile
  const std::int32_t* index;  // which samples, in ascending order; null: neighbours
  std::int64_t s0, s1;        // positions
  std::int64_t before = 0;    // samples of its tile that slots before it have
  std::int64_t positions() const { return samples * (s1 - s0); }
};

class Partition {
 public:
  // What decides the slots and is known before any label: a pure function of the problem.
  struct Shape {
    std::int64_t n = 0;  // of a wave
    std::int64_t s = 0;
    std::int64_t length = 1;
    std::int64_t classes = 1;  // at most, of a wave
    std::int64_t samples_per_class = 1;
    bool in_order = true;

    bool shared() const {
      return !in_order && s <= length && classes <= kMostInterleaved && Cut(s, length).samples() <= kMostTogether;
    }
    // Samples that are cut together, where they are sorted.
    std::int64_t most_bundles() const {
      if (in_order || shared() || s == 0) return 0;
      return std::min(n, Cut(s, length).tiles(n) + std::min(classes, n));
    }
    std::int64_t most_slots() const {
      if (s == 0) return 0;
      const Cut cut(s, length);
      if (in_order) return Tiling(n, s, length, samples_per_class).tiles();
      return shared() ? cut.tiles(n) * classes : most_bundles() * cut.runs();
    }
  };

  // n and `most_classes` are a wave's; the length is that of the whole problem.
  static Shape shape(const Problem& p, const Map& map, std::int64_t n, std::int64_t most_classes) {
    Shape shape;
    shape.n = n;
    shape.s = p.s;
    shape.classes = most_classes;
    shape.in_order = popnorm::in_order(map);
    shape.samples_per_class = shape.in_order ? std::max<std::int64_t>(samples_per_id(map, n), 1) : 1;
    const bool few = !shape.in_order && most_classes <= kMostInterleaved;
    shape.length = tile_length(p.form, p.n, p.c, p.s, few ? most_classes : 1,
                               p.norm_group.kind == POPNORM_LABELS || p.affine_slot.kind == POPNORM_LABELS);
    return shape;
  }

  // Where classes are sorted. Entries: n, most_bundles + 1, most_bundles, classes + 1.
  struct Arrays {
    std::int32_t* order;
    std::int32_t* begin;
    std::int32_t* of;
    std::int32_t* first;
  };

  Partition() = default;
  Partition(const Shape& shape, const Labelled& map, std::int64_t classes, const Arrays& arrays)
      : shape_(shape), map_(map), classes_(classes), cut_(shape.s, shape.length), arrays_(arrays) {
    if (shape.s == 0 || shape.n == 0) return;
    if (shape.in_order) {
      tiling_ = Tiling(shape.n, shape.s, shape.length, shape.samples_per_class);
      slots_ = units_ = tiling_.tiles();
    } else if (shape.shared()) {
      units_ = cut_.tiles(shape.n);
      slots_ = units_ * classes;
    } else {
      sort();
      slots_ = units_ = bundles_ * cut_.runs();
    }
  }

  std::int64_t slots() const { return slots_; }

  // What is reduced at once: a slot, or a tile with its slots of all classes.
  std::int64_t units() const { return units_; }
  bool shares_tiles() const { return shape_.shared(); }

  // Calls body(slot number, slot) for the slots of a unit, absent classes included.
  template <class Body>
  void for_each_slot(std::int64_t unit, const Body& body) const {
    if (!shape_.shared()) {
      body(unit, slot(unit));
      return;
    }
    const std::int64_t begin = part_of(shape_.n, units_, unit);
    const std::int64_t end = part_of(shape_.n, units_, unit + 1);
    std::int64_t at[kMostInterleaved + 1];
    count(begin, end, at);
    // A stable counting sort of the tile's samples.
    std::int32_t order[kMostTogether];
    std::int64_t next[kMostInterleaved];
    for (std::int64_t k = 0; k < classes_; ++k) next[k] = at[k];
    with_ids([&](const auto& id) {
      for (std::int64_t n = begin; n < end; ++n) order[next[id(n)]++] = static_cast<std::int32_t>(n);
    });
    for (std::int64_t k = 0; k < classes_; ++k) {
      const std::int64_t samples = at[k + 1] - at[k];
      body(unit * classes_ + k,
           Slot{k, samples > 0 ? order[at[k]] : begin, samples, order + at[k], 0, shape_.s, at[k]});
    }
  }

  // Where a unit begins to be read.
  Slot first_slot(std::int64_t unit) const {
    if (!shape_.shared()) return slot(unit);
    return {0, part_of(shape_.n, units_, unit), 0, nullptr, 0, shape_.s};
  }

  // Calls body(slot number, positions) for all slots.
  template <class Body>
  void for_each_weight(const Body& body) const {
    if (!shape_.shared()) {
      for (std::int64_t i = 0; i < slots_; ++i) body(i, slot(i).positions());
      return;
    }
    std::int64_t at[kMostInterleaved + 1];
    for (std::int64_t t = 0; t < units_; ++t) {
      count(part_of(shape_.n, units_, t), part_of(shape_.n, units_, t + 1), at);
      for (std::int64_t k = 0; k < classes_; ++k) body(t * classes_ + k, (at[k + 1] - at[k]) * shape_.s);
    }
  }

  // Slots of a class, in ascending order of tiles: first, first + stride, ...
  struct Of {
    std::int64_t count;
    std::int64_t first;
    std::int64_t stride;
  };
  Of slots_of(std::int64_t of) const {
    if (slots_ == 0) return {0, 0, 1};
    if (shape_.in_order) return {tiling_.first_of(of + 1) - tiling_.first_of(of), tiling_.first_of(of), 1};
    if (shape_.shared()) return {units_, of, classes_};
    return {(arrays_.first[of + 1] - arrays_.first[of]) * cut_.runs(), arrays_.first[of] * cut_.runs(), 1};
  }

  // The first sample of a class, -1 if it has none.
  std::int64_t first_sample(std::int64_t of) const {
    if (shape_.in_order) return begin_of(of) < shape_.n ? begin_of(of) : -1;
    if (shape_.shared() || slots_ == 0) {  // without positions there are samples, but no slots
      for (std::int64_t n = 0; n < shape_.n; ++n)
        if (map_(n) == of) return n;
      return -1;
    }
    const Of slots = slots_of(of);
    return slots.count > 0 ? slot(slots.first).first : -1;
  }

  // Where classes are in order: the samples of one.
  std::int64_t begin_of(std::int64_t of) const { return std::min(of * shape_.samples_per_class, shape_.n); }

 private:
  Slot slot(std::int64_t i) const {
    if (shape_.in_order) {
      const Tile t = tiling_[i];
      return {tiling_.group_of(i), t.n0, t.n1 - t.n0, nullptr, t.s0, t.s1};
    }
    const std::int64_t b = i / cut_.runs();
    const std::int64_t run = i % cut_.runs();
    const std::int32_t* index = arrays_.order + arrays_.begin[b];
    return {arrays_.of[b], *index,          arrays_.begin[b + 1] - arrays_.begin[b],
            index,         cut_.begin(run), cut_.begin(run + 1)};
  }

  // Calls body with what gives a sample's id, labels apart from the rest: they are looked up many times.
  template <class Body>
  void with_ids(const Body& body) const {
    if (map_.map.kind == POPNORM_LABELS)
      body([labels = map_.labels](std::int64_t n) { return labels[n]; });
    else
      body(map_);
  }

  // at[k] ... at[k + 1]: places of class k among the samples [begin, end), sorted.
  void count(std::int64_t begin, std::int64_t end, std::int64_t* at) const {
    std::fill(at, at + classes_ + 1, 0);
    with_ids([&](const auto& id) {
      for (std::int64_t n = begin; n < end; ++n) ++at[id(n) + 1];
    });
    for (std::int64_t k = 0; k < classes_; ++k) at[k + 1] += at[k];
  }

  void sort() {
    std::int32_t* const first = arrays_.first;
    std::fill(first, first + classes_ + 1, 0);
    for (std::int64_t n = 0; n < shape_.n; ++n) ++first[map_(n) + 1];
    for (std::int64_t k = 0; k < classes_; ++k) first[k + 1] += first[k];
    for (std::int64_t n = shape_.n - 1; n >= 0; --n)
      arrays_.order[--first[map_(n) + 1]] = static_cast<std::int32_t>(n);  // now first[k + 1] is where class k begins
    for (std::int64_t k = 0; k < classes_; ++k) {
      const std::int64_t begin = first[k + 1];
      const std::int64_t end = k + 1 < classes_ ? first[k + 2] : shape_.n;
      first[k] = static_cast<std::int32_t>(bundles_);
      const std::int64_t tiles = cut_.tiles(end - begin);
      for (std::int64_t t = 0; t < tiles; ++t) {
        arrays_.of[bundles_] = static_cast<std::int32_t>(k);
        arrays_.begin[bundles_++] = static_cast<std::int32_t>(begin + part_of(end - begin, tiles, t));
      }
    }
    first[classes_] = static_cast<std::int32_t>(bundles_);
    arrays_.begin[bundles_] = static_cast<std::int32_t>(shape_.n);
  }

  Shape shape_;
  Labelled map_;
  std::int64_t classes_ = 0;
  Cut cut_;
  Tiling tiling_;
  Arrays arrays_{};
  std::int64_t slots_ = 0;
  std::int64_t units_ = 0;
  std::int64_t bundles_ = 0;
};

}  // namespace popnorm

#endif
