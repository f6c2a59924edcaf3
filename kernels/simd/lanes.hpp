// The thin layer over xsimd: what batches of one tier need and xsimd 8.1 lacks or names differently across versions.
// Partial loads and stores never touch memory beyond their elements.
//
// Included by cpu/isa.hpp inside an anonymous namespace (every tier has its own copy; none is visible to the linker).
// 16-bit types have no batches of their own: they become float where they are loaded and are rounded where they are stored.
template <class A>
using Vector = xsimd::batch<A, Arch>;
template <class T>
using Batch = Vector<Arithmetic<T>>;

template <class T>
inline constexpr std::int64_t kWidth = static_cast<std::int64_t>(Batch<T>::size);

// Vectors of 16 bytes would unroll inner loops to pages of code, for processors that nobody measures: the baseline calls and
// loops where the other tiers inline and unroll.
#if defined(POPNORM_TIER_AVX512) || defined(POPNORM_TIER_AVX2)
#define POPNORM_INLINE_IF_WIDE POPNORM_INLINE
inline constexpr bool kWideTier = true;
#else
#define POPNORM_INLINE_IF_WIDE POPNORM_OUTLINED
inline constexpr bool kWideTier = false;
#endif

template <class V, std::int64_t n>
using Array = V[static_cast<std::size_t>(n)];

// 16 virtual lanes are kSpan batches.
template <class T>
inline constexpr std::int64_t kSpan = kLanes / kWidth<T>;

template <class T>
POPNORM_INLINE Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}

template <class T>
POPNORM_INLINE void put(T* to, const Batch<T>& v) {
  v.store_unaligned(to);
}

POPNORM_INLINE Batch<double> load_widened(const double* from) { return load(from); }

// A stored element as double.
template <class T>
POPNORM_INLINE double number(T stored) {
  return static_cast<double>(widen<Arithmetic<T>>(stored));
}

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

template <bool far, class T>
POPNORM_INLINE void prefetch(const T* from, std::int64_t ahead) {
  far ? prefetch_to_l2(from, ahead) : prefetch_to_l1(from, ahead);
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
// Halves of a batch in f64.
POPNORM_INLINE Batch<double> lower_half(Batch<float> v) {
  return Batch<double>(_mm512_cvtps_pd(_mm512_castps512_ps256(v)));
}
POPNORM_INLINE Batch<double> upper_half(Batch<float> v) {
  return Batch<double>(_mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}
POPNORM_INLINE __m256 halve(Batch<float> v) {
  const __m512 r = v;
  return _mm256_add_ps(_mm512_castps512_ps256(r), _mm512_extractf32x8_ps(r, 1));
}
POPNORM_INLINE __m256d halve(Batch<double> v) {
  const __m512d r = v;
  return _mm256_add_pd(_mm512_castpd512_pd256(r), _mm512_extractf64x4_pd(r, 1));
}

POPNORM_INLINE __m512 widened(const Bf16*, __m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
POPNORM_INLINE __m512 widened(const F16*, __m256i bits) { return _mm512_cvtph_ps(bits); }
POPNORM_INLINE __m256 widened(const Bf16*, __m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
POPNORM_INLINE __m256 widened(const F16*, __m128i bits) { return _mm256_cvtph_ps(bits); }
// By kernels/storage.hpp: half of a unit less one, and one more where the last digit is odd.
POPNORM_INLINE __m256i narrowed(const Bf16*, __m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
  rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
POPNORM_INLINE __m256i narrowed(const F16*, __m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
template <class H>
POPNORM_INLINE Batch<float> load_16_bits(const H* from) {
  return Batch<float>(widened(from, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
template <class H>
POPNORM_INLINE Batch<double> widen_16_bits(const H* from) {
  return Batch<double>(_mm512_cvtps_pd(widened(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
}
template <class H>
POPNORM_INLINE void store_16_bits(H* to, Batch<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(to, v));
}
template <class H>
POPNORM_INLINE void stream_16_bits(H* to, Batch<float> v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), narrowed(to, v));
}

// A choice of lanes.
template <class A>
using Chosen = std::conditional_t<std::is_same_v<A, float>, __mmask16, __mmask8>;
POPNORM_INLINE __mmask16 at_most_zero(Batch<float> v) { return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LE_OQ); }
POPNORM_INLINE __mmask8 at_most_zero(Batch<double> v) { return _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_LE_OQ); }
POPNORM_INLINE Batch<float> choose(__mmask16 chosen, Batch<float> p, Batch<float> q) {
  return Batch<float>(_mm512_mask_mov_ps(q, chosen, p));
}
POPNORM_INLINE Batch<double> choose(__mmask8 chosen, Batch<double> p, Batch<double> q) {
  return Batch<double>(_mm512_mask_mov_pd(q, chosen, p));
}
POPNORM_INLINE Batch<float> both(Batch<float> p, Batch<float> q) { return Batch<float>(_mm512_and_ps(p, q)); }
POPNORM_INLINE Batch<double> both(Batch<double> p, Batch<double> q) { return Batch<double>(_mm512_and_pd(p, q)); }
template <class A>
POPNORM_INLINE std::uint32_t bits_of(Chosen<A> chosen) {
  return chosen;
}
template <class A>
POPNORM_INLINE Chosen<A> chosen_of(std::uint32_t bits) {
  return static_cast<Chosen<A>>(bits);
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
POPNORM_INLINE Batch<double> lower_half(Batch<float> v) {
  return Batch<double>(_mm256_cvtps_pd(_mm256_castps256_ps128(v)));
}
POPNORM_INLINE Batch<double> upper_half(Batch<float> v) {
  return Batch<double>(_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}

POPNORM_INLINE __m256 widened(const Bf16*, __m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
POPNORM_INLINE __m256 widened(const F16*, __m128i bits) { return _mm256_cvtph_ps(bits); }
// By kernels/storage.hpp: half of a unit less one, and one more where the last digit is odd.
POPNORM_INLINE __m128i narrowed(const Bf16*, __m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 all =
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(nan), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(all), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
POPNORM_INLINE __m128i narrowed(const F16*, __m256 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
template <class H>
POPNORM_INLINE Batch<float> load_16_bits(const H* from) {
  return Batch<float>(widened(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
template <class H>
POPNORM_INLINE Batch<double> widen_16_bits(const H* from) {
  const __m256 four = widened(from, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return Batch<double>(_mm256_cvtps_pd(_mm256_castps256_ps128(four)));
}
template <class H>
POPNORM_INLINE void store_16_bits(H* to, Batch<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrowed(to, v));
}
template <class H>
POPNORM_INLINE void stream_16_bits(H* to, Batch<float> v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), narrowed(to, v));
}

// A choice of lanes, all ones where chosen.
template <class A>
using Chosen = Batch<A>;
POPNORM_INLINE Batch<float> at_most_zero(Batch<float> v) {
  return Batch<float>(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LE_OQ));
}
POPNORM_INLINE Batch<double> at_most_zero(Batch<double> v) {
  return Batch<double>(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_LE_OQ));
}
POPNORM_INLINE Batch<float> choose(Batch<float> chosen, Batch<float> p, Batch<float> q) {
  return Batch<float>(_mm256_blendv_ps(q, p, chosen));
}
POPNORM_INLINE Batch<double> choose(Batch<double> chosen, Batch<double> p, Batch<double> q) {
  return Batch<double>(_mm256_blendv_pd(q, p, chosen));
}
POPNORM_INLINE Batch<float> both(Batch<float> p, Batch<float> q) { return Batch<float>(_mm256_and_ps(p, q)); }
POPNORM_INLINE Batch<double> both(Batch<double> p, Batch<double> q) { return Batch<double>(_mm256_and_pd(p, q)); }
template <class A>
POPNORM_INLINE std::uint32_t bits_of(Chosen<A> chosen) {
  if constexpr (std::is_same_v<A, float>)
    return static_cast<std::uint32_t>(_mm256_movemask_ps(chosen));
  else
    return static_cast<std::uint32_t>(_mm256_movemask_pd(chosen));
}
template <class A>
POPNORM_INLINE Chosen<A> chosen_of(std::uint32_t bits) {
  if constexpr (std::is_same_v<A, float>) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    return Batch<float>(_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lane), lane)));
  } else {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i all = _mm256_set1_epi64x(bits);
    return Batch<double>(_mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, lane), lane)));
  }
}

#else

POPNORM_INLINE Batch<double> load_widened(const float* from) {
  return Batch<double>(_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
}
template <class T>
POPNORM_OUTLINED Batch<T> load_partial(const T* from, std::int64_t n, Batch<T> fill) {
  T lanes[kWidth<T>];
  fill.store_unaligned(lanes);
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = from[i];
  return load(lanes);
}
template <class T>
POPNORM_OUTLINED void store_partial(T* to, std::int64_t n, Batch<T> v) {
  T lanes[kWidth<T>];
  v.store_unaligned(lanes);
  for (std::int64_t i = 0; i < n; ++i) to[i] = lanes[i];
}
POPNORM_OUTLINED Batch<double> load_widened_partial(const float* from, std::int64_t n) {
  double lanes[2] = {0, 0};
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = static_cast<double>(from[i]);
  return load(lanes);
}
template <class A>
POPNORM_OUTLINED Vector<A> splice(std::int64_t k, Vector<A> p, Vector<A> q) {
  A lanes[kWidth<A>];
  A tail[kWidth<A>];
  p.store_unaligned(lanes);
  q.store_unaligned(tail);
  for (std::int64_t i = k; i < kWidth<A>; ++i) lanes[i] = tail[i];
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
POPNORM_INLINE Batch<double> lower_half(Batch<float> v) { return Batch<double>(_mm_cvtps_pd(v)); }
POPNORM_INLINE Batch<double> upper_half(Batch<float> v) { return Batch<double>(_mm_cvtps_pd(_mm_movehl_ps(v, v))); }

POPNORM_INLINE __m128 widened(const Bf16*, __m128i bits) {
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), bits));
}
// The exponent is rebased by a product, which is exact, of subnormal numbers too; infinities and NaNs keep the highest.
POPNORM_INLINE __m128 widened(const F16*, __m128i bits) {
  const __m128i wide = _mm_unpacklo_epi16(bits, _mm_setzero_si128());
  const __m128i sign = _mm_slli_epi32(_mm_and_si128(wide, _mm_set1_epi32(0x8000)), 16);
  const __m128i magnitude = _mm_slli_epi32(_mm_and_si128(wide, _mm_set1_epi32(0x7FFF)), 13);
  const __m128i rebased = _mm_castps_si128(_mm_mul_ps(_mm_castsi128_ps(magnitude), _mm_set1_ps(0x1p112F)));
  const __m128i highest =
      _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x0F7FFFFF)), _mm_set1_epi32(0x7F800000));
  return _mm_castsi128_ps(_mm_or_si128(sign, _mm_or_si128(rebased, highest)));
}
POPNORM_INLINE __m128i chosen(__m128i mask, __m128i p, __m128i q) {
  return _mm_or_si128(_mm_and_si128(mask, p), _mm_andnot_si128(mask, q));
}
// By kernels/storage.hpp: half of a unit less one, and one more where the last digit is odd.
POPNORM_INLINE __m128i narrowed(const Bf16*, __m128 v) {
  const __m128i bits = _mm_castps_si128(v);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7FFF)));
  const __m128i nan = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
  const __m128i upper = _mm_srai_epi32(chosen(_mm_castps_si128(_mm_cmpunord_ps(v, v)), nan, rounded), 16);
  return _mm_packs_epi32(upper, upper);
}
// The same; below 2^-14 an addition of 0.5, whose last digit is 2^-24, rounds.
POPNORM_INLINE __m128i narrowed(const F16*, __m128 v) {
  const __m128i bits = _mm_castps_si128(v);
  const __m128i magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7FFFFFFF));
  const __m128i rebased = _mm_sub_epi32(magnitude, _mm_set1_epi32((127 - 15) << 23));
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(rebased, 13), _mm_set1_epi32(1));
  const __m128i normal = _mm_srli_epi32(_mm_add_epi32(rebased, _mm_add_epi32(odd, _mm_set1_epi32(0xFFF))), 13);
  const __m128 half = _mm_set1_ps(0.5F);
  const __m128i small =
      _mm_sub_epi32(_mm_castps_si128(_mm_add_ps(_mm_castsi128_ps(magnitude), half)), _mm_castps_si128(half));
  const __m128i finite = chosen(_mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x38800000)), small, normal);
  const __m128i all = chosen(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x477FFFFF)), _mm_set1_epi32(0x7C00), finite);
  const __m128i nan = _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7F800000)), _mm_set1_epi32(0x200));
  const __m128i sign = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(0x8000));
  const __m128i signed_half = _mm_or_si128(sign, _mm_or_si128(all, nan));
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32(signed_half, 16), 16);
  return _mm_packs_epi32(extended, extended);
}
template <class H>
POPNORM_INLINE Batch<float> load_16_bits(const H* from) {
  return Batch<float>(widened(from, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
template <class H>
POPNORM_INLINE Batch<double> widen_16_bits(const H* from) {
  const int pair = static_cast<int>(from[0].bits | static_cast<std::uint32_t>(from[1].bits) << 16);
  return Batch<double>(_mm_cvtps_pd(widened(from, _mm_cvtsi32_si128(pair))));
}
template <class H>
POPNORM_INLINE void store_16_bits(H* to, Batch<float> v) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), narrowed(to, v));
}
// There is no non-temporal store of so few bytes.
template <class H>
POPNORM_INLINE void stream_16_bits(H* to, Batch<float> v) {
  store_16_bits(to, v);
}

// A choice of lanes, all ones where chosen.
template <class A>
using Chosen = Batch<A>;
POPNORM_INLINE Batch<float> at_most_zero(Batch<float> v) { return Batch<float>(_mm_cmple_ps(v, _mm_setzero_ps())); }
POPNORM_INLINE Batch<double> at_most_zero(Batch<double> v) { return Batch<double>(_mm_cmple_pd(v, _mm_setzero_pd())); }
POPNORM_INLINE Batch<float> choose(Batch<float> chosen, Batch<float> p, Batch<float> q) {
  return Batch<float>(_mm_or_ps(_mm_and_ps(chosen, p), _mm_andnot_ps(chosen, q)));
}
POPNORM_INLINE Batch<double> choose(Batch<double> chosen, Batch<double> p, Batch<double> q) {
  return Batch<double>(_mm_or_pd(_mm_and_pd(chosen, p), _mm_andnot_pd(chosen, q)));
}
POPNORM_INLINE Batch<float> both(Batch<float> p, Batch<float> q) { return Batch<float>(_mm_and_ps(p, q)); }
POPNORM_INLINE Batch<double> both(Batch<double> p, Batch<double> q) { return Batch<double>(_mm_and_pd(p, q)); }
template <class A>
POPNORM_INLINE std::uint32_t bits_of(Chosen<A> chosen) {
  if constexpr (std::is_same_v<A, float>)
    return static_cast<std::uint32_t>(_mm_movemask_ps(chosen));
  else
    return static_cast<std::uint32_t>(_mm_movemask_pd(chosen));
}
template <class A>
POPNORM_INLINE Chosen<A> chosen_of(std::uint32_t bits) {
  const __m128i all = _mm_set1_epi32(static_cast<int>(bits));
  const __m128i lane = std::is_same_v<A, float> ? _mm_setr_epi32(1, 2, 4, 8) : _mm_setr_epi32(1, 1, 2, 2);
  const __m128i chosen = _mm_cmpeq_epi32(_mm_and_si128(all, lane), lane);
  if constexpr (std::is_same_v<A, float>)
    return Batch<float>(_mm_castsi128_ps(chosen));
  else
    return Batch<double>(_mm_castsi128_pd(chosen));
}

#endif

// The same names for 16-bit types.
POPNORM_INLINE Batch<float> load(const Bf16* from) { return load_16_bits(from); }
POPNORM_INLINE Batch<float> load(const F16* from) { return load_16_bits(from); }
POPNORM_INLINE void put(Bf16* to, const Batch<float>& v) { store_16_bits(to, v); }
POPNORM_INLINE void put(F16* to, const Batch<float>& v) { store_16_bits(to, v); }
POPNORM_INLINE void stream(Bf16* to, Batch<float> v) { stream_16_bits(to, v); }
POPNORM_INLINE void stream(F16* to, Batch<float> v) { stream_16_bits(to, v); }
POPNORM_INLINE Batch<double> load_widened(const Bf16* from) { return widen_16_bits(from); }
POPNORM_INLINE Batch<double> load_widened(const F16* from) { return widen_16_bits(from); }
#if defined(POPNORM_TIER_AVX512)
template <class H>
POPNORM_INLINE Batch<float> load_16_bits_partial(const H* from, std::int64_t n, const Batch<float>& fill) {
  const __mmask16 mask = mask_of(static_cast<const float*>(nullptr), n);
  return Batch<float>(_mm512_mask_mov_ps(fill, mask, widened(from, _mm256_maskz_loadu_epi16(mask, from))));
}
template <class H>
POPNORM_INLINE void store_16_bits_partial(H* to, std::int64_t n, const Batch<float>& v) {
  _mm256_mask_storeu_epi16(to, mask_of(static_cast<const float*>(nullptr), n), narrowed(to, v));
}
template <class H>
POPNORM_INLINE Batch<double> widen_16_bits_partial(const H* from, std::int64_t n) {
  const __mmask8 mask = mask_of(static_cast<const double*>(nullptr), n);
  return Batch<double>(_mm512_cvtps_pd(widened(from, _mm_maskz_loadu_epi16(mask, from))));
}
#else
template <class H>
POPNORM_OUTLINED Batch<float> load_16_bits_partial(const H* from, std::int64_t n, const Batch<float>& fill) {
  H lanes[kWidth<float>]{};
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = from[i];
  return splice(n, load(lanes), fill);
}
template <class H>
POPNORM_OUTLINED void store_16_bits_partial(H* to, std::int64_t n, const Batch<float>& v) {
  H lanes[kWidth<float>];
  put(lanes, v);
  for (std::int64_t i = 0; i < n; ++i) to[i] = lanes[i];
}
template <class H>
POPNORM_OUTLINED Batch<double> widen_16_bits_partial(const H* from, std::int64_t n) {
  H lanes[kWidth<double>]{};
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = from[i];
  return load_widened(lanes);
}
#endif
POPNORM_INLINE Batch<float> load_partial(const Bf16* from, std::int64_t n, const Batch<float>& fill) {
  return load_16_bits_partial(from, n, fill);
}
POPNORM_INLINE Batch<float> load_partial(const F16* from, std::int64_t n, const Batch<float>& fill) {
  return load_16_bits_partial(from, n, fill);
}
POPNORM_INLINE void store_partial(Bf16* to, std::int64_t n, const Batch<float>& v) { store_16_bits_partial(to, n, v); }
POPNORM_INLINE void store_partial(F16* to, std::int64_t n, const Batch<float>& v) { store_16_bits_partial(to, n, v); }
POPNORM_INLINE Batch<double> load_widened_partial(const Bf16* from, std::int64_t n) {
  return widen_16_bits_partial(from, n);
}
POPNORM_INLINE Batch<double> load_widened_partial(const F16* from, std::int64_t n) {
  return widen_16_bits_partial(from, n);
}

// Two sums that are taken at once share four arithmetic pipes, two of which only multiply on many processors. A fused multiply-add
// by 1 is an addition there, to the bit, because its product is exact.
struct ByAdder {
  template <class V>
  POPNORM_INLINE V operator()(const V& a, const V& b) const {
    return a + b;
  }
};
#if defined(POPNORM_TIER_AVX512)
// The rounding mode within the instruction tells tests/abi that it is this one.
struct ByMultiplier {
  static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  POPNORM_INLINE Batch<float> operator()(const Batch<float>& a, const Batch<float>& b) const {
    return Batch<float>(_mm512_fmadd_round_ps(a, _mm512_set1_ps(1), b, kNearest));
  }
  POPNORM_INLINE Batch<double> operator()(const Batch<double>& a, const Batch<double>& b) const {
    return Batch<double>(_mm512_fmadd_round_pd(a, _mm512_set1_pd(1), b, kNearest));
  }
};
#else
using ByMultiplier = ByAdder;  // measured: no gain on AVX2
#endif

// Adds a batch to as many f64 batches as hold its lanes.
template <class Sum = ByAdder>
POPNORM_INLINE void accumulate(Batch<double>* sum, const Batch<double>& v, const Sum& add = {}) {
  sum[0] = add(v, sum[0]);
}
template <class Sum = ByAdder>
POPNORM_INLINE void accumulate(Batch<double>* sum, const Batch<float>& v, const Sum& add = {}) {
  sum[0] = add(lower_half(v), sum[0]);
  sum[1] = add(upper_half(v), sum[1]);
}

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
POPNORM_INLINE Arithmetic<T> fold_lanes(const Batch<T>* lanes) {
  Batch<T> part[kSpan<T>];
  for (std::int64_t i = 0; i < kSpan<T>; ++i) part[i] = lanes[i];
  for (std::int64_t width = kSpan<T> / 2; width > 0; width /= 2)
    for (std::int64_t i = 0; i < width; ++i) part[i] += part[i + width];
#if defined(POPNORM_TIER_AVX512)
  const auto half = halve(part[0]);
#else
  const typename Batch<T>::register_type half = part[0];
#endif
  if constexpr (std::is_same_v<Arithmetic<T>, float>)
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

// Of a loop whose body is long already.
template <std::int64_t n, class Body>
POPNORM_INLINE void unroll_pair(const Body& body) {
  if constexpr (n <= 2)
    unroll<n>(body);
  else
    for (std::int64_t i = 0; i < n; ++i) body(i);
}

// The two terms that a vector contributes.
template <class V>
struct Terms {
  V p;
  V q;
};

template <class V>
POPNORM_INLINE Terms<V> operator+(const Terms<V>& a, const Terms<V>& b) {
  return {a.p + b.p, ByMultiplier()(a.q, b.q)};
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
  accumulate(sum_q, sum.q, ByMultiplier());
  if constexpr (rest > 4) accumulate_terms<m, first + 4>(sum_p, sum_q, term);
}
