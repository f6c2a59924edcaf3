// The four operations with weights: of a sample, of a position, or a length per sample. Absent elements are selected away,
// never multiplied by 0: they may hold NaN. All in f64 and one element after the other per lane, since weights are rare and
// masks make memory patient; element by element y and dx are the same expressions as without weights.

// The weights of one sample of a block: positions [0, present) count, each with weight w[i*step], or 1 where w is null.
struct SampleWeights {
  std::int64_t present;
  const float* w;
  std::int64_t step;
  POPNORM_INLINE float at(std::int64_t i) const { return w != nullptr ? w[i * step] : 1.0F; }
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

// Rows form: sums term(i) over the present positions of every sample, in kLanes lanes of f64. term(k, i, w) may read.
template <class Term>
POPNORM_INLINE double weighted_lanes(const Block& block, const Weights& weights, const Term& term) {
  double lane[kLanes] = {};
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const SampleWeights w = weights_of(weights, block, k);
    for (std::int64_t i = 0; i < w.present; ++i) {
      const float weight = w.at(i);
      if (weight != 0) lane[i % kLanes] += term(k, i, static_cast<double>(weight));
    }
  }
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2)
    for (std::int64_t l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
}

// Columns form: calls body(k, i, w) for every present position.
template <class Body>
POPNORM_INLINE void weighted_positions(const Block& block, const Weights& weights, const Body& body) {
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const SampleWeights w = weights_of(weights, block, k);
    for (std::int64_t i = 0; i < w.present; ++i) {
      const float weight = w.at(i);
      if (weight != 0) body(k, i, static_cast<double>(weight));
    }
  }
}

template <class T>
POPNORM_INLINE const T* element(const Input& input, const Block& block, std::int64_t k, std::int64_t row) {
  return static_cast<const T*>(input.first) + sample_of(block, k) * input.sample + row * input.row;
}

// By passes, as moments_f64: the mean around the first present element, the mean again around that, m2.
template <class T>
void weighted_moments_rows(const WeightedMomentsArgs& args) {
  const Block& block = args.of.block;
  const double weight = weighted_lanes(block, args.weights, [](std::int64_t, std::int64_t, double w) { return w; });
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const auto x = [&](std::int64_t k, std::int64_t i) { return number(element<T>(args.of.x, block, k, c)[i]); };
    args.weight[c] = weight;
    args.of.mean[c] = args.of.m2[c] = 0;
    if (weight == 0) continue;
    double mean = 0;
    bool found = false;
    for (std::int64_t k = 0; k < block.samples && !found; ++k) {
      const SampleWeights w = weights_of(args.weights, block, k);
      for (std::int64_t i = 0; i < w.present && !found; ++i)
        if (w.at(i) != 0) mean = x(k, i), found = true;
    }
    for (int pass = 0; pass < 2; ++pass)
      mean += weighted_lanes(block, args.weights,
                             [&](std::int64_t k, std::int64_t i, double w) { return w * (x(k, i) - mean); }) /
              weight;
    args.of.mean[c] = mean;
    args.of.m2[c] = weighted_lanes(block, args.weights, [&](std::int64_t k, std::int64_t i, double w) {
      const double d = x(k, i) - mean;
      return w * (d * d);
    });
  }
}

template <class T>
void weighted_moments_columns(const WeightedMomentsArgs& args) {
  const Block& block = args.of.block;
  const std::int64_t channels = block.channels;
  double* const mean = args.of.mean;
  double* const m2 = args.of.m2;  // until the last pass, the sum that corrects the mean
  const auto clear = [&] {
    for (std::int64_t c = 0; c < channels; ++c) m2[c] = 0;
  };
  double weight = 0;
  bool found = false;
  weighted_positions(block, args.weights, [&](std::int64_t k, std::int64_t i, double w) {
    weight += w;
    if (found) return;
    const T* x = element<T>(args.of.x, block, k, i);
    for (std::int64_t c = 0; c < channels; ++c) mean[c] = number(x[c]);
    found = true;
  });
  for (std::int64_t c = 0; c < channels; ++c) args.weight[c] = weight;
  clear();
  if (!found) {
    for (std::int64_t c = 0; c < channels; ++c) mean[c] = 0;
    return;
  }
  for (int pass = 0; pass < 2; ++pass) {
    weighted_positions(block, args.weights, [&](std::int64_t k, std::int64_t i, double w) {
      const T* x = element<T>(args.of.x, block, k, i);
      for (std::int64_t c = 0; c < channels; ++c) m2[c] += w * (number(x[c]) - mean[c]);
    });
    for (std::int64_t c = 0; c < channels; ++c) mean[c] += m2[c] / weight;
    clear();
  }
  weighted_positions(block, args.weights, [&](std::int64_t k, std::int64_t i, double w) {
    const T* x = element<T>(args.of.x, block, k, i);
    for (std::int64_t c = 0; c < channels; ++c) {
      const double d = number(x[c]) - mean[c];
      m2[c] += w * (d * d);
    }
  });
}

template <bool rows_form, class T>
POPNORM_INLINE Arithmetic<T> element_at(const Input& input, const Block& block, std::int64_t k, std::int64_t c,
                                        std::int64_t i) {
  return widen<Arithmetic<T>>(rows_form ? element<T>(input, block, k, c)[i] : element<T>(input, block, k, i)[c]);
}

// The byte that holds the bit of an element, and which bit it is.
struct MaskBit {
  std::int64_t byte;
  int bit;
};
template <bool rows_form, class Tensor>
POPNORM_INLINE MaskBit mask_bit(const Tensor& mask, const Block& block, std::int64_t k, std::int64_t c,
                                std::int64_t i) {
  const std::int64_t row = sample_of(block, k) * mask.sample + (rows_form ? c : i) * mask.row;
  const std::int64_t at = rows_form ? i : c;
  return {row + at / 8, static_cast<int>(at % 8)};
}

// g at position i of channel c of sample k, where d = x - hi; s and b are those of row r.
template <bool rows_form, class T>
POPNORM_INLINE Arithmetic<T> weighted_gradient(const GradientArgs& args, const Block& block, std::int64_t k,
                                               std::int64_t c, std::int64_t i, std::int64_t r, Arithmetic<T> d,
                                               Arithmetic<T> dy) {
  bool stopped = false;
  if (args.mask.first != nullptr) {
    const MaskBit at = mask_bit<rows_form>(args.mask, block, k, c, i);
    stopped = (static_cast<const std::uint8_t*>(args.mask.first)[at.byte] >> at.bit & 1) == 0;
  } else if (args.s != nullptr) {
    stopped = stops(d * static_cast<const Arithmetic<T>*>(args.s)[r] + static_cast<const Arithmetic<T>*>(args.b)[r]);
  }
  return activated(args.activation, stopped, dy);
}

template <class T>
void weighted_backward_reduce_rows(const WeightedBackwardReduceArgs& args) {
  using A = Arithmetic<T>;
  const BackwardReduceArgs& a = args.of.of;
  const Block& block = a.block;
  for (std::int64_t c = 0; c < block.channels; ++c) {
    const A hi = static_cast<const A*>(a.hi)[c];
    const auto g = [&](std::int64_t k, std::int64_t i) {
      const A d = element_at<true, T>(a.x, block, k, c, i) - hi;
      return static_cast<double>(weighted_gradient<true, T>(args.of.gradient, block, k, c, i, c, d,
                                                            element_at<true, T>(a.dy, block, k, c, i)));
    };
    a.sum_dy[c] = weighted_lanes(block, args.weights, [&](std::int64_t k, std::int64_t i, double) { return g(k, i); });
    a.sum_dy_d[c] = weighted_lanes(block, args.weights, [&](std::int64_t k, std::int64_t i, double) {
      return g(k, i) * (number(element<T>(a.x, block, k, c)[i]) - static_cast<double>(hi));
    });
  }
}

template <class T>
void weighted_backward_reduce_columns(const WeightedBackwardReduceArgs& args) {
  using A = Arithmetic<T>;
  const BackwardReduceArgs& a = args.of.of;
  const A* hi = static_cast<const A*>(a.hi);
  for (std::int64_t c = 0; c < a.block.channels; ++c) a.sum_dy[c] = a.sum_dy_d[c] = 0;
  weighted_positions(a.block, args.weights, [&](std::int64_t k, std::int64_t i, double) {
    const T* x = element<T>(a.x, a.block, k, i);
    const T* dy = element<T>(a.dy, a.block, k, i);
    for (std::int64_t c = 0; c < a.block.channels; ++c) {
      const A d = widen<A>(x[c]) - hi[c];
      const auto g =
          static_cast<double>(weighted_gradient<false, T>(args.of.gradient, a.block, k, c, i, c, d, widen<A>(dy[c])));
      a.sum_dy[c] += g;
      a.sum_dy_d[c] += g * (number(x[c]) - static_cast<double>(hi[c]));
    }
  });
}

// An element of an output.
template <bool rows_form, class T>
POPNORM_INLINE void put_at(const Output& out, const Block& block, std::int64_t k, std::int64_t c, std::int64_t i,
                           Arithmetic<T> value) {
  T* to = static_cast<T*>(out.first) + sample_of(block, k) * out.sample;
  (rows_form ? to[c * out.row + i] : to[i * out.row + c]) = narrow<T>(value);
}

// Calls body(k, c, i, w) for position i of channel c of sample k, in memory order; w = 0: absent.
template <bool rows_form, class T, class Body>
POPNORM_INLINE void weighted_elementwise(const Block& block, const Weights& weights, const Body& body) {
  for (std::int64_t k = 0; k < block.samples; ++k) {
    const SampleWeights w = weights_of(weights, block, k);
    const auto at = [&](std::int64_t c, std::int64_t i) {
      body(k, c, i, static_cast<Arithmetic<T>>(i < w.present ? w.at(i) : 0.0F));
    };
    if constexpr (rows_form) {
      for (std::int64_t c = 0; c < block.channels; ++c)
        for (std::int64_t i = 0; i < block.positions; ++i) at(c, i);
    } else {
      for (std::int64_t i = 0; i < block.positions; ++i)
        for (std::int64_t c = 0; c < block.channels; ++c) at(c, i);
    }
  }
}

template <bool rows_form, class T>
void weighted_normalize(const WeightedNormalizeArgs& args) {
  using A = Arithmetic<T>;
  const FusedNormalizeArgs& fused = args.of;
  const NormalizeArgs& a = fused.of;
  const A* hi = static_cast<const A*>(a.hi);
  const A* s = static_cast<const A*>(a.s);
  const A* b = static_cast<const A*>(a.b);
  weighted_elementwise<rows_form, T>(a.block, args.weights, [&](std::int64_t k, std::int64_t c, std::int64_t i, A w) {
    const std::int64_t r = (a.rows.row != nullptr ? a.rows.row[k] * a.rows.pitch : 0) + c;
    A z = 0;
    bool stopped = true;
    if (w != 0) {
      z = (element_at<rows_form, T>(a.x, a.block, k, c, i) - hi[r]) * s[r] + b[r];
      if (fused.residual.first != nullptr) z = z + element_at<rows_form, T>(fused.residual, a.block, k, c, i);
      stopped = stops(z);
      z = activated(fused.activation, stopped, z);
    }
    put_at<rows_form, T>(a.y, a.block, k, c, i, z);
    if (fused.mask.first == nullptr) return;
    const MaskBit at = mask_bit<rows_form>(fused.mask, a.block, k, c, i);
    std::uint8_t& byte = static_cast<std::uint8_t*>(fused.mask.first)[at.byte];
    byte = static_cast<std::uint8_t>((at.bit == 0 ? 0 : byte) | (stopped ? 0 : 1 << at.bit));
  });
}

template <bool rows_form, class T>
void weighted_backward_apply(const WeightedBackwardApplyArgs& args) {
  using A = Arithmetic<T>;
  const FusedBackwardApplyArgs& fused = args.of;
  const BackwardApplyArgs& a = fused.of;
  const A* hi = static_cast<const A*>(a.hi);
  const A* invstd = static_cast<const A*>(a.invstd);
  const A* gain = static_cast<const A*>(a.a);
  const A* k1 = static_cast<const A*>(a.k1);
  const A* k2 = static_cast<const A*>(a.k2);
  weighted_elementwise<rows_form, T>(a.block, args.weights, [&](std::int64_t k, std::int64_t c, std::int64_t i, A w) {
    const std::int64_t r = (a.rows.row != nullptr ? a.rows.row[k] * a.rows.pitch : 0) + c;
    A g = 0, dx = 0;
    if (w != 0) {
      const A d = element_at<rows_form, T>(a.x, a.block, k, c, i) - hi[r];
      g = weighted_gradient<rows_form, T>(fused.gradient, a.block, k, c, i, r, d,
                                          element_at<rows_form, T>(a.dy, a.block, k, c, i));
      dx = gain[r] * g - w * k1[r];
      if (!fused.constant) dx = dx - (d * invstd[r]) * (w * k2[r]);
    }
    put_at<rows_form, T>(a.dx, a.block, k, c, i, dx);
    if (fused.dresidual.first != nullptr) put_at<rows_form, T>(fused.dresidual, a.block, k, c, i, g);
  });
}
