// y and dx: one output element from the same element of each input and the rows of its channel. An Op gives the number
// of inputs and of rows, and eval(). Elementwise results do not depend on vector width or order: blocking is free here.

inline constexpr std::int64_t kLine = 64;

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
// all but the first and last store are whole cache lines; the vector across a border takes its coefficients from both
// rows.
template <class Op>
class FlatRows {
 public:
  using T = typename Op::Type;
  static constexpr std::int64_t W = kWidth<T>;

  FlatRows(const Pointers<Op>& at, const T* const* rows, std::int64_t channels, std::int64_t length,
           std::int64_t prefetch)
      : at_(at), rows_(rows), length_(length), total_(channels * length), prefetch_(prefetch) {}

  template <bool streaming>
  POPNORM_INLINE void run() const {
    const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(at_.out) % kLine);
    const std::int64_t to_line = misaligned == 0 ? 0 : (kLine - misaligned) / static_cast<std::int64_t>(sizeof(T));
    std::int64_t e = to_line < total_ ? to_line : total_;
    span(0, e);
    while (e + W <= total_) {
      std::int64_t c = e / length_;
      std::int64_t end = (c + 1) * length_;
      Coefficients<Op> here = broadcast(c);
      for (;;) {
        for (; e + W <= end; e += W) {
          if (prefetch_ != 0)
            for (int i = 0; i < Op::kInputs; ++i)
              _mm_prefetch(reinterpret_cast<const char*>(at_.in[i] + e + prefetch_), _MM_HINT_T1);
          vector<streaming>(e, here);
        }
        const std::int64_t left = end - e;
        if (e + W > total_ || W - left > length_) break;
        const Coefficients<Op> next = broadcast(++c);
        if (left > 0) {
          for (int r = 0; r < Op::kRows; ++r) here.row[r] = splice(left, here.row[r], next.row[r]);
          vector<streaming>(e, here);
          e += W;
        }
        here = next;
        end += length_;
      }
      if (e + W > total_) break;
      span(e, e + W);  // rows shorter than a vector
      e += W;
    }
    span(e, total_);
  }

 private:
  POPNORM_INLINE Coefficients<Op> broadcast(std::int64_t c) const {
    Coefficients<Op> k;
    for (int r = 0; r < Op::kRows; ++r) k.row[r] = Batch<T>(rows_[r][c]);
    return k;
  }

  template <bool streaming>
  POPNORM_INLINE void vector(std::int64_t e, const Coefficients<Op>& k) const {
    Batch<T> in[Op::kInputs];
    for (int i = 0; i < Op::kInputs; ++i) in[i] = load(at_.in[i] + e);
    store<streaming>(at_.out + e, Op::eval(in, k.row));
  }

  // Elements [e, end) by partial vectors.
  void span(std::int64_t e, std::int64_t end) const {
    while (e < end) {
      const std::int64_t c = e / length_;
      const std::int64_t row_end = (c + 1) * length_ < end ? (c + 1) * length_ : end;
      const Coefficients<Op> k = broadcast(c);
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
  std::int64_t prefetch_;
};

template <class Op>
struct ElementwiseArgs {
  using T = typename Op::Type;
  Block block;
  Input in[Op::kInputs];
  Output out;
  const T* rows[Op::kRows];
  bool stream;
  std::int64_t prefetch;
  Pointers<Op> at(std::int64_t sample, std::int64_t row) const {
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
  for (int i = 0; i < Op::kInputs; ++i) end_to_end = end_to_end && args.in[i].row == block.positions;
  const std::int64_t step = end_to_end ? block.channels : 1;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    for (std::int64_t c = 0; c < block.channels; c += step) {
      const T* rows[Op::kRows];
      for (int r = 0; r < Op::kRows; ++r) rows[r] = args.rows[r] + c;
      const FlatRows<Op> flat(args.at(sample_of(block, k), c), rows, step, block.positions, args.prefetch);
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

template <bool streaming, class Op>
POPNORM_INLINE void elementwise_columns_with(const ElementwiseArgs<Op>& args) {
  constexpr std::int64_t together = 4;
  Pointers<Op> at[together];
  std::int64_t held = 0;
  for (std::int64_t k = 0; k < args.block.samples; ++k) {
    const std::int64_t sample = sample_of(args.block, k);
    for (std::int64_t s = 0; s < args.block.positions; ++s) {
      at[held++] = args.at(sample, s);
      if (held < together) continue;
      elementwise_positions<streaming, together>(args, at);
      held = 0;
    }
  }
  for (std::int64_t p = 0; p < held; ++p) elementwise_positions<streaming, 1>(args, at + p);
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
