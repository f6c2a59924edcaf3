#!/usr/bin/env python3
"""The control on check_isa_object.py: it accepts a clean object and rejects each disease, planted in a small one."""

import argparse
import pathlib
import subprocess
import sys
import tempfile

TABLE = """
namespace popnorm::cpu {
struct KernelTable { float (*kernel)(const float*, float); };
namespace { float kernel(const float* x, float a) { %s } }
extern const KernelTable kernels_%s_f32;
constinit const KernelTable kernels_%s_f32{kernel};
}
"""

# name: (tier, flags, body of the kernel, code before the table, expected words; none for a clean object)
CASES = {
    "clean baseline": ("baseline", ["-march=x86-64"], "return *x * a;", "", None),
    "clean avx2": ("avx2", ["-mavx2"], "return *x * a;", "", None),
    "weak": ("baseline", [], "return shared(*x) * a;",
             "__attribute__((noinline)) inline float shared(float v) { return v + 1; }", "weak or unique symbol"),
    "second symbol": ("baseline", [], "return *x * a;", "int second = 1;", "expected only"),
    "load time": ("baseline", [], "return *x * once;",
                  "float origin(); static const float once = __builtin_ia32_rdtsc() * 1.0f;", "runs at load time"),
    "foreign call": ("baseline", [], "return other(*x);", "float other(float);", "out of the tier"),
    "fused": ("avx2", ["-mavx2", "-mfma"], "return __builtin_fmaf(*x, a, a);", "", "fused multiply-add"),
    "fused zmm": ("avx512", ["-mavx512f"],
                  "const __m512 v = _mm512_loadu_ps(x); return _mm512_reduce_add_ps(_mm512_fmadd_ps(v, _mm512_set1_ps(a), v));",
                  "#include <immintrin.h>\n", "fused multiply-add"),
    "marked as exact": ("avx512", ["-mavx512f"],
                        "const __m512 v = _mm512_loadu_ps(x); return _mm512_cvtss_f32("
                        "_mm512_fmadd_round_ps(v, _mm512_set1_ps(1), v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) * a;",
                        "#include <immintrin.h>\n", None),
    "approximate": ("baseline", ["-msse"], "return _mm_cvtss_f32(_mm_rsqrt_ss(_mm_set_ss(*x + a)));",
                    "#include <xmmintrin.h>\n", "approximate reciprocal"),
    "avx in baseline": ("baseline", ["-mavx"], "return *x * a;", "", "beyond the tier baseline"),
    "zmm in avx2": ("avx2", ["-mavx512f"],
                    "return _mm512_reduce_add_ps(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(a)));",
                    "#include <immintrin.h>\n", "beyond the tier avx2"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--nm", required=True)
    parser.add_argument("--objdump", required=True)
    parser.add_argument("--readelf", required=True)
    arguments = parser.parse_args()
    gate = [sys.executable, str(pathlib.Path(__file__).with_name("check_isa_object.py")), "--nm", arguments.nm,
            "--objdump", arguments.objdump, "--readelf", arguments.readelf]

    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "planted.cpp"), pathlib.Path(folder, "planted.o")
        for name, (tier, flags, body, before, expected) in CASES.items():
            source.write_text(before + TABLE % (body, tier, tier))
            subprocess.run([arguments.compiler, "-std=c++20", "-O2", "-fPIC", "-fno-exceptions", *flags, "-c",
                            str(source), "-o", str(target)], check=True)
            verdict = subprocess.run([*gate, "--tier", tier, str(target)], capture_output=True, text=True, check=False)
            accepted = verdict.returncode == 0
            right = accepted if expected is None else not accepted and expected in verdict.stdout
            failures += not right
            print(f"{'ok' if right else 'WRONG'}: {name}: {verdict.stdout.strip() or verdict.stderr.strip()}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
