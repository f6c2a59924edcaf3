// The sums of backward over tiles of a class of samples, sum(g*dy) and sum(g*dy*xhat) with g the sample's scale or 1, and what
// they are merged into.
#ifndef POPNORM_KERNELS_CUDA_BACKWARD_REDUCE_CUH
#define POPNORM_KERNELS_CUDA_BACKWARD_REDUCE_CUH

#include <cmath>
#include <cstdint>

#include "kernels/cuda/moments.cuh"
#include "kernels/cuda/normalize.cuh"

namespace popnorm::cuda {

// Samples are classed by their row of statistics (what dx needs), or by their affine slot (what dscale and dshift are).
enum class Classes { rows, affine };

template <class A>
struct BackwardReduceArgs {
  Extents extents;
  Operand x;
  Operand dy;
  RowSource<A> source;
  Classes classes = Classes::rows;
  bool scaled = false;
  bool for_dx_alone = false;  // which does not need sums if statistics are given
  std::int64_t tile_length = 1;
  double* dy_of_tile = nullptr;       // [tiles][c]
  double* dy_xhat_of_tile = nullptr;  // [tiles][c]
};

template <class T, class A>
__global__ void __launch_bounds__(kThreads) backward_reduce_kernel(const __grid_constant__ BackwardReduceArgs<A> args) {
  TwoSums* shared = shared_memory<TwoSums>();
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const Rows<A> rows = args.source.get();
  if (args.for_dx_alone && rows.given) return;
  const Groups classed = args.classes == Classes::affine ? rows.affine : rows.map;
  const Tiles tiles = tiles_of(classed, args.extents.s, args.tile_length);
  for (std::int64_t tile = blockIdx.y; tile < classed.count * tiles.per_group; tile += gridDim.y) {
    const Tile t(classed, tiles, args.extents.s, tile);
    if (t.begin >= t.end) continue;
    TwoSums all{0, 0};
    std::int64_t row = -1;
    A hi = 0, invstd = 0, shift = 0;
    Walk walk(t.begin + threadIdx.y, blockDim.y, args.extents.s);
    for (std::int64_t at = t.begin + threadIdx.y; c < args.extents.c && at < t.end;) {
      A sum = 0, products = 0;
      // So many in A, then in double.
      for (int k = 0; k < 4 && at < t.end; ++k, at += blockDim.y, walk.step()) {
        const std::int64_t n = classed.member(t.group, walk.sample());
        if (rows.map.of(n) != row) {
          row = rows.map.of(n);
          const std::int64_t i = row * args.extents.c + c;
          hi = rows.of.hi[i];
          invstd = rows.of.invstd[i];
          shift = rows.of.lo[i] * invstd;
        }
        const A xhat = (static_cast<A>(load<T>(args.x, n, c, walk.position())) - hi) * invstd - shift;
        A dy = static_cast<A>(load<T>(args.dy, n, c, walk.position()));
        if (args.scaled) dy *= static_cast<A>(rows.scale.get(rows.affine.of(n) * args.extents.c + c, 1));
        sum += dy;
        products += dy * xhat;
      }
      all = {all.first + static_cast<double>(sum), all.second + static_cast<double>(products)};
    }
    all = block_sum(all, shared, AddTwoSums());
    if (threadIdx.y != 0 || c >= args.extents.c) continue;
    args.dy_of_tile[tile * args.extents.c + c] = all.first;
    args.dy_xhat_of_tile[tile * args.extents.c + c] = all.second;
  }
}

// Classes from their tiles; per row the coefficients of dx; per affine slot the gradients of scale and shift.
template <class A>
struct FoldSumsArgs {
  Extents extents;
  RowSource<A> source;
  Classes classes = Classes::rows;
  std::int64_t tile_length = 1;  // 0: the sums are given
  const double* dy_of_tile = nullptr;
  const double* dy_xhat_of_tile = nullptr;
  double* dy_of_class = nullptr;  // [classes][c]: out, or in where the sums are given; or null
  double* dy_xhat_of_class = nullptr;
  bool scaled = false;  // the sums are those of scale*dy
  A* k1 = nullptr;      // [rows][c]: coefficients of dx (kernels/affine.hpp); or null
  A* k2 = nullptr;
};

template <class A>
__device__ __forceinline__ void put_gradient_row(const FoldSumsArgs<A>& args, const Rows<A>& rows, std::int64_t i,
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
  const GradientRow<A> k =
      gradient_row<A>({rows.of.hi[i], rows.of.lo[i], rows.of.invstd[i]}, scale, args.scaled, p1, p2);
  args.k1[i] = k.k1;
  args.k2[i] = k.k2;
}

template <class A>
__global__ void __launch_bounds__(kThreads) fold_sums_kernel(const __grid_constant__ FoldSumsArgs<A> args) {
  TwoSums* shared = shared_memory<TwoSums>();
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const Rows<A> rows = args.source.get();
  const Groups classed = args.classes == Classes::affine ? rows.affine : rows.map;
  const Tiles tiles = tiles_of(classed, args.extents.s, args.tile_length > 0 ? args.tile_length : 1);
  for (std::int64_t of = blockIdx.y; of < classed.count; of += gridDim.y) {
    const std::int64_t i = of * args.extents.c + c;
    TwoSums all{0, 0};
    if (args.tile_length > 0) {
      for_each_tile(classed, tiles, args.extents.s, of, [&](std::int64_t tile) {
        if (c >= args.extents.c) return;
        const std::int64_t at = tile * args.extents.c + c;
        all = {all.first + args.dy_of_tile[at], all.second + args.dy_xhat_of_tile[at]};
      });
      all = block_sum(all, shared, AddTwoSums());
    }
    if (threadIdx.y != 0 || c >= args.extents.c) continue;
    if (args.tile_length > 0 && args.dy_of_class != nullptr) {
      args.dy_of_class[i] = all.first;
      args.dy_xhat_of_class[i] = all.second;
    } else if (args.tile_length == 0) {
      // Without sums: statistics should have been given, which only the device knows. If they were not, dx is NaN.
      all = args.dy_of_class != nullptr ? TwoSums{args.dy_of_class[i], args.dy_xhat_of_class[i]} : TwoSums{NAN, NAN};
    }
    if (args.k1 != nullptr) put_gradient_row(args, rows, i, c, all);
  }
}

// dscale and dshift from the sums of their classes; where there is one affine slot, of all rows.
template <class A>
struct DeliverArgs {
  RowSource<A> source;
  Classes classes = Classes::rows;
  const double* dy_of_class = nullptr;
  const double* dy_xhat_of_class = nullptr;
  Results dscale;
  Results dshift;
  bool accumulate = false;
};

template <class A>
__global__ void __launch_bounds__(kThreads) deliver_kernel(const __grid_constant__ DeliverArgs<A> args) {
  const std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t width = args.source.c;
  if (c >= width) return;
  const Rows<A> rows = args.source.get();
  const bool merges = args.classes == Classes::rows;
  for (std::int64_t slot = blockIdx.y; slot < rows.affine.count; slot += gridDim.y) {
    TwoSums all{0, 0};
    for (std::int64_t of = merges ? 0 : slot; of < (merges ? rows.map.count : slot + 1); ++of)
      all = {all.first + args.dy_of_class[of * width + c], all.second + args.dy_xhat_of_class[of * width + c]};
    const std::int64_t i = slot * width + c;
    if (args.dshift.first != nullptr) args.dshift.put(i, args.accumulate ? args.dshift.get(i) + all.first : all.first);
    if (args.dscale.first != nullptr)
      args.dscale.put(i, args.accumulate ? args.dscale.get(i) + all.second : all.second);
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
__global__ void __launch_bounds__(kThreads) saved_kernel(const __grid_constant__ SavedArgs<A> args) {
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
