// Two sums per channel over a block, in the canonical order that every tier shares: vectors are taken four at a time, summed
// pairwise in the leaf's type and added to f64 accumulators.
// Rows form: a vector is 16 consecutive positions of a row (the last one may be partial); the fours begin anew after 8
// vectors of one row, or as many whole rows as have at most 8. Columns form: a vector is a position's channels, the fours
// are successive positions.
//
// A Leaf gives the two terms of a vector:  Row row(k);  terms<far>(row, i, p, q);  partial(row, i, n, p, q)  with zeros for
// the lanes n and beyond. `far`: what it prefetches is too much for the first-level cache.

inline constexpr std::int64_t kFour = 4;
inline constexpr std::int64_t kBlock = 2 * kFour;

// Rows of so many positions make blocks whose successor is prefetched to the second-level cache alone (docs/performance.md).
inline constexpr std::int64_t kFarRow = 512;

POPNORM_INLINE std::int64_t sample_of(const Block& block, std::int64_t k) { return block.index ? block.index[k] : k; }

struct LaneSums {
  Batch<double> first[kSpan<double>];
  Batch<double> second[kSpan<double>];
};

// `rows` rows of `vectors` vectors each, starting at position i; `tail` > 0: the last vector of each row has that many
// lanes.
template <std::int64_t vectors, std::int64_t rows, bool far = false, class Leaf>
POPNORM_INLINE_IF_WIDE void reduce_vectors(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t i,
                                           std::int64_t tail, LaneSums& sums) {
  using T = typename Leaf::Type;
  unroll_pair<kSpan<T>>([&](auto h) __attribute__((always_inline)) {
    const auto term = [&](std::int64_t k) __attribute__((always_inline)) {
      const std::int64_t v = k % vectors;
      const std::int64_t at = i + v * kLanes + h * kWidth<T>;
      const std::int64_t lanes = tail - h * kWidth<T>;
      Terms<Batch<T>> t;
      if (v < vectors - 1 || tail == 0 || lanes >= kWidth<T>)
        leaf.template terms<far>(row[k / vectors], at, t.p, t.q);
      else if (lanes > 0)
        leaf.partial(row[k / vectors], at, lanes, t.p, t.q);
      else
        t.p = t.q = Batch<T>(Arithmetic<T>(0));
      return t;
    };
    accumulate_terms<rows * vectors>(sums.first + h * kWiden<T>, sums.second + h * kWiden<T>, term);
  });
}

// Rows of at most 4 vectors: as many of them as make up to kBlock vectors, the last few one by one.
template <std::int64_t vectors, class Leaf>
POPNORM_INLINE void reduce_short_rows(const Leaf& leaf, const Block& block, std::int64_t tail, LaneSums& sums) {
  constexpr std::int64_t together = kBlock / vectors;
  // Rows that fill whole fours may as well be summed a four at a time.
  constexpr std::int64_t rows = vectors * together == kBlock ? kFour / vectors : together;
  const std::int64_t whole = block.samples / together * together;
  for (std::int64_t k = 0; k < whole; k += rows) {
    Array<typename Leaf::Row, rows> row;
    for (std::int64_t r = 0; r < rows; ++r) row[r] = leaf.row(sample_of(block, k + r));
    reduce_vectors<vectors, rows>(leaf, row, 0, tail, sums);
  }
  for (std::int64_t k = whole; k < block.samples; ++k) {
    const typename Leaf::Row row = leaf.row(sample_of(block, k));
    reduce_vectors<vectors, 1>(leaf, &row, 0, tail, sums);
  }
}

template <bool far, class Leaf>
POPNORM_INLINE void reduce_long_rows(const Leaf& leaf, const Block& block, LaneSums& sums) {
  const std::int64_t full = block.positions / kLanes;
  const std::int64_t tail = block.positions % kLanes;
  const std::int64_t vectors = full + (tail > 0);
  const std::int64_t fours = tail > 0 ? full / kFour : (full - 1) / kFour;  // all but the last, whole or not
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const typename Leaf::Row row = leaf.row(sample_of(block, k));
    for (std::int64_t v = 0; v < fours; ++v) reduce_vectors<kFour, 1, far>(leaf, &row, v * kFour * kLanes, 0, sums);
    const std::int64_t i = fours * kFour * kLanes;
    switch (vectors - fours * kFour) {
      case 1:
        reduce_vectors<1, 1>(leaf, &row, i, tail, sums);
        break;
      case 2:
        reduce_vectors<2, 1>(leaf, &row, i, tail, sums);
        break;
      case 3:
        reduce_vectors<3, 1>(leaf, &row, i, tail, sums);
        break;
      default:
        reduce_vectors<4, 1>(leaf, &row, i, tail, sums);
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
      if (block.positions < kFarRow)
        reduce_long_rows<false>(leaf, block, sums);
      else
        reduce_long_rows<true>(leaf, block, sums);
      break;
  }
  first = fold_lanes<double>(sums.first);
  second = fold_lanes<double>(sums.second);
}

// ---------------------------------------------------------------------------------------------------- columns form

// Positions are read 32 at a time and channels 512 at a time: their sums then stay in the first-level cache
// however many channels there are.
inline constexpr std::int64_t kPositionBlock = 32;
inline constexpr std::int64_t kChannelBlock = 512;

// Whether samples are picked by index and too short for a prefetch ahead of one to be of use.
template <class T>
POPNORM_INLINE bool scattered(const Block& block) {
  return block.index != nullptr && block.positions * block.channels * static_cast<std::int64_t>(sizeof(T)) <= 4096;
}

// Elements from what is read to what is prefetched: the same channel, about 8 KiB later. Without it a sweep that computes
// between its loads gets half of what memory gives (docs/performance.md).
template <class T>
POPNORM_INLINE std::int64_t ahead_in_columns(const Block& block, const Input& input) {
  constexpr std::int64_t bytes = 8192;
  if (scattered<T>(block)) return 0;
  const std::int64_t channels = block.channels < kChannelBlock ? block.channels : kChannelBlock;
  return (bytes / (channels * static_cast<std::int64_t>(sizeof(T))) + 1) * input.row;
}

// While some positions of scattered samples are read, their share of what is read after the block is fetched in memory
// order.
template <class T>
POPNORM_INLINE void fetch_share(const Block& block, const Input& input, std::int64_t position, std::int64_t count) {
  if (!scattered<T>(block) || input.next == nullptr) return;
  constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
  const T* next = static_cast<const T*>(input.next);
  for (std::int64_t i = position * block.channels; i < (position + count) * block.channels; i += line)
    prefetch_to_l2(next, i);
}

// The first n lanes of a vector of A, in f64: as many batches as hold it.
template <class A>
POPNORM_INLINE void load_wide(const double* from, std::int64_t n, Batch<double>* to) {
  unroll<kWiden<A>>([&](auto j) __attribute__((always_inline)) {
    const std::int64_t lanes = n - j * kWidth<double>;
    to[j] = lanes >= kWidth<double> ? load(from + j * kWidth<double>)
            : lanes > 0             ? load_partial(from + j * kWidth<double>, lanes, Batch<double>(0.0))
                                    : Batch<double>(0.0);
  });
}
template <class A>
POPNORM_INLINE void store_wide(double* to, std::int64_t n, const Batch<double>* v) {
  unroll<kWiden<A>>([&](auto j) __attribute__((always_inline)) {
    const std::int64_t lanes = n - j * kWidth<double>;
    if (lanes >= kWidth<double>)
      v[j].store_unaligned(to + j * kWidth<double>);
    else if (lanes > 0)
      store_partial(to + j * kWidth<double>, lanes, v[j]);
  });
}

// Adds the first n lanes of v to the f64 sums at `to`.
template <class A>
POPNORM_INLINE void add_to_sums(double* to, std::int64_t n, const Vector<A>& v) {
  Array<Batch<double>, kWiden<A>> sum;
  load_wide<A>(to, n, sum);
  accumulate(sum, v);
  store_wide<A>(to, n, sum);
}

struct ColumnSums {
  double* first;
  double* second;
  template <class V>
  POPNORM_INLINE void add(std::int64_t c, std::int64_t n, const Terms<V>& t) const {
    add_to_sums(first + c, n, t.p);
    add_to_sums(second + c, n, t.q);
  }
};

// Calls body(c, n) for the vectors of channels [c, c + n) in [begin, end); n is a compile-time constant but for the last.
template <std::int64_t width, class Body>
POPNORM_INLINE void for_each_vector(std::int64_t begin, std::int64_t end, const Body& body) {
  std::int64_t c = begin;
  for (; c + width <= end; c += width) body(c, std::integral_constant<std::int64_t, width>{});
  if (c < end) body(c, end - c);
}

// Four positions at once: one access to the sums for all of them.
struct Together {
  template <std::int64_t rows, class Leaf>
  POPNORM_INLINE void add(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t begin, std::int64_t end,
                          const ColumnSums& sums) {
    for_each_vector<Leaf::kVector>(
        begin, end, [&](std::int64_t c, auto n) __attribute__((always_inline)) {
          unroll<rows>([&](auto r) __attribute__((always_inline)) { leaf.prefetch(row[r], c); });
          const auto columns = leaf.columns(c, n);
          sums.add(c, n, pairwise<rows>([&](std::int64_t r) __attribute__((always_inline)) {
                     return leaf.terms(row[r], columns, c, n);
                   }));
        });
  }
};

// The same for scattered samples. Four by four they fetch their share of what is read after the block.
class Gathered {
 public:
  template <std::int64_t rows, class Leaf>
  POPNORM_INLINE void add(const Leaf& leaf, const typename Leaf::Row* row, std::int64_t begin, std::int64_t end,
                          const ColumnSums& sums) {
    if (begin == 0) {
      leaf.fetch(position_, rows);
      position_ += rows;
    }
    for_each_vector<Leaf::kVector>(
        begin, end, [&](std::int64_t c, auto n) __attribute__((always_inline)) {
          const auto columns = leaf.columns(c, n);
          sums.add(c, n, pairwise<rows>([&](std::int64_t r) __attribute__((always_inline)) {
                     return leaf.terms(row[r], columns, c, n);
                   }));
        });
  }

 private:
  std::int64_t position_ = 0;
};

template <class Order, class Leaf>
POPNORM_INLINE void reduce_positions(Order& order, const Leaf& leaf, const typename Leaf::Row* row, std::int64_t count,
                                     std::int64_t channels, const ColumnSums& sums) {
  for (std::int64_t begin = 0; begin < channels; begin += kChannelBlock) {
    const std::int64_t end = channels - begin < kChannelBlock ? channels : begin + kChannelBlock;
    std::int64_t r = 0;
    for (; r + 4 <= count; r += 4) order.template add<4>(leaf, row + r, begin, end, sums);
    switch (count - r) {
      case 1:
        order.template add<1>(leaf, row + r, begin, end, sums);
        break;
      case 2:
        order.template add<2>(leaf, row + r, begin, end, sums);
        break;
      case 3:
        order.template add<3>(leaf, row + r, begin, end, sums);
        break;
      default:
        break;
    }
  }
}

template <class Order, class Leaf>
POPNORM_INLINE void reduce_in(const Leaf& leaf, const Block& block, double* first, double* second) {
  for (std::int64_t c = 0; c < block.channels; ++c) first[c] = second[c] = 0;
  Order order;
  typename Leaf::Row row[kPositionBlock];
  std::int64_t held = 0;
  std::int64_t k = 0;
  std::int64_t s = 0;
  // One call: everything in it is inlined.
  while (k < block.samples) {
    const typename Leaf::Row sample = leaf.row(sample_of(block, k));
    for (; s < block.positions && held < kPositionBlock; ++s) row[held++] = leaf.position(sample, s);
    if (s == block.positions) {
      s = 0;
      ++k;
    }
    if (held < kPositionBlock && k < block.samples) continue;
    reduce_positions(order, leaf, row, held, block.channels, {first, second});
    held = 0;
  }
}

// The sums of all channels, columns form: first[channels], second[channels] are overwritten.
template <class T, class Leaf>
POPNORM_INLINE void reduce_columns(const Leaf& leaf, const Block& block, double* first, double* second) {
  if (scattered<T>(block))
    reduce_in<Gathered>(leaf, block, first, second);
  else
    reduce_in<Together>(leaf, block, first, second);
}
