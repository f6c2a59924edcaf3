// The four operations with weights: of a sample, of a position, or a length per sample. Absent elements are chosen away, never
// multiplied by 0: they may hold NaN. Sums are in f64 throughout, since weights are rare; element by element y and dx are the same
// expressions as without weights.

// The weights of one sample of a block: positions [0, present) count, each with weight w[i*step], or 1 where w is null.
struct SampleWeights {
  std::int64_t present;
  const float* w;
  std::int64_t step;  // 0 or 1
  POPNORM_INLINE float at(std::int64_t i) const { return w != nullptr ? w[i * step] : 1.0F; }
  // Of positions [i, i + n), n <= width; 0 in all other lanes.
  template <class T>
  POPNORM_INLINE Batch<T> lanes(std::int64_t i, std::int64_t n) const {
    const Batch<T> zero(Arithmetic<T>(0));
    const std::int64_t here = present - i < n ? present - i : n;
    if (here <= 0) return zero;
    if (w != nullptr && step != 0) {
      if constexpr (std::is_same_v<Arithmetic<T>, float>)
        return load(w + i, here, zero);
      else
        return load_widened(w + i, here);
    }
    const Batch<T> all(static_cast<Arithmetic<T>>(at(0)));
    return here == kWidth<T> ? all : splice(here, all, zero);
  }
};

POPNORM_INLINE SampleWeights weights_of(const Weights& weights, const Block& block, std::int64_t k) {
  const std::int64_t sample = sample_of(block, k);
  SampleWeights result{block.positions, nullptr, weights.position};
  if (weights.first != nullptr) result.w = weights.first + sample * weights.sample;
  if (weights.length != nullptr) {
    const std::int64_t left = weights.length[sample] - weights.s0;
    result.present = left < 0 ? 0 : left < block.positions ? left : block.positions;
  }
  return result;
}

// Calls body(k, i, w) for every present position, in order, until one returns false.
template <class Body>
POPNORM_INLINE void each_present(const Block& block, const Weights& weights, const Body& body) {
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const SampleWeights w = weights_of(weights, block, k);
    for (std::int64_t i = 0; i < w.present; ++i)
      if (w.at(i) != 0 && !body(k, i, w.at(i))) return;
  }
}

template <class T>
POPNORM_INLINE const T* element(const Input& input, const Block& block, std::int64_t k, std::int64_t row) {
  return static_cast<const T*>(input.first) + sample_of(block, k) * input.sample + row * input.row;
}

// A vector of T in f64.
template <class T>
using Wide = Array<Batch<double>, kWiden<T>>;
POPNORM_INLINE void widen_lanes(const Batch<double>& v, Batch<double>* to) { to[0] = v; }
POPNORM_INLINE void widen_lanes(const Batch<float>& v, Batch<double>* to) {
  to[0] = lower_half(v);
  to[1] = upper_half(v);
}

// Rows form: the sums over what is present, in kLanes lanes. of_sample(k) gives terms(i, n, w, to), which puts the terms of
// elements [i, i + n) of sample k, with weights w, to to[sum]; what it puts for the absent does not matter.
template <class T, std::size_t kSums, class OfSample>
POPNORM_INLINE void weighted_lanes(const Block& block, const Weights& weights, const OfSample& of_sample,
                                   double (&sums)[kSums]) {
  const Batch<double> zero(0.0);
  Batch<double> lanes[kSums][kSpan<double>];
  for (auto& sum : lanes)
    for (Batch<double>& lane : sum) lane = zero;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const SampleWeights weights_here = weights_of(weights, block, k);
    const auto terms = of_sample(k);
    for (std::int64_t i = 0; i < weights_here.present; i += kLanes)
      unroll<kSpan<T>>([&](auto h) __attribute__((always_inline)) {
        const std::int64_t at = i + h * kWidth<T>;
        const std::int64_t left = weights_here.present - at;
        if (left <= 0) return;
        const std::int64_t n = left < kWidth<T> ? left : kWidth<T>;
        Wide<T> w;
        widen_lanes(weights_here.template lanes<T>(at, n), w);
        Wide<T> to[kSums];
        terms(at, n, w, to);
        unroll<kWiden<T>>([&](auto j) __attribute__((always_inline)) {
          const auto absent = at_most_zero(w[j]);
          for (std::size_t s = 0; s < kSums; ++s) lanes[s][h * kWiden<T> + j] += choose(absent, zero, to[s][j]);
        });
      });
  }
  for (std::size_t s = 0; s < kSums; ++s) sums[s] = fold_lanes<double>(lanes[s]);
}

// By passes, as moments_f64: the mean around the first present element, the mean again around that, m2.
template <class T>
void weighted_moments_rows(const WeightedMomentsArgs& args) {
  const Block& block = args.of.block;
  const auto sum_of = [&](const auto& of_sample) {
    double sum[1];
    weighted_lanes<T>(block, args.weights, of_sample, sum);
    return sum[0];
  };
  const double weight = sum_of([](std::int64_t) {
    return [](std::int64_t, std::int64_t, const Wide<T>& w, Wide<T>* to) __attribute__((always_inline)) {
      for (std::int64_t j = 0; j < kWiden<T>; ++j) to[0][j] = w[j];
    };
  });
  const T* first = nullptr;  // of channel 0
  each_present(block, args.weights, [&](std::int64_t k, std::int64_t i, float) {
    first = element<T>(args.of.x, block, k, 0) + i;
    return false;
  });
  for (std::int64_t c = 0; c < block.channels; ++c) {
    args.weight[c] = weight;
    args.of.mean[c] = args.of.m2[c] = 0;
    if (first == nullptr) continue;
    double mean = number(first[c * args.of.x.row]);
    // The sum of w*term(x - mean).
    const auto sweep = [&](const auto& term) {
      return sum_of([&, origin = Batch<double>(mean)](std::int64_t k) {
        const T* x = element<T>(args.of.x, block, k, c);
        return [&term, origin, x ](std::int64_t i, std::int64_t n, const Wide<T>& w, Wide<T>* to)
            __attribute__((always_inline)) {
          Wide<T> v;
          widen_lanes(load(x + i, n, Batch<T>(Arithmetic<T>(0))), v);
          for (std::int64_t j = 0; j < kWiden<T>; ++j) to[0][j] = w[j] * term(v[j] - origin);
        };
      });
    };
    for (int pass = 0; pass < 2; ++pass) mean += sweep([](const Batch<double>& d) { return d; }) / weight;
    args.of.mean[c] = mean;
    args.of.m2[c] = sweep([](const Batch<double>& d) { return d * d; });
  }
}

// Columns form, some vectors of channels from c on, n channels each: sums over the present positions. columns(c, n) gives terms(k, i, w,
// to), which puts those of n channels from c on, at position i of sample k, to to[sum].
template <class T, std::size_t kSums, class Columns, std::int64_t... vector>
POPNORM_INLINE void weighted_positions(const Block& block, const Weights& weights, const Columns& columns,
                                       std::int64_t c, std::int64_t n, double* const (&sums)[kSums],
                                       std::integer_sequence<std::int64_t, vector...>) {
  constexpr std::size_t vectors = sizeof...(vector);
  const decltype(columns(c, n)) terms[] = {columns(c + vector * kWidth<T>, n)...};
  Wide<T> sum[vectors][kSums];
  for (auto& of_vector : sum)
    for (auto& wide : of_vector)
      for (Batch<double>& lane : wide) lane = Batch<double>(0.0);
  each_present(
      block, weights, [&](std::int64_t k, std::int64_t i, float weight) __attribute__((always_inline)) {
        const Batch<double> w(static_cast<double>(weight));
        unroll<static_cast<std::int64_t>(vectors)>([&](auto v) __attribute__((always_inline)) {
          Wide<T> to[kSums];
          terms[v](k, i, w, to);
          unroll<static_cast<std::int64_t>(kSums)>([&](auto s) __attribute__((always_inline)) {
            unroll<kWiden<T>>([&](auto j) __attribute__((always_inline)) { sum[v][s][j] += to[s][j]; });
          });
        });
        return true;
      });
  unroll<static_cast<std::int64_t>(vectors)>([&](auto v) __attribute__((always_inline)) {
    for (std::size_t s = 0; s < kSums; ++s) store_wide<T>(sums[s] + c + v * kWidth<T>, n, sum[v][s]);
  });
}

template <class T, std::size_t kSums, class Columns>
POPNORM_INLINE void weighted_columns(const Block& block, const Weights& weights, const Columns& columns,
                                     double* const (&sums)[kSums]) {
  constexpr std::int64_t pair = 2 * kWidth<T>;
  std::int64_t c = 0;
  for (; c + pair <= block.channels; c += pair)
    weighted_positions<T>(block, weights, columns, c, kWidth<T>, sums, std::integer_sequence<std::int64_t, 0, 1>());
  for (; c < block.channels; c += kWidth<T>) {
    const std::int64_t left = block.channels - c;
    weighted_positions<T>(block, weights, columns, c, left < kWidth<T> ? left : kWidth<T>, sums,
                          std::integer_sequence<std::int64_t, 0>());
  }
}

template <class T>
void weighted_moments_columns(const WeightedMomentsArgs& args) {
  const Block& block = args.of.block;
  double* const mean = args.of.mean;
  double* const m2 = args.of.m2;  // until the last pass, the sum that corrects the mean
  double weight = 0;
  const T* first = nullptr;
  each_present(block, args.weights, [&](std::int64_t k, std::int64_t i, float w) {
    if (first == nullptr) first = element<T>(args.of.x, block, k, i);
    weight += static_cast<double>(w);
    return true;
  });
  for (std::int64_t c = 0; c < block.channels; ++c) {
    args.weight[c] = weight;
    mean[c] = first != nullptr ? number(first[c]) : 0;
    m2[c] = 0;
  }
  if (first == nullptr) return;
  // m2[c] becomes the sum of w*term(x - mean[c]).
  const auto sweep = [&](const auto& term) {
    const auto columns = [&](std::int64_t c, std::int64_t n) {
      struct Origin {
        Wide<T> lanes;
      } origin;
      load_wide<T>(mean + c, n, origin.lanes);
      return [&, c, n, origin ](std::int64_t k, std::int64_t i, const Batch<double>& w, Wide<T>* to)
          __attribute__((always_inline)) {
        Wide<T> v;
        widen_lanes(load(element<T>(args.of.x, block, k, i) + c, n, Batch<T>(Arithmetic<T>(0))), v);
        for (std::int64_t j = 0; j < kWiden<T>; ++j) to[0][j] = w * term(v[j] - origin.lanes[j]);
      };
    };
    weighted_columns<T>(block, args.weights, columns, {m2});
  };
  for (int pass = 0; pass < 2; ++pass) {
    sweep([](const Batch<double>& d) { return d; });
    for (std::int64_t c = 0; c < block.channels; ++c) mean[c] += m2[c] / weight;
  }
  sweep([](const Batch<double>& d) { return d * d; });
}

// g and g*(x - hi), in f64, of a vector.
template <class T>
POPNORM_INLINE void gradient_terms(const Batch<T>& g, const Batch<T>& x, const Batch<T>& hi, Wide<T>* to) {
  Wide<T> wide_x, wide_hi;
  widen_lanes(g, to[0]);
  widen_lanes(x, wide_x);
  widen_lanes(hi, wide_hi);
  for (std::int64_t j = 0; j < kWiden<T>; ++j) to[1][j] = to[0][j] * (wide_x[j] - wide_hi[j]);
}

template <class T, class Gradient>
POPNORM_INLINE void weighted_reduce_rows(const WeightedBackwardReduceArgs& args, const Gradient& gradient) {
  const BackwardReduceArgs& a = args.of.of;
  const Block& block = a.block;
  const Batch<T> zero(Arithmetic<T>(0));
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const Batch<T> hi(static_cast<const Arithmetic<T>*>(a.hi)[c]);
    const auto coefficients = gradient.broadcast(c);
    const auto of_sample = [&](std::int64_t k) {
      const T* x_row = element<T>(a.x, block, k, c);
      const T* dy_row = element<T>(a.dy, block, k, c);
      const auto row = gradient.at(sample_of(block, k), c);
      return [&, x_row, dy_row, row ](std::int64_t i, std::int64_t n, const Wide<T>&, Wide<T>* to)
          __attribute__((always_inline)) {
        const Batch<T> x = load(x_row + i, n, zero);
        const Batch<T> dy = load(dy_row + i, n, zero);
        gradient_terms<T>(gradient(row, i, coefficients, dy, x - hi), x, hi, to);
      };
    };
    double sums[2];
    weighted_lanes<T>(block, args.weights, of_sample, sums);
    a.sum_dy[c] = sums[0];
    a.sum_dy_d[c] = sums[1];
  }
}

template <class T>
void weighted_backward_reduce_rows(const WeightedBackwardReduceArgs& args) {
  if (is_direct(args.of.gradient)) return weighted_reduce_rows<T>(args, DirectGradient<T>{});
  weighted_reduce_rows<T>(args, ActivatedGradient<T>(args.of.gradient));
}

template <class T, class Gradient>
POPNORM_INLINE void weighted_reduce_columns(const WeightedBackwardReduceArgs& args, const Gradient& gradient) {
  const BackwardReduceArgs& a = args.of.of;
  const Block& block = a.block;
  const Batch<T> zero(Arithmetic<T>(0));
  const auto columns = [&](std::int64_t c, std::int64_t n) {
    const Batch<T> hi = load(static_cast<const Arithmetic<T>*>(a.hi) + c, n, zero);
    const auto coefficients = gradient.load(c, n);
    return [&, c, n, hi, coefficients ](std::int64_t k, std::int64_t i, const Batch<double>&, Wide<T>* to)
        __attribute__((always_inline)) {
      const Batch<T> x = load(element<T>(a.x, block, k, i) + c, n, zero);
      const Batch<T> dy = load(element<T>(a.dy, block, k, i) + c, n, zero);
      const auto row = gradient.at(sample_of(block, k), i);
      gradient_terms<T>(gradient(row, c, coefficients, dy, x - hi), x, hi, to);
    };
  };
  weighted_columns<T>(block, args.weights, columns, {a.sum_dy, a.sum_dy_d});
}

template <class T>
void weighted_backward_reduce_columns(const WeightedBackwardReduceArgs& args) {
  if (is_direct(args.of.gradient)) return weighted_reduce_columns<T>(args, DirectGradient<T>{});
  weighted_reduce_columns<T>(args, ActivatedGradient<T>(args.of.gradient));
}

// A vector of elements that lie side by side: [first, first + n) of row `row` of sample k, whose rows have `length`.
struct VectorPlace {
  std::int64_t k;
  std::int64_t row;
  std::int64_t first;
  std::int64_t n;
  std::int64_t length;
};

// Calls body(place, w) for all vectors, in memory order; w = 0 in the lanes that are absent.
template <bool rows_form, class T, class Body>
POPNORM_INLINE void weighted_elementwise(const Block& block, const Weights& weights, const Body& body) {
  const std::int64_t rows = rows_form ? block.channels : block.positions;
  const std::int64_t length = rows_form ? block.positions : block.channels;
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const SampleWeights here = weights_of(weights, block, k);
    for (std::int64_t row = 0; row < rows; ++row) {
      const Batch<T> of_row(static_cast<Arithmetic<T>>(!rows_form && row < here.present ? here.at(row) : 0.0F));
      for (std::int64_t i = 0; i < length; i += kWidth<T>) {
        const std::int64_t n = length - i < kWidth<T> ? length - i : kWidth<T>;
        body(VectorPlace{k, row, i, n, length}, rows_form ? here.template lanes<T>(i, n) : of_row);
      }
    }
  }
}

// A row of coefficients where the vector is: of its channel, or of its channels.
template <bool rows_form, class T>
POPNORM_INLINE Batch<T> coefficient(const void* first, const RowChoice& rows, const VectorPlace& at) {
  const Arithmetic<T>* row = static_cast<const Arithmetic<T>*>(first);
  if (rows.row != nullptr) row += rows.row[at.k] * rows.pitch;
  return rows_form ? Batch<T>(row[at.row]) : load(row + at.first, at.n, Batch<T>(Arithmetic<T>(0)));
}

template <class T>
POPNORM_INLINE Batch<T> load_at(const Input& input, const Block& block, const VectorPlace& at) {
  return load(element<T>(input, block, at.k, at.row) + at.first, at.n, Batch<T>(Arithmetic<T>(0)));
}
template <class T>
POPNORM_INLINE void store_at(const Output& out, const Block& block, const VectorPlace& at, const Batch<T>& v) {
  T* to = static_cast<T*>(out.first) + sample_of(block, at.k) * out.sample + at.row * out.row + at.first;
  if (at.n == kWidth<T>)
    put(to, v);
  else
    store_partial(to, at.n, v);
}

template <bool rows_form, class T>
void weighted_normalize(const WeightedNormalizeArgs& args) {
  using A = Arithmetic<T>;
  const FusedNormalizeArgs& fused = args.of;
  const NormalizeArgs& a = fused.of;
  const Activate<T> activate(fused.activation);
  const MaskOutput mask(fused.mask);
  weighted_elementwise<rows_form, T>(
      a.block, args.weights, [&](const VectorPlace& at, const Batch<T>& w) __attribute__((always_inline)) {
        const auto row = [&](const void* of) { return coefficient<rows_form, T>(of, a.rows, at); };
        const auto absent = at_most_zero(w);
        Batch<T> z = (load_at<T>(a.x, a.block, at) - row(a.hi)) * row(a.s) + row(a.b);
        if (fused.residual.first != nullptr) z = z + load_at<T>(fused.residual, a.block, at);
        store_at<T>(a.y, a.block, at, choose(absent, Batch<T>(A(0)), activate(z)));
        if (mask.first == nullptr) return;
        const std::uint32_t passed = ~(bits_of<A>(at_most_zero(z)) | bits_of<A>(absent));
        const bool last = at.first + at.n == at.length;
        const MaskOutput to = mask.at(sample_of(a.block, at.k), at.row);
        if (at.n == kWidth<T>)
          to.put(WholeLanes<T>{at.first, {}, at.first, last}, passed);
        else
          to.put(PartialLanes<T>{at.first, at.n, at.first, last}, passed);
      });
}

template <bool rows_form, class T, class Gradient>
POPNORM_INLINE void weighted_apply(const WeightedBackwardApplyArgs& args, const Gradient& gradient) {
  const FusedBackwardApplyArgs& fused = args.of;
  const BackwardApplyArgs& a = fused.of;
  const Batch<T> zero(Arithmetic<T>(0));
  weighted_elementwise<rows_form, T>(
      a.block, args.weights, [&](const VectorPlace& at, const Batch<T>& w) __attribute__((always_inline)) {
        const auto row = [&](const void* of) { return coefficient<rows_form, T>(of, a.rows, at); };
        const std::int64_t chosen = a.rows.row != nullptr ? a.rows.row[at.k] * a.rows.pitch : 0;
        const auto absent = at_most_zero(w);
        const Batch<T> d = load_at<T>(a.x, a.block, at) - row(a.hi);
        const auto coefficients =
            rows_form ? gradient.broadcast(chosen + at.row) : gradient.load(chosen + at.first, at.n);
        const Batch<T> g = gradient(gradient.at(sample_of(a.block, at.k), at.row), at.first, coefficients,
                                    load_at<T>(a.dy, a.block, at), d);
        Batch<T> dx = row(a.a) * g - w * row(a.k1);
        if (!fused.constant) dx = dx - (d * row(a.invstd)) * (w * row(a.k2));
        store_at<T>(a.dx, a.block, at, choose(absent, zero, dx));
        if (fused.dresidual.first != nullptr) store_at<T>(fused.dresidual, a.block, at, choose(absent, zero, g));
      });
}

template <bool rows_form, class T>
void weighted_backward_apply(const WeightedBackwardApplyArgs& args) {
  if (is_direct(args.of.gradient)) return weighted_apply<rows_form, T>(args, DirectGradient<T>{});
  weighted_apply<rows_form, T>(args, ActivatedGradient<T>(args.of.gradient));
}
