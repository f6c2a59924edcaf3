// One read: a team of blocks takes the channels of one block of a group, keeps what it has read in shared memory while it agrees on
// statistics, and writes its output from there. Tiles, chunks and trees are those of the plain path, and so are the bits.
#ifndef POPNORM_KERNELS_CUDA_RESIDENT_CUH
#define POPNORM_KERNELS_CUDA_RESIDENT_CUH

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/backward_apply.cuh"
#include "kernels/cuda/backward_reduce.cuh"
#include "kernels/cuda/fold.cuh"
#include "kernels/cuda/moments.cuh"
#include "kernels/cuda/normalize.cuh"

namespace popnorm::cuda {

// What the blocks of a team are to one another.
enum class Team { block, cluster, grid };

// Teams of neighbouring blocks in a line. All take as many turns, so that those of a grid can wait for one another.
struct Crew {
  Team team = Team::block;
  Divisor size;  // in blocks
  Divisor channel_blocks;
  int held = 0;  // chunks of each tensor that a block keeps

  __device__ __forceinline__ void barrier() const {
    if (team == Team::grid)
      grid_barrier();
    else if (team == Team::cluster)
      cluster_barrier();
    else
      __syncthreads();
  }
  __device__ __forceinline__ std::int64_t teams() const { return size.quotient(std::int64_t{gridDim.x}); }
  __device__ __forceinline__ std::int64_t number() const { return size.quotient(std::int64_t{blockIdx.x}); }
  __device__ __forceinline__ std::int64_t rank() const { return blockIdx.x - number() * size.by(); }
};

// A block's share of an item, the channels of a block of a group: neighbouring tiles.
template <class T, Access kAccess>
struct Share {
  Count<kAccess> tile = 0;  // the first
  Count<kAccess> tiles = 0;
  Stretch<T, kAccess> stretch{Members::all(), 0, 0, 0};

  __device__ __forceinline__ Share(const Crew& crew, const Groups& groups, const Tiles& of, std::int64_t s,
                                   std::int64_t item, std::int64_t items) {
    if (item >= items) return;
    const std::int64_t group = crew.channel_blocks.quotient(item), positions = groups.size(group) * s;
    const std::int64_t all = of.of(positions), most = crew.size.rounded_up(all);
    const std::int64_t begin = most * crew.rank() < all ? most * crew.rank() : all;
    const std::int64_t end = begin + most < all ? begin + most : all;
    tile = static_cast<Count<kAccess>>(begin);
    tiles = static_cast<Count<kAccess>>(end - begin);
    const auto at = [&](std::int64_t number) {
      const std::int64_t position = number * of.length.by();
      return position < positions ? position : positions;
    };
    stretch = {groups.members(group), first_channel<T, kAccess>(item - group * crew.channel_blocks.by()), at(begin),
               at(end)};
  }
  // One of its tiles.
  __device__ __forceinline__ Stretch<T, kAccess> of_tile(const Tiles& of, Count<kAccess> place) const {
    Stretch<T, kAccess> part = stretch;
    part.begin += (place - tile) * static_cast<Count<kAccess>>(of.length.by());
    const std::int64_t end = part.begin + of.length.by();
    if (end < stretch.end) part.end = static_cast<Count<kAccess>>(end);
    return part;
  }
};

// Channels that a block of `channels` folds at a time, if the plain path's folds `folded`: in the columns form many side by side, of
// whose leaves a thread has several.
template <Access kAccess>
inline constexpr int kMostLeaves = in_rows(kAccess) ? 1 : 8;
template <Access kAccess>
__device__ __forceinline__ Columns fold_columns_of(int channels, int folded) {
  const int most = folded * kMostLeaves<kAccess>;
  return Columns(channels < most ? channels : most);
}

template <class A>
struct ResidentForwardArgs {
  MomentsArgs moments;
  FoldArgs<A> fold;
  RowSource<A> source;
  Operand y;
  ForwardFusion fusion;
  Crew crew;
};

template <class T, Access kAccess, bool kFused>
__global__ void __launch_bounds__(kThreads,
                                  resident_blocks(true, in_rows(kAccess), has_few_places(kAccess), kFused, sizeof(T)))
    resident_forward_kernel(const __grid_constant__ ResidentForwardArgs<Arithmetic<T>> args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  auto* const row = reinterpret_cast<StatisticsRow<A>*>(shared + kRowsAt);
  const MomentsArgs& m = args.moments;
  const Crew& crew = args.crew;
  const int channels = static_cast<int>(blockDim.x) * Shape<T, kAccess>::kChannels;
  const Columns columns = fold_columns_of<kAccess>(channels, args.fold.columns);
  const Rows<A> rows = args.source.get();
  const std::int64_t items = m.groups.count * crew.channel_blocks.by();
  const auto share_of = [&](std::int64_t item) {
    return Share<T, kAccess>(crew, m.groups, m.tiles, m.extents.s.by(), item, items);
  };
  const Slots<T, kAccess, 1> slots(shared + kChunksAt, crew.held);
  Share<T, kAccess> share = share_of(crew.number());
  Fetch<T, kAccess, 1>(slots, share.stretch, m.extents).fetch_from(0, m.x);
  for (std::int64_t first = 0; first < items; first += crew.teams()) {
    const std::int64_t item = first + crew.number();
    const std::int64_t c = share.stretch.c;
    const std::int64_t group = crew.channel_blocks.quotient(item);
    const std::int64_t block = item - group * crew.channel_blocks.by();
    const std::int64_t number = m.tiles.first(m.groups, m.extents.s.by(), group);
    int chunk = 0;
    for (Count<kAccess> place = share.tile; place < share.tile + share.tiles; ++place) {
      const Stretch<T, kAccess> tile = share.of_tile(m.tiles, place);
      Moments own[Shape<T, kAccess>::kChannels];
      tile_moments<A, T, kAccess>(
          m, tile, shared,
          [&](Chunk<T, kAccess>& held, const Packs<T, kAccess>& packs, int i, bool) {
            slots.await(slots.held(share.stretch) - 1 - (chunk + i));
            slots.get(held, chunk + i, 0, m.x, packs, false);
          },
          own);
      chunk += tile.chunks();
      if (threadIdx.y == 0)
        for_each_channel<T, kAccess>(m.extents, c,
                                     [&](int k) { m.of_tile.put((number + place) * m.extents.c + c + k, own[k]); });
    }
    crew.barrier();
    if (item >= items) continue;
    for (int sub = 0; sub < channels; sub += columns.x) {
      const std::int64_t folded = block * channels + sub + columns.of_x();
      const Moments moments = merged<kMostLeaves<kAccess>>(args.fold, group, folded, columns, shared);
      if (columns.of_y() != 0 || folded >= m.extents.c) continue;
      const bool leads = crew.rank() == 0;
      if (leads && args.fold.of_row.weight != nullptr) args.fold.of_row.put(group * m.extents.c + folded, moments);
      row[sub + columns.of_x()] = put_row(args.fold, group, folded, moments, leads);
      if (leads) args.fold.running.feed(group * m.extents.c + folded, moments);
      if (leads && group == 0 && args.fold.reserve != nullptr)
        for (std::int64_t slot = 0; slot < args.fold.affine_slots; ++slot) keep_affine(args.fold, slot, folded);
    }
    if (item == 0 && crew.rank() == 0 && Columns::thread() == 0 && args.fold.reserve != nullptr)
      *args.fold.reserve = args.fold.header;
    __syncthreads();
    const auto row_of = [&](std::int64_t, std::int64_t k) {
      return row[threadIdx.x * Shape<T, kAccess>::kChannels + k];
    };
    Normalized<A, T, kAccess, decltype(row_of)> normalized(m.extents, c, rows, row_of);
    const Share<T, kAccess> next = share_of(item + crew.teams());
    Fetch<T, kAccess, 1> ahead(slots, next.stretch, m.extents);
    with_alike<kAccess>(normalized.alike(), [&](auto alike) {
      slots.for_each(share.stretch, m.extents, [&](int held, const Packs<T, kAccess>& packs) {
        Chunk<T, kAccess> x;
        slots.get(x, held, 0, m.x, packs, true);
        ahead.fetch(held, m.x);
        normalize_chunk<A, T, kAccess, kFused>(args.y, args.fusion, packs, x, alike, normalized);
      });
    });
    ahead.fetch_from(slots.held(share.stretch), m.x);
    share = next;
  }
}

template <class A>
struct ResidentBackwardArgs {
  BackwardReduceArgs<A> reduce;
  FoldSumsArgs<A> fold;
  Operand dx;
  Operand dresidual;  // first null: not wanted
  Crew crew;
};

template <class T, Access kAccess, bool kFused>
__global__ void __launch_bounds__(kThreads,
                                  resident_blocks(false, in_rows(kAccess), has_few_places(kAccess), kFused, sizeof(T)))
    resident_backward_kernel(const __grid_constant__ ResidentBackwardArgs<Arithmetic<T>> args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  auto* const row = reinterpret_cast<ApplyRow<A>*>(shared + kRowsAt);
  static_assert(sizeof(ApplyRow<A>) * (sizeof(A) == sizeof(double) ? 16 : 64) <= kRowBytes);
  const BackwardReduceArgs<A>& r = args.reduce;
  const Crew& crew = args.crew;
  const int channels = static_cast<int>(blockDim.x) * Shape<T, kAccess>::kChannels;
  const Columns columns = fold_columns_of<kAccess>(channels, args.fold.columns);
  const unsigned known = r.source.known();
  const Rows<A> of_all = r.source.rows(known);
  const std::int64_t items = of_all.map.count * crew.channel_blocks.by();
  // But in columns counted in 32 bits, elements leave no registers for pointers that are needed once an item.
  const auto rows_anew = [&] { return kAccess != Access::even_columns ? r.source.rows(renewed(known)) : of_all; };
  const auto tiles_with = [&](const Rows<A>& rows) { return r.tiles.of_class(Classes::rows, rows.given); };
  const auto share_of = [&](std::int64_t item) {
    const Rows<A> rows = rows_anew();
    return Share<T, kAccess>(crew, rows.map, tiles_with(rows), r.extents.s.by(), item, items);
  };
  const Slots<T, kAccess, 2> slots(shared + kChunksAt, crew.held);
  Share<T, kAccess> share = share_of(crew.number());
  Fetch<T, kAccess, 2>(slots, share.stretch, r.extents).fetch_from(0, r.x, r.dy);
  for (std::int64_t first = 0; first < items; first += crew.teams()) {
    const std::int64_t item = first + crew.number();
    const std::int64_t c = share.stretch.c;
    const std::int64_t group = crew.channel_blocks.quotient(item);
    const std::int64_t block = item - group * crew.channel_blocks.by();
    int chunk = 0;
    for (Count<kAccess> place = share.tile; place < share.tile + share.tiles; ++place) {
      const Rows<A> rows = rows_anew();
      const Tiles tiles = tiles_with(rows);
      const Stretch<T, kAccess> tile = share.of_tile(tiles, place);
      TwoSums sums[Shape<T, kAccess>::kChannels];
      tile_sums<A, T, kAccess, false, kFused, false>(
          r, rows, tile, [&](std::int64_t of, std::int64_t k) { return rows.row(of * r.extents.c + c + k); }, shared,
          sums,
          [&](Chunk<T, kAccess>& x, Chunk<T, kAccess>& dy, const Packs<T, kAccess>& packs, int i) {
            slots.await(slots.held(share.stretch) - 1 - (chunk + i));
            slots.get(x, chunk + i, 0, r.x, packs, false);
            slots.get(dy, chunk + i, 1, r.dy, packs, false);
          });
      chunk += tile.chunks();
      if (threadIdx.y == 0)
        for_each_channel<T, kAccess>(r.extents, c, [&](int k) {
          const std::int64_t number = tiles.first(rows.map, r.extents.s.by(), group) + place;
          r.dy_of_tile[number * r.extents.c + c + k] = sums[k].first;
          r.dy_xhat_of_tile[number * r.extents.c + c + k] = sums[k].second;
        });
    }
    crew.barrier();
    if (item >= items) continue;
    const Rows<A> rows = rows_anew();
    for (int sub = 0; sub < channels; sub += columns.x) {
      const std::int64_t folded = block * channels + sub + columns.of_x();
      const TwoSums sums =
          merged_sums<kMostLeaves<kAccess>>(args.fold, rows.map, tiles_with(rows), group, folded, columns, shared);
      if (columns.of_y() != 0 || folded >= r.extents.c) continue;
      const std::int64_t i = group * r.extents.c + folded;
      if (crew.rank() == 0) {
        args.fold.dy_of_class[i] = sums.first;
        args.fold.dy_xhat_of_class[i] = sums.second;
        args.fold.affine.put(i, sums);
      }
      const bool through = rows.of.weight[i] > 0;
      const GradientRow<A> k = gradient_of(args.fold, rows, i, folded, sums);
      row[sub + columns.of_x()] = {rows.row(i), through ? k.k1 : A(0), through ? k.k2 : A(0), through};
    }
    __syncthreads();
    const auto own = [&](std::int64_t, std::int64_t k) { return row[threadIdx.x * Shape<T, kAccess>::kChannels + k]; };
    const auto statistics_of = [&](std::int64_t of, std::int64_t k) { return own(of, k).statistics; };
    Gradient<A, T, kAccess, decltype(own)> gradient(r.extents, c, rows, own);
    const auto write = [&](const auto& give_up) {
      with_alike<kAccess>(gradient.alike(), [&](auto alike) {
        slots.for_each(share.stretch, r.extents, [&](int held, const Packs<T, kAccess>& packs) {
          Chunk<T, kAccess> x, dy;
          slots.get(x, held, 0, r.x, packs, true);
          slots.get(dy, held, 1, r.dy, packs, true);
          give_up(held);
          const Gate<A, kFused> gate = gate_of<A, T, kAccess, kFused>(r.fusion, packs, rows, x, statistics_of);
          if constexpr (kFused)
            if (args.dresidual.first != nullptr) put_dresidual(args.dresidual, packs, x, dy, gate);
          gradient.template put<false>(args.dx, packs, x, dy, gate, alike, nullptr);
        });
      });
    };
    if constexpr (sizeof(T) == 2 && kFused && (!in_rows(kAccess) || kBeforeSm80)) {
      // There are no registers left to copy meanwhile, which before sm_80 would not be meanwhile.
      write([](int) {});
      share = share_of(item + crew.teams());
      Fetch<T, kAccess, 2>(slots, share.stretch, r.extents).fetch_from(0, r.x, r.dy);
    } else {
      const Share<T, kAccess> next = share_of(item + crew.teams());
      Fetch<T, kAccess, 2> ahead(slots, next.stretch, r.extents);
      write([&](int held) { ahead.fetch(held, r.x, r.dy); });
      ahead.fetch_from(slots.held(share.stretch), r.x, r.dy);
      share = next;
    }
  }
}

}  // namespace popnorm::cuda

#endif
