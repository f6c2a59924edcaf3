// Two sums per channel over a block, in the canonical order that every tier shares:
//   vectors are taken in blocks of 8; four at a time they are summed pairwise in the leaf's type and added to f64
//   accumulators.
// Rows form: a vector is 16 consecutive positions of a row (the last one may be partial); a block is 8 vectors of one
// row, or as many whole rows as have at most 8. Columns form: a vector is a position's channels; a block is 8
// successive positions.
//
// A Leaf gives the two terms of a vector:  Row row(k);  terms(row, i, p, q);  partial(row, i, n, p, q)  with zeros for
// the lanes n and beyond.

inline constexpr std::int64_t kBlock = 8;

POPNORM_INLINE std::int64_t sample_of(const Block& block, std::int64_t k) { return block.index ? block.index[k] : k; }

// In the columns form a tile is long: what is read about 16 KiB later is prefetched. Without it a sweep that computes
// between its loads gets half of what memory gives.
template <class T>
POPNORM_INLINE std::int64_t ahead_in_columns(const Block& block, const Input& input) {
  constexpr std::int64_t bytes = 16384;
  return (bytes / (block.channels * static_cast<std::int64_t>(sizeof(T))) + 1) * input.row;
}

struct LaneSums {
  Batch<double> first[kSpan<double>];
  Batch<double> second[kSpan<double>];
};

// `rows` rows of `vectors` vectors each, starting at position i; `tail` > 0: the last vector of each row has that many
// lanes.
template <std::int64_t vectors, std::int64_t rows, class Leaf>
POPNORM_INLINE void reduce_vectors(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t i, std::int64_t tail,
                                   LaneSums& sums) {
  using T = typename Leaf::Type;
  unroll<kSpan<T>>([&](auto h) __attribute__((always_inline)) {
    const auto term = [&](std::int64_t k) __attribute__((always_inline)) {
      const std::int64_t v = k % vectors;
      const std::int64_t at = i + v * kLanes + h * kWidth<T>;
      const std::int64_t lanes = tail - h * kWidth<T>;
      Terms<Batch<T>> t;
      if (v < vectors - 1 || tail == 0 || lanes >= kWidth<T>)
        leaf.terms(row[k / vectors], at, t.p, t.q);
      else if (lanes > 0)
        leaf.partial(row[k / vectors], at, lanes, t.p, t.q);
      else
        t.p = t.q = Batch<T>(T(0));
      return t;
    };
    accumulate_terms<rows * vectors>(sums.first + h * kWiden<T>, sums.second + h * kWiden<T>, term);
  });
}

template <std::int64_t vectors, class Leaf>
POPNORM_INLINE void reduce_short_rows(const Leaf& leaf, const Block& block, std::int64_t tail, LaneSums& sums) {
  constexpr std::int64_t rows = kBlock / vectors;
  std::int64_t k = 0;
  for (; k + rows <= block.samples; k += rows) {
    Array<typename Leaf::Row, rows> row;
    for (std::int64_t r = 0; r < rows; ++r) row[r] = leaf.row(sample_of(block, k + r));
    reduce_vectors<vectors, rows>(leaf, row, 0, tail, sums);
  }
  for (; k < block.samples; ++k) {
    const typename Leaf::Row row = leaf.row(sample_of(block, k));
    reduce_vectors<vectors, 1>(leaf, &row, 0, tail, sums);
  }
}

template <class Leaf>
POPNORM_INLINE void reduce_long_rows(const Leaf& leaf, const Block& block, LaneSums& sums) {
  const std::int64_t full = block.positions / kLanes;
  const std::int64_t tail = block.positions % kLanes;
  const std::int64_t whole = full / kBlock * kBlock;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const typename Leaf::Row row = leaf.row(sample_of(block, k));
    for (std::int64_t v = 0; v < whole; v += kBlock) reduce_vectors<kBlock, 1>(leaf, &row, v * kLanes, 0, sums);
    const std::int64_t i = whole * kLanes;
    switch (full - whole + (tail > 0)) {
      case 1:
        reduce_vectors<1, 1>(leaf, &row, i, tail, sums);
        break;
      case 2:
        reduce_vectors<2, 1>(leaf, &row, i, tail, sums);
        break;
      case 3:
        reduce_vectors<3, 1>(leaf, &row, i, tail, sums);
        break;
      case 4:
        reduce_vectors<4, 1>(leaf, &row, i, tail, sums);
        break;
      case 5:
        reduce_vectors<5, 1>(leaf, &row, i, tail, sums);
        break;
      case 6:
        reduce_vectors<6, 1>(leaf, &row, i, tail, sums);
        break;
      case 7:
        reduce_vectors<7, 1>(leaf, &row, i, tail, sums);
        break;
      case 8:
        reduce_vectors<8, 1>(leaf, &row, i, tail, sums);
        break;
      default:
        break;
    }
  }
}

// The sums of one channel, rows form.
template <class Leaf>
POPNORM_INLINE void reduce_rows(const Leaf& leaf, const Block& block, double& first, double& second) {
  LaneSums sums;
  for (std::int64_t i = 0; i < kSpan<double>; ++i) sums.first[i] = sums.second[i] = Batch<double>(0.0);
  const std::int64_t tail = block.positions % kLanes;
  switch ((block.positions + kLanes - 1) / kLanes) {
    case 1:
      reduce_short_rows<1>(leaf, block, tail, sums);
      break;
    case 2:
      reduce_short_rows<2>(leaf, block, tail, sums);
      break;
    case 3:
      reduce_short_rows<3>(leaf, block, tail, sums);
      break;
    case 4:
      reduce_short_rows<4>(leaf, block, tail, sums);
      break;
    default:
      reduce_long_rows(leaf, block, sums);
      break;
  }
  first = fold_lanes<double>(sums.first);
  second = fold_lanes<double>(sums.second);
}

// The first n lanes of `to`, as f64 batches.
template <std::int64_t parts>
POPNORM_INLINE void load_sums(Batch<double>* sum, const double* to, std::int64_t n) {
  unroll<parts>([&](auto j) __attribute__((always_inline)) {
    const std::int64_t lanes = n - j * kWidth<double>;
    sum[j] = lanes >= kWidth<double> ? load(to + j * kWidth<double>)
             : lanes > 0             ? load_partial(to + j * kWidth<double>, lanes, Batch<double>(0.0))
                                     : Batch<double>(0.0);
  });
}

template <std::int64_t parts>
POPNORM_INLINE void store_sums(const Batch<double>* sum, double* to, std::int64_t n) {
  unroll<parts>([&](auto j) __attribute__((always_inline)) {
    const std::int64_t lanes = n - j * kWidth<double>;
    if (lanes >= kWidth<double>)
      sum[j].store_unaligned(to + j * kWidth<double>);
    else if (lanes > 0)
      store_partial(to + j * kWidth<double>, lanes, sum[j]);
  });
}

// Adds `rows` positions of all channels to first[] and second[], columns form.
template <std::int64_t rows, class Leaf>
POPNORM_INLINE void reduce_positions(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t channels,
                                     double* first, double* second) {
  using Value = typename Leaf::Value;
  constexpr auto width = static_cast<std::int64_t>(Value::size);
  constexpr std::int64_t parts = width / kWidth<double>;
  const auto add = [&](std::int64_t c, std::int64_t n, const auto& term) __attribute__((always_inline)) {
    Array<Batch<double>, parts> sum_p;
    Array<Batch<double>, parts> sum_q;
    load_sums<parts>(sum_p, first + c, n);
    load_sums<parts>(sum_q, second + c, n);
    accumulate_terms<rows>(sum_p, sum_q, term);
    store_sums<parts>(sum_p, first + c, n);
    store_sums<parts>(sum_q, second + c, n);
  };
  std::int64_t c = 0;
  for (; c + width <= channels; c += width) {
    const auto columns = leaf.columns(c);
    add(
        c, width, [&](std::int64_t r) __attribute__((always_inline)) {
          Terms<Value> t;
          leaf.terms(row[r], columns, c, t.p, t.q);
          return t;
        });
  }
  if (c < channels) {
    const std::int64_t n = channels - c;
    const auto columns = leaf.columns_partial(c, n);
    add(
        c, n, [&](std::int64_t r) __attribute__((always_inline)) {
          Terms<Value> t;
          leaf.partial(row[r], columns, c, n, t.p, t.q);
          return t;
        });
  }
}

// The sums of all channels, columns form: first[channels], second[channels] are overwritten.
template <class Leaf>
POPNORM_INLINE void reduce_columns(const Leaf& leaf, const Block& block, double* first, double* second) {
  for (std::int64_t c = 0; c < block.channels; ++c) first[c] = second[c] = 0;
  typename Leaf::Row row[kBlock];
  std::int64_t held = 0;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const std::int64_t sample = sample_of(block, k);
    for (std::int64_t s = 0; s < block.positions; ++s) {
      row[held++] = leaf.row(sample, s);
      if (held < kBlock) continue;
      reduce_positions<kBlock>(leaf, row, block.channels, first, second);
      held = 0;
    }
  }
  switch (held) {
    case 1:
      reduce_positions<1>(leaf, row, block.channels, first, second);
      break;
    case 2:
      reduce_positions<2>(leaf, row, block.channels, first, second);
      break;
    case 3:
      reduce_positions<3>(leaf, row, block.channels, first, second);
      break;
    case 4:
      reduce_positions<4>(leaf, row, block.channels, first, second);
      break;
    case 5:
      reduce_positions<5>(leaf, row, block.channels, first, second);
      break;
    case 6:
      reduce_positions<6>(leaf, row, block.channels, first, second);
      break;
    case 7:
      reduce_positions<7>(leaf, row, block.channels, first, second);
      break;
    default:
      break;
  }
}
