// Moments of a block: sums of d = x - pivot and d*d, from which mean = pivot + S1/n and m2 = S2 - S1*S1/n.

// A block whose pivot is not near its mean (S1*S1/n > S2/8), or in which d*d overflows or underflows, is done again in f64; so
// m2 >= 7/8 S2 > 0 here, and the variance of any number of merged blocks is within 8u (docs/numerics.md).
inline constexpr double kPivotGuard = 0.125;

template <class T>
inline constexpr double kSmallestSquares = std::is_same_v<Arithmetic<T>, float> ? 0x1p-96 : 0x1p-900;

// excess = S1*S1/n, s2 = S2.
template <class T>
POPNORM_INLINE bool pivot_holds(double excess, double s2) {
  return excess <= kPivotGuard * s2 && s2 >= kSmallestSquares<T> && s2 <= std::numeric_limits<double>::max();
}

// Rows form. The pivot is the mean of 8 vectors spread evenly over the block: 1/11 of a standard deviation off on random data,
// and exact on constant data because it sums a power of two of equal values.
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
    if (pivot_holds<T>(excess, s2)) {
      args.mean[c] = static_cast<double>(pivot) + s1 * share;
      args.m2[c] = s2 - excess;
    } else {
      moments_f64(block, x, args.x.sample, 1, args.mean[c], args.m2[c]);
    }
  }
}

// Columns form: what its leaves read.
template <class T>
struct PositionsLeaf {
  using Row = const T*;
  const Block& block;
  const Input& input;
  const T* x;
  std::int64_t ahead;
  POPNORM_INLINE Row row(std::int64_t k) const { return x + k * input.sample; }
  POPNORM_INLINE Row position(Row first, std::int64_t s) const { return first + s * input.row; }
  POPNORM_INLINE void fetch(std::int64_t position, std::int64_t count) const {
    fetch_share<T>(block, input, position, count);
  }
  POPNORM_INLINE void prefetch(Row row, std::int64_t c) const { prefetch_to_l2(row + c, ahead); }
};

template <class T>
struct MomentsColumnsLeaf : PositionsLeaf<T> {
  static constexpr std::int64_t kVector = kWidth<T>;
  const Arithmetic<T>* pivot;
  POPNORM_INLINE Batch<T> columns(std::int64_t c, std::int64_t n) const {
    return load(pivot + c, n, Batch<T>(Arithmetic<T>(0)));
  }
  POPNORM_INLINE Terms<Batch<T>> terms(const T* row, const Batch<T>& k, std::int64_t c, std::int64_t n) const {
    const Batch<T> d = load(row + c, n, k) - k;
    return {d, d * d};
  }
};

template <class T>
struct WideMomentsColumnsLeaf : PositionsLeaf<T> {
  static constexpr std::int64_t kVector = kWidth<double>;
  const T* pivot;
  POPNORM_INLINE Batch<double> columns(std::int64_t c, std::int64_t n) const { return load_widened(pivot + c, n); }
  POPNORM_INLINE Terms<Batch<double>> terms(const T* row, const Batch<double>& k, std::int64_t c,
                                            std::int64_t n) const {
    const Batch<double> d = load_widened(row + c, n) - k;
    return {d, d * d};
  }
};

template <class T>
POPNORM_INLINE Input from_channel(const Input& input, std::int64_t c) {
  const auto moved = [c](const void* at) -> const void* {
    return at != nullptr ? static_cast<const T*>(at) + c : nullptr;
  };
  return {moved(input.first), input.sample, input.row, moved(input.next)};
}

// In f64 the pivot is the block's first position; a channel in which that is an outlier, S1*S1/n > 15/16 S2, is done again. So
// the error stays below 16 (n/4 + 6) 2^-53 of m2, 2^-41 for blocks of 1024, and m2 >= S2/16 >= 0, exactly zero on constant data.
inline constexpr double kOutlierGuard = 0.9375;

template <class T>
[[gnu::noinline]] void wide_moments_columns(const Block& block, const Input& input, double* mean, double* m2) {
  const T* x = static_cast<const T*>(input.first);
  const T* pivot = x + sample_of(block, 0) * input.sample;
  reduce_columns<T>(WideMomentsColumnsLeaf<T>{{block, input, x, ahead_in_columns<T>(block, input)}, pivot}, block, mean,
                    m2);
  const double n = static_cast<double>(block.samples * block.positions);
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const double shift = mean[c] / n;
    const double excess = shift * mean[c];
    if (excess <= kOutlierGuard * m2[c]) {
      m2[c] -= excess;
      mean[c] = number(pivot[c]) + shift;
    } else {
      moments_f64(block, x + c, input.sample, input.row, mean[c], m2[c]);
    }
  }
}

// In f32 the pivot is the mean of 64 positions spread evenly over the block, 1/8 of a standard deviation off on random data, and
// exact on constant data because f64 holds the sum of equal values. Shorter blocks are not worth one.
inline constexpr std::int64_t kSampledPositions = 64;

// Channels whose pivots a kernel holds at a time.
inline constexpr std::int64_t kPivots = 2048;

// `sum` is scratch.
template <class T>
void sample_columns(const Block& block, const Input& input, double* sum, Arithmetic<T>* pivot) {
  for (std::int64_t c = 0; c < block.channels; ++c) sum[c] = 0;
  const std::int64_t n = block.samples * block.positions;
  constexpr std::int64_t ahead = 2 * kFour;
  const T* row[kSampledPositions + ahead];
  std::int64_t k = 0;
  std::int64_t first = 0;  // position of sample k among all
  for (std::int64_t j = 0; j < kSampledPositions; ++j) {
    const std::int64_t at = j * n / kSampledPositions;
    for (; at >= first + block.positions; first += block.positions) ++k;
    row[j] = static_cast<const T*>(input.first) + sample_of(block, k) * input.sample + (at - first) * input.row;
  }
  for (std::int64_t j = 0; j < ahead; ++j) row[kSampledPositions + j] = static_cast<const T*>(input.first);
  for (std::int64_t j = 0; j < kSampledPositions; j += kFour)
    for_each_vector<kWidth<T>>(
        0, block.channels, [&](std::int64_t c, auto lanes) __attribute__((always_inline)) {
          unroll<kFour>([&](auto r) __attribute__((always_inline)) { prefetch_to_l2(row[j + ahead + r] + c, 0); });
          add_to_sums(sum + c, lanes, pairwise<kFour>([&](std::int64_t r) __attribute__((always_inline)) {
                        return load(row[j + r] + c, lanes, Batch<T>(Arithmetic<T>(0)));
                      }));
        });
  constexpr double share = 1.0 / kSampledPositions;
  for (std::int64_t c = 0; c < block.channels; ++c) pivot[c] = static_cast<Arithmetic<T>>(sum[c] * share);
}

// What the guard of the rows form refuses, marked by m2 < 0, in f64: some neighbours at a time.
template <class T>
void repeat_columns(const Block& block, const Input& input, double* mean, double* m2) {
  constexpr std::int64_t unit = 8, most = 64;
  for (std::int64_t c = 0; c < block.channels;) {
    if (!(m2[c] < 0)) {
      ++c;
      continue;
    }
    const std::int64_t begin = c / unit * unit;
    std::int64_t end = c + 1;
    for (std::int64_t i = end; i < block.channels && i < begin + most && i < end + unit; ++i)
      if (m2[i] < 0) end = i + 1;
    double again_mean[most];
    double again_m2[most];
    const Block part{block.samples, block.positions, end - begin, block.index};
    wide_moments_columns<T>(part, from_channel<T>(input, begin), again_mean, again_m2);
    for (; c < end; ++c)
      if (m2[c] < 0) {
        mean[c] = again_mean[c - begin];
        m2[c] = again_m2[c - begin];
      }
  }
}

template <class T>
void pivoted_moments_columns(const Block& block, const Input& input, double* mean, double* m2) {
  Arithmetic<T> pivot[kPivots];
  sample_columns<T>(block, input, mean, pivot);
  const T* x = static_cast<const T*>(input.first);
  reduce_columns<T>(MomentsColumnsLeaf<T>{{block, input, x, ahead_in_columns<T>(block, input)}, pivot}, block, mean,
                    m2);
  const double share = 1 / static_cast<double>(block.samples * block.positions);
  bool all = true;
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const double s1 = mean[c];
    const double s2 = m2[c];
    const double excess = s1 * s1 * share;
    const bool kept = pivot_holds<T>(excess, s2);
    all &= kept;
    mean[c] = static_cast<double>(pivot[c]) + s1 * share;
    m2[c] = kept ? s2 - excess : -1;
  }
  if (!all) repeat_columns<T>(block, input, mean, m2);
}

template <class T>
void moments_columns(const MomentsArgs& args) {
  const Block& block = args.block;
  if (std::is_same_v<T, double> || block.samples * block.positions < kSampledPositions)
    return wide_moments_columns<T>(block, args.x, args.mean, args.m2);
  if constexpr (!std::is_same_v<T, double>)
    for (std::int64_t c = 0; c < block.channels; c += kPivots) {
      const std::int64_t channels = block.channels - c < kPivots ? block.channels - c : kPivots;
      pivoted_moments_columns<T>({block.samples, block.positions, channels, block.index}, from_channel<T>(args.x, c),
                                 args.mean + c, args.m2 + c);
    }
}
