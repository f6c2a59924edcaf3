// Two sums per channel over a block, in the canonical order that every tier shares:
//   vectors are taken in blocks of 8; four at a time they are summed pairwise in the leaf's type and added to f64 accumulators.
// Rows form: a vector is 16 consecutive positions of a row (the last one may be partial); a block is 8 vectors of one row, or
// as many whole rows as have at most 8. Columns form: a vector is a position's channels; a block is 8 successive positions.
//
// A Leaf gives the two terms of a vector:  Row row(k);  terms(row, i, p, q);  partial(row, i, n, p, q)  with zeros for the
// lanes n and beyond.

inline constexpr std::int64_t kBlock = 8;

POPNORM_INLINE std::int64_t sample_of(const Block& block, std::int64_t k) { return block.index ? block.index[k] : k; }

struct LaneSums {
  Batch<double> first[kSpan<double>];
  Batch<double> second[kSpan<double>];
};

// `rows` rows of `vectors` vectors each, starting at position i; `tail` > 0: the last vector of each row has that many lanes.
template <std::int64_t vectors, std::int64_t rows, class Leaf>
POPNORM_INLINE void reduce_vectors(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t i, std::int64_t tail,
                                   LaneSums& sums) {
  using T = typename Leaf::Type;
  for (std::int64_t h = 0; h < kSpan<T>; ++h) {
    Array<Batch<T>, rows * vectors> p;
    Array<Batch<T>, rows * vectors> q;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t v = 0; v < vectors; ++v) {
        const std::int64_t at = i + v * kLanes + h * kWidth<T>;
        const std::int64_t lanes = tail - h * kWidth<T>;
        Batch<T>& pv = p[r * vectors + v];
        Batch<T>& qv = q[r * vectors + v];
        if (v < vectors - 1 || tail == 0 || lanes >= kWidth<T>) {
          leaf.terms(row[r], at, pv, qv);
        } else if (lanes > 0) {
          leaf.partial(row[r], at, lanes, pv, qv);
        } else {
          pv = qv = Batch<T>(T(0));
        }
      }
    }
    accumulate_terms<rows * vectors>(sums.first + h * kWiden<T>, p);
    accumulate_terms<rows * vectors>(sums.second + h * kWiden<T>, q);
  }
}

template <std::int64_t vectors, class Leaf>
void reduce_short_rows(const Leaf& leaf, const Block& block, std::int64_t tail, LaneSums& sums) {
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
void reduce_long_rows(const Leaf& leaf, const Block& block, LaneSums& sums) {
  const std::int64_t full = block.positions / kLanes;
  const std::int64_t tail = block.positions % kLanes;
  const std::int64_t whole = full / kBlock * kBlock;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const typename Leaf::Row row = leaf.row(sample_of(block, k));
    for (std::int64_t v = 0; v < whole; v += kBlock) reduce_vectors<kBlock, 1>(leaf, &row, v * kLanes, 0, sums);
    const std::int64_t i = whole * kLanes;
    switch (full - whole + (tail > 0)) {
      case 1: reduce_vectors<1, 1>(leaf, &row, i, tail, sums); break;
      case 2: reduce_vectors<2, 1>(leaf, &row, i, tail, sums); break;
      case 3: reduce_vectors<3, 1>(leaf, &row, i, tail, sums); break;
      case 4: reduce_vectors<4, 1>(leaf, &row, i, tail, sums); break;
      case 5: reduce_vectors<5, 1>(leaf, &row, i, tail, sums); break;
      case 6: reduce_vectors<6, 1>(leaf, &row, i, tail, sums); break;
      case 7: reduce_vectors<7, 1>(leaf, &row, i, tail, sums); break;
      case 8: reduce_vectors<8, 1>(leaf, &row, i, tail, sums); break;
      default: break;
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
    case 1: reduce_short_rows<1>(leaf, block, tail, sums); break;
    case 2: reduce_short_rows<2>(leaf, block, tail, sums); break;
    case 3: reduce_short_rows<3>(leaf, block, tail, sums); break;
    case 4: reduce_short_rows<4>(leaf, block, tail, sums); break;
    default: reduce_long_rows(leaf, block, sums); break;
  }
  first = fold_lanes<double>(sums.first);
  second = fold_lanes<double>(sums.second);
}

// Adds the first n lanes of m vectors to to[0..n).
template <std::int64_t m, class Value>
POPNORM_INLINE void add_lanes(double* to, std::int64_t n, const Value* v) {
  constexpr std::int64_t parts = static_cast<std::int64_t>(Value::size) / kWidth<double>;
  Array<Batch<double>, parts> sum;
  for (std::int64_t j = 0; j < parts; ++j) {
    const std::int64_t lanes = n - j * kWidth<double>;
    sum[j] = lanes >= kWidth<double> ? load(to + j * kWidth<double>)
             : lanes > 0             ? load_partial(to + j * kWidth<double>, lanes, Batch<double>(0.0))
                                     : Batch<double>(0.0);
  }
  accumulate_terms<m>(sum, v);
  for (std::int64_t j = 0; j < parts; ++j) {
    const std::int64_t lanes = n - j * kWidth<double>;
    if (lanes >= kWidth<double>)
      sum[j].store_unaligned(to + j * kWidth<double>);
    else if (lanes > 0)
      store_partial(to + j * kWidth<double>, lanes, sum[j]);
  }
}

// Adds `rows` positions of all channels to first[] and second[], columns form.
template <std::int64_t rows, class Leaf>
POPNORM_INLINE void reduce_positions(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t channels, double* first,
                                     double* second) {
  using Value = typename Leaf::Value;
  constexpr auto width = static_cast<std::int64_t>(Value::size);
  Array<Value, rows> p;
  Array<Value, rows> q;
  std::int64_t c = 0;
  for (; c + width <= channels; c += width) {
    const auto columns = leaf.columns(c);
    for (std::int64_t r = 0; r < rows; ++r) leaf.terms(row[r], columns, c, p[r], q[r]);
    add_lanes<rows>(first + c, width, p);
    add_lanes<rows>(second + c, width, q);
  }
  if (c < channels) {
    const std::int64_t n = channels - c;
    const auto columns = leaf.columns_partial(c, n);
    for (std::int64_t r = 0; r < rows; ++r) leaf.partial(row[r], columns, c, n, p[r], q[r]);
    add_lanes<rows>(first + c, n, p);
    add_lanes<rows>(second + c, n, q);
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
    case 1: reduce_positions<1>(leaf, row, block.channels, first, second); break;
    case 2: reduce_positions<2>(leaf, row, block.channels, first, second); break;
    case 3: reduce_positions<3>(leaf, row, block.channels, first, second); break;
    case 4: reduce_positions<4>(leaf, row, block.channels, first, second); break;
    case 5: reduce_positions<5>(leaf, row, block.channels, first, second); break;
    case 6: reduce_positions<6>(leaf, row, block.channels, first, second); break;
    case 7: reduce_positions<7>(leaf, row, block.channels, first, second); break;
    default: break;
  }
}
