// Where things are: operands, groups of samples, tiles of a group, and how a block's threads walk over positions.
//
// A block has x threads side by side in channels and y threads in positions: 1 x 256 where the positions of a channel are
// contiguous (rows form), up to 32 x 8 where the channels of a position are (columns form).
#ifndef POPNORM_KERNELS_CUDA_LAYOUT_CUH
#define POPNORM_KERNELS_CUDA_LAYOUT_CUH

#include <popnorm/popnorm.h>

#include <cstdint>

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/inline.hpp"

namespace popnorm::cuda {

inline constexpr int kThreads = 256;
// Positions that a thread holds in registers between two sweeps.
inline constexpr int kHeld = 16;

// A tensor by the distances between neighbours, in elements.
struct Operand {
  void* first = nullptr;
  std::int64_t sample = 0;
  std::int64_t channel = 0;
  std::int64_t position = 0;

  POPNORM_INLINE std::int64_t index(std::int64_t n, std::int64_t c, std::int64_t s) const {
    return n * sample + c * channel + s * position;
  }
};

template <class T>
POPNORM_INLINE T load(const Operand& from, std::int64_t n, std::int64_t c, std::int64_t s) {
  return static_cast<const T*>(from.first)[from.index(n, c, s)];
}
template <class T>
POPNORM_INLINE void store(const Operand& to, std::int64_t n, std::int64_t c, std::int64_t s, T value) {
  static_cast<T*>(to.first)[to.index(n, c, s)] = value;
}

struct Extents {
  std::int64_t n = 0;
  std::int64_t c = 0;
  std::int64_t s = 0;
};

// A map from samples to ids in closed form, and back: the members of an id in ascending order.
struct Groups {
  popnorm_map_kind kind = POPNORM_WHOLE;
  std::int64_t k = 0;
  std::int64_t count = 1;
  std::int64_t n = 0;

  POPNORM_INLINE std::int64_t of(std::int64_t sample) const {
    switch (kind) {
      case POPNORM_CONTIGUOUS:
        return sample / k;
      case POPNORM_STRIDED:
        return sample % k;
      case POPNORM_PER_SAMPLE:
        return sample;
      default:
        return 0;
    }
  }
  POPNORM_INLINE std::int64_t size(std::int64_t id) const {
    switch (kind) {
      case POPNORM_CONTIGUOUS:
        return n - id * k < k ? n - id * k : k;
      case POPNORM_STRIDED:
        return id < n ? (n - id + k - 1) / k : 0;
      case POPNORM_PER_SAMPLE:
        return 1;
      default:
        return n;
    }
  }
  POPNORM_INLINE std::int64_t largest() const {
    return kind == POPNORM_WHOLE ? n : kind == POPNORM_CONTIGUOUS ? (k < n ? k : n) : size(0);
  }
  POPNORM_INLINE std::int64_t member(std::int64_t id, std::int64_t i) const {
    switch (kind) {
      case POPNORM_CONTIGUOUS:
        return id * k + i;
      case POPNORM_STRIDED:
        return id + i * k;
      case POPNORM_PER_SAMPLE:
        return id;
      default:
        return i;
    }
  }
};

// A group's positions, in the order of its samples, are cut into tiles of equal length; tiles decide the bits, never the grid.
// Every group has as many tile numbers as the largest needs: tile t is the (t % per_group)-th of group t / per_group.
struct Tiles {
  std::int64_t length = 1;
  std::int64_t per_group = 0;

  // How many of them a group with so many positions has.
  POPNORM_INLINE std::int64_t of(std::int64_t positions) const { return (positions + length - 1) / length; }
};

POPNORM_INLINE Tiles tiles_of(const Groups& groups, std::int64_t s, std::int64_t length) {
  const Tiles one{length, 0};
  return {length, groups.count > 0 ? one.of(groups.largest() * s) : 0};
}

// A tile: positions [begin, end) of a group, none where the group has no such tile.
struct Tile {
  std::int64_t group;
  std::int64_t begin;
  std::int64_t end;

  POPNORM_INLINE Tile(const Groups& groups, const Tiles& tiles, std::int64_t s, std::int64_t number)
      : group(number / tiles.per_group), begin(number % tiles.per_group * tiles.length) {
    const std::int64_t positions = groups.size(group) * s;
    end = begin + tiles.length < positions ? begin + tiles.length : positions;
  }
};

// Calls body(number) for those of a group's tiles, neighbours, that this thread of a column is to merge.
template <class Body>
__device__ __forceinline__ void for_each_tile(const Groups& groups, const Tiles& tiles, std::int64_t s,
                                              std::int64_t group, const Body& body) {
  const std::int64_t count = tiles.of(groups.size(group) * s);
  const std::int64_t stretch = (count + blockDim.y - 1) / blockDim.y;
  const std::int64_t begin = stretch * threadIdx.y;
  const std::int64_t end = begin + stretch < count ? begin + stretch : count;
  for (std::int64_t t = begin; t < end; ++t) body(group * tiles.per_group + t);
}

// A place among positions counted sample after sample, moved on without divisions.
class Walk {
 public:
  POPNORM_INLINE Walk(std::int64_t at, std::int64_t step, std::int64_t s)
      : sample_(at / s), position_(at % s), samples_(step / s), positions_(step % s), s_(s) {}
  POPNORM_INLINE std::int64_t sample() const { return sample_; }
  POPNORM_INLINE std::int64_t position() const { return position_; }
  POPNORM_INLINE void step() {
    sample_ += samples_;
    position_ += positions_;
    if (position_ >= s_) {
      position_ -= s_;
      ++sample_;
    }
  }

 private:
  std::int64_t sample_;
  std::int64_t position_;
  std::int64_t samples_;
  std::int64_t positions_;
  std::int64_t s_;
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

// shared[y][x] summed over y, for every x: log2(y) steps, always the same. Everybody gets the sum.
template <class T, class Add>
__device__ __forceinline__ T block_sum(T value, T* shared, const Add& add) {
  const unsigned at = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // the last sum has been read
  shared[at] = value;
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) shared[at] = add(shared[at], shared[at + half * blockDim.x]);
  }
  __syncthreads();
  return shared[threadIdx.x];
}

}  // namespace popnorm::cuda

#endif
