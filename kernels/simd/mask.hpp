// Masks: a bit for every element that an activation let pass, in rows that begin at a byte (cpu/kernel_table.hpp), as vectors of a
// run read and write them.

// Bits of a mask's row from bit i on; beyond its end, anything. Reads 4 bytes.
POPNORM_INLINE std::uint32_t bits_from(const std::uint8_t* row, std::int64_t i) {
  std::uint32_t bits;
  std::memcpy(&bits, row + (i >> 3), sizeof(bits));
  return bits >> (i & 7);
}

// Whether the rows of a mask, if there is one, lie end to end but for what is `padded`.
template <class Mask>
POPNORM_INLINE bool lie_end_to_end(const Mask& mask, std::int64_t length, bool padded) {
  return mask.first == nullptr || mask.row * 8 == (padded ? (length + 7) / 8 * 8 : length);
}

// Some elements of a run from e on, the bits from `bit` on of a mask. `last`: they end their row.
template <class T, class N>
struct RunLanes {
  std::int64_t e;
  N n;
  std::int64_t bit;
  bool last;
};
template <class T>
using WholeLanes = RunLanes<T, std::integral_constant<std::int64_t, kWidth<T>>>;
template <class T>
using PartialLanes = RunLanes<T, std::int64_t>;

// A whole vector across a border: `left` elements end a row, the others begin the next, and end it too where `last`.
template <class T>
struct CrossingLanes {
  std::int64_t e;
  std::int64_t bit;
  std::int64_t left;
  std::int64_t next_bit;
  bool last;
};

// To the same elements of another output of the run.
template <bool, class T>
POPNORM_INLINE void put_lanes(T* out, const PartialLanes<T>& lanes, const Batch<T>& v) {
  store_partial(out + lanes.e, lanes.n, v);
}
template <bool streaming, class T, class Lanes>
POPNORM_INLINE void put_lanes(T* out, const Lanes& lanes, const Batch<T>& v) {
  // The run's own output is aligned where it is streamed, this one by chance.
  const bool aligned = reinterpret_cast<std::uintptr_t>(out + lanes.e) % (sizeof(T) * kWidth<T>) == 0;
  if (streaming && aligned)
    stream(out + lanes.e, v);
  else
    put(out + lanes.e, v);
}

// The lanes that passed.
template <class T, class N>
POPNORM_INLINE auto passed(const std::uint8_t* mask, const RunLanes<T, N>& lanes) {
  return chosen_of<Arithmetic<T>>(bits_from(mask, lanes.bit));
}
template <class T>
POPNORM_INLINE auto passed(const std::uint8_t* mask, const CrossingLanes<T>& lanes) {
  const std::uint32_t here = bits_from(mask, lanes.bit) & ((1U << lanes.left) - 1U);
  return chosen_of<Arithmetic<T>>(here | bits_from(mask, lanes.next_bit) << lanes.left);
}

// A mask that is written. Runs are not walked in order: bits beside those of a vector are kept.
struct MaskOutput {
  std::uint8_t* first = nullptr;
  std::int64_t sample = 0;
  std::int64_t row = 0;

  MaskOutput() = default;
  explicit MaskOutput(const Output& mask)
      : first(static_cast<std::uint8_t*>(mask.first)), sample(mask.sample), row(mask.row) {}
  POPNORM_INLINE MaskOutput at(std::int64_t k, std::int64_t r) const {
    MaskOutput moved = *this;
    if (first != nullptr) moved.first = first + k * sample + r * row;
    return moved;
  }
  bool rows_end_to_end(std::int64_t length, bool padded) const { return lie_end_to_end(*this, length, padded); }
  bool samples_end_to_end(std::int64_t length) const { return first == nullptr || sample * 8 == length; }

  template <class T, class N>
  POPNORM_INLINE void put(const RunLanes<T, N>& lanes, std::uint32_t bits) const {
    constexpr std::int64_t bytes = kWidth<T> / 8;
    if constexpr (std::is_same_v<N, std::int64_t> || bytes == 0) {
      put_bits(lanes.bit, lanes.n, lanes.last, bits);
    } else {
      std::uint8_t* to = first + lanes.bit / 8;
      const std::int64_t shift = lanes.bit % 8;
      if (shift == 0) {
        std::memcpy(to, &bits, bytes);
        return;
      }
      // All of `bytes` bytes but their first `shift` bits, and so many of the next.
      const std::uint32_t before = (1U << shift) - 1U;
      const std::uint32_t all = (bits & ((1U << kWidth<T>)-1U)) << shift | (to[0] & before);
      std::memcpy(to, &all, bytes);
      const std::uint32_t beyond = lanes.last ? 0 : to[bytes] & ~before;
      to[bytes] = static_cast<std::uint8_t>(beyond | all >> kWidth<T>);
    }
  }
  template <class T>
  POPNORM_INLINE void put(const CrossingLanes<T>& lanes, std::uint32_t bits) const {
    put_bits(lanes.bit, lanes.left, true, bits);
    put_bits(lanes.next_bit, kWidth<T> - lanes.left, lanes.last, bits >> lanes.left);
  }

 private:
  // n bits from `bit` on; `last`: zeros to the end of the byte.
  POPNORM_OUTLINED void put_bits(std::int64_t bit, std::int64_t n, bool last, std::uint32_t bits) const {
    std::uint8_t* to = first + (bit >> 3);
    const std::int64_t shift = bit & 7;
    const std::int64_t end = shift + n;
    const std::int64_t bytes = (end + 7) / 8;
    const std::uint32_t own = (1U << (last ? bytes * 8 : end)) - (1U << shift);
    const std::uint32_t value = (bits & ((1U << n) - 1U)) << shift;
    for (std::int64_t i = 0; i < bytes; ++i) {
      const std::uint32_t kept = to[i] & ~(own >> (8 * i));
      to[i] = static_cast<std::uint8_t>(kept | value >> (8 * i));
    }
  }
};
