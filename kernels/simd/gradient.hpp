// Activations, a vector at a time, and the gradient of what they were applied to, as kernels that read dy see it.

// kernels/activation.hpp's choice.
template <class T>
class Activate {
 public:
  explicit Activate(const Activation& a)
      : slope_(static_cast<Arithmetic<T>>(a.slope)), kept_(a.keeps ? all_ones() : Batch<T>(Arithmetic<T>(0))) {}
  POPNORM_INLINE Batch<T> operator()(const Batch<T>& z) const { return choose(at_most_zero(z), rest(z), z); }
  // What becomes of a value where the activation stops it.
  POPNORM_INLINE Batch<T> rest(const Batch<T>& value) const { return both(slope_ * value, kept_); }

 private:
  static Batch<T> all_ones() {
    using Bits = std::conditional_t<std::is_same_v<Arithmetic<T>, float>, std::uint32_t, std::uint64_t>;
    return Batch<T>(std::bit_cast<Arithmetic<T>>(~Bits{0}));
  }
  Batch<T> slope_;
  Batch<T> kept_;
};

// Bits of a mask's row from bit i on; beyond its end, anything. Reads 4 bytes.
POPNORM_INLINE std::uint32_t bits_from(const std::uint8_t* row, std::int64_t i) {
  std::uint32_t bits;
  std::memcpy(&bits, row + (i >> 3), sizeof(bits));
  return bits >> (i & 7);
}

// dy itself.
template <class T>
struct DirectGradient {
  struct Row {};
  struct Coefficients {};
  POPNORM_INLINE Row at(std::int64_t, std::int64_t) const { return {}; }
  POPNORM_INLINE Row moved(Row, std::int64_t) const { return {}; }
  POPNORM_INLINE Coefficients broadcast(std::int64_t) const { return {}; }
  POPNORM_INLINE Coefficients load(std::int64_t, std::int64_t) const { return {}; }
  POPNORM_INLINE Batch<T> operator()(Row, std::int64_t, const Coefficients&, const Batch<T>& dy,
                                     const Batch<T>&) const {
    return dy;
  }
};

// Whether the rows of a mask, if there is one, lie end to end but for what is `padded`.
template <class Mask>
POPNORM_INLINE bool lie_end_to_end(const Mask& mask, std::int64_t length, bool padded) {
  return mask.first == nullptr || mask.row * 8 == (padded ? (length + 7) / 8 * 8 : length);
}

// That of (x - hi)*s + b, activated: by a mask, or by recomputing it.
template <class T>
class ActivatedGradient {
 public:
  using Row = const std::uint8_t*;  // of the mask; null: recompute
  struct Coefficients {
    Batch<T> s;
    Batch<T> b;
  };
  explicit ActivatedGradient(const GradientArgs& args)
      : activate_(args.activation),
        mask_(args.mask),
        s_(static_cast<const Arithmetic<T>*>(args.s)),
        b_(static_cast<const Arithmetic<T>*>(args.b)) {}

  POPNORM_INLINE Row at(std::int64_t sample, std::int64_t row) const {
    return mask_.first != nullptr ? static_cast<Row>(mask_.first) + sample * mask_.sample + row * mask_.row : nullptr;
  }
  POPNORM_INLINE Row moved(Row from, std::int64_t row) const {
    return from != nullptr ? from + row * mask_.row : nullptr;
  }
  bool rows_end_to_end(std::int64_t length, bool padded) const { return lie_end_to_end(mask_, length, padded); }
  bool samples_end_to_end(std::int64_t length) const { return mask_.first == nullptr || mask_.sample * 8 == length; }
  void samples_are_rows() { mask_.row = mask_.sample; }
  // Of channel c, and of channels [c, c + n).
  POPNORM_INLINE Coefficients broadcast(std::int64_t c) const {
    return s_ != nullptr ? Coefficients{Batch<T>(s_[c]), Batch<T>(b_[c])} : Coefficients{};
  }
  POPNORM_INLINE Coefficients load(std::int64_t c, std::int64_t n) const {
    const Batch<T> zero(Arithmetic<T>(0));
    return s_ != nullptr ? Coefficients{load_lanes(s_ + c, n, zero), load_lanes(b_ + c, n, zero)} : Coefficients{};
  }
  // Where `passed` says so, dy.
  POPNORM_INLINE Batch<T> masked(Chosen<Arithmetic<T>> passed, const Batch<T>& dy) const {
    return choose(passed, dy, activate_.rest(dy));
  }
  // Where d = x - hi says so.
  POPNORM_INLINE Batch<T> recomputed(const Coefficients& k, const Batch<T>& dy, const Batch<T>& d) const {
    return choose(at_most_zero(d * k.s + k.b), activate_.rest(dy), dy);
  }
  // Of elements from i of the row on.
  POPNORM_INLINE Batch<T> operator()(Row row, std::int64_t i, const Coefficients& k, const Batch<T>& dy,
                                     const Batch<T>& d) const {
    if (row != nullptr) return masked(chosen_of<Arithmetic<T>>(bits_from(row, i)), dy);
    return recomputed(k, dy, d);
  }

 private:
  POPNORM_INLINE static Batch<T> load_lanes(const Arithmetic<T>* from, std::int64_t n, const Batch<T>& fill) {
    return n == kWidth<T> ? Batch<T>::load_unaligned(from) : load_partial(from, n, fill);
  }
  Activate<T> activate_;
  Input mask_;
  const Arithmetic<T>* s_;
  const Arithmetic<T>* b_;
};

// Whether nothing of the gradient is stopped.
POPNORM_INLINE bool is_direct(const GradientArgs& args) { return args.mask.first == nullptr && args.s == nullptr; }

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
