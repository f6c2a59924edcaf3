// sum(dy) and sum(dy*(x - hi)) of a block. Two roundings of the product and two of the sum before it is f64: 4u of
// sum|dy*(x - hi)|, whatever the length.

template <class T>
struct BackwardRowsLeaf {
  using Type = T;
  struct Row {
    const T* x;
    const T* dy;
  };
  const T* x;
  const T* dy;
  std::int64_t x_sample;
  std::int64_t dy_sample;
  std::int64_t x_ahead;
  std::int64_t dy_ahead;
  Batch<T> hi;
  POPNORM_INLINE Row row(std::int64_t k) const { return {x + k * x_sample, dy + k * dy_sample}; }
  POPNORM_INLINE void terms(const Row& row, std::int64_t i, Batch<T>& p, Batch<T>& q) const {
    prefetch_to_l1(row.x + i, x_ahead);
    prefetch_to_l1(row.dy + i, dy_ahead);
    p = load(row.dy + i);
    q = p * (load(row.x + i) - hi);
  }
  POPNORM_INLINE void partial(const Row& row, std::int64_t i, std::int64_t n, Batch<T>& p, Batch<T>& q) const {
    p = load_partial(row.dy + i, n, Batch<T>(Arithmetic<T>(0)));
    q = p * (load_partial(row.x + i, n, hi) - hi);
  }
};

template <class T>
void backward_reduce_rows(const BackwardReduceArgs& args) {
  for (std::int64_t c = 0; c < args.block.channels; ++c) {
    const BackwardRowsLeaf<T> leaf{static_cast<const T*>(args.x.first) + c * args.x.row,
                                   static_cast<const T*>(args.dy.first) + c * args.dy.row,
                                   args.x.sample,
                                   args.dy.sample,
                                   ahead_of<T>(args.x, args.block, c),
                                   ahead_of<T>(args.dy, args.block, c),
                                   Batch<T>(static_cast<const Arithmetic<T>*>(args.hi)[c])};
    reduce_rows(leaf, args.block, args.sum_dy[c], args.sum_dy_d[c]);
  }
}

template <class T>
struct BackwardColumnsLeaf {
  struct Row {
    const T* x;
    const T* dy;
  };
  static constexpr std::int64_t kVector = kWidth<T>;
  const Block& block;
  const Input& x;
  const Input& dy;
  const Arithmetic<T>* hi;
  std::int64_t x_ahead;
  std::int64_t dy_ahead;
  POPNORM_INLINE Row row(std::int64_t k) const {
    return {static_cast<const T*>(x.first) + k * x.sample, static_cast<const T*>(dy.first) + k * dy.sample};
  }
  POPNORM_INLINE Row position(const Row& first, std::int64_t s) const {
    return {first.x + s * x.row, first.dy + s * dy.row};
  }
  POPNORM_INLINE void fetch(std::int64_t position, std::int64_t count) const {
    fetch_share<T>(block, x, position, count);
    fetch_share<T>(block, dy, position, count);
  }
  POPNORM_INLINE void prefetch(const Row& row, std::int64_t c) const {
    prefetch_to_l1(row.x + c, x_ahead);
    prefetch_to_l1(row.dy + c, dy_ahead);
  }
  POPNORM_INLINE Batch<T> columns(std::int64_t c, std::int64_t n) const {
    return load(hi + c, n, Batch<T>(Arithmetic<T>(0)));
  }
  POPNORM_INLINE Terms<Batch<T>> terms(const Row& row, const Batch<T>& mean, std::int64_t c, std::int64_t n) const {
    const Batch<T> gradient = load(row.dy + c, n, Batch<T>(Arithmetic<T>(0)));
    return {gradient, gradient * (load(row.x + c, n, mean) - mean)};
  }
};

template <class T>
void backward_reduce_columns(const BackwardReduceArgs& args) {
  const Block& block = args.block;
  const BackwardColumnsLeaf<T> leaf{block,
                                    args.x,
                                    args.dy,
                                    static_cast<const Arithmetic<T>*>(args.hi),
                                    ahead_in_columns<T>(block, args.x, 4096),
                                    ahead_in_columns<T>(block, args.dy, 4096)};
  // A few channels of four positions are a few neighbouring lines in any order, and scattered samples have no order.
  if (scattered<T>(block))
    reduce_columns<Gathered>(leaf, block, args.sum_dy, args.sum_dy_d);
  else if (block.channels <= 2 * kWidth<T>)
    reduce_columns<Together>(leaf, block, args.sum_dy, args.sum_dy_d);
  else
    reduce_columns<InTurn<T>>(leaf, block, args.sum_dy, args.sum_dy_d);
}
