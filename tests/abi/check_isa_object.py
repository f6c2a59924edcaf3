#!/usr/bin/env python3
"""Inspects the objects that were compiled for one instruction set tier.

Each may define one global symbol, its kernel table, and nothing weak: the linker could keep a weak copy, with this tier's
instructions, for code that runs on any machine. It may run nothing at load time, call nothing but the C runtime's memory
functions, and hold no instruction beyond its tier, no fused multiply-add and no approximate reciprocal: those would break
the promise of equal bits. Allowed is the multiplication by 1 of kernels/simd/lanes.hpp, which nobody else marks with a
rounding mode.
"""

import argparse
import re
import subprocess
import sys

# Calls that compilers make on their own, and the symbols of position-independent code.
RUNTIME = {"memcpy", "memmove", "memset", "memcmp", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}

FUSED = re.compile(r"^vfn?m(add|sub)|^vfm(addsub|subadd)")
EXACT = re.compile(r"^\{rn-sae\},")
APPROXIMATE = re.compile(r"^v?(rsqrt|rcp)")
LOAD_TIME = re.compile(r"\.(init_array|ctors|preinit_array|fini_array|dtors)\b")

# What the tier below may not hold, as (mnemonic, operands) patterns.
FOREIGN = {
    "baseline": (re.compile(r"^v"), re.compile(r"%[yz]mm|%k[0-7]")),
    "avx2": (re.compile(r"^$"), re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])")),
    "avx512": (re.compile(r"^$"), re.compile(r"^$")),
}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbol_faults(nm, objects, tier):
    table = re.compile(rf"popnorm::cpu::kernels_{tier}_(f32|f64|bf16|f16)")
    found = []
    for line in run(nm, "--demangle", *objects).splitlines():
        match = re.match(r"^[0-9a-f]*\s+([A-Za-z])\s+(.*)$", line)
        if not match:
            continue
        kind, name = match.groups()
        if kind in "wWvVu":
            yield f"weak or unique symbol: {name}"
        elif kind == "U" and name not in RUNTIME:
            yield f"call or reference out of the tier: {name}"
        elif kind.isupper() and kind != "U":
            found.append(name)
    if len(found) != len(objects) or len(set(found)) != len(found) or not all(map(table.fullmatch, found)):
        yield f"global symbols are {found}, expected only one like {table.pattern} per object"


def section_faults(readelf, objects):
    for line in run(readelf, "--wide", "--sections", *objects).splitlines():
        if LOAD_TIME.search(line):
            yield f"runs at load time: {line.strip()}"


def instruction_faults(objdump, objects, tier):
    foreign_mnemonic, foreign_operand = FOREIGN[tier]
    count = 0
    for line in run(objdump, "--disassemble", "--no-show-raw-insn", *objects).splitlines():
        match = re.match(r"^\s*[0-9a-f]+:\t(\S+)\s*([^#<]*)", line)
        if not match:
            continue
        count += 1
        mnemonic, operands = match.groups()
        if FUSED.search(mnemonic) and not EXACT.search(operands):
            yield f"fused multiply-add: {line.strip()}"
        if APPROXIMATE.search(mnemonic):
            yield f"approximate reciprocal: {line.strip()}"
        if foreign_mnemonic.search(mnemonic) or (operands and foreign_operand.search(operands)):
            yield f"beyond the tier {tier}: {line.strip()}"
    if count == 0:
        yield "no instruction was disassembled"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", required=True)
    parser.add_argument("--objdump", required=True)
    parser.add_argument("--readelf", required=True)
    parser.add_argument("--tier", choices=sorted(FOREIGN), required=True)
    parser.add_argument("objects", nargs="+")
    arguments = parser.parse_args()

    faults = [
        *symbol_faults(arguments.nm, arguments.objects, arguments.tier),
        *section_faults(arguments.readelf, arguments.objects),
        *instruction_faults(arguments.objdump, arguments.objects, arguments.tier),
    ]
    shown = 20
    print("\n".join(faults[:shown]) or f"{arguments.tier}: one symbol an object, no foreign instruction")
    if len(faults) > shown:
        print(f"and {len(faults) - shown} more")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
