// dx = (a*dy - k1) - ((x - hi)*invstd)*k2. Never with invstd*invstd, which leaves the range of f32 long before dx does.
template <class T>
struct BackwardApplyOp : NoOperands {
  using Type = T;
  static constexpr int kInputs = 2;
  static constexpr int kRows = 5;
  template <bool streaming, class Lanes>
  POPNORM_INLINE Batch<T> eval(const Lanes&, const Batch<T>* in, const Batch<T>* row) const {
    return (row[2] * in[1] - row[3]) - ((in[0] - row[0]) * row[1]) * row[4];
  }
  POPNORM_INLINE BackwardApplyOp at(std::int64_t, std::int64_t) const { return {}; }
};

// What an Op of backward walks: x and dy, with the rows that recompute z if it has more than five.
template <class Op>
ElementwiseArgs<Op> differentiation(const BackwardApplyArgs& a, const GradientArgs& gradient, const Op& op) {
  using A = Arithmetic<typename Op::Type>;
  ElementwiseArgs<Op> walk{a.block,
                           {a.x, a.dy},
                           a.dx,
                           {static_cast<const A*>(a.hi), static_cast<const A*>(a.invstd), static_cast<const A*>(a.a),
                            static_cast<const A*>(a.k1), static_cast<const A*>(a.k2)},
                           a.stores,
                           a.rows,
                           op};
  if constexpr (Op::kRows > 5) {
    walk.rows[5] = static_cast<const A*>(gradient.s);
    walk.rows[6] = static_cast<const A*>(gradient.b);
  }
  return walk;
}

template <class T>
void backward_apply_rows(const BackwardApplyArgs& args) {
  elementwise_rows(differentiation(args, {}, BackwardApplyOp<T>{}));
}

template <class T>
void backward_apply_columns(const BackwardApplyArgs& args) {
  elementwise_columns(differentiation(args, {}, BackwardApplyOp<T>{}));
}

// The same of the gradient behind an activation that is recomputed.
template <class T>
struct RecomputedApplyOp : NoOperands {
  using Type = T;
  static constexpr int kInputs = 2;
  static constexpr int kRows = 7;
  ActivatedGradient<T> gradient;
  bool constant;

  template <bool streaming, class Lanes>
  POPNORM_INLINE Batch<T> eval(const Lanes&, const Batch<T>* in, const Batch<T>* row) const {
    const Batch<T> d = in[0] - row[0];
    const Batch<T> direct_part = row[2] * gradient.recomputed({row[5], row[6]}, in[1], d) - row[3];
    return constant ? direct_part : direct_part - (d * row[1]) * row[4];
  }
  POPNORM_INLINE const RecomputedApplyOp& at(std::int64_t, std::int64_t) const { return *this; }
};

// The same of dy, masked if there is a mask. It is itself written as dresidual if asked for.
template <class T>
struct ResidualApplyOp {
  using Type = T;
  static constexpr int kInputs = 2;
  static constexpr int kRows = 5;
  ActivatedGradient<T> gradient;
  typename ActivatedGradient<T>::Row mask;
  Output dresidual;
  bool constant;

  template <bool streaming, class Lanes>
  POPNORM_INLINE Batch<T> eval(const Lanes& lanes, const Batch<T>* in, const Batch<T>* row) const {
    const Batch<T> g = mask != nullptr ? gradient.masked(passed<T>(mask, lanes), in[1]) : in[1];
    if (dresidual.first != nullptr) put_lanes<streaming>(static_cast<T*>(dresidual.first), lanes, g);
    const Batch<T> direct_part = row[2] * g - row[3];
    return constant ? direct_part : direct_part - ((in[0] - row[0]) * row[1]) * row[4];
  }
  POPNORM_INLINE ResidualApplyOp at(std::int64_t sample, std::int64_t row) const {
    ResidualApplyOp moved = *this;
    moved.mask = gradient.at(sample, row);
    if (dresidual.first != nullptr)
      moved.dresidual.first = static_cast<T*>(dresidual.first) + sample * dresidual.sample + row * dresidual.row;
    return moved;
  }
  bool rows_end_to_end(std::int64_t length, bool padded) const {
    return gradient.rows_end_to_end(length, padded) && (dresidual.first == nullptr || dresidual.row == length);
  }
  bool samples_end_to_end(std::int64_t length) const {
    return gradient.samples_end_to_end(length) && (dresidual.first == nullptr || dresidual.sample == length);
  }
  void samples_are_rows() {
    gradient.samples_are_rows();
    dresidual.row = dresidual.sample;
  }
};

template <class T>
void fused_backward_apply_rows(const FusedBackwardApplyArgs& args) {
  if (args.gradient.s != nullptr)
    elementwise_rows(differentiation(args.of, args.gradient,
                                     RecomputedApplyOp<T>{{}, ActivatedGradient<T>(args.gradient), args.constant}));
  else
    elementwise_rows(differentiation(
        args.of, args.gradient,
        ResidualApplyOp<T>{ActivatedGradient<T>(args.gradient), nullptr, args.dresidual, args.constant}));
}

template <class T>
void fused_backward_apply_columns(const FusedBackwardApplyArgs& args) {
  if (args.gradient.s != nullptr)
    elementwise_columns(differentiation(args.of, args.gradient,
                                        RecomputedApplyOp<T>{{}, ActivatedGradient<T>(args.gradient), args.constant}));
  else
    elementwise_columns(differentiation(
        args.of, args.gradient,
        ResidualApplyOp<T>{ActivatedGradient<T>(args.gradient), nullptr, args.dresidual, args.constant}));
}
