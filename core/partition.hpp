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

// More classes than this are ordered instead of sharing tiles.
inline constexpr std::int64_t kMostInterleaved = 16;

struct Slot {
  std::int64_t of;            // its class
  std::int64_t first;         // its first sample
  std::int64_t samples;       // how many
  const std::int32_t* index;  // which samples, in ascending order; null: neighbours
  std::int64_t s0, s1;        // positions
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

    bool interleaved() const { return !in_order && s <= length && classes <= kMostInterleaved; }
    std::int64_t most_bundles() const {
      const Cut cut(s, length);
      if (in_order || s == 0) return 0;
      const std::int64_t tiles = cut.tiles(n);
      return std::min(n, interleaved() ? tiles * std::min(classes, cut.samples()) : tiles + std::min(classes, n));
    }
    std::int64_t most_slots() const {
      const Cut cut(s, length);
      return in_order ? Tiling(n, s, length, samples_per_class).tiles() : most_bundles() * cut.runs();
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
    const bool shared = !shape.in_order && most_classes <= kMostInterleaved;
    shape.length = tile_length(p.form, p.n, p.c, p.s, shared ? most_classes : 1);
    return shape;
  }

  // Only where classes are not in order. Entries: n, most_bundles + 1, most_bundles, classes + 1, most_bundles.
  struct Arrays {
    std::int32_t* order;
    std::int32_t* begin;
    std::int32_t* of;
    std::int32_t* first;
    std::int32_t* bundle;
  };

  Partition() = default;
  Partition(const Shape& shape, const Labelled& map, std::int64_t classes, const Arrays& arrays)
      : shape_(shape), cut_(shape.s, shape.length) {
    if (shape.s == 0 || shape.n == 0) return;
    if (shape.in_order) {
      tiling_ = Tiling(shape.n, shape.s, shape.length, shape.samples_per_class);
      slots_ = tiling_.tiles();
      return;
    }
    arrays_ = arrays;
    if (shape.interleaved())
      share_tiles(map, classes);
    else
      sort(map, classes);
    slots_ = bundles_ * cut_.runs();
  }

  std::int64_t slots() const { return slots_; }

  Slot operator[](std::int64_t i) const {
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

  // Slots of a class, in ascending order of tiles.
  std::int64_t slots_of(std::int64_t of) const {
    if (slots_ == 0) return 0;
    if (shape_.in_order) return tiling_.first_of(of + 1) - tiling_.first_of(of);
    return (arrays_.first[of + 1] - arrays_.first[of]) * cut_.runs();
  }
  std::int64_t slot_of(std::int64_t of, std::int64_t i) const {
    if (shape_.in_order) return tiling_.first_of(of) + i;
    return arrays_.bundle[arrays_.first[of] + i / cut_.runs()] * cut_.runs() + i % cut_.runs();
  }

 private:
  void add_bundle(std::int64_t of, std::int64_t begin) {
    arrays_.of[bundles_] = static_cast<std::int32_t>(of);
    arrays_.begin[bundles_++] = static_cast<std::int32_t>(begin);
    arrays_.begin[bundles_] = static_cast<std::int32_t>(shape_.n);
  }

  void share_tiles(const Labelled& map, std::int64_t classes) {
    const std::int64_t tiles = cut_.tiles(shape_.n);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t begin = part_of(shape_.n, tiles, t);
      const std::int64_t end = part_of(shape_.n, tiles, t + 1);
      std::int64_t at[kMostInterleaved + 1] = {};
      for (std::int64_t n = begin; n < end; ++n) ++at[map(n) + 1];
      at[0] = begin;
      for (std::int64_t k = 0; k < classes; ++k) {
        if (at[k + 1] > 0) add_bundle(k, at[k]);
        at[k + 1] += at[k];
      }
      for (std::int64_t n = begin; n < end; ++n) arrays_.order[at[map(n)]++] = static_cast<std::int32_t>(n);
    }
    std::fill(arrays_.first, arrays_.first + classes + 1, 0);
    for (std::int64_t b = 0; b < bundles_; ++b) ++arrays_.first[arrays_.of[b] + 1];
    for (std::int64_t k = 0; k < classes; ++k) arrays_.first[k + 1] += arrays_.first[k];
    std::int32_t next[kMostInterleaved];
    for (std::int64_t k = 0; k < std::min(classes, kMostInterleaved); ++k) next[k] = arrays_.first[k];
    for (std::int64_t b = 0; b < bundles_; ++b) arrays_.bundle[next[arrays_.of[b]]++] = static_cast<std::int32_t>(b);
  }

  void sort(const Labelled& map, std::int64_t classes) {
    std::int32_t* const first = arrays_.first;
    std::fill(first, first + classes + 1, 0);
    for (std::int64_t n = 0; n < shape_.n; ++n) ++first[map(n) + 1];
    for (std::int64_t k = 0; k < classes; ++k) first[k + 1] += first[k];
    for (std::int64_t n = shape_.n - 1; n >= 0; --n)
      arrays_.order[--first[map(n) + 1]] = static_cast<std::int32_t>(n);  // now first[k + 1] is where class k begins
    for (std::int64_t k = 0; k < classes; ++k) {
      const std::int64_t begin = first[k + 1];
      const std::int64_t end = k + 1 < classes ? first[k + 2] : shape_.n;
      first[k] = static_cast<std::int32_t>(bundles_);
      const std::int64_t tiles = cut_.tiles(end - begin);
      for (std::int64_t t = 0; t < tiles; ++t) {
        arrays_.bundle[bundles_] = static_cast<std::int32_t>(bundles_);
        add_bundle(k, begin + part_of(end - begin, tiles, t));
      }
    }
    first[classes] = static_cast<std::int32_t>(bundles_);
  }

  Shape shape_;
  Cut cut_;
  Tiling tiling_;
  Arrays arrays_{};
  std::int64_t slots_ = 0;
  std::int64_t bundles_ = 0;
};

}  // namespace popnorm

#endif
