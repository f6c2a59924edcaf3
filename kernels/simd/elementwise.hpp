// y and dx: one output element from the same element of each input and the rows of its channel. An Op gives the number of
// inputs and of rows, and eval(), which may write the same elements of outputs of its own. Elementwise results do not
// depend on vector width or order: blocking is free here.
//
// Elements that lie end to end in every tensor form a *run*, which is walked as one array from cache line to cache line,
// so that all but its first and last stores are whole lines. A *walk* knows which coefficients belong to an element.

inline constexpr std::int64_t kLine = 64;

// Stores::four_streams: how many places are under way, how far apart they are at most, and how far ahead each reads, in bytes.
inline constexpr std::int64_t kStreams = 4;
inline constexpr std::int64_t kStreamBytes = std::int64_t{256} << 10;
inline constexpr std::int64_t kStreamAhead = 1024;

template <class Op, class Body>
POPNORM_INLINE void each_input(const Body& body) {
  unroll<Op::kInputs>(body);
}
template <class Op, class Body>
POPNORM_INLINE void each_row(const Body& body) {
  unroll<Op::kRows>(body);
}

// Of an Op without operands of its own.
struct NoOperands {
  static constexpr bool rows_end_to_end(std::int64_t, bool) { return true; }
  static constexpr bool samples_end_to_end(std::int64_t) { return true; }
  static constexpr void samples_are_rows() {}
};

template <class Op>
struct Coefficients {
  Batch<typename Op::Type> row[Op::kRows];
};

template <class Op>
struct Run {
  using T = typename Op::Type;
  static constexpr std::int64_t W = kWidth<T>;
  const T* in[Op::kInputs];
  T* out;
  std::int64_t total;
  std::int64_t ahead[Op::kInputs];  // elements from what is read to what is prefetched; 0 = none
  [[no_unique_address]] Op op;

  // Elements before the first whole line of the output.
  std::int64_t head() const {
    const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) % kLine);
    const std::int64_t to_line = past == 0 ? 0 : (kLine - past) / static_cast<std::int64_t>(sizeof(T));
    return to_line < total ? to_line : total;
  }

  template <Stores stores, class Lanes>
  POPNORM_INLINE void vector(const Lanes& lanes, const Coefficients<Op>& k) const {
    constexpr bool streaming = stores != Stores::ordinary;
    const std::int64_t e = lanes.e;
    Batch<T> v[Op::kInputs];
    each_input<Op>([&](auto i) __attribute__((always_inline)) {
      if (ahead[i] != 0) prefetch_to_l2(in[i] + e, ahead[i]);
      if constexpr (stores == Stores::four_streams)
        prefetch_to_l1(in[i] + e, kStreamAhead / static_cast<std::int64_t>(sizeof(T)));
      v[i] = load(in[i] + e);
    });
    const Batch<T> result = op.template eval<streaming>(lanes, v, k.row);
    if constexpr (streaming)
      stream(out + e, result);
    else
      put(out + e, result);
  }

  // Where the elements of the run are the bits of one row of a mask.
  template <Stores stores>
  POPNORM_INLINE void vector(std::int64_t e, const Coefficients<Op>& k) const {
    vector<stores>(WholeLanes<T>{e, {}, e, e + W == total}, k);
  }

  // Less than W elements.
  POPNORM_INLINE_IF_WIDE void partial(const PartialLanes<T>& lanes, const Coefficients<Op>& k) const {
    Batch<T> v[Op::kInputs];
    each_input<Op>([&](auto i) __attribute__((always_inline)) {
      v[i] = load_partial(in[i] + lanes.e, lanes.n, Batch<T>(Arithmetic<T>(0)));
    });
    store_partial(out + lanes.e, lanes.n, op.template eval<false>(lanes, v, k.row));
  }
  POPNORM_INLINE void partial(std::int64_t e, std::int64_t n, const Coefficients<Op>& k) const {
    partial(PartialLanes<T>{e, n, e, e + n == total}, k);
  }
};

// Rows of `length` elements, each with one coefficient; the vector across a border takes its coefficients from both rows.
// In a mask every row begins at a byte.
template <class Op>
class RowsWalk {
 public:
  using T = typename Op::Type;
  static constexpr std::int64_t W = kWidth<T>;

  // A place in the run, the row it is in, where that ends, and its coefficients.
  struct Cursor {
    std::int64_t e;
    std::int64_t row;
    std::int64_t end;
    Coefficients<Op> here;
  };

  RowsWalk(const Run<Op>& run, const Arithmetic<T>* const* rows, std::int64_t length)
      : run_(run), length_(length), padding_((8 - length % 8) % 8) {
    each_row<Op>([&](auto r) __attribute__((always_inline)) { rows_[r] = rows[r]; });
  }

  const Run<Op>& run() const { return run_; }

  POPNORM_INLINE Cursor at(std::int64_t e) const {
    const std::int64_t row = e / length_;
    return {e, row, (row + 1) * length_, broadcast(row)};
  }

  // Whole vectors from the cursor to `to`.
  template <Stores stores>
  POPNORM_INLINE void advance(Cursor& cursor, std::int64_t to) const {
    for (;;) {
      const std::int64_t stop = cursor.end < to ? cursor.end : to;
      for (; cursor.e + W <= stop; cursor.e += W)
        run_.template vector<stores>(
            WholeLanes<T>{cursor.e, {}, cursor.e + cursor.row * padding_, cursor.e + W == cursor.end}, cursor.here);
      if (cursor.e >= to) return;
      cross<stores>(cursor);
    }
  }

  // Elements [e, end) by partial vectors.
  void span(std::int64_t e, std::int64_t end) const {
    while (e < end) {
      const std::int64_t row = e / length_;
      const std::int64_t row_end = (row + 1) * length_;
      const std::int64_t stop = row_end < end ? row_end : end;
      const Coefficients<Op> k = broadcast(row);
      while (e < stop) {
        const std::int64_t n = stop - e < W - 1 ? stop - e : W - 1;
        run_.partial(PartialLanes<T>{e, n, e + row * padding_, e + n == row_end}, k);
        e += n;
      }
    }
  }

 private:
  // The vector that reaches the end of the cursor's row, if it does not just start there, and on to the next row.
  template <Stores stores>
  POPNORM_INLINE void cross(Cursor& cursor) const {
    const std::int64_t left = cursor.end - cursor.e;
    if (W - left > length_) {  // rows shorter than a vector
      span(cursor.e, cursor.e + W);
      const std::int64_t e = cursor.e + W;
      if (e < run_.total)
        cursor = at(e);
      else
        cursor.e = e;
      return;
    }
    const Coefficients<Op> next = broadcast(++cursor.row);
    if (left > 0) {
      each_row<Op>([&](auto r) __attribute__((always_inline)) {
        cursor.here.row[r] = splice(left, cursor.here.row[r], next.row[r]);
      });
      const std::int64_t next_row = cursor.end + cursor.row * padding_;
      run_.template vector<stores>(
          CrossingLanes<T>{cursor.e, next_row - padding_ - left, left, next_row, W - left == length_}, cursor.here);
      cursor.e += W;
    }
    cursor.here = next;
    cursor.end += length_;
  }

  POPNORM_INLINE Coefficients<Op> broadcast(std::int64_t row) const {
    Coefficients<Op> k;
    each_row<Op>([&](auto r) __attribute__((always_inline)) { k.row[r] = Batch<T>(rows_[r][row]); });
    return k;
  }

  Run<Op> run_;
  const Arithmetic<T>* rows_[Op::kRows];
  std::int64_t length_;
  std::int64_t padding_;  // of a row in a mask
};

// Positions of `period` channels each. Where vectors cross from one position to the next, rows must go on periodically for
// another vector beyond the period (PeriodicRows).
template <class Op>
class ColumnsWalk {
 public:
  using T = typename Op::Type;
  static constexpr std::int64_t W = kWidth<T>;

  struct Cursor {
    std::int64_t e;
    std::int64_t channel;
  };

  ColumnsWalk(const Run<Op>& run, const Arithmetic<T>* const* rows, std::int64_t period) : run_(run), period_(period) {
    each_row<Op>([&](auto r) __attribute__((always_inline)) { rows_[r] = rows[r]; });
  }

  const Run<Op>& run() const { return run_; }

  POPNORM_INLINE Cursor at(std::int64_t e) const { return {e, e % period_}; }

  template <Stores stores>
  POPNORM_INLINE void advance(Cursor& cursor, std::int64_t to) const {
    std::int64_t e = cursor.e;
    std::int64_t c = cursor.channel;
    while (e < to) {
      const std::int64_t position_end = e + (period_ - c);
      const std::int64_t stop = position_end < to ? position_end : to;
      for (; e < stop; e += W, c += W) {
        Coefficients<Op> k;
        each_row<Op>([&](auto r) __attribute__((always_inline)) { k.row[r] = load(rows_[r] + c); });
        run_.template vector<stores>(e, k);
      }
      if (c >= period_) c = c < 2 * period_ ? c - period_ : c % period_;
    }
    cursor = {e, c};
  }

  void span(std::int64_t e, std::int64_t end) const {
    while (e < end) {
      const std::int64_t c = e % period_;
      const std::int64_t left = end - e < period_ - c ? end - e : period_ - c;
      const std::int64_t n = left < W - 1 ? left : W - 1;
      Coefficients<Op> k;
      each_row<Op>([&](auto r) __attribute__((always_inline)) {
        k.row[r] = load_partial(rows_[r] + c, n, Batch<T>(Arithmetic<T>(0)));
      });
      run_.partial(e, n, k);
      e += n;
    }
  }

 private:
  Run<Op> run_;
  const Arithmetic<T>* rows_[Op::kRows];
  std::int64_t period_;
};

// Rows copied to where they may go on beyond their end as they began.
template <class Op>
class PeriodicRows {
 public:
  using T = typename Op::Type;
  // Rows longer than this are walked position by position instead: then all but a few vectors are whole anyway.
  static constexpr std::int64_t kLongest = 512;

  PeriodicRows() {
    each_row<Op>([&](auto r) __attribute__((always_inline)) { row_[r] = table_[r]; });
  }
  // Channels [at, at + count) of the period. To be called in ascending order of `at`.
  void put(const Arithmetic<T>* const* rows, std::int64_t at, std::int64_t count) {
    for (int r = 0; r < Op::kRows; ++r)
      for (std::int64_t c = 0; c < count; c += kWidth<T>) {
        const std::int64_t left = count - c;
        const Batch<T> v =
            left < kWidth<T> ? load_partial(rows[r] + c, left, Batch<T>(Arithmetic<T>(0))) : load(rows[r] + c);
        v.store_unaligned(table_[r] + at + c);
      }
  }
  // The period is complete.
  void close(std::int64_t period) {
    for (int r = 0; r < Op::kRows; ++r)
      for (std::int64_t i = 0; i < kWidth<T>; ++i) table_[r][period + i] = table_[r][i];
  }
  const Arithmetic<T>* const* rows() const { return row_; }

 private:
  Arithmetic<T> table_[Op::kRows][kLongest + kWidth<T>];
  const Arithmetic<T>* row_[Op::kRows];
};

// The whole run. Some processors read and write faster when four places are under way at once, far enough from one another that
// prefetchers may follow each across pages (docs/performance.md): granules of four lines from each in turn.
template <Stores stores, class Walk>
POPNORM_INLINE void sweep(const Walk& walk) {
  using T = typename Walk::T;
  const std::int64_t total = walk.run().total;
  std::int64_t e = walk.run().head();
  walk.span(0, e);
  if constexpr (stores == Stores::four_streams) {
    constexpr std::int64_t granule = 4 * kLine / static_cast<std::int64_t>(sizeof(T));
    constexpr std::int64_t most = kStreamBytes / static_cast<std::int64_t>(sizeof(T));
    while (total - e >= kStreams * 4 * granule) {
      const std::int64_t left = (total - e) / (kStreams * granule) * granule;
      const std::int64_t part = left < most ? left : most;
      typename Walk::Cursor cursor[kStreams];
      for (std::int64_t k = 0; k < kStreams; ++k) cursor[k] = walk.at(e + k * part);
      for (std::int64_t i = 0; i < part; i += granule)
        unroll<kStreams>([&](auto k) __attribute__((always_inline)) {
          walk.template advance<stores>(cursor[k], cursor[k].e + granule);
        });
      e += kStreams * part;
    }
  }
  constexpr std::int64_t W = Walk::W;
  if (e + W <= total) {
    const std::int64_t whole = e + (total - e) / W * W;
    typename Walk::Cursor cursor = walk.at(e);
    walk.template advance<stores>(cursor, whole);
    e = whole;
  }
  walk.span(e, total);
}

template <class Walk>
POPNORM_INLINE void sweep(const Walk& walk, Stores stores) {
  switch (stores) {
    case Stores::ordinary:
      return sweep<Stores::ordinary>(walk);
    case Stores::streaming:
      return sweep<Stores::streaming>(walk);
    case Stores::four_streams: {
      constexpr Stores kMost = kWideTier ? Stores::four_streams : Stores::streaming;
      return sweep<kMost>(walk);
    }
  }
}

// The columns form has many ways to come here: one copy serves them all.
template <class Op>
POPNORM_OUTLINED void sweep_columns(const ColumnsWalk<Op>& given, Stores stores) {
  const ColumnsWalk<Op> walk = given;  // in registers: stores cannot change it
  sweep(walk, stores);
}

template <class Op>
struct ElementwiseArgs {
  using T = typename Op::Type;
  Block block;
  Input in[Op::kInputs];
  Output out;
  const Arithmetic<T>* rows[Op::kRows];
  Stores stores;
  RowChoice choice;
  [[no_unique_address]] Op op;

  // The coefficients of the block's k-th sample from channel c on.
  POPNORM_INLINE void rows_of(std::int64_t k, std::int64_t c, const Arithmetic<T>** to) const {
    const std::int64_t at = (choice.row != nullptr ? choice.row[k] * choice.pitch : 0) + c;
    each_row<Op>([&](auto r) __attribute__((always_inline)) { to[r] = rows[r] + at; });
  }

  // Whether successive samples of one row, `length` elements each, lie end to end in every tensor.
  bool samples_end_to_end(std::int64_t length) const {
    bool all = out.sample == length && op.samples_end_to_end(length);
    for (int i = 0; i < Op::kInputs; ++i) all = all && in[i].sample == length;
    return all;
  }

  // Whether successive rows of a sample, `length` elements each, lie end to end in every tensor, and in a mask, but for
  // what is `padded` there.
  bool rows_end_to_end(std::int64_t length, bool padded = false) const {
    bool all = out.row == length && op.rows_end_to_end(length, padded);
    for (int i = 0; i < Op::kInputs; ++i) all = all && in[i].row == length;
    return all;
  }

  Run<Op> run(std::int64_t sample, std::int64_t row, std::int64_t total) const {
    Run<Op> r{{}, nullptr, total, {}, op.at(sample, row)};
    for (int i = 0; i < Op::kInputs; ++i) {
      const T* first = static_cast<const T*>(in[i].first);
      r.in[i] = first + sample * in[i].sample + row * in[i].row;
      r.ahead[i] = in[i].next != nullptr ? static_cast<const T*>(in[i].next) - first : 0;
    }
    r.out = static_cast<T*>(out.first) + sample * out.sample + row * out.row;
    return r;
  }
};

template <class Op>
void elementwise_rows(const ElementwiseArgs<Op>& args) {
  using T = typename Op::Type;
  const Block& block = args.block;
  const std::int64_t step = args.rows_end_to_end(block.positions, true) ? block.channels : 1;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    for (std::int64_t c = 0; c < block.channels; c += step) {
      const Arithmetic<T>* rows[Op::kRows];
      args.rows_of(k, c, rows);
      const Run<Op> run = args.run(sample_of(block, k), c, step * block.positions);
      sweep(RowsWalk<Op>(run, rows, block.positions), args.stores);
    }
  }
}

// Sample k, `step` positions a run.
template <class Op>
POPNORM_INLINE void elementwise_positions(const ElementwiseArgs<Op>& args, std::int64_t k,
                                          const Arithmetic<typename Op::Type>* const* rows, std::int64_t step) {
  const Block& block = args.block;
  const std::int64_t sample = sample_of(block, k);
  for (std::int64_t s = 0; s < block.positions; s += step)
    sweep_columns(ColumnsWalk<Op>(args.run(sample, s, step * block.channels), rows, block.channels), args.stores);
}

// Rows of coefficients beyond this leave the first-level cache before the next position needs them.
inline constexpr std::int64_t kWideBytes = 16384;

// Sample k, positions of whole vectors end to end: each coefficient is read once for four of them.
template <Stores stores, class Op>
POPNORM_INLINE void elementwise_wide(const ElementwiseArgs<Op>& args, std::int64_t k,
                                     const Arithmetic<typename Op::Type>* const* rows) {
  const Block& block = args.block;
  const std::int64_t sample = sample_of(block, k);
  const std::int64_t fours = block.positions / 4 * 4;
  for (std::int64_t s = 0; s < fours; s += 4) {
    const Run<Op> run = args.run(sample, s, 4 * block.channels);
    for (std::int64_t c = 0; c < block.channels; c += Run<Op>::W) {
      Coefficients<Op> here;
      each_row<Op>([&](auto r) __attribute__((always_inline)) { here.row[r] = load(rows[r] + c); });
      unroll<4>([&](auto r)
                    __attribute__((always_inline)) { run.template vector<stores>(r * block.channels + c, here); });
    }
  }
  if (fours < block.positions)
    sweep_columns(
        ColumnsWalk<Op>(args.run(sample, fours, (block.positions - fours) * block.channels), rows, block.channels),
        args.stores);
}

// Samples of one position each that lie end to end but have different rows: the rows of several samples make one period.
template <class Op>
POPNORM_INLINE void elementwise_mixed(const ElementwiseArgs<Op>& args, PeriodicRows<Op>& table) {
  using T = typename Op::Type;
  constexpr std::int64_t line = kLine / static_cast<std::int64_t>(sizeof(T));
  const Block& block = args.block;
  // As many samples as make whole lines.
  const std::int64_t most = PeriodicRows<Op>::kLongest / (block.channels * line) * line;
  for (std::int64_t k = 0; k < block.samples; k += most) {
    const std::int64_t count = block.samples - k < most ? block.samples - k : most;
    const std::int64_t period = count * block.channels;
    for (std::int64_t i = 0; i < count; ++i) {
      const Arithmetic<T>* rows[Op::kRows];
      args.rows_of(k + i, 0, rows);
      table.put(rows, i * block.channels, block.channels);
    }
    table.close(period);
    sweep_columns(ColumnsWalk<Op>(args.run(k, 0, period), table.rows(), period), args.stores);
  }
}

// The same, where every sample is whole vectors.
template <Stores stores, class Op>
POPNORM_INLINE void elementwise_chosen(const ElementwiseArgs<Op>& args) {
  using T = typename Op::Type;
  const std::int64_t channels = args.block.channels;
  const Run<Op> run = args.run(0, 0, args.block.samples * channels);
  for (std::int64_t k = 0; k < args.block.samples; ++k) {
    const Arithmetic<T>* rows[Op::kRows];
    args.rows_of(k, 0, rows);
    for (std::int64_t c = 0; c < channels; c += kWidth<T>) {
      Coefficients<Op> here;
      each_row<Op>([&](auto r) __attribute__((always_inline)) { here.row[r] = load(rows[r] + c); });
      run.template vector<stores>(k * channels + c, here);
    }
  }
}

// The same, where every sample is half a vector.
template <Stores stores, class Op>
POPNORM_INLINE void elementwise_chosen_pairs(const ElementwiseArgs<Op>& args) {
  using T = typename Op::Type;
  const std::int64_t channels = args.block.channels;
  const std::int64_t pairs = args.block.samples / 2 * 2;
  const Run<Op> run = args.run(0, 0, args.block.samples * channels);
  const Arithmetic<T>* rows[2][Op::kRows];
  Coefficients<Op> here;
  for (std::int64_t k = 0; k < pairs; k += 2) {
    args.rows_of(k, 0, rows[0]);
    args.rows_of(k + 1, 0, rows[1]);
    each_row<Op>([&](auto r) __attribute__((always_inline)) { here.row[r] = load_halves(rows[0][r], rows[1][r]); });
    run.template vector<stores>(k * channels, here);
  }
  if (pairs == args.block.samples) return;
  args.rows_of(pairs, 0, rows[0]);
  each_row<Op>([&](auto r) __attribute__((always_inline)) {
    here.row[r] = load_partial(rows[0][r], channels, Batch<T>(Arithmetic<T>(0)));
  });
  run.partial(pairs * channels, channels, here);
}

// Samples of one position that lie end to end, with the same rows, are the positions of one sample.
template <class Op>
ElementwiseArgs<Op> as_positions(const ElementwiseArgs<Op>& args) {
  const Block& block = args.block;
  ElementwiseArgs<Op> flat = args;
  if (block.positions != 1 || block.index != nullptr || args.choice.row != nullptr) return flat;
  if (!args.samples_end_to_end(block.channels)) return flat;
  flat.block.samples = 1;
  flat.block.positions = block.samples;
  for (int i = 0; i < Op::kInputs; ++i) flat.in[i].row = flat.in[i].sample;
  flat.out.row = flat.out.sample;
  flat.op.samples_are_rows();
  return flat;
}

template <class Op>
void elementwise_columns(const ElementwiseArgs<Op>& given) {
  const ElementwiseArgs<Op> args = as_positions(given);
  using T = typename Op::Type;
  constexpr std::int64_t vector = kWidth<T>;
  constexpr std::int64_t bytes = vector * static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t longest = PeriodicRows<Op>::kLongest;
  const Block& block = args.block;
  const bool aligned = reinterpret_cast<std::uintptr_t>(args.out.first) % bytes == 0;
  const bool whole_vectors = block.channels % vector == 0 && args.out.sample % vector == 0 && aligned;
  PeriodicRows<Op> table;
  if (block.positions == 1 && block.index == nullptr && args.choice.row != nullptr &&
      args.samples_end_to_end(block.channels)) {
    const bool streaming = args.stores != Stores::ordinary;
    if (whole_vectors) {
      streaming ? elementwise_chosen<Stores::streaming>(args) : elementwise_chosen<Stores::ordinary>(args);
      return;
    }
    if (2 * block.channels == vector && aligned) {
      streaming ? elementwise_chosen_pairs<Stores::streaming>(args) : elementwise_chosen_pairs<Stores::ordinary>(args);
      return;
    }
    if (block.channels <= longest * static_cast<std::int64_t>(sizeof(T)) / kLine) {
      elementwise_mixed(args, table);
      return;
    }
  }
  const bool flat = block.positions > 1 && args.rows_end_to_end(block.channels);
  const bool periodic = flat && !whole_vectors && block.channels <= longest;
  const std::int64_t step = periodic || (flat && whole_vectors) ? block.positions : 1;
  const bool wide =
      flat && whole_vectors && Op::kRows * block.channels * static_cast<std::int64_t>(sizeof(T)) > kWideBytes;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const Arithmetic<T>* rows[Op::kRows];
    args.rows_of(k, 0, rows);
    if (wide) {
      args.stores == Stores::ordinary ? elementwise_wide<Stores::ordinary>(args, k, rows)
                                      : elementwise_wide<Stores::streaming>(args, k, rows);
    } else if (periodic) {
      if (k == 0 || (args.choice.row != nullptr && args.choice.row[k] != args.choice.row[k - 1])) {
        table.put(rows, 0, block.channels);
        table.close(block.channels);
      }
      elementwise_positions(args, k, table.rows(), step);
    } else {
      elementwise_positions(args, k, rows, step);
    }
  }
}
