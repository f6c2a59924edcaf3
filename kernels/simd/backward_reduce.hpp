// sum(g) and sum(g*(x - hi)) of a block, where the gradient g is dy or what an activation makes of it. Two roundings of the
// product and two of the sum before it is f64: 4u of sum|g*(x - hi)|, whatever the length.

template <class T, class Gradient>
struct BackwardRowsLeaf {
  using Type = T;
  struct Row {
    const T* x;
    const T* dy;
    [[no_unique_address]] typename Gradient::Row gradient;
  };
  const T* x;
  const T* dy;
  std::int64_t x_sample;
  std::int64_t dy_sample;
  std::int64_t x_ahead;
  std::int64_t dy_ahead;
  Batch<T> hi;
  const Gradient& gradient;
  std::int64_t channel;
  [[no_unique_address]] typename Gradient::Coefficients coefficients;
  POPNORM_INLINE Row row(std::int64_t k) const {
    return {x + k * x_sample, dy + k * dy_sample, gradient.at(k, channel)};
  }
  template <bool far>
  POPNORM_INLINE void terms(const Row& row, std::int64_t i, Batch<T>& p, Batch<T>& q) const {
    prefetch<far>(row.x + i, x_ahead);
    prefetch<far>(row.dy + i, dy_ahead);
    const Batch<T> d = load(row.x + i) - hi;
    p = gradient(row.gradient, i, coefficients, load(row.dy + i), d);
    q = p * d;
  }
  POPNORM_INLINE void partial(const Row& row, std::int64_t i, std::int64_t n, Batch<T>& p, Batch<T>& q) const {
    const Batch<T> d = load_partial(row.x + i, n, hi) - hi;
    p = gradient(row.gradient, i, coefficients, load_partial(row.dy + i, n, Batch<T>(Arithmetic<T>(0))), d);
    q = p * d;
  }
};

template <class T, class Gradient>
POPNORM_INLINE void reduce_gradient_rows(const BackwardReduceArgs& args, const Gradient& gradient) {
  for (std::int64_t c = 0; c < args.block.channels; ++c) {
    const BackwardRowsLeaf<T, Gradient> leaf{static_cast<const T*>(args.x.first) + c * args.x.row,
                                             static_cast<const T*>(args.dy.first) + c * args.dy.row,
                                             args.x.sample,
                                             args.dy.sample,
                                             ahead_of<T>(args.x, args.block, c),
                                             ahead_of<T>(args.dy, args.block, c),
                                             Batch<T>(static_cast<const Arithmetic<T>*>(args.hi)[c]),
                                             gradient,
                                             c,
                                             gradient.broadcast(c)};
    reduce_rows(leaf, args.block, args.sum_dy[c], args.sum_dy_d[c]);
  }
}

template <class T>
void backward_reduce_rows(const BackwardReduceArgs& args) {
  reduce_gradient_rows<T>(args, DirectGradient<T>{});
}

template <class T>
void fused_backward_reduce_rows(const FusedBackwardReduceArgs& args) {
  if (is_direct(args.gradient)) return backward_reduce_rows<T>(args.of);
  reduce_gradient_rows<T>(args.of, ActivatedGradient<T>(args.gradient));
}

template <class T, class Gradient>
struct BackwardColumnsLeaf {
  struct Row {
    const T* x;
    const T* dy;
    [[no_unique_address]] typename Gradient::Row gradient;
  };
  struct Columns {
    Batch<T> mean;
    [[no_unique_address]] typename Gradient::Coefficients coefficients;
  };
  static constexpr std::int64_t kVector = kWidth<T>;
  const Block& block;
  const Input& x;
  const Input& dy;
  const Arithmetic<T>* hi;
  std::int64_t x_ahead;
  std::int64_t dy_ahead;
  const Gradient& gradient;
  POPNORM_INLINE Row row(std::int64_t k) const {
    return {static_cast<const T*>(x.first) + k * x.sample, static_cast<const T*>(dy.first) + k * dy.sample,
            gradient.at(k, 0)};
  }
  POPNORM_INLINE Row position(const Row& first, std::int64_t s) const {
    return {first.x + s * x.row, first.dy + s * dy.row, gradient.moved(first.gradient, s)};
  }
  POPNORM_INLINE void fetch(std::int64_t position, std::int64_t count) const {
    fetch_share<T>(block, x, position, count);
    fetch_share<T>(block, dy, position, count);
  }
  POPNORM_INLINE void prefetch(const Row& row, std::int64_t c) const {
    prefetch_to_l2(row.x + c, x_ahead);
    prefetch_to_l2(row.dy + c, dy_ahead);
  }
  POPNORM_INLINE Columns columns(std::int64_t c, std::int64_t n) const {
    return {load(hi + c, n, Batch<T>(Arithmetic<T>(0))), gradient.load(c, n)};
  }
  POPNORM_INLINE Terms<Batch<T>> terms(const Row& row, const Columns& k, std::int64_t c, std::int64_t n) const {
    const Batch<T> d = load(row.x + c, n, k.mean) - k.mean;
    const Batch<T> g = gradient(row.gradient, c, k.coefficients, load(row.dy + c, n, Batch<T>(Arithmetic<T>(0))), d);
    return {g, g * d};
  }
};

template <class T, class Gradient>
POPNORM_INLINE void reduce_gradient_columns(const BackwardReduceArgs& args, const Gradient& gradient) {
  const Block& block = args.block;
  const BackwardColumnsLeaf<T, Gradient> leaf{block,
                                              args.x,
                                              args.dy,
                                              static_cast<const Arithmetic<T>*>(args.hi),
                                              ahead_in_columns<T>(block, args.x),
                                              ahead_in_columns<T>(block, args.dy),
                                              gradient};
  reduce_columns<T>(leaf, block, args.sum_dy, args.sum_dy_d);
}

template <class T>
void backward_reduce_columns(const BackwardReduceArgs& args) {
  reduce_gradient_columns<T>(args, DirectGradient<T>{});
}

template <class T>
void fused_backward_reduce_columns(const FusedBackwardReduceArgs& args) {
  if (is_direct(args.gradient)) return backward_reduce_columns<T>(args.of);
  reduce_gradient_columns<T>(args.of, ActivatedGradient<T>(args.gradient));
}
