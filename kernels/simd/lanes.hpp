// The thin layer over xsimd: what batches of one tier need and xsimd 8.1 lacks or names differently across versions.
// Partial loads and stores never touch memory beyond their elements.
//
// Included by cpu/isa.cpp inside an anonymous namespace (every tier has its own copy; none is visible to the linker).
template <class T>
using Batch = xsimd::batch<T, Arch>;

template <class T>
inline constexpr std::int64_t kWidth = static_cast<std::int64_t>(Batch<T>::size);

template <class V, std::int64_t n>
using Array = V[static_cast<std::size_t>(n)];

// 16 virtual lanes are kSpan batches.
template <class T>
inline constexpr std::int64_t kSpan = kLanes / kWidth<T>;

template <class T>
POPNORM_INLINE Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}

POPNORM_INLINE Batch<double> load_widened(const double* from) { return load(from); }

// Elements from channel c of a block to what is read after it: the next channel, or the next block. 0, a harmless prefetch
// of what is being read, where nothing follows.
template <class T>
POPNORM_INLINE std::int64_t ahead_of(const Input& input, const Block& block, std::int64_t c) {
  if (c + 1 < block.channels) return input.row;
  return input.next != nullptr ? static_cast<const T*>(input.next) - static_cast<const T*>(input.first) - c * input.row
                               : 0;
}

// Asks for what lies `ahead` elements after `from`, perhaps outside of any tensor: a hint only.
template <class T>
POPNORM_INLINE const char* hint(const T* from, std::int64_t ahead) {
  const auto at = reinterpret_cast<std::uintptr_t>(from) + static_cast<std::uintptr_t>(ahead) * sizeof(T);
  return reinterpret_cast<const char*>(at);
}
template <class T>
POPNORM_INLINE void prefetch_to_l1(const T* from, std::int64_t ahead) {
  _mm_prefetch(hint(from, ahead), _MM_HINT_T0);
}
template <class T>
POPNORM_INLINE void prefetch_to_l2(const T* from, std::int64_t ahead) {
  _mm_prefetch(hint(from, ahead), _MM_HINT_T1);
}

#if defined(POPNORM_TIER_AVX512)

POPNORM_INLINE Batch<double> load_widened(const float* from) {
  return Batch<double>(_mm512_cvtps_pd(_mm256_loadu_ps(from)));
}
POPNORM_INLINE __mmask16 mask_of(const float*, std::int64_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
POPNORM_INLINE __mmask8 mask_of(const double*, std::int64_t n) { return static_cast<__mmask8>((1U << n) - 1U); }
// The first n < width elements; `fill` elsewhere.
POPNORM_INLINE Batch<float> load_partial(const float* from, std::int64_t n, Batch<float> fill) {
  return Batch<float>(_mm512_mask_loadu_ps(fill, mask_of(from, n), from));
}
POPNORM_INLINE Batch<double> load_partial(const double* from, std::int64_t n, Batch<double> fill) {
  return Batch<double>(_mm512_mask_loadu_pd(fill, mask_of(from, n), from));
}
POPNORM_INLINE Batch<double> load_widened_partial(const float* from, std::int64_t n) {
  return Batch<double>(_mm512_cvtps_pd(_mm256_maskz_loadu_ps(static_cast<__mmask8>((1U << n) - 1U), from)));
}
POPNORM_INLINE void store_partial(float* to, std::int64_t n, Batch<float> v) {
  _mm512_mask_storeu_ps(to, mask_of(to, n), v);
}
POPNORM_INLINE void store_partial(double* to, std::int64_t n, Batch<double> v) {
  _mm512_mask_storeu_pd(to, mask_of(to, n), v);
}
// Lanes [0, k) of p, the rest of q.
POPNORM_INLINE Batch<float> splice(std::int64_t k, Batch<float> p, Batch<float> q) {
  return Batch<float>(_mm512_mask_mov_ps(q, static_cast<__mmask16>((1U << k) - 1U), p));
}
POPNORM_INLINE Batch<double> splice(std::int64_t k, Batch<double> p, Batch<double> q) {
  return Batch<double>(_mm512_mask_mov_pd(q, static_cast<__mmask8>((1U << k) - 1U), p));
}
// Half a batch from each.
POPNORM_INLINE Batch<float> load_halves(const float* low, const float* high) {
  return Batch<float>(_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1));
}
POPNORM_INLINE Batch<double> load_halves(const double* low, const double* high) {
  return Batch<double>(_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(low)), _mm256_loadu_pd(high), 1));
}
POPNORM_INLINE void stream(float* to, Batch<float> v) { _mm512_stream_ps(to, v); }
POPNORM_INLINE void stream(double* to, Batch<double> v) { _mm512_stream_pd(to, v); }
// Adds f32 lanes to twice as many f64 batches.
POPNORM_INLINE void accumulate(Batch<double>* sum, Batch<float> v) {
  const __m512 r = v;
  sum[0] += Batch<double>(_mm512_cvtps_pd(_mm512_castps512_ps256(r)));
  sum[1] += Batch<double>(_mm512_cvtps_pd(_mm512_extractf32x8_ps(r, 1)));
}
POPNORM_INLINE __m256 halve(Batch<float> v) {
  const __m512 r = v;
  return _mm256_add_ps(_mm512_castps512_ps256(r), _mm512_extractf32x8_ps(r, 1));
}
POPNORM_INLINE __m256d halve(Batch<double> v) {
  const __m512d r = v;
  return _mm256_add_pd(_mm512_castpd512_pd256(r), _mm512_extractf64x4_pd(r, 1));
}

#elif defined(POPNORM_TIER_AVX2)

POPNORM_INLINE Batch<double> load_widened(const float* from) {
  return Batch<double>(_mm256_cvtps_pd(_mm_loadu_ps(from)));
}
POPNORM_INLINE __m256i mask_of(const float*, std::int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
POPNORM_INLINE __m256i mask_of(const double*, std::int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
POPNORM_INLINE Batch<float> splice(std::int64_t k, Batch<float> p, Batch<float> q) {
  return Batch<float>(_mm256_blendv_ps(q, p, _mm256_castsi256_ps(mask_of(static_cast<const float*>(nullptr), k))));
}
POPNORM_INLINE Batch<double> splice(std::int64_t k, Batch<double> p, Batch<double> q) {
  return Batch<double>(_mm256_blendv_pd(q, p, _mm256_castsi256_pd(mask_of(static_cast<const double*>(nullptr), k))));
}
POPNORM_INLINE Batch<float> load_partial(const float* from, std::int64_t n, Batch<float> fill) {
  return splice(n, Batch<float>(_mm256_maskload_ps(from, mask_of(from, n))), fill);
}
POPNORM_INLINE Batch<double> load_partial(const double* from, std::int64_t n, Batch<double> fill) {
  return splice(n, Batch<double>(_mm256_maskload_pd(from, mask_of(from, n))), fill);
}
POPNORM_INLINE Batch<double> load_widened_partial(const float* from, std::int64_t n) {
  const __m256i mask = mask_of(from, n);
  return Batch<double>(_mm256_cvtps_pd(_mm_maskload_ps(from, _mm256_castsi256_si128(mask))));
}
POPNORM_INLINE void store_partial(float* to, std::int64_t n, Batch<float> v) {
  _mm256_maskstore_ps(to, mask_of(to, n), v);
}
POPNORM_INLINE void store_partial(double* to, std::int64_t n, Batch<double> v) {
  _mm256_maskstore_pd(to, mask_of(to, n), v);
}
POPNORM_INLINE Batch<float> load_halves(const float* low, const float* high) {
  return Batch<float>(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1));
}
POPNORM_INLINE Batch<double> load_halves(const double* low, const double* high) {
  return Batch<double>(_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(low)), _mm_loadu_pd(high), 1));
}
POPNORM_INLINE void stream(float* to, Batch<float> v) { _mm256_stream_ps(to, v); }
POPNORM_INLINE void stream(double* to, Batch<double> v) { _mm256_stream_pd(to, v); }
POPNORM_INLINE void accumulate(Batch<double>* sum, Batch<float> v) {
  const __m256 r = v;
  sum[0] += Batch<double>(_mm256_cvtps_pd(_mm256_castps256_ps128(r)));
  sum[1] += Batch<double>(_mm256_cvtps_pd(_mm256_extractf128_ps(r, 1)));
}

#else

POPNORM_INLINE Batch<double> load_widened(const float* from) {
  return Batch<double>(_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
}
template <class T>
POPNORM_INLINE Batch<T> load_partial(const T* from, std::int64_t n, Batch<T> fill) {
  T lanes[kWidth<T>];
  fill.store_unaligned(lanes);
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = from[i];
  return load(lanes);
}
template <class T>
POPNORM_INLINE void store_partial(T* to, std::int64_t n, Batch<T> v) {
  T lanes[kWidth<T>];
  v.store_unaligned(lanes);
  for (std::int64_t i = 0; i < n; ++i) to[i] = lanes[i];
}
POPNORM_INLINE Batch<double> load_widened_partial(const float* from, std::int64_t n) {
  double lanes[2] = {0, 0};
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = static_cast<double>(from[i]);
  return load(lanes);
}
template <class T>
POPNORM_INLINE Batch<T> splice(std::int64_t k, Batch<T> p, Batch<T> q) {
  T lanes[kWidth<T>];
  T tail[kWidth<T>];
  p.store_unaligned(lanes);
  q.store_unaligned(tail);
  for (std::int64_t i = k; i < kWidth<T>; ++i) lanes[i] = tail[i];
  return load(lanes);
}
POPNORM_INLINE Batch<float> load_halves(const float* low, const float* high) {
  return Batch<float>(_mm_setr_ps(low[0], low[1], high[0], high[1]));
}
POPNORM_INLINE Batch<double> load_halves(const double* low, const double* high) {
  return Batch<double>(_mm_setr_pd(low[0], high[0]));
}
POPNORM_INLINE void stream(float* to, Batch<float> v) { _mm_stream_ps(to, v); }
POPNORM_INLINE void stream(double* to, Batch<double> v) { _mm_stream_pd(to, v); }
POPNORM_INLINE void accumulate(Batch<double>* sum, Batch<float> v) {
  const __m128 r = v;
  sum[0] += Batch<double>(_mm_cvtps_pd(r));
  sum[1] += Batch<double>(_mm_cvtps_pd(_mm_movehl_ps(r, r)));
}

#endif

POPNORM_INLINE void accumulate(Batch<double>* sum, Batch<double> v) { sum[0] += v; }

// How many f64 batches hold one batch of T.
template <class T>
inline constexpr std::int64_t kWiden = kWidth<T> / kWidth<double>;

POPNORM_INLINE Batch<double> load_widened_partial(const double* from, std::int64_t n) {
  return load_partial(from, n, Batch<double>(0.0));
}

// The first n <= width elements; `fill` elsewhere.
template <class T>
POPNORM_INLINE Batch<T> load(const T* from, std::int64_t n, const Batch<T>& fill) {
  return n == kWidth<T> ? load(from) : load_partial(from, n, fill);
}
template <class T>
POPNORM_INLINE Batch<double> load_widened(const T* from, std::int64_t n) {
  return n == kWidth<double> ? load_widened(from) : load_widened_partial(from, n);
}

// The sum of 16 virtual lanes by halving: (l, l+8), (l, l+4), (l, l+2), (l, l+1), the same tree in every tier.
POPNORM_INLINE float fold_quad(__m128 r) {
  r = _mm_add_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_add_ss(r, _mm_shuffle_ps(r, r, 1)));
}
POPNORM_INLINE double fold_pair(__m128d r) { return _mm_cvtsd_f64(_mm_add_sd(r, _mm_unpackhi_pd(r, r))); }
#if defined(POPNORM_TIER_AVX512) || defined(POPNORM_TIER_AVX2)
POPNORM_INLINE float fold_quad(__m256 r) {
  return fold_quad(_mm_add_ps(_mm256_castps256_ps128(r), _mm256_extractf128_ps(r, 1)));
}
POPNORM_INLINE double fold_pair(__m256d r) {
  return fold_pair(_mm_add_pd(_mm256_castpd256_pd128(r), _mm256_extractf128_pd(r, 1)));
}
#endif

template <class T>
POPNORM_INLINE T fold_lanes(const Batch<T>* lanes) {
  Batch<T> part[kSpan<T>];
  for (std::int64_t i = 0; i < kSpan<T>; ++i) part[i] = lanes[i];
  for (std::int64_t width = kSpan<T> / 2; width > 0; width /= 2)
    for (std::int64_t i = 0; i < width; ++i) part[i] += part[i + width];
#if defined(POPNORM_TIER_AVX512)
  const auto half = halve(part[0]);
#else
  const typename Batch<T>::register_type half = part[0];
#endif
  if constexpr (std::is_same_v<T, float>)
    return fold_quad(half);
  else
    return fold_pair(half);
}

// body(0) ... body(n-1) with compile-time indices: arrays of batches then live in registers, which a loop does not
// ensure.
template <std::int64_t n, class Body>
POPNORM_INLINE void unroll(const Body& body) {
  if constexpr (n > 0) {
    unroll<n - 1>(body);
    body(std::integral_constant<std::int64_t, n - 1>{});
  }
}

// The two terms that a vector contributes.
template <class V>
struct Terms {
  V p;
  V q;
};

template <class V>
POPNORM_INLINE Terms<V> operator+(const Terms<V>& a, const Terms<V>& b) {
  return {a.p + b.p, a.q + b.q};
}

// at(0) ... at(m-1), m <= 4, summed pairwise: (0+1)+(2+3). Two roundings instead of m-1, and no chain of dependent additions.
template <std::int64_t m, class At>
POPNORM_INLINE auto pairwise(const At& at) {
  static_assert(m >= 1 && m <= 4);
  if constexpr (m == 1)
    return at(0);
  else if constexpr (m == 2)
    return at(0) + at(1);
  else if constexpr (m == 3)
    return (at(0) + at(1)) + at(2);
  else
    return (at(0) + at(1)) + (at(2) + at(3));
}

// Adds m terms to f64 accumulators, four at a time pairwise in the terms' own type. term(v) gives the v-th.
template <std::int64_t m, std::int64_t first = 0, class Term>
POPNORM_INLINE void accumulate_terms(Batch<double>* sum_p, Batch<double>* sum_q, const Term& term) {
  constexpr std::int64_t rest = m - first;
  const auto sum =
      pairwise<(rest < 4 ? rest : 4)>([&](std::int64_t v) __attribute__((always_inline)) { return term(first + v); });
  accumulate(sum_p, sum.p);
  accumulate(sum_q, sum.q);
  if constexpr (rest > 4) accumulate_terms<m, first + 4>(sum_p, sum_q, term);
}
