// Where things are: operands, groups of samples, tiles of a group, and arrays of parameters.
//
// A block has x threads side by side in channels and y threads in positions: 1 x 256 where the positions of a channel are
// contiguous (rows form), up to 8 x 32 where the channels of a position are (columns form).
#ifndef POPNORM_KERNELS_CUDA_LAYOUT_CUH
#define POPNORM_KERNELS_CUDA_LAYOUT_CUH

#include <popnorm/popnorm.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/inline.hpp"

namespace popnorm::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kWarp = 32;

// Division of numbers >= 0 by one that the host knows: by a multiplication (Granlund & Montgomery 1994). With 2^(l-1) < d <= 2^l
// the multiplier ceil(2^(63+l) / d) has 64 bits and is exact for dividends below 2^63; ceil(2^(31+l) / d) is for those below 2^31.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(std::int64_t by) : by_(by) {
    if (by <= 1) return;
    const int l = std::bit_width(static_cast<std::uint64_t>(by) - 1);
    const unsigned __int128 power = static_cast<unsigned __int128>(1) << (63 + l);
    multiplier_ =
        static_cast<std::uint64_t>((power + static_cast<std::uint64_t>(by) - 1) / static_cast<std::uint64_t>(by));
    shift_ = l - 1;
    if (by <= std::int64_t{1} << 31)
      narrow_ = static_cast<std::uint32_t>(((std::uint64_t{1} << (31 + l)) + static_cast<std::uint64_t>(by) - 1) /
                                           static_cast<std::uint64_t>(by));
  }
  POPNORM_INLINE std::int64_t by() const { return by_; }
  POPNORM_INLINE std::uint32_t quotient(std::uint32_t n) const {
    return multiplier_ == 0 ? n : multiply_high(n, narrow_) >> shift_;
  }
  POPNORM_INLINE std::int64_t quotient(std::int64_t n) const {
    if (multiplier_ == 0) return n;
    return static_cast<std::int64_t>(multiply_high(static_cast<std::uint64_t>(n), multiplier_) >> shift_);
  }
  POPNORM_INLINE std::int64_t rounded_up(std::int64_t n) const { return quotient(n + by_ - 1); }

 private:
  std::int64_t by_ = 1;
  std::uint64_t multiplier_ = 0;  // of 1: none
  std::uint32_t narrow_ = 0;
  int shift_ = 0;
};

// A tensor by the distances between neighbours, in elements.
struct Operand {
  void* first = nullptr;
  std::int64_t sample = 0;
  std::int64_t channel = 0;
  std::int64_t position = 0;
  bool packs = false;   // 16 bytes that lie side by side begin at a multiple of 16
  bool halves = false;  // the same of 8

  template <class T>
  POPNORM_INLINE T* at(std::int64_t n, std::int64_t c, std::int64_t s) const {
    return static_cast<T*>(first) + (n * sample + c * channel + s * position);
  }
  // The same counted in packs of so many elements, fewer than 2^32 of them, that lie side by side in positions (rows form) or channels.
  template <class T, bool kRows, int kPack>
  POPNORM_INLINE std::uint32_t pack(std::uint32_t n, std::int64_t c, std::uint32_t s) const {
    const auto whole = [](std::int64_t elements) { return static_cast<std::uint32_t>(elements / kPack); };
    const std::uint32_t of_sample = n * whole(sample);
    return kRows ? whole(c * channel) + of_sample + s / static_cast<std::uint32_t>(kPack)
                 : whole(c) + of_sample + s * whole(position);
  }
  template <class T, int kPack>
  POPNORM_INLINE T* at_pack(std::uint32_t number) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(first) + std::uint64_t{number} * (kPack * sizeof(T)));
  }
  // Counted in elements, fewer than 2^32, that lie side by side in positions.
  template <class T>
  POPNORM_INLINE T* at_element(std::uint32_t n, std::int64_t c, std::uint32_t s) const {
    return static_cast<T*>(first) +
           std::uint64_t{static_cast<std::uint32_t>(c * channel) + n * static_cast<std::uint32_t>(sample) + s};
  }
};

struct Extents {
  std::int64_t n = 0;
  std::int64_t c = 0;
  Divisor s;
  int unit = 0;  // log2 of the neighbours that images are made of (kernels/cuda/chunk.cuh)
};

// The samples of an id, in ascending order.
struct Members {
  std::int64_t first;
  std::int64_t step;
  const std::int32_t* order;  // or null, of labels: the samples

  POPNORM_INLINE static Members all() { return {0, 1, nullptr}; }
  POPNORM_INLINE std::int64_t at(std::int64_t i) const { return order != nullptr ? order[i] : first + i * step; }
};

// The same of a map in closed form, counted in 32 bits.
struct NarrowMembers {
  std::uint32_t first;
  std::uint32_t step;

  POPNORM_INLINE explicit NarrowMembers(const Members& of)
      : first(static_cast<std::uint32_t>(of.first)), step(static_cast<std::uint32_t>(of.step)) {}
  POPNORM_INLINE std::uint32_t at(std::uint32_t i) const { return first + i * step; }
};

// A map from samples to ids, and back: the members of an id in ascending order. Labels outside [0, count), and those of a map
// that a call was not given, are -1.
struct Groups {
  popnorm_map_kind kind = POPNORM_WHOLE;
  Divisor k;
  std::int64_t count = 1;
  std::int64_t n = 0;
  const std::int32_t* ids = nullptr;    // [n]
  const std::int32_t* order = nullptr;  // [n]: samples by id (kernels/cuda/order.cuh)
  const std::int32_t* begin = nullptr;  // [count + 1]: where an id's begin there

  POPNORM_INLINE std::int64_t of(std::int64_t sample) const {
    switch (kind) {
      case POPNORM_CONTIGUOUS:
        return k.quotient(sample);
      case POPNORM_STRIDED:
        return sample - k.quotient(sample) * k.by();
      case POPNORM_PER_SAMPLE:
        return sample;
      case POPNORM_LABELS: {
        const std::int64_t id = ids != nullptr ? ids[sample] : -1;
        return id < count ? id : -1;
      }
      default:
        return 0;
    }
  }
  POPNORM_INLINE std::int64_t size(std::int64_t id) const {
    switch (kind) {
      case POPNORM_CONTIGUOUS:
        return n - id * k.by() < k.by() ? n - id * k.by() : k.by();
      case POPNORM_STRIDED:
        return id < n ? k.quotient(n - id + k.by() - 1) : 0;
      case POPNORM_PER_SAMPLE:
        return 1;
      case POPNORM_LABELS:
        return begin[id + 1] - begin[id];
      default:
        return n;
    }
  }
  POPNORM_INLINE Members members(std::int64_t id) const {
    switch (kind) {
      case POPNORM_CONTIGUOUS:
        return {id * k.by(), 1, nullptr};
      case POPNORM_STRIDED:
        return {id, k.by(), nullptr};
      case POPNORM_PER_SAMPLE:
        return {id, 1, nullptr};
      case POPNORM_LABELS:
        return {0, 1, order + begin[id]};
      default:
        return Members::all();
    }
  }
};

// A group's positions, in the order of its samples, are cut into tiles of equal length; tiles decide the bits, never the grid.
// In closed form every group has as many tile numbers as the largest needs. Labelled groups, whose sizes only the device knows,
// begin at floor(positions before / length) + id: far enough apart for all of their tiles.
struct Tiles {
  Divisor length;
  Divisor per_group;       // of a map in closed form
  std::int64_t count = 0;  // of tile numbers

  // How many of them a group with so many positions has.
  POPNORM_INLINE std::int64_t of(std::int64_t positions) const { return length.rounded_up(positions); }
  POPNORM_INLINE std::int64_t first(const Groups& groups, std::int64_t s, std::int64_t id) const {
    if (groups.kind == POPNORM_LABELS) return length.quotient(groups.begin[id] * s) + id;
    return id * per_group.by();
  }
  // The group of a tile number.
  POPNORM_INLINE std::int64_t group(const Groups& groups, std::int64_t s, std::int64_t number) const {
    if (groups.kind != POPNORM_LABELS) return per_group.quotient(number);
    std::int64_t low = 0, high = groups.count;  // the last whose first tile is not beyond
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (first(groups, s, middle) <= number ? low : high) = middle;
    }
    return low;
  }
};

inline Tiles tiles_of(const Groups& groups, std::int64_t s, std::int64_t length) {
  Tiles tiles{Divisor(length), Divisor(), 0};
  if (groups.kind == POPNORM_LABELS) {
    tiles.count = tiles.length.quotient(groups.n * s) + groups.count;
    return tiles;
  }
  if (groups.count == 0) return tiles;
  const std::int64_t largest = groups.kind == POPNORM_WHOLE        ? groups.n
                               : groups.kind == POPNORM_CONTIGUOUS ? std::min(groups.k.by(), groups.n)
                                                                   : groups.size(0);
  tiles.per_group = Divisor(tiles.of(largest * s));
  tiles.count = groups.count * tiles.per_group.by();
  return tiles;
}

// A tile: positions [begin, end) of a group, none where the group has no such tile.
struct Tile {
  std::int64_t group;
  std::int64_t begin;
  std::int64_t end;

  // By its place in its group, or by its number.
  POPNORM_INLINE Tile(const Groups& groups, const Tiles& tiles, std::int64_t s, std::int64_t of, std::int64_t place)
      : group(of), begin(place * tiles.length.by()) {
    const std::int64_t positions = groups.size(group) * s;
    end = begin + tiles.length.by() < positions ? begin + tiles.length.by() : positions;
  }
  POPNORM_INLINE static Tile numbered(const Groups& groups, const Tiles& tiles, std::int64_t s, std::int64_t number) {
    const std::int64_t group = tiles.group(groups, s, number);
    return {groups, tiles, s, group, number - tiles.first(groups, s, group)};
  }
};

// A place among positions counted sample after sample, moved on without divisions.
template <class Index>
class Walk {
 public:
  POPNORM_INLINE Walk(Index at, Index step, const Divisor& s)
      : s_(static_cast<Index>(s.by())),
        sample_(s.quotient(at)),
        position_(at - sample_ * s_),
        samples_(s.quotient(step)),
        positions_(step - samples_ * s_) {}
  POPNORM_INLINE Index sample() const { return sample_; }
  POPNORM_INLINE Index position() const { return position_; }
  // A step, which goes to the next sample besides where it would leave one.
  POPNORM_INLINE Index samples() const { return samples_; }
  POPNORM_INLINE Index positions() const { return positions_; }
  POPNORM_INLINE void step() {
    sample_ += samples_;
    position_ += positions_;
    if (position_ >= s_) {
      position_ -= s_;
      ++sample_;
    }
  }

 private:
  Index s_;
  Index sample_;
  Index position_;
  Index samples_;
  Index positions_;
};

// What the elements of a call count (popnorm_weights); a number that is no weight counts 0.
struct Weights {
  popnorm_weights kind = POPNORM_UNWEIGHTED;
  const void* first = nullptr;
  std::int64_t s = 0;

  POPNORM_INLINE float of(std::int64_t sample, std::int64_t position) const {
    switch (kind) {
      case POPNORM_LENGTHS:
        return position < static_cast<const std::int64_t*>(first)[sample] ? 1.0F : 0.0F;
      case POPNORM_WEIGHTS_PER_SAMPLE:
        return usable(static_cast<const float*>(first)[sample]);
      case POPNORM_WEIGHTS_PER_POSITION:
        return usable(static_cast<const float*>(first)[sample * s + position]);
      default:
        return 1;
    }
  }
  POPNORM_INLINE static bool is_usable(float weight) { return weight >= 0 && weight <= 3.402823466e38F; }

 private:
  POPNORM_INLINE static float usable(float weight) { return is_usable(weight) ? weight : 0; }
};

// Which elements are there: those that count, of samples that both maps know.
struct Presence {
  const Weights& weights;
  const Groups& rows;
  const Groups& affine;

  POPNORM_INLINE float weight(std::int64_t sample, std::int64_t position) const {
    return rows.of(sample) < 0 || affine.of(sample) < 0 ? 0 : weights.of(sample, position);
  }
};

// An array of `parameters` or `statistics`, whichever type these have; null: `absent` everywhere.
struct Values {
  const void* first = nullptr;
  popnorm_type type = POPNORM_F32;

  POPNORM_INLINE double get(std::int64_t i, double absent) const {
    if (first == nullptr) return absent;
    return type == POPNORM_F64 ? static_cast<const double*>(first)[i]
                               : static_cast<double>(static_cast<const float*>(first)[i]);
  }
  // Neighbours from i on: get() of each would ask for the type, and wait, as often.
  template <int N, class A>
  POPNORM_INLINE void get(std::int64_t i, A absent, A (&value)[N]) const {
    if (first == nullptr) {
      for (int k = 0; k < N; ++k) value[k] = absent;
    } else if (type == POPNORM_F64) {
      for (int k = 0; k < N; ++k) value[k] = static_cast<A>(static_cast<const double*>(first)[i + k]);
    } else {
      for (int k = 0; k < N; ++k) value[k] = static_cast<A>(static_cast<const float*>(first)[i + k]);
    }
  }
};
struct Results {
  void* first = nullptr;
  popnorm_type type = POPNORM_F32;

  POPNORM_INLINE double get(std::int64_t i) const { return Values{first, type}.get(i, 0); }
  POPNORM_INLINE void put(std::int64_t i, double value) const {
    if (type == POPNORM_F64)
      static_cast<double*>(first)[i] = value;
    else
      static_cast<float*>(first)[i] = static_cast<float>(value);
  }
};

}  // namespace popnorm::cuda

#endif
