// Chunks copied to shared memory ahead of the sums over them, and kept there where they are needed again.
#ifndef POPNORM_KERNELS_CUDA_SLOTS_CUH
#define POPNORM_KERNELS_CUDA_SLOTS_CUH

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/chunk.cuh"

namespace popnorm::cuda {

// Neighbouring chunks of a group: positions [begin, end), in the channels from c on.
template <class T, Access kAccess>
struct Stretch {
  using Index = std::conditional_t<is_narrow(kAccess), std::uint32_t, std::int64_t>;

  Samples<kAccess> members;
  Count<kAccess> c;  // the thread's first
  Count<kAccess> begin;
  Count<kAccess> end;

  __device__ __forceinline__ Stretch(const Members& of, std::int64_t first, std::int64_t from, std::int64_t to)
      : members(of),
        c(static_cast<Count<kAccess>>(first)),
        begin(static_cast<Count<kAccess>>(from)),
        end(static_cast<Count<kAccess>>(to)) {}
  __device__ __forceinline__ static int step() { return 1 << Shape<T, kAccess>::log_positions(); }
  __device__ __forceinline__ int chunks() const {
    return static_cast<int>((end - begin + step() - 1) >> Shape<T, kAccess>::log_positions());
  }
  // From the number-th chunk on.
  __device__ __forceinline__ Packs<T, kAccess> packs(const Extents& extents, int number = 0) const {
    return {extents, members, c, begin + static_cast<Count<kAccess>>(number) * step(), end};
  }
};

// Slots for the first chunks of a stretch, of kTensors tensors. Every thread copies what it will read, so that none waits for
// another.
template <class T, Access kAccess, int kTensors>
class Slots {
 public:
  __device__ __forceinline__ Slots(std::byte* first, int room) : first_(first), room_(room) {}

  __device__ __forceinline__ int held(const Stretch<T, kAccess>& stretch) const {
    const int chunks = stretch.chunks();
    return chunks < room_ ? chunks : room_;
  }
  __device__ __forceinline__ int room() const { return room_; }
  template <class... Operands>
  __device__ __forceinline__ void copy(int number, const Packs<T, kAccess>& packs, const Operands&... from) const {
    int tensor = 0;
    (Chunk<T, kAccess>::copy(slot(number, tensor++), from, packs), ...);
    commit_copies();
  }
  // Until all copies have been made but those that were begun last.
  __device__ __forceinline__ void await(int last) const { wait_for_copies<12 / kTensors>(last); }
  // The number-th chunk of the stretch at hand, which may be needed again if it is not the `last` time.
  __device__ __forceinline__ void get(Chunk<T, kAccess>& chunk, int number, int tensor, const Operand& from,
                                      const Packs<T, kAccess>& packs, bool last) const {
    if (number < room_)
      chunk.get(slot(number, tensor), packs);
    else
      chunk.load(from, packs, last ? Use::last : Use::again);
  }
  // Calls body(number, packs) for the chunks of a stretch: those that are not held from the end, because what was read last is still
  // near; then those that are, in the order of fetching.
  template <class Body>
  __device__ __forceinline__ void for_each(const Stretch<T, kAccess>& stretch, const Extents& extents,
                                           const Body& body) const {
    const int chunks = stretch.chunks(), others = chunks - held(stretch);
    Packs<T, kAccess> packs = stretch.packs(extents);
#pragma unroll 1
    for (int i = 0; i < chunks; ++i, packs.next_chunk()) {
      const int number = i < others ? chunks - 1 - i : i - others;
      if (others > 0 && i <= others) packs = stretch.packs(extents, number);
      body(number, packs);
    }
  }

  __device__ __forceinline__ void* slot(int number, int tensor) const {
    return first_ + (number * kTensors + tensor) * static_cast<int>(kChunkBytes);
  }

 private:
  std::byte* first_;
  int room_;
};

// Copies the chunks of a stretch to as many slots as it can hold, one after the other, while those of the stretch before it are given
// up in that order.
template <class T, Access kAccess, int kTensors>
class Fetch {
 public:
  __device__ __forceinline__ Fetch(const Slots<T, kAccess, kTensors>& slots, const Stretch<T, kAccess>& stretch,
                                   const Extents& extents)
      : slots_(slots), left_(slots.held(stretch)), packs_(stretch.packs(extents)) {}

  // The number-th, if there is one and all before it have been.
  template <class... Operands>
  __device__ __forceinline__ void fetch(int number, const Operands&... from) {
    if (number >= left_) return;
    slots_.copy(number, packs_, from...);
    packs_.next_chunk();
  }
  template <class... Operands>
  __device__ __forceinline__ void fetch_from(int number, const Operands&... from) {
#pragma unroll 1
    for (; number < left_; ++number) fetch(number, from...);
  }

 private:
  const Slots<T, kAccess, kTensors>& slots_;
  int left_;
  Packs<T, kAccess> packs_;
};

// Reads the chunks of a stretch one after the other, copied ahead as far as there are slots, which they take in turn.
template <class T, Access kAccess, int kTensors>
class Ring {
 public:
  template <class... Operands>
  __device__ __forceinline__ Ring(const Slots<T, kAccess, kTensors>& slots, const Stretch<T, kAccess>& stretch,
                                  const Extents& extents, const Operands&... from)
      : slots_(slots), packs_(stretch.packs(extents)) {
#pragma unroll 1
    for (int i = 0; i < slots.held(stretch); ++i) copy(i, from...);
  }

  // The next chunk, of `left` that are left.
  __device__ __forceinline__ void read(int left, const Packs<T, kAccess>& packs, Chunk<T, kAccess>& x,
                                       const Operand& from) {
    if (slots_.room() == 0) return x.load(from, packs, Use::again);
    await(left);
    x.get(slots_.slot(turn_, 0), packs);
    give_up(left, from);
  }
  __device__ __forceinline__ void read(int left, const Packs<T, kAccess>& packs, Chunk<T, kAccess>& x,
                                       const Operand& from_x, Chunk<T, kAccess>& dy, const Operand& from_dy) {
    if (slots_.room() == 0) {
      x.load(from_x, packs, Use::again);
      return dy.load(from_dy, packs, Use::again);
    }
    await(left);
    x.get(slots_.slot(turn_, 0), packs);
    dy.get(slots_.slot(turn_, 1), packs);
    give_up(left, from_x, from_dy);
  }

 private:
  __device__ __forceinline__ void await(int left) const {
    slots_.await((left < slots_.room() ? left : slots_.room()) - 1);
  }
  template <class... Operands>
  __device__ __forceinline__ void copy(int slot, const Operands&... from) {
    slots_.copy(slot, packs_, from...);
    packs_.next_chunk();
  }
  template <class... Operands>
  __device__ __forceinline__ void give_up(int left, const Operands&... from) {
    if (left > slots_.room()) copy(turn_, from...);
    turn_ = turn_ + 1 < slots_.room() ? turn_ + 1 : 0;
  }

  const Slots<T, kAccess, kTensors>& slots_;
  int turn_ = 0;
  Packs<T, kAccess> packs_;
};

}  // namespace popnorm::cuda

#endif
