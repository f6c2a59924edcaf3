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
