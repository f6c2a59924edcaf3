// Compiled with the flags of one instruction set and POPNORM_BENCH_SWEEP = the name to define. Includes nothing that
// could leave inline functions of these flags to the linker's choice.
#include "ceiling_loops.hpp"

#include <immintrin.h>

namespace popnorm_bench {
namespace {

constexpr std::size_t kLine = 64;

#if defined(__AVX512F__)
struct Line {
  __m512i v;

  static Line load(const char* p) { return {_mm512_load_si512(p)}; }
  void store(char* p) const { _mm512_store_si512(p, v); }
  void stream(char* p) const { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), v); }
  friend Line operator|(Line a, Line b) { return {_mm512_or_si512(a.v, b.v)}; }
};
#else
struct Line {
  __m256i low, high;

  static const __m256i* half(const char* p) { return reinterpret_cast<const __m256i*>(p); }
  static __m256i* half(char* p) { return reinterpret_cast<__m256i*>(p); }

  static Line load(const char* p) { return {_mm256_load_si256(half(p)), _mm256_load_si256(half(p) + 1)}; }
  void store(char* p) const {
    _mm256_store_si256(half(p), low);
    _mm256_store_si256(half(p) + 1, high);
  }
  void stream(char* p) const {
    _mm256_stream_si256(half(p), low);
    _mm256_stream_si256(half(p) + 1, high);
  }
  friend Line operator|(Line a, Line b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
};
#endif

template <bool kTwo, Stores kStores>
inline void move(const Sweep& s, std::size_t at, Line& seen) {
  Line line = Line::load(s.a + at);
  if constexpr (kTwo) line = line | Line::load(s.b + at);
  if constexpr (kStores == Stores::none) seen = seen | line;
  if constexpr (kStores == Stores::ordinary) line.store(s.out + at);
  if constexpr (kStores == Stores::streaming) line.stream(s.out + at);
}

template <bool kTwo, Stores kStores, std::size_t kStreams>
void sweep(const Sweep& s) {
  constexpr std::size_t kStep = 4 * kLine;
  const std::size_t part = s.bytes / (kStreams * kStep) * kStep;
  // Four chains, so that no sum of a read-only sweep waits for the one before.
  Line seen[4] = {};
  for (std::size_t i = 0; i < part; i += kStep) {
    const std::size_t at = s.backwards ? part - kStep - i : i;
    for (std::size_t stream = 0; stream < kStreams; ++stream) {
      const std::size_t first = stream * part + at;
      for (std::size_t line = 0; line < 4; ++line) {
        const std::size_t offset = first + line * kLine;
        if (s.prefetch != 0) {
          _mm_prefetch(s.a + offset + s.prefetch, _MM_HINT_T0);
          if constexpr (kTwo) _mm_prefetch(s.b + offset + s.prefetch, _MM_HINT_T0);
        }
        move<kTwo, kStores>(s, offset, seen[line]);
      }
    }
  }
  for (std::size_t at = kStreams * part; at < s.bytes; at += kLine) move<kTwo, kStores>(s, at, seen[0]);
  if constexpr (kStores == Stores::none) {
    const Line all = (seen[0] | seen[1]) | (seen[2] | seen[3]);
    // Makes the loads observable.
    asm volatile("" : : "m"(all));
  }
  if constexpr (kStores == Stores::streaming) _mm_sfence();
}

template <bool kTwo, Stores kStores>
void select_streams(const Sweep& s) {
  s.four_streams ? sweep<kTwo, kStores, 4>(s) : sweep<kTwo, kStores, 1>(s);
}

template <bool kTwo>
void select_stores(const Sweep& s) {
  switch (s.stores) {
    case Stores::none:
      return select_streams<kTwo, Stores::none>(s);
    case Stores::ordinary:
      return select_streams<kTwo, Stores::ordinary>(s);
    case Stores::streaming:
      return select_streams<kTwo, Stores::streaming>(s);
  }
}

}  // namespace

void POPNORM_BENCH_SWEEP(const Sweep& s) { s.b != nullptr ? select_stores<true>(s) : select_stores<false>(s); }

}  // namespace popnorm_bench
