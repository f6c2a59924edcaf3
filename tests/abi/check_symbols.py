#!/usr/bin/env python3
"""The functions that popnorm.h declares, the golden list, and what the shared library exports must be the same."""

import argparse
import pathlib
import re
import subprocess
import sys


def declared(header):
    """Names declared with POPNORM_API."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    return set(re.findall(r"^POPNORM_API\b[^;(]*?(\w+)\(", text, flags=re.M))


def exported(nm, library):
    """Every defined dynamic symbol, versioned suffixes removed."""
    lines = subprocess.run([nm, "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in lines.splitlines()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", required=True)
    parser.add_argument("--header", type=pathlib.Path, required=True)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    parser.add_argument("--library")
    arguments = parser.parse_args()

    golden = arguments.golden.read_text().split()
    sources = {"popnorm.h declares": declared(arguments.header)}
    if arguments.library:
        sources["the library exports"] = exported(arguments.nm, arguments.library)

    faults = [] if golden == sorted(set(golden)) else [f"{arguments.golden} is not sorted and unique"]
    for source, names in sources.items():
        faults += [f"{source} {name}, which {arguments.golden.name} lacks" for name in sorted(names - set(golden))]
        faults += [f"{arguments.golden.name} lists {name}, but not so: {source}" for name in sorted(set(golden) - names)]
    print("\n".join(faults) or f"{len(golden)} symbols agree: {arguments.golden.name}, " + ", ".join(sources))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
