// y = (x - hi)*s + b. Never x*a + b: the subtraction first keeps |mean| >> std accurate, and costs nothing in memory
// time.
template <class T>
struct NormalizeOp {
  using Type = T;
  static constexpr int kInputs = 1;
  static constexpr int kRows = 3;
  POPNORM_INLINE static Batch<T> eval(const Batch<T>* in, const Batch<T>* row) {
    return (in[0] - row[0]) * row[1] + row[2];
  }
  static ElementwiseArgs<NormalizeOp> elementwise(const NormalizeArgs& a) {
    return {a.block,
            {a.x},
            a.y,
            {static_cast<const Arithmetic<T>*>(a.hi), static_cast<const Arithmetic<T>*>(a.s),
             static_cast<const Arithmetic<T>*>(a.b)},
            a.stores,
            a.rows};
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
