#!/usr/bin/env python3
"""What popnorm_bench_cuda and pytorch.py measured, as a Markdown table: geometric means over layers, of a cold L2 cache.

  bench/cuda/summary.py BENCH.json [PYTORCH.json]
"""
import collections
import json
import statistics
import sys


def rows_of(path):
    """{(operation, layout, storage): {layer: {contender: benchmark}}} of the cold rows."""
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    with open(path) as file:
        for row in json.load(file)["benchmarks"]:
            operation, layout, storage, network, layer, column, contender = row["name"].split("/")[:7]
            if column == "cold" and not row.get("error_occurred"):
                found[operation, layout, storage][network, layer][contender] = row
    return found


def ratios(own, other):
    """Time of `other` over that of `own`, per layer: their mean and range."""
    of = [other[layer]["real_time"] / own[layer]["real_time"] for layer in own if layer in other]
    return f"{statistics.geometric_mean(of):.2f} ({min(of):.2f}–{max(of):.2f})" if of else "–"


def main():
    rows = rows_of(sys.argv[1])
    for path in sys.argv[2:]:
        for key, layers in rows_of(path).items():
            for layer, contenders in layers.items():
                rows[key][layer].update(contenders)
    print("| | layers | % of R | cuDNN | PyTorch | plain |\n| --- | --- | --- | --- | --- | --- |")
    for key, layers in sorted(rows.items()):
        of = {name: {layer: c[name] for layer, c in layers.items() if name in c}
              for name in ("popnorm_measured", "popnorm_plain", "cudnn", "pytorch")}
        own = of["popnorm_measured"]
        if not own:
            continue
        share = [row["percent_of_R"] for row in own.values()]
        print(f"| {' '.join(key)} | {len(own)} | {statistics.geometric_mean(share):.0f} ({min(share):.0f}–{max(share):.0f}) | "
              f"{ratios(own, of['cudnn'])} | {ratios(own, of['pytorch'])} | {ratios(own, of['popnorm_plain'])} |")


if __name__ == "__main__":
    main()
