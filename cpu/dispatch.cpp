#include "cpu/dispatch.hpp"

#include <cpuid.h>

#include <cstdint>
#include <cstring>

#include "core/error.hpp"
#include "core/log.hpp"

namespace popnorm::cpu {

// By cpu/isa.hpp.
#define POPNORM_DECLARE_TIER(isa)                                                                              \
  extern const Kernels kernels_##isa##_f32[kForms], kernels_##isa##_f64[kForms], kernels_##isa##_bf16[kForms], \
      kernels_##isa##_f16[kForms]
#define POPNORM_TIER_TABLE(isa)                                                                   \
  {                                                                                               \
#isa, { kernels_##isa##_f32, kernels_##isa##_f64, kernels_##isa##_bf16, kernels_##isa##_f16 } \
  }

POPNORM_DECLARE_TIER(avx512);
POPNORM_DECLARE_TIER(avx2);
POPNORM_DECLARE_TIER(baseline);

namespace {

constexpr KernelTable kAvx512 = POPNORM_TIER_TABLE(avx512);
constexpr KernelTable kAvx2 = POPNORM_TIER_TABLE(avx2);
constexpr KernelTable kBaseline = POPNORM_TIER_TABLE(baseline);

// What both the processor (CPUID) and the operating system (XCR0: which registers it saves) allow. xsimd 8.1 asks
// neither correctly.
struct Features {
  bool avx2 = false;
  bool avx512 = false;

  Features() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return;
    const bool osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!osxsave || !avx || !f16c) return;
    std::uint32_t low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6) != 0x6) return;  // xmm and ymm
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    avx2 = bit(b, 5);
    // F, DQ, CD, BW, VL; opmask and both halves of zmm.
    avx512 = avx2 && bit(b, 16) && bit(b, 17) && bit(b, 28) && bit(b, 30) && bit(b, 31) && (low & 0xe0) == 0xe0;
  }

  static bool bit(unsigned word, int index) { return (word >> index & 1U) != 0; }
};

const Features& features() {
  static const Features detected;
  return detected;
}

constexpr Tier kTiers[] = {
    {&kAvx512, "AVX-512 F, CD, DQ, BW, VL and their operating system support", [] { return features().avx512; }},
    {&kAvx2, "AVX2, F16C and their operating system support", [] { return features().avx2; }},
    {&kBaseline, "x86-64", [] { return true; }},
};
constexpr int kTierCount = sizeof(kTiers) / sizeof(kTiers[0]);

}  // namespace

int tier_count() { return kTierCount; }
const Tier& tier(int index) { return kTiers[index]; }

popnorm_status choose_tier(const char* name, const KernelTable*& table) {
  for (const Tier& t : kTiers) {
    if (name != nullptr && std::strcmp(name, t.table->isa) != 0) continue;
    if (t.available()) {
      table = t.table;
      return POPNORM_SUCCESS;
    }
    if (name != nullptr)
      return fail(POPNORM_UNSUPPORTED, "plan: isa \"%s\" does not run here, it needs %s; use popnorm_isa_available",
                  name, t.needs);
    if (log_dispatch()) log_choice("isa %s refused: needs %s", t.table->isa, t.needs);
  }
  return fail(POPNORM_INVALID, "plan: isa is \"%s\", must be avx512, avx2 or baseline (popnorm_isa_name)", name);
}

}  // namespace popnorm::cpu
