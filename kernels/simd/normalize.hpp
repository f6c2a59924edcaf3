// y = (x - hi)*s + b. Never x*a + b: the subtraction first keeps |mean| >> std accurate, and costs nothing in memory
// time.
template <class T>
struct NormalizeOp : NoOperands {
  using Type = T;
  static constexpr int kInputs = 1;
  static constexpr int kRows = 3;
  template <bool streaming, class Lanes>
  POPNORM_INLINE Batch<T> eval(const Lanes&, const Batch<T>* in, const Batch<T>* row) const {
    return (in[0] - row[0]) * row[1] + row[2];
  }
  POPNORM_INLINE NormalizeOp at(std::int64_t, std::int64_t) const { return {}; }
  static ElementwiseArgs<NormalizeOp> elementwise(const NormalizeArgs& a) {
    return {a.block,
            {a.x},
            a.y,
            {static_cast<const Arithmetic<T>*>(a.hi), static_cast<const Arithmetic<T>*>(a.s),
             static_cast<const Arithmetic<T>*>(a.b)},
            a.stores,
            a.rows,
            {}};
  }
};

template <class T>
void normalize_rows(const NormalizeArgs& args) {
  elementwise_rows(NormalizeOp<T>::elementwise(args));
}

template <class T>
void normalize_columns(const NormalizeArgs& args) {
  elementwise_columns(NormalizeOp<T>::elementwise(args));
}

// The same, activated.
template <class T>
struct ActivatedNormalizeOp : NoOperands {
  using Type = T;
  static constexpr int kInputs = 1;
  static constexpr int kRows = 3;
  Activate<T> activate;

  template <bool streaming, class Lanes>
  POPNORM_INLINE Batch<T> eval(const Lanes&, const Batch<T>* in, const Batch<T>* row) const {
    return activate((in[0] - row[0]) * row[1] + row[2]);
  }
  POPNORM_INLINE const ActivatedNormalizeOp& at(std::int64_t, std::int64_t) const { return *this; }
  static ElementwiseArgs<ActivatedNormalizeOp> elementwise(const FusedNormalizeArgs& args) {
    const NormalizeArgs& a = args.of;
    return {a.block,
            {a.x},
            a.y,
            {static_cast<const Arithmetic<T>*>(a.hi), static_cast<const Arithmetic<T>*>(a.s),
             static_cast<const Arithmetic<T>*>(a.b)},
            a.stores,
            a.rows,
            {{}, Activate<T>(args.activation)}};
  }
};

// The same after a residual was added, and a mask written of what passed.
template <class T>
struct ResidualNormalizeOp {
  using Type = T;
  static constexpr int kInputs = 2;
  static constexpr int kRows = 3;
  Activate<T> activate;
  MaskOutput mask;

  template <bool streaming, class Lanes>
  POPNORM_INLINE Batch<T> eval(const Lanes& lanes, const Batch<T>* in, const Batch<T>* row) const {
    const Batch<T> z = ((in[0] - row[0]) * row[1] + row[2]) + in[1];
    if (mask.first != nullptr) mask.put(lanes, ~bits_of<Arithmetic<T>>(at_most_zero(z)));
    return activate(z);
  }
  POPNORM_INLINE ResidualNormalizeOp at(std::int64_t sample, std::int64_t row) const {
    return {activate, mask.at(sample, row)};
  }
  bool rows_end_to_end(std::int64_t length, bool padded) const { return mask.rows_end_to_end(length, padded); }
  bool samples_end_to_end(std::int64_t length) const { return mask.samples_end_to_end(length); }
  void samples_are_rows() { mask.row = mask.sample; }

  static ElementwiseArgs<ResidualNormalizeOp> elementwise(const FusedNormalizeArgs& args) {
    const NormalizeArgs& a = args.of;
    return {a.block,
            {a.x, args.residual},
            a.y,
            {static_cast<const Arithmetic<T>*>(a.hi), static_cast<const Arithmetic<T>*>(a.s),
             static_cast<const Arithmetic<T>*>(a.b)},
            a.stores,
            a.rows,
            {Activate<T>(args.activation), MaskOutput(args.mask)}};
  }
};

template <class T>
void fused_normalize_rows(const FusedNormalizeArgs& args) {
  if (args.residual.first != nullptr)
    elementwise_rows(ResidualNormalizeOp<T>::elementwise(args));
  else
    elementwise_rows(ActivatedNormalizeOp<T>::elementwise(args));
}

template <class T>
void fused_normalize_columns(const FusedNormalizeArgs& args) {
  if (args.residual.first != nullptr)
    elementwise_columns(ResidualNormalizeOp<T>::elementwise(args));
  else
    elementwise_columns(ActivatedNormalizeOp<T>::elementwise(args));
}
