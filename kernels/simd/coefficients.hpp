// Between the sweeps: partial results merged, statistics and coefficients made, for channels side by side. The arithmetic is
// that of kernels/moments.hpp and kernels/affine.hpp; loops of kLanes channels let the compiler use this tier's registers.

POPNORM_INLINE std::int64_t slot_of(const SlotList& slots, std::int64_t i) { return slots.first + i * slots.stride; }

// The partial results of kLanes channels, two values each.
struct LanePair {
  double weight;
  double first[kLanes];
  double second[kLanes];
};

// leaf(i, pair) merged along the tree of core/tiling.hpp's balanced_tree: neighbours pair up level by level.
template <class Leaf, class Merge>
POPNORM_INLINE const LanePair& merge_tree(std::int64_t count, LanePair* stack, const Leaf& leaf, const Merge& merge) {
  int depth = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    leaf(i, stack[depth++]);
    for (std::int64_t pairs = i + 1; pairs % 2 == 0; pairs /= 2, --depth) merge(stack[depth - 2], stack[depth - 1]);
  }
  for (; depth > 1; --depth) merge(stack[depth - 2], stack[depth - 1]);
  return stack[0];
}

// A tree of 2^48 slots is deeper than any problem's.
inline constexpr int kDeepestTree = 48;

POPNORM_INLINE void load_pair(const double* first, const double* second, std::int64_t at, std::int64_t n,
                              LanePair& to) {
  for (std::int64_t l = 0; l < kLanes; ++l) to.first[l] = to.second[l] = 0;
  for (std::int64_t l = 0; l < n; ++l) {
    to.first[l] = first[at + l];
    to.second[l] = second[at + l];
  }
}

void merge_moments(const MergeMomentsArgs& args) {
  *args.weight = 0;
  LanePair stack[kDeepestTree];
  for (std::int64_t c = 0; c < args.channels; c += kLanes) {
    const std::int64_t n = args.channels - c < kLanes ? args.channels - c : kLanes;
    if (args.slots.count == 0) {
      for (std::int64_t l = 0; l < n; ++l) args.mean[c + l] = args.m2[c + l] = 0;
      continue;
    }
    const LanePair& all = merge_tree(
        args.slots.count, stack,
        [&](std::int64_t i, LanePair& leaf) {
          const std::int64_t slot = slot_of(args.slots, i);
          leaf.weight = args.slot_weight[slot * args.weight_pitch];
          load_pair(args.slot_mean, args.slot_m2, slot * args.slots.pitch + c, leaf.weight == 0 ? 0 : n, leaf);
        },
        [](LanePair& p, const LanePair& q) {
          if (q.weight == 0) return;
          if (p.weight == 0) {
            p = q;
            return;
          }
          Moments both{};
          for (std::int64_t l = 0; l < kLanes; ++l) {
            both = combine({p.weight, p.first[l], p.second[l]}, {q.weight, q.first[l], q.second[l]});
            p.first[l] = both.mean;
            p.second[l] = both.m2;
          }
          p.weight = both.weight;
        });
    for (std::int64_t l = 0; l < n; ++l) {
      args.mean[c + l] = all.first[l];
      args.m2[c + l] = all.second[l];
    }
    *args.weight = all.weight;
  }
}

template <class T>
void statistics_rows(const StatisticsArgs& args) {
  T* __restrict hi = static_cast<T*>(args.hi);
  T* __restrict lo = static_cast<T*>(args.lo);
  T* __restrict invstd = static_cast<T*>(args.invstd);
  double* __restrict exact = args.exact_invstd;
  const double* __restrict mean = args.mean;
  const double* __restrict m2 = args.m2;
  for (std::int64_t c = 0; c < args.channels; ++c) {
    const Statistics s = batch_statistics({args.weight, mean[c], m2[c]}, args.epsilon);
    const StatisticsRow<T> row = statistics_row<T>(s.mean, s.invstd);
    exact[c] = s.invstd;
    hi[c] = row.hi;
    lo[c] = row.lo;
    invstd[c] = row.invstd;
  }
}

template <class T, class Parameter>
POPNORM_INLINE void normalize_rows_of(const NormalizeRowArgs& args) {
  const T* __restrict hi = static_cast<const T*>(args.hi);
  const T* __restrict lo = static_cast<const T*>(args.lo);
  const T* __restrict invstd = static_cast<const T*>(args.invstd);
  const auto* __restrict scale = static_cast<const Parameter*>(args.scale);
  const auto* __restrict shift = static_cast<const Parameter*>(args.shift);
  T* __restrict out_hi = static_cast<T*>(args.out_hi);
  T* __restrict s = static_cast<T*>(args.s);
  T* __restrict b = static_cast<T*>(args.b);
  const auto each = [&](const auto& scale_at, const auto& shift_at) {
    for (std::int64_t c = 0; c < args.channels; ++c) {
      const NormalizeRow<T> row = normalize_row<T>({hi[c], lo[c], invstd[c]}, scale_at(c), shift_at(c));
      out_hi[c] = row.hi;
      s[c] = row.s;
      b[c] = row.b;
    }
  };
  const auto scale_at = [&](std::int64_t c) { return static_cast<T>(scale[c]); };
  const auto shift_at = [&](std::int64_t c) { return static_cast<T>(shift[c]); };
  const auto one = [](std::int64_t) { return T(1); };
  const auto zero = [](std::int64_t) { return T(0); };
  if (scale != nullptr && shift != nullptr)
    each(scale_at, shift_at);
  else if (scale != nullptr)
    each(scale_at, zero);
  else if (shift != nullptr)
    each(one, shift_at);
  else
    each(one, zero);
}

template <class T>
void normalize_row_of(const NormalizeRowArgs& args) {
  args.wide ? normalize_rows_of<T, double>(args) : normalize_rows_of<T, float>(args);
}

template <class T>
void merge_sums(const MergeSumsArgs& args) {
  const T* lo = static_cast<const T*>(args.lo);
  const T* invstd = static_cast<const T*>(args.invstd);
  LanePair stack[kDeepestTree];
  for (std::int64_t c = 0; c < args.channels; c += kLanes) {
    const std::int64_t n = args.channels - c < kLanes ? args.channels - c : kLanes;
    if (args.slots.count == 0) {
      for (std::int64_t l = 0; l < n; ++l) args.dy[c + l] = args.dy_xhat[c + l] = 0;
      continue;
    }
    const LanePair& all = merge_tree(
        args.slots.count, stack,
        [&](std::int64_t i, LanePair& leaf) {
          load_pair(args.slot_dy, args.slot_dy_d, slot_of(args.slots, i) * args.slots.pitch + c, n, leaf);
        },
        [](LanePair& p, const LanePair& q) {
          for (std::int64_t l = 0; l < kLanes; ++l) {
            p.first[l] += q.first[l];
            p.second[l] += q.second[l];
          }
        });
    for (std::int64_t l = 0; l < n; ++l) {
      args.dy[c + l] = all.first[l];
      args.dy_xhat[c + l] = sum_dy_xhat<T>({T(0), lo[c + l], invstd[c + l]}, all.first[l], all.second[l]);
    }
  }
}

template <class T>
void gradient_row_of(const GradientRowArgs& args) {
  const T* __restrict hi = static_cast<const T*>(args.hi);
  const T* __restrict lo = static_cast<const T*>(args.lo);
  const T* __restrict invstd = static_cast<const T*>(args.invstd);
  const T* __restrict scale = static_cast<const T*>(args.scale);
  const T* __restrict d = static_cast<const T*>(args.d);
  const T* __restrict r2 = static_cast<const T*>(args.r2);
  T* __restrict out_hi = static_cast<T*>(args.out_hi);
  T* __restrict out_invstd = static_cast<T*>(args.out_invstd);
  T* __restrict a = static_cast<T*>(args.a);
  T* __restrict k1 = static_cast<T*>(args.k1);
  T* __restrict k2 = static_cast<T*>(args.k2);
  const auto each = [&](const auto& sums_at) {
    for (std::int64_t c = 0; c < args.channels; ++c) {
      const auto [p1, p2] = sums_at(c);
      const GradientRow<T> row = gradient_row<T>({hi[c], lo[c], invstd[c]}, scale[c], args.scaled, p1, p2);
      const T of_hi = hi[c], of_invstd = invstd[c];
      out_hi[c] = of_hi;
      out_invstd[c] = of_invstd;
      a[c] = row.a;
      k1[c] = row.k1;
      k2[c] = row.k2;
    }
  };
  struct Shares {
    double p1;
    double p2;
  };
  if (args.constant) return each([](std::int64_t) { return Shares{0, 0}; });
  each([&](std::int64_t c) {
    const double weight = args.weight != nullptr ? args.weight[c] : args.weight_of_all;
    const double shift = d != nullptr ? static_cast<double>(d[c]) : 0;
    const double pull =
        (args.sum_dy_xhat[c] - shift * args.sum_dy[c]) * (r2 != nullptr ? static_cast<double>(r2[c]) : 1);
    const double p1 = (args.sum_dy[c] - shift * pull) / weight;
    const double p2 = pull / weight;
    return weight > 0 ? Shares{p1, p2} : Shares{0, 0};
  });
}
