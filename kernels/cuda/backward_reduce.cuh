// The sums of backward over tiles of a class of samples, sum(g*dy) and sum(g*dy*xhat) with g the sample's scale or 1, and what
// they are merged into.
#ifndef POPNORM_KERNELS_CUDA_BACKWARD_REDUCE_CUH
#define POPNORM_KERNELS_CUDA_BACKWARD_REDUCE_CUH

#include <cmath>
#include <cstdint>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/fold.cuh"

namespace popnorm::cuda {

// The tiles of whatever samples may be classed by.
struct ClassTiles {
  Tiles groups;
  Tiles slots;
  Tiles affine;

  POPNORM_INLINE Tiles of_class(Classes classes, bool given) const {
    return classes == Classes::affine ? affine : given ? slots : groups;
  }
};

template <class A>
struct BackwardReduceArgs {
  Extents extents;
  Operand x;
  Operand dy;
  BackwardFusion fusion;
  RowSource<A> source;
  Classes classes = Classes::rows;
  bool scaled = false;
  bool for_dx_alone = false;  // which does not need sums if statistics are given
  Weights weights;
  ClassTiles tiles;
  double* dy_of_tile = nullptr;       // [tiles][c]
  double* dy_xhat_of_tile = nullptr;  // [tiles][c]
  int ahead = 0;                      // pairs of chunks that are copied ahead
};

// The sums of a thread's elements, chunk after chunk: at most four of a channel in A, then in double. row_of(row, k) is the row of
// statistics of a channel, asked for where it changes.
template <class A, class T, Access kAccess, class RowOf>
class Products {
  using S = Shape<T, kAccess>;

 public:
  // `first` is one of the samples, which may all be of one row.
  __device__ __forceinline__ Products(const Extents& extents, std::int64_t c, const Rows<A>& rows, std::int64_t first,
                                      bool of_one_row, bool scaled, const RowOf& row_of)
      : extents_(extents), c_(c), rows_(rows), scaled_(scaled), row_of_(row_of), place_(rows, of_one_row) {
    if (place_.alike()) read<kReadAtOnce<T, kAccess>>(first);
  }

  __device__ __forceinline__ bool alike() const { return place_.alike(); }

  template <bool kFused>
  __device__ __forceinline__ void add(Packs<T, kAccess> packs, const Chunk<T, kAccess>& x, const Chunk<T, kAccess>& dy,
                                      const Gate<A, kFused>& gate, bool alike, TwoSums (&sums)[S::kChannels]) {
    constexpr int kRun = 4;
    constexpr int kRuns = S::kRows && S::kPack > kRun ? S::kPack / kRun : 1;  // of a pack
    constexpr int kOfPack = S::kPackOf16 < kRun ? S::kPackOf16 : kRun;
    constexpr int kPacksOfRun = !S::kRows ? kRun : S::kPack < kOfPack ? kOfPack / S::kPack : 1;
    A sum[kRuns][S::kChannels]{}, products[kRuns][S::kChannels]{};
#pragma unroll
    for (int i = 0; i < S::kPacks; ++i, packs.next()) {
      if (S::kAsks && i % S::kAsked == 0 && x.mask(i) == 0) break;
      by_samples(
          packs, x.mask(i), alike, [&](std::int64_t sample) { enter(sample); },
          [&](int j) {
            const int at = i * S::kPack + j, k = S::channel(j), run = kRuns > 1 ? j / kRun : 0;
            const A xhat = (to_arithmetic(x.held[at]) - of_[k].hi) * of_[k].invstd - of_[k].shift;
            const A dz = gate.gradient(at, to_arithmetic(dy.held[at]));
            const A g = !alike && scaled_ ? dz * of_[k].scale : dz;  // alike, there is one affine slot
            sum[run][k] += g;
            products[run][k] = multiply_add(g, xhat, products[run][k]);
          });
      if ((i + 1) % kPacksOfRun != 0) continue;
#pragma unroll
      for (int run = 0; run < kRuns; ++run)
#pragma unroll
        for (int k = 0; k < S::kChannels; ++k) {
          sums[k] = Add()(sums[k], {static_cast<double>(sum[run][k]), static_cast<double>(products[run][k])});
          sum[run][k] = products[run][k] = 0;
        }
    }
  }

 private:
  __device__ __forceinline__ void enter(std::int64_t sample) { read<kReadInChunk<T, kAccess>>(sample); }
  template <int kAtOnce>
  __device__ __forceinline__ void read(std::int64_t sample) {
    if (!place_.enter(sample)) return;
    read_channels<T, kAccess, kAtOnce>(extents_, c_, [&](int k, std::int64_t from) {
      StatisticsRow<A> row[kAtOnce];
      A scale[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) row[i] = row_of_(place_.row(), from + i);
      (scaled_ ? rows_.scale : Values{}).get(place_.affine() * extents_.c + c_ + from, A(1), scale);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) of_[k + i] = {row[i].hi, row[i].invstd, row[i].lo * row[i].invstd, scale[i]};
    });
  }

  const Extents& extents_;
  std::int64_t c_;
  const Rows<A>& rows_;
  bool scaled_;
  RowOf row_of_;
  Place<A, Count<kAccess>, is_small(kAccess)> place_;
  struct Coefficients {
    A hi, invstd, shift, scale;
  } of_[S::kChannels]{};
};

// The sums of a tile of a class, of which all threads get theirs. read(x, dy, packs, i) reads the i-th chunks of the tile. kShares:
// there is room for the signs' coefficients in shared memory.
template <class A, class T, Access kAccess, bool kWeighted, bool kFused, bool kShares, class RowOf, class Read>
__device__ __forceinline__ void tile_sums(const BackwardReduceArgs<A>& args, const Rows<A>& rows,
                                          const Stretch<T, kAccess>& tile, const RowOf& row_of, std::byte* shared,
                                          TwoSums (&sums)[Shape<T, kAccess>::kChannels], const Read& read) {
  using S = Shape<T, kAccess>;
#pragma unroll
  for (int k = 0; k < S::kChannels; ++k) sums[k] = {0, 0};
  // Samples of one row are alike, unless a label can make the first of them absent.
  const bool of_one_row = args.classes == Classes::rows && !args.scaled && rows.affine.kind != POPNORM_LABELS;
  using Own = Products<A, T, kAccess, RowOf>;
  const std::int64_t first = tile.members.at(0);
  const int chunks = tile.chunks();
  using OwnSigns = Signs<A, T, kAccess, kFused>;
  constexpr bool kKept = OwnSigns::kInRows || (kShares && OwnSigns::kInColumns);
  OwnSigns signs(shared);
  if constexpr (kKept)
    if (args.fusion.recomputes)
      signs.keep(Normalized<A, T, kAccess, RowOf>(args.extents, tile.c, rows, row_of, first, of_one_row));
  Own products(args.extents, tile.c, rows, first, of_one_row, args.scaled, row_of);
  with_alike<kAccess>(products.alike(), [&](auto alike) {
    Packs<T, kAccess> packs = tile.packs(args.extents);
#pragma unroll 1
    for (int i = 0; i < chunks; ++i, packs.next_chunk()) {
      Chunk<T, kAccess> x, dy;
      read(x, dy, packs, i);
      if constexpr (kWeighted) x.weigh({args.weights, rows.map, rows.affine}, packs, nullptr);
      const Gate<A, kFused> gate =
          gate_of<A, T, kAccess, kFused>(args.fusion, packs, rows, x, row_of, kKept && alike ? &signs : nullptr);
      // Coefficients that live from chunk to chunk would leave too few registers for those of a recomputed sign.
      if (is_narrow(kAccess) && (!(kFused && S::kChannels > 4) || (kKept && alike)))
        products.add(packs, x, dy, gate, alike, sums);
      else
        Own(args.extents, tile.c, rows, first, of_one_row, args.scaled, row_of)
            .add(packs, x, dy, gate, S::kRows && alike, sums);
    }
  });
  block_reduce(sums, Columns(static_cast<int>(blockDim.x)), shared, Add());
}

template <class T, Access kAccess, bool kWeighted, bool kFused>
__global__ void __launch_bounds__(kThreads, blocks_for(kAccess, sizeof(T), kFused ? 3 : 2, 9))
    backward_reduce_kernel(const __grid_constant__ BackwardReduceArgs<Arithmetic<T>> args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  const std::int64_t c = first_channel<T, kAccess>(blockIdx.x);
  const unsigned known = args.source.known();
  const Rows<A> of_all = args.source.rows(known);
  if (args.for_dx_alone && of_all.given) return;
  const Tiles tiles = args.tiles.of_class(args.classes, of_all.given);
  for (std::int64_t number = blockIdx.y; number < tiles.count; number += gridDim.y) {
    // In rows the elements leave no registers for pointers that are needed once a tile.
    const Rows<A> rows = in_rows(kAccess) ? args.source.rows(renewed(known)) : of_all;
    const Groups classed = rows.of_class(args.classes);
    const Tile tile = Tile::numbered(classed, tiles, args.extents.s.by(), number);
    if (tile.begin >= tile.end) continue;
    TwoSums sums[Shape<T, kAccess>::kChannels];
    const Slots<T, kAccess, 2> slots(shared + kChunksAt, args.ahead);
    const Stretch<T, kAccess> stretch{classed.members(tile.group), c, tile.begin, tile.end};
    Ring<T, kAccess, 2> ring(slots, stretch, args.extents, args.x, args.dy);
    tile_sums<A, T, kAccess, kWeighted, kFused, true>(
        args, rows, stretch, [&](std::int64_t row, std::int64_t k) { return rows.row(row * args.extents.c + c + k); },
        shared, sums,
        [&](Chunk<T, kAccess>& x, Chunk<T, kAccess>& dy, const Packs<T, kAccess>& packs, int i) {
          ring.read(stretch.chunks() - i, packs, x, args.x, dy, args.dy);
        });
    if (threadIdx.y != 0) continue;
    for_each_channel<T, kAccess>(args.extents, c, [&](int k) {
      args.dy_of_tile[number * args.extents.c + c + k] = sums[k].first;
      args.dy_xhat_of_tile[number * args.extents.c + c + k] = sums[k].second;
    });
  }
}

// Gradients of scale and shift, where they are wanted.
struct AffineGradients {
  Results dscale;
  Results dshift;
  bool accumulate = false;

  POPNORM_INLINE bool any() const { return dscale.first != nullptr || dshift.first != nullptr; }
  POPNORM_INLINE void put(std::int64_t i, const TwoSums& sums) const {
    if (dshift.first != nullptr) dshift.put(i, accumulate ? dshift.get(i) + sums.first : sums.first);
    if (dscale.first != nullptr) dscale.put(i, accumulate ? dscale.get(i) + sums.second : sums.second);
  }
};

// Classes from their tiles; per row the coefficients of dx; per affine slot the gradients of scale and shift.
template <class A>
struct FoldSumsArgs {
  Extents extents;
  RowSource<A> source;
  Classes classes = Classes::rows;
  int columns = 1;       // channels of a block
  bool of_tiles = true;  // else the sums are given
  ClassTiles tiles;
  const double* dy_of_tile = nullptr;
  const double* dy_xhat_of_tile = nullptr;
  double* dy_of_class = nullptr;  // [classes][c]: out, or in where the sums are given; or null
  double* dy_xhat_of_class = nullptr;
  bool scaled = false;  // the sums are those of scale*dy
  A* k1 = nullptr;      // [rows][c]: coefficients of dx (kernels/affine.hpp); or null
  A* k2 = nullptr;
  AffineGradients affine;  // of the one class there is
};

// The coefficients of a row that are not in the reserve.
template <class A>
__device__ __forceinline__ GradientRow<A> gradient_of(const FoldSumsArgs<A>& args, const Rows<A>& rows, std::int64_t i,
                                                      std::int64_t c, const TwoSums& sums) {
  const double weight = rows.of.weight[i];
  double p1 = 0, p2 = 0;
  if (weight > 0) {
    const auto d = static_cast<double>(rows.of.d[i]);
    const double pull = (sums.second - d * sums.first) * static_cast<double>(rows.of.r2[i]);
    p1 = (sums.first - d * pull) / weight;
    p2 = pull / weight;
  }
  const A scale = args.scaled ? A(1) : static_cast<A>(rows.scale.get(c, 1));
  return gradient_row<A>(rows.row(i), scale, args.scaled, p1, p2);
}

// The sums of a class from its tiles.
template <int kMost, class A>
__device__ __forceinline__ TwoSums merged_sums(const FoldSumsArgs<A>& args, const Groups& classed, const Tiles& tiles,
                                               std::int64_t of, std::int64_t c, const Columns& columns, void* shared) {
  const bool there = c < args.extents.c;
  const auto get = [&](std::int64_t tile) {
    const std::int64_t at = tile * args.extents.c + c;
    return there ? TwoSums{args.dy_of_tile[at], args.dy_xhat_of_tile[at]} : TwoSums{0, 0};
  };
  return merged_tiles<kMost>(classed, tiles, args.extents.s.by(), of, args.columns, columns, shared, TwoSums{0, 0}, get,
                             Add());
}

template <class A>
__global__ void __launch_bounds__(kThreads, 1) fold_sums_kernel(const __grid_constant__ FoldSumsArgs<A> args) {
  wait_for_earlier_launches();
  void* const shared = shared_memory<std::byte>();
  const Columns columns(args.columns);
  const std::int64_t c = std::int64_t{blockIdx.x} * args.columns + columns.of_x();
  const Rows<A> rows = args.source.get();
  const Groups classed = rows.of_class(args.classes);
  for (std::int64_t of = blockIdx.y; of < classed.count; of += gridDim.y) {
    const std::int64_t i = of * args.extents.c + c;
    TwoSums all{0, 0};
    if (args.of_tiles)
      all = merged_sums<1>(args, classed, args.tiles.of_class(args.classes, rows.given), of, c, columns, shared);
    if (columns.of_y() != 0 || c >= args.extents.c) continue;
    if (args.of_tiles && args.dy_of_class != nullptr) {
      args.dy_of_class[i] = all.first;
      args.dy_xhat_of_class[i] = all.second;
    } else if (!args.of_tiles) {
      // Without sums: statistics should have been given, which only the device knows. If they were not, dx is NaN.
      all = args.dy_of_class != nullptr ? TwoSums{args.dy_of_class[i], args.dy_xhat_of_class[i]} : TwoSums{NAN, NAN};
    }
    args.affine.put(i, all);
    if (args.k1 == nullptr) continue;
    const GradientRow<A> k = gradient_of(args, rows, i, c, all);
    args.k1[i] = k.k1;
    args.k2[i] = k.k2;
  }
}

// dscale and dshift from the sums of their classes; where there is one affine slot, of all rows. (Those of one row are put where it
// is folded.)
template <class A>
struct DeliverArgs {
  RowSource<A> source;
  Classes classes = Classes::rows;
  const double* dy_of_class = nullptr;
  const double* dy_xhat_of_class = nullptr;
  AffineGradients affine;
};

template <class A>
__global__ void __launch_bounds__(kThreads, 1) deliver_kernel(const __grid_constant__ DeliverArgs<A> args) {
  wait_for_earlier_launches();
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t width = args.source.c;
  if (c >= width) return;
  const Rows<A> rows = args.source.get();
  const bool merges = args.classes == Classes::rows;
  for (std::int64_t slot = blockIdx.y; slot < rows.affine.count; slot += gridDim.y) {
    TwoSums all{0, 0};
    for (std::int64_t of = merges ? 0 : slot; of < (merges ? rows.map.count : slot + 1); ++of)
      all = {all.first + args.dy_of_class[of * width + c], all.second + args.dy_xhat_of_class[of * width + c]};
    args.affine.put(slot * width + c, all);
  }
}

// Rows from the saved outputs of a forward, for a backward without a reserve.
template <class A>
struct SavedArgs {
  std::int64_t c = 0;
  double weight = 0;
  Values mean;
  Values invstd;
  RowArrays<A> out;
};

template <class A>
__global__ void __launch_bounds__(kThreads, 1) saved_kernel(const __grid_constant__ SavedArgs<A> args) {
  wait_for_earlier_launches();
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= args.c) return;
  const double mean = args.mean.get(c, 0);
  args.out.weight[c] = args.weight;
  args.out.hi[c] = round_to<A>(mean);
  args.out.lo[c] = round_to<A>(mean - static_cast<double>(args.out.hi[c]));
  args.out.invstd[c] = round_to<A>(args.invstd.get(c, 0));
  args.out.d[c] = 0;
  args.out.r2[c] = 1;
}

}  // namespace popnorm::cuda

#endif
