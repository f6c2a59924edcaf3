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

// A block's share of a group: neighbouring tiles, whose chunks it counts as it reads them.
struct Share {
  std::int64_t begin;
  std::int64_t end;

  __device__ __forceinline__ Share(const Crew& crew, std::int64_t tiles) {
    const std::int64_t stretch = crew.size.rounded_up(tiles);
    begin = stretch * crew.rank() < tiles ? stretch * crew.rank() : tiles;
    end = begin + stretch < tiles ? begin + stretch : tiles;
  }
};

// Slots for chunks of `kTensors` tensors, filled in the order of reading.
template <class T, Access kAccess, int kTensors>
struct Slots {
  std::byte* first;
  int room;
  std::int64_t count = 0;

  __device__ __forceinline__ bool has_room() const { return count < room; }
  __device__ __forceinline__ void* slot(std::int64_t chunk, int tensor) const {
    return first + (chunk * kTensors + tensor) * kChunkBytes;
  }
  template <class... Chunks>
  __device__ __forceinline__ void operator()(const Chunks&... chunks) {
    if (has_room()) {
      int tensor = 0;
      (chunks.put(slot(count, tensor++)), ...);
    }
    ++count;
  }
  // The chunk that was read as the number-th, again.
  __device__ __forceinline__ void get(Chunk<T, kAccess>& chunk, std::int64_t number, int tensor, const Operand& from,
                                      const Range& range) const {
    if (number < room)
      chunk.get(slot(number, tensor), range);
    else
      chunk.load(from, range, true);
  }
};

// Calls body(range, number) for the chunks of a share from the last that was read to the first, because what was read last is
// still near.
template <class T, Access kAccess, class Body>
__device__ __forceinline__ void for_each_chunk_reversed(const Extents& extents, const Groups& groups,
                                                        const Tiles& tiles, std::int64_t group, const Share& share,
                                                        std::int64_t c, std::int64_t count, const Body& body) {
  const std::int64_t step = Shape<T, kAccess>::positions(static_cast<int>(blockDim.y));
  const Members members = groups.members(group);
  for (std::int64_t place = share.end - 1; place >= share.begin; --place) {
    const Tile tile(groups, tiles, extents.s.by(), group, place);
    std::int64_t at = tile.begin;
    while (at + step < tile.end) at += step;
    for (; at >= tile.begin; at -= step)
      body(Range{extents, members, at, at + step < tile.end ? at + step : tile.end, c}, --count);
  }
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
__global__ void __launch_bounds__(kThreads, resident_blocks(true, in_rows(kAccess), kFused, sizeof(T)))
    resident_forward_kernel(const __grid_constant__ ResidentForwardArgs<Arithmetic<T>> args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  auto* const row = reinterpret_cast<StatisticsRow<A>*>(shared + kReduceBytes);
  const MomentsArgs& m = args.moments;
  const Crew& crew = args.crew;
  const Columns columns(args.fold.columns);
  const int channels = static_cast<int>(blockDim.x) * Shape<T, kAccess>::kChannels;
  const Rows<A> rows = args.source.get();
  const std::int64_t items = m.groups.count * crew.channel_blocks.by();
  for (std::int64_t first = 0; first < items; first += crew.teams()) {
    const bool works = first + crew.number() < items;
    const std::int64_t item = works ? first + crew.number() : 0;
    const std::int64_t group = crew.channel_blocks.quotient(item);
    const std::int64_t block = item - group * crew.channel_blocks.by();
    const std::int64_t c = first_channel<T, kAccess>(block);
    const Share share(crew, works ? m.tiles.of(m.groups.size(group) * m.extents.s.by()) : 0);
    Slots<T, kAccess, 1> slots{shared + kChunksAt, crew.held};
    const std::int64_t number = m.tiles.first(m.groups, m.extents.s.by(), group);
    for (std::int64_t place = share.begin; place < share.end; ++place) {
      const Tile tile(m.groups, m.tiles, m.extents.s.by(), group, place);
      Moments own[Shape<T, kAccess>::kChannels];
      tile_moments<A, T, kAccess>(m, tile, c, shared, slots, own);
      if (threadIdx.y == 0)
        for_each_channel<T, kAccess>(m.extents, c,
                                     [&](int k) { m.of_tile.put((number + place) * m.extents.c + c + k, own[k]); });
    }
    crew.barrier();
    if (!works) continue;
    for (int sub = 0; sub < channels; sub += columns.x) {
      const std::int64_t folded = block * channels + sub + columns.of_x();
      const Moments moments = merged(args.fold, group, folded, columns, shared);
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
    const auto row_of = [&](std::int64_t, int k) { return row[threadIdx.x * Shape<T, kAccess>::kChannels + k]; };
    Normalized<A, T, kAccess, decltype(row_of)> normalized(m.extents, c, rows, row_of);
    with_alike<kAccess>(normalized.alike(), [&](auto alike) {
      for_each_chunk_reversed<T, kAccess>(
          m.extents, m.groups, m.tiles, group, share, c, slots.count, [&](const Range& range, std::int64_t chunk) {
            Chunk<T, kAccess> x;
            slots.get(x, chunk, 0, m.x, range);
            normalize_chunk<A, T, kAccess, kFused>(args.y, args.fusion, range, x, alike, normalized);
          });
    });
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
__global__ void __launch_bounds__(kThreads, resident_blocks(false, in_rows(kAccess), kFused, sizeof(T)))
    resident_backward_kernel(const __grid_constant__ ResidentBackwardArgs<Arithmetic<T>> args) {
  wait_for_earlier_launches();
  using A = Arithmetic<T>;
  std::byte* const shared = shared_memory<std::byte>();
  auto* const row = reinterpret_cast<ApplyRow<A>*>(shared + kReduceBytes);
  static_assert(sizeof(ApplyRow<A>) * (sizeof(A) == sizeof(double) ? 16 : 64) <= kRowBytes);
  const BackwardReduceArgs<A>& r = args.reduce;
  const Crew& crew = args.crew;
  const Columns columns(args.fold.columns);
  const int channels = static_cast<int>(blockDim.x) * Shape<T, kAccess>::kChannels;
  const Rows<A> rows = r.source.get();
  const Tiles tiles = r.tiles.of_class(Classes::rows, rows.given);
  const std::int64_t items = rows.map.count * crew.channel_blocks.by();
  for (std::int64_t first = 0; first < items; first += crew.teams()) {
    const bool works = first + crew.number() < items;
    const std::int64_t item = works ? first + crew.number() : 0;
    const std::int64_t group = crew.channel_blocks.quotient(item);
    const std::int64_t block = item - group * crew.channel_blocks.by();
    const std::int64_t c = first_channel<T, kAccess>(block);
    const Share share(crew, works ? tiles.of(rows.map.size(group) * r.extents.s.by()) : 0);
    Slots<T, kAccess, 2> slots{shared + kChunksAt, crew.held};
    const std::int64_t number = tiles.first(rows.map, r.extents.s.by(), group);
    for (std::int64_t place = share.begin; place < share.end; ++place) {
      TwoSums sums[Shape<T, kAccess>::kChannels];
      tile_sums<A, T, kAccess, false, kFused>(
          r, rows, rows.map, Tile(rows.map, tiles, r.extents.s.by(), group, place), c,
          [&](std::int64_t of, int k) { return rows.row(of * r.extents.c + c + k); }, shared, sums, slots);
      if (threadIdx.y == 0)
        for_each_channel<T, kAccess>(r.extents, c, [&](int k) {
          r.dy_of_tile[(number + place) * r.extents.c + c + k] = sums[k].first;
          r.dy_xhat_of_tile[(number + place) * r.extents.c + c + k] = sums[k].second;
        });
    }
    crew.barrier();
    if (!works) continue;
    for (int sub = 0; sub < channels; sub += columns.x) {
      const std::int64_t folded = block * channels + sub + columns.of_x();
      const TwoSums sums = merged_sums(args.fold, rows.map, tiles, group, folded, columns, shared);
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
    const auto own = [&](std::int64_t, int k) { return row[threadIdx.x * Shape<T, kAccess>::kChannels + k]; };
    const auto statistics_of = [&](std::int64_t of, int k) { return own(of, k).statistics; };
    Gradient<A, T, kAccess, decltype(own)> gradient(r.extents, c, rows, own);
    with_alike<kAccess>(gradient.alike(), [&](auto alike) {
      for_each_chunk_reversed<T, kAccess>(
          r.extents, rows.map, tiles, group, share, c, slots.count, [&](const Range& range, std::int64_t chunk) {
            Chunk<T, kAccess> x, dy;
            slots.get(x, chunk, 0, r.x, range);
            slots.get(dy, chunk, 1, r.dy, range);
            const Gate<A, kFused> gate = gate_of<A, T, kAccess, kFused>(r.fusion, range, rows, x, statistics_of);
            if constexpr (kFused)
              if (args.dresidual.first != nullptr) put_dresidual(args.dresidual, range, x, dy, gate);
            gradient.template put<false>(args.dx, range, x, dy, gate, alike, nullptr);
          });
    });
  }
}

}  // namespace popnorm::cuda

#endif
