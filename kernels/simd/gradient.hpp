// Activations, a vector at a time, and the gradient of what they were applied to, as kernels that read dy see it.

// kernels/activation.hpp's choice.
template <class T>
class Activate {
 public:
  explicit Activate(const Activation& a)
      : slope_(static_cast<Arithmetic<T>>(a.slope)), kept_(a.keeps ? all_ones() : Batch<T>(Arithmetic<T>(0))) {}
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

// The lanes that elements [i, i + kWidth) of a mask's row passed in; beyond its end, anything. Reads 4 bytes.
template <class T>
POPNORM_INLINE auto passed(const std::uint8_t* row, std::int64_t i) {
  std::uint32_t bits;
  std::memcpy(&bits, row + (i >> 3), sizeof(bits));
  return chosen_of<Arithmetic<T>>(bits >> (i & 7));
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
  // Whether the mask's rows, or samples of one row, of `length` elements lie end to end.
  bool rows_end_to_end(std::int64_t length) const { return mask_.first == nullptr || mask_.row * 8 == length; }
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
  // Of elements from i of the row on, where d = x - hi.
  POPNORM_INLINE Batch<T> operator()(Row row, std::int64_t i, const Coefficients& k, const Batch<T>& dy,
                                     const Batch<T>& d) const {
    if (row != nullptr) return choose(passed<T>(row, i), dy, activate_.rest(dy));
    return choose(at_most_zero(d * k.s + k.b), activate_.rest(dy), dy);
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

// Elements [e, e + n) of a run; `last`: it ends there.
template <class T, class N>
struct RunLanes {
  std::int64_t e;
  N n;
  bool last;
  static constexpr bool kWhole = !std::is_same_v<N, std::int64_t>;

  // To the same elements of another output of the run.
  template <bool streaming>
  POPNORM_INLINE void put(T* out, const Batch<T>& v) const {
    if constexpr (!kWhole) {
      store_partial(out + e, n, v);
    } else if constexpr (streaming) {
      // The run's own output is aligned, this one by chance.
      if (reinterpret_cast<std::uintptr_t>(out + e) % (sizeof(T) * static_cast<std::size_t>(kWidth<T>)) == 0)
        stream(out + e, v);
      else
        popnorm::cpu::put(out + e, v);
    } else {
      popnorm::cpu::put(out + e, v);
    }
  }
};

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
  bool rows_end_to_end(std::int64_t length) const { return first == nullptr || row * 8 == length; }
  bool samples_end_to_end(std::int64_t length) const { return first == nullptr || sample * 8 == length; }

  template <class T, class N>
  POPNORM_INLINE void put(const RunLanes<T, N>& lanes, std::uint32_t bits) const {
    std::uint8_t* to = first + (lanes.e >> 3);
    const std::int64_t shift = lanes.e & 7;
    if constexpr (RunLanes<T, N>::kWhole && kWidth<T> % 8 == 0) {
      if (shift == 0) {
        std::memcpy(to, &bits, static_cast<std::size_t>(kWidth<T> / 8));
        return;
      }
    }
    // What lies beyond the end of the run, in its last byte, is nobody's.
    const std::int64_t end = shift + lanes.n;
    const std::int64_t bytes = (end + 7) / 8;
    const std::uint32_t own = (1U << (lanes.last ? bytes * 8 : end)) - (1U << shift);
    const std::uint32_t value = (bits & ((1U << lanes.n) - 1U)) << shift;
    for (std::int64_t i = 0; i < bytes; ++i) {
      const std::uint32_t kept = to[i] & ~(own >> (8 * i));
      to[i] = static_cast<std::uint8_t>(kept | value >> (8 * i));
    }
  }
};
