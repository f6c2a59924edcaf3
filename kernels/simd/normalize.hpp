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
};

// What an Op of normalization walks: x, and a residual if it has another input.
template <class Op>
ElementwiseArgs<Op> normalization(const NormalizeArgs& a, const Input& residual, const Op& op) {
  using A = Arithmetic<typename Op::Type>;
  ElementwiseArgs<Op> walk{
      a.block,  {a.x},  a.y, {static_cast<const A*>(a.hi), static_cast<const A*>(a.s), static_cast<const A*>(a.b)},
      a.stores, a.rows, op};
  if constexpr (Op::kInputs > 1) walk.in[1] = residual;
  return walk;
}

template <class T>
void normalize_rows(const NormalizeArgs& args) {
  elementwise_rows(normalization(args, {}, NormalizeOp<T>{}));
}

template <class T>
void normalize_columns(const NormalizeArgs& args) {
  elementwise_columns(normalization(args, {}, NormalizeOp<T>{}));
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
};

template <class T>
void fused_normalize_rows(const FusedNormalizeArgs& args) {
  if (args.residual.first != nullptr)
    elementwise_rows(normalization(args.of, args.residual,
                                   ResidualNormalizeOp<T>{Activate<T>(args.activation), MaskOutput(args.mask)}));
  else
    elementwise_rows(normalization(args.of, {}, ActivatedNormalizeOp<T>{{}, Activate<T>(args.activation)}));
}

template <class T>
void fused_normalize_columns(const FusedNormalizeArgs& args) {
  if (args.residual.first != nullptr)
    elementwise_columns(normalization(args.of, args.residual,
                                      ResidualNormalizeOp<T>{Activate<T>(args.activation), MaskOutput(args.mask)}));
  else
    elementwise_columns(normalization(args.of, {}, ActivatedNormalizeOp<T>{{}, Activate<T>(args.activation)}));
}
