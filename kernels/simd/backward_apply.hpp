// dx = (a*dy - k1) - ((x - hi)*invstd)*k2. Never with invstd*invstd, which leaves the range of f32 long before dx does.
template <class T>
struct BackwardApplyOp {
  using Type = T;
  static constexpr int kInputs = 2;
  static constexpr int kRows = 5;
  POPNORM_INLINE static Batch<T> eval(const Batch<T>* in, const Batch<T>* row) {
    return (row[2] * in[1] - row[3]) - ((in[0] - row[0]) * row[1]) * row[4];
  }
  static ElementwiseArgs<BackwardApplyOp> elementwise(const BackwardApplyArgs& a) {
    return {a.block,
            {a.x, a.dy},
            a.dx,
            {static_cast<const Arithmetic<T>*>(a.hi), static_cast<const Arithmetic<T>*>(a.invstd),
             static_cast<const Arithmetic<T>*>(a.a), static_cast<const Arithmetic<T>*>(a.k1),
             static_cast<const Arithmetic<T>*>(a.k2)},
            a.stores,
            a.rows};
  }
};

template <class T>
void backward_apply_rows(const BackwardApplyArgs& args) {
  elementwise_rows(BackwardApplyOp<T>::elementwise(args));
}

template <class T>
void backward_apply_columns(const BackwardApplyArgs& args) {
  elementwise_columns(BackwardApplyOp<T>::elementwise(args));
}
