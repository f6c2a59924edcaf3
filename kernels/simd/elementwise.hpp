// y and dx: one output element from the same element of each input and the rows of its channel. An Op gives the number of
// inputs and of rows, and eval(). Elementwise results do not depend on vector width or order: blocking is free here.
//
// Long sweeps walk four pages at once. Hardware prefetchers stop at page borders; four streams 4 KiB apart keep others
// running meanwhile (measured on a server core: 1.3 to 1.7 times the bandwidth of one stream, docs/performance.md).

inline constexpr std::int64_t kLine = 64;
inline constexpr std::int64_t kPage = 4096;
inline constexpr std::int64_t kStreams = 4;

template <class Op>
struct Pointers {
  const typename Op::Type* in[Op::kInputs];
  typename Op::Type* out;
};

template <class Op>
struct Coefficients {
  Batch<typename Op::Type> row[Op::kRows];
};

template <bool streaming, class T>
POPNORM_INLINE void store(T* to, const Batch<T>& v) {
  if constexpr (streaming)
    stream(to, v);
  else
    v.store_unaligned(to);
}

// Consecutive rows of one sample that lie end to end: `channels` rows of `length` elements, walked as one array so that
// all but the first and last store are whole cache lines; the vector across a border takes its coefficients from both rows.
template <class Op>
class FlatRows {
 public:
  using T = typename Op::Type;
  static constexpr std::int64_t W = kWidth<T>;

  FlatRows(const Pointers<Op>& at, const T* const* rows, std::int64_t channels, std::int64_t length,
           const std::int64_t* ahead)
      : at_(at), rows_(rows), length_(length), total_(channels * length) {
    for (int i = 0; i < Op::kInputs; ++i) ahead_[i] = ahead[i];
  }

  template <bool streaming>
  POPNORM_INLINE void run() const {
    const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(at_.out) % kLine);
    const std::int64_t to_line = misaligned == 0 ? 0 : (kLine - misaligned) / static_cast<std::int64_t>(sizeof(T));
    std::int64_t e = to_line < total_ ? to_line : total_;
    span(0, e);
    if constexpr (streaming) {
      // Granules of four lines go to each stream in turn.
      constexpr std::int64_t granule = 4 * kLine / static_cast<std::int64_t>(sizeof(T));
      constexpr std::int64_t page = kPage / static_cast<std::int64_t>(sizeof(T));
      while (total_ - e >= kStreams * 4 * granule) {
        const std::int64_t left = (total_ - e) / (kStreams * granule) * granule;
        const std::int64_t part = left < page ? left : page;
        Cursor cursor[kStreams];
        for (std::int64_t k = 0; k < kStreams; ++k) cursor[k] = at(e + k * part);
        for (std::int64_t i = 0; i < part; i += granule)
          unroll<kStreams>([&](auto k)
                               __attribute__((always_inline)) { advance<true>(cursor[k], cursor[k].e + granule); });
        e += kStreams * part;
      }
    }
    if (e + W <= total_) {
      const std::int64_t whole = e + (total_ - e) / W * W;
      Cursor cursor = at(e);
      advance<streaming>(cursor, whole);
      e = whole;
    }
    span(e, total_);
  }

 private:
  // A place in the array, the row it is in, where that ends, and its coefficients.
  struct Cursor {
    std::int64_t e;
    std::int64_t row;
    std::int64_t end;
    Coefficients<Op> here;
  };

  POPNORM_INLINE Cursor at(std::int64_t e) const {
    const std::int64_t row = e / length_;
    return {e, row, (row + 1) * length_, broadcast(row)};
  }

  // Whole vectors from the cursor to `to`.
  template <bool streaming>
  POPNORM_INLINE void advance(Cursor& cursor, std::int64_t to) const {
    for (;;) {
      const std::int64_t stop = cursor.end < to ? cursor.end : to;
      for (; cursor.e + W <= stop; cursor.e += W) vector<streaming>(cursor.e, cursor.here);
      if (cursor.e >= to) return;
      cross<streaming>(cursor);
    }
  }

  // The vector that reaches the end of the cursor's row, if it does not just start there, and on to the next row.
  template <bool streaming>
  POPNORM_INLINE void cross(Cursor& cursor) const {
    const std::int64_t left = cursor.end - cursor.e;
    if (W - left > length_) {  // rows shorter than a vector
      span(cursor.e, cursor.e + W);
      const std::int64_t e = cursor.e + W;
      if (e < total_)
        cursor = at(e);
      else
        cursor.e = e;
      return;
    }
    const Coefficients<Op> next = broadcast(++cursor.row);
    if (left > 0) {
      for (int r = 0; r < Op::kRows; ++r) cursor.here.row[r] = splice(left, cursor.here.row[r], next.row[r]);
      vector<streaming>(cursor.e, cursor.here);
      cursor.e += W;
    }
    cursor.here = next;
    cursor.end += length_;
  }

  POPNORM_INLINE Coefficients<Op> broadcast(std::int64_t row) const {
    Coefficients<Op> k;
    for (int r = 0; r < Op::kRows; ++r) k.row[r] = Batch<T>(rows_[r][row]);
    return k;
  }

  template <bool streaming>
  POPNORM_INLINE void vector(std::int64_t e, const Coefficients<Op>& k) const {
    Batch<T> in[Op::kInputs];
    for (int i = 0; i < Op::kInputs; ++i) {
      if (ahead_[i] != 0) prefetch_to_l2(at_.in[i] + e, ahead_[i]);
      in[i] = load(at_.in[i] + e);
    }
    store<streaming>(at_.out + e, Op::eval(in, k.row));
  }

  // Elements [e, end) by partial vectors.
  void span(std::int64_t e, std::int64_t end) const {
    while (e < end) {
      const std::int64_t row = e / length_;
      const std::int64_t row_end = (row + 1) * length_ < end ? (row + 1) * length_ : end;
      const Coefficients<Op> k = broadcast(row);
      while (e < row_end) {
        const std::int64_t n = row_end - e < W - 1 ? row_end - e : W - 1;
        Batch<T> in[Op::kInputs];
        for (int i = 0; i < Op::kInputs; ++i) in[i] = load_partial(at_.in[i] + e, n, Batch<T>(T(0)));
        store_partial(at_.out + e, n, Op::eval(in, k.row));
        e += n;
      }
    }
  }

  Pointers<Op> at_;
  const T* const* rows_;
  std::int64_t length_;
  std::int64_t total_;
  std::int64_t ahead_[Op::kInputs];
};

template <class Op>
struct ElementwiseArgs {
  using T = typename Op::Type;
  Block block;
  Input in[Op::kInputs];
  Output out;
  const T* rows[Op::kRows];
  bool stream;

  POPNORM_INLINE Pointers<Op> at(std::int64_t sample, std::int64_t row) const {
    Pointers<Op> p;
    for (int i = 0; i < Op::kInputs; ++i)
      p.in[i] = static_cast<const T*>(in[i].first) + sample * in[i].sample + row * in[i].row;
    p.out = static_cast<T*>(out.first) + sample * out.sample + row * out.row;
    return p;
  }
};

template <class Op>
void elementwise_rows(const ElementwiseArgs<Op>& args) {
  using T = typename Op::Type;
  const Block& block = args.block;
  bool end_to_end = args.out.row == block.positions;
  std::int64_t ahead[Op::kInputs];
  for (int i = 0; i < Op::kInputs; ++i) {
    end_to_end = end_to_end && args.in[i].row == block.positions;
    ahead[i] = args.in[i].next != nullptr
                   ? static_cast<const T*>(args.in[i].next) - static_cast<const T*>(args.in[i].first)
                   : 0;
  }
  const std::int64_t step = end_to_end ? block.channels : 1;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    for (std::int64_t c = 0; c < block.channels; c += step) {
      const T* rows[Op::kRows];
      for (int r = 0; r < Op::kRows; ++r) rows[r] = args.rows[r] + c;
      const FlatRows<Op> flat(args.at(sample_of(block, k), c), rows, step, block.positions, ahead);
      if (args.stream)
        flat.template run<true>();
      else
        flat.template run<false>();
    }
  }
  if (args.stream) _mm_sfence();
}

// `count` positions at once share each load of the coefficients.
template <bool streaming, std::int64_t count, class Op>
POPNORM_INLINE void elementwise_positions(const ElementwiseArgs<Op>& args, const Pointers<Op>* at) {
  using T = typename Op::Type;
  constexpr std::int64_t W = kWidth<T>;
  const std::int64_t channels = args.block.channels;
  Batch<T> k[Op::kRows];
  Batch<T> in[Op::kInputs];
  std::int64_t c = 0;
  for (; c + W <= channels; c += W) {
    for (int r = 0; r < Op::kRows; ++r) k[r] = load(args.rows[r] + c);
    for (std::int64_t p = 0; p < count; ++p) {
      for (int i = 0; i < Op::kInputs; ++i) in[i] = load(at[p].in[i] + c);
      store<streaming>(at[p].out + c, Op::eval(in, k));
    }
  }
  if (c == channels) return;
  const std::int64_t n = channels - c;
  const Batch<T> zero(T(0));
  for (int r = 0; r < Op::kRows; ++r) k[r] = load_partial(args.rows[r] + c, n, zero);
  for (std::int64_t p = 0; p < count; ++p) {
    for (int i = 0; i < Op::kInputs; ++i) in[i] = load_partial(at[p].in[i] + c, n, zero);
    store_partial(at[p].out + c, n, Op::eval(in, k));
  }
}

// A position of a block, counted over samples and positions.
template <class Op>
class PositionCursor {
 public:
  PositionCursor() = default;
  PositionCursor(const ElementwiseArgs<Op>& args, std::int64_t q)
      : args_(&args), k_(q / args.block.positions), s_(q % args.block.positions) {}
  POPNORM_INLINE Pointers<Op> next() {
    const Pointers<Op> at = args_->at(sample_of(args_->block, k_), s_);
    if (++s_ == args_->block.positions) {
      s_ = 0;
      ++k_;
    }
    return at;
  }

 private:
  const ElementwiseArgs<Op>* args_ = nullptr;
  std::int64_t k_ = 0;
  std::int64_t s_ = 0;
};

template <bool streaming, class Op>
POPNORM_INLINE void elementwise_columns_with(const ElementwiseArgs<Op>& args) {
  const std::int64_t positions = args.block.samples * args.block.positions;
  const std::int64_t page = kPage / (args.block.channels * static_cast<std::int64_t>(sizeof(typename Op::Type))) + 1;
  Pointers<Op> at[kStreams];
  std::int64_t q = 0;
  while (positions - q >= kStreams) {
    const std::int64_t left = (positions - q) / kStreams;
    const std::int64_t part = left < page ? left : page;
    PositionCursor<Op> cursor[kStreams];
    for (std::int64_t k = 0; k < kStreams; ++k) cursor[k] = PositionCursor<Op>(args, q + k * part);
    for (std::int64_t i = 0; i < part; ++i) {
      for (std::int64_t k = 0; k < kStreams; ++k) at[k] = cursor[k].next();
      elementwise_positions<streaming, kStreams>(args, at);
    }
    q += kStreams * part;
  }
  for (PositionCursor<Op> cursor(args, q); q < positions; ++q) {
    at[0] = cursor.next();
    elementwise_positions<streaming, 1>(args, at);
  }
}

template <class Op>
void elementwise_columns(const ElementwiseArgs<Op>& args) {
  const auto aligned = [](std::int64_t bytes) { return bytes % kLine == 0; };
  constexpr auto size = static_cast<std::int64_t>(sizeof(typename Op::Type));
  const bool whole_lines =
      aligned(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(args.out.first) % kLine)) &&
      aligned(args.out.sample * size) && aligned(args.out.row * size);
  if (args.stream && whole_lines) {
    elementwise_columns_with<true>(args);
    _mm_sfence();
  } else {
    elementwise_columns_with<false>(args);
  }
}
