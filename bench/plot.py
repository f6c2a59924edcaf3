#!/usr/bin/python3
"""Draws a report of popnorm_bench: per layer the share of the ceiling that popnorm and oneDNN reach.

  bench/plot.py REPORT.json OUT.svg [--network NAME]
"""

import argparse
import json
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, FAINT, GRID = "#333333", "#7a7a7a", "#e6e6e6"
OURS, PEER = "#1f5f99", "#dd9c33"
OPERATIONS = {"forward_training": "training", "backward": "backward", "forward_inference": "inference"}


def shape(row):
    return row["dimensions"].split("x", 1)[1].replace("x", "×")


def panel(axes, rows, title):
    ours = [100 * row["ceiling_ratio"] for row in rows]
    theirs = [100 * row["ceiling_ratio"] / row["onednn_ratio"] if row["onednn_ratio"] else math.nan for row in rows]
    places = range(len(rows))
    axes.barh([i - 0.2 for i in places], ours, 0.38, color=OURS)
    axes.barh([i + 0.2 for i in places], theirs, 0.38, color=PEER)
    axes.axvline(100, color=INK, linewidth=0.8)
    axes.set_xlim(0, 125)
    axes.set_yticks(list(places), [shape(row) for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.xaxis.grid(True, color=GRID)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report")
    parser.add_argument("out")
    parser.add_argument("--network", default="resnet_50")
    options = parser.parse_args()
    with open(options.report) as file:
        report = json.load(file)
    setup = report["setup"]
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "popnorm"  # the same file from the same report
    figure, grid = plt.subplots(2, 3, figsize=(10, 6.4), sharey=True, layout="constrained")
    for line, layout in zip(grid, ("NCHW", "NHWC")):
        for axes, (operation, name) in zip(line, OPERATIONS.items()):
            rows = [row for row in report["rows"]
                    if (row["op"], row["layout"], row["network"]) == (operation, layout, options.network)]
            panel(axes, rows, f"{layout} {name}")
    batches = sorted({row["n"] for row in report["rows"] if row["network"] == options.network})
    figure.suptitle(f"Percent of what memory allows, f32, N = {', '.join(map(str, batches))}, threads: {setup['threads']}: "
                    f"popnorm (blue), oneDNN {setup['onednn_version'] or 'absent'} (amber)", color=INK, fontsize=11)
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
