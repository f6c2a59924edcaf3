// Moments of a block: sums of d = x - pivot and d*d, from which mean = pivot + S1/n and m2 = S2 - S1*S1/n.

// Rows form. The pivot is the mean of 8 vectors spread evenly over the block: 1/11 of a standard deviation off on
// random data, and exact on constant data because it sums a power of two of equal values. Where it is not near the mean
// of the block all the same (S1*S1/n > S2/8), or d*d overflows or underflows, the block is done again in f64; so m2 >=
// 7/8 S2 > 0 here, and the variance of any number of merged blocks is within 8u (docs/numerics.md).
inline constexpr double kPivotGuard = 0.125;

template <class T>
inline constexpr double kSmallestSquares = std::is_same_v<Arithmetic<T>, float> ? 0x1p-96 : 0x1p-900;

template <class T>
class PivotSampler {
 public:
  PivotSampler(const Block& block, const Input& x) {
    const std::int64_t full = block.positions / kLanes;
    const std::int64_t vectors = full > 0 ? full : 1;
    lanes_ = kLanes;
    while (lanes_ > block.positions) lanes_ /= 2;
    for (std::int64_t j = 0; j < kBlock; ++j) {
      const std::int64_t v = j * block.samples * vectors / kBlock;
      at_[j] = sample_of(block, v / vectors) * x.sample + v % vectors * kLanes;
    }
  }

  Arithmetic<T> operator()(const T* x) const {
    using A = Arithmetic<T>;
    Batch<T> sum[kSpan<T>];
    for (std::int64_t h = 0; h < kSpan<T>; ++h) {
      const std::int64_t lanes = lanes_ - h * kWidth<T>;
      Batch<T> v[kBlock];
      for (std::int64_t j = 0; j < kBlock; ++j) {
        const T* from = x + at_[j] + h * kWidth<T>;
        v[j] = lanes >= kWidth<T> ? load(from) : lanes > 0 ? load_partial(from, lanes, Batch<T>(A(0))) : Batch<T>(A(0));
      }
      sum[h] = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    }
    return fold_lanes<T>(sum) * (A(1) / static_cast<A>(kBlock * lanes_));
  }

 private:
  std::int64_t at_[kBlock];
  std::int64_t lanes_;
};

template <class T>
struct MomentsRowsLeaf {
  using Type = T;
  using Row = const T*;
  const T* x;
  std::int64_t sample;
  std::int64_t ahead;
  Batch<T> pivot;
  POPNORM_INLINE Row row(std::int64_t k) const { return x + k * sample; }
  template <bool far>
  POPNORM_INLINE void terms(Row row, std::int64_t i, Batch<T>& p, Batch<T>& q) const {
    prefetch<far>(row + i, ahead);
    p = load(row + i) - pivot;
    q = p * p;
  }
  POPNORM_INLINE void partial(Row row, std::int64_t i, std::int64_t n, Batch<T>& p, Batch<T>& q) const {
    p = load_partial(row + i, n, pivot) - pivot;
    q = p * p;
  }
};

// One channel by passes in f64, 16 lanes: the mean around the first element (exact on constant data), the mean again
// around that (the first element may be an outlier that swallows the others' digits), m2. Finite for |x| <= 1e150.
// `step` separates positions.
template <class T>
[[gnu::noinline]] void moments_f64(const Block& block, const T* x, std::int64_t sample, std::int64_t step, double& mean,
                                   double& m2) {
  const double n = static_cast<double>(block.samples * block.positions);
  const auto sweep = [&](double origin, auto&& term) {
    double lane[kLanes] = {};
    for (std::int64_t k = 0; k < block.samples; ++k) {
      const T* row = x + sample_of(block, k) * sample;
      std::int64_t i = 0;
      for (; i + kLanes <= block.positions; i += kLanes)
        for (std::int64_t l = 0; l < kLanes; ++l) lane[l] += term(number(row[(i + l) * step]) - origin);
      for (std::int64_t l = 0; i + l < block.positions; ++l) lane[l] += term(number(row[(i + l) * step]) - origin);
    }
    for (std::int64_t width = kLanes / 2; width > 0; width /= 2)
      for (std::int64_t l = 0; l < width; ++l) lane[l] += lane[l + width];
    return lane[0];
  };
  const auto deviation = [](double d) { return d; };
  mean = number(x[sample_of(block, 0) * sample]);
  mean += sweep(mean, deviation) / n;
  mean += sweep(mean, deviation) / n;
  m2 = sweep(mean, [](double d) { return d * d; });
}

template <class T>
void moments_rows(const MomentsArgs& args) {
  const Block& block = args.block;
  const double share = 1 / static_cast<double>(block.samples * block.positions);
  const PivotSampler<T> sample_pivot(block, args.x);
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const T* x = static_cast<const T*>(args.x.first) + c * args.x.row;
    const Arithmetic<T> pivot = sample_pivot(x);
    double s1;
    double s2;
    reduce_rows(MomentsRowsLeaf<T>{x, args.x.sample, ahead_of<T>(args.x, block, c), Batch<T>(pivot)}, block, s1, s2);
    const double excess = s1 * s1 * share;
    if (excess <= kPivotGuard * s2 && s2 >= kSmallestSquares<T> && s2 <= std::numeric_limits<double>::max()) {
      args.mean[c] = static_cast<double>(pivot) + s1 * share;
      args.m2[c] = s2 - excess;
    } else {
      moments_f64(block, x, args.x.sample, 1, args.mean[c], args.m2[c]);
    }
  }
}

// Columns form: f64 throughout, since memory leaves time for it. The pivot is the block's first position; a channel in
// which that is an outlier, S1*S1/n > 15/16 S2, is done again. So the error stays below 16 (n/4 + 6) 2^-53 of m2, 2^-42
// for blocks of 512, and m2 >= S2/16 >= 0, exactly zero on constant data.
inline constexpr double kOutlierGuard = 0.9375;

template <class T>
struct MomentsColumnsLeaf {
  using Row = const T*;
  static constexpr std::int64_t kVector = kWidth<double>;
  const Block& block;
  const Input& input;
  const T* x;
  const T* pivot;
  std::int64_t sample;
  std::int64_t step;
  std::int64_t ahead;
  POPNORM_INLINE Row row(std::int64_t k) const { return x + k * sample; }
  POPNORM_INLINE Row position(Row first, std::int64_t s) const { return first + s * step; }
  POPNORM_INLINE void fetch(std::int64_t position, std::int64_t count) const {
    fetch_share<T>(block, input, position, count);
  }
  POPNORM_INLINE void prefetch(Row row, std::int64_t c) const { prefetch_to_l2(row + c, ahead); }
  POPNORM_INLINE Batch<double> columns(std::int64_t c, std::int64_t n) const { return load_widened(pivot + c, n); }
  POPNORM_INLINE Terms<Batch<double>> terms(Row row, const Batch<double>& k, std::int64_t c, std::int64_t n) const {
    const Batch<double> d = load_widened(row + c, n) - k;
    return {d, d * d};
  }
};

template <class T>
void moments_columns(const MomentsArgs& args) {
  const Block& block = args.block;
  const T* x = static_cast<const T*>(args.x.first);
  const T* pivot = x + sample_of(block, 0) * args.x.sample;
  const std::int64_t ahead = ahead_in_columns<T>(block, args.x);
  const MomentsColumnsLeaf<T> leaf{block, args.x, x, pivot, args.x.sample, args.x.row, ahead};
  reduce_columns<T>(leaf, block, args.mean, args.m2);
  const double n = static_cast<double>(block.samples * block.positions);
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const double shift = args.mean[c] / n;
    const double excess = shift * args.mean[c];
    if (excess <= kOutlierGuard * args.m2[c]) {
      args.m2[c] -= excess;
      args.mean[c] = number(pivot[c]) + shift;
    } else {
      moments_f64(block, x + c, args.x.sample, args.x.row, args.mean[c], args.m2[c]);
    }
  }
}
