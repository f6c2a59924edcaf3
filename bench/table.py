#!/usr/bin/env python3
"""The table of docs/performance.md: a report's rows by operation, layout and size of a tensor.

  bench/table.py REPORT.json

Each cell: geometric mean (worst row) of the percent of the ceiling, without rows whose ceiling is broken, and of the peer's time
over popnorm's, if there was a peer.
"""
import json
import statistics
import sys

SIZES = [("≥ 48 MB", 48e6, float("inf")), ("16–48 MB", 16e6, 48e6), ("0.2–16 MB", 0, 16e6)]
OPERATIONS = [("inference", "forward_inference"), ("training", "forward_training"), ("backward", "backward")]


def within(row, low, high):
    return low <= row["tensor_bytes"] < high


def times(ratio):
    return f"{ratio:.1f}" if ratio >= 0.995 else f"{ratio:.2f}"


def cell(rows):
    if not rows:
        return "–"
    percents = [100 * row["ceiling_ratio"] for row in rows if not row["broken_ceiling"]]
    ratios = [row["onednn_ratio"] for row in rows if row.get("onednn_ratio")]
    text = []
    if percents:
        text.append(f"{statistics.geometric_mean(percents):.0f} ({min(percents):.0f})")
    if ratios:
        text.append(f"{times(statistics.geometric_mean(ratios))}× ({times(min(ratios))})")
    return ", ".join(text)


with open(sys.argv[1], encoding="utf-8") as file:
    report = json.load(file)
rows = report["rows"]

counts = [sum(within(row, low, high) for row in rows) for _, low, high in SIZES]
kinds = len(OPERATIONS) * 2
threads = report["setup"]["threads"]
print(f"| {threads} thread{'s' * (threads > 1)} | " +
      " | ".join(f"{name} ({count // kinds} layers)" for (name, _, _), count in zip(SIZES, counts)) + " |")
print("| --- | --- | --- | --- |")
for operation, key in OPERATIONS:
    for layout in ("NCHW", "NHWC"):
        of = [row for row in rows if row["op"] == key and row["layout"] == layout]
        print(f"| {operation} {layout} | " +
              " | ".join(cell([row for row in of if within(row, low, high)]) for _, low, high in SIZES) + " |")
broken = sum(row["broken_ceiling"] for row in rows)
print(f"\n{broken} of {len(rows)} rows have a broken ceiling (above 102 %).")
