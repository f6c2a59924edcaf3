#!/usr/bin/python3
"""Draws the findings of a report that the digits program wrote, one PNG per figure."""

import argparse
import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter

EMA = {"key": "ema", "name": "EMA, momentum 0.1", "color": "#c8502d"}
PRECISE = {"key": "precise", "name": "PreciseBN", "color": "#1f5f99"}
HALO = withStroke(linewidth=3, foreground="white")
INK = "#333333"
FAINT = "#8a8a8a"

plt.rcParams.update({
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#bbbbbb",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
})


def draw_schedule(axes, recipe):
    """Warm-up as a tint, decays of the learning rate as dotted lines."""
    axes.axvspan(1, recipe["warmup"], color="#f1efe9", lw=0)
    text = {"transform": axes.get_xaxis_transform(), "fontsize": 8, "color": FAINT}
    axes.text((1 + recipe["warmup"]) / 2, 0.02, "warm-up", rotation=90, ha="center", va="bottom", **text)
    for decay in recipe["decays"]:
        axes.axvline(decay + 0.5, color=FAINT, lw=0.8, ls=(0, (1, 2.5)))
        axes.text(decay + 0.5, 0.985, " rate ÷ 10", ha="left", va="top", **text)


def draw_runs(axes, row, quantity, floor):
    """Thin lines for the seeds, a bold one for their mean; values below `floor` lie on it. Returns the means."""
    epochs = range(1, row["recipe"]["epochs"] + 1)
    means = {}
    for which in (EMA, PRECISE):
        runs = [[max(value, floor) for value in run[which["key"]][quantity]] for run in row["curves"]]
        for run in runs:
            axes.plot(epochs, run, color=which["color"], lw=0.8, alpha=0.35)
        means[which["key"]] = [statistics.fmean(values) for values in zip(*runs)]
        axes.plot(epochs, means[which["key"]], color=which["color"], lw=2.2, solid_capstyle="round")
    return means


def name_lines(axes, means):
    """Writes each name beside its line, a quarter of the way along."""
    at = len(means["ema"]) // 4
    for which, offset, alignment in ((EMA, (9, 7), "bottom"), (PRECISE, (9, -15), "top")):
        axes.annotate(which["name"], (at + 1, means[which["key"]][at]), xytext=offset, textcoords="offset points",
                      va=alignment, color=which["color"], fontweight="bold", path_effects=[HALO])


def draw_figure(report, quantity, *, title, unit, limits, ticks):
    rows = report["ema_vs_precise"]["rows"]
    figure, panels = plt.subplots(1, len(rows), figsize=(4.9 * len(rows), 4.4), sharey=True, squeeze=False)
    for axes, row in zip(panels[0], rows):
        means = draw_runs(axes, row, quantity, limits[0])
        axes.set_xlim(1, row["recipe"]["epochs"])
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.set_yticks(ticks)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", length=0)
        axes.grid(axis="y", color="#e6e6e6", lw=0.7)
        axes.set_xlabel("epoch")
        draw_schedule(axes, row["recipe"])
        steps = -(-row["recipe"]["train_samples"] // row["batch"])
        axes.set_title(f"batch {row['batch']}", loc="left", fontsize=11, fontweight="bold", pad=10)
        axes.set_title(f"{steps} updates an epoch, rate {row['recipe']['rate']:g}", loc="right", fontsize=9, color=FAINT,
                       pad=10)
    panels[0][0].set_ylabel(unit)
    name_lines(panels[0][-1], means)
    seeds = len(report["seeds"])
    lines = f"bold: mean of {seeds} seeds, thin: each seed." if seeds > 1 else "one seed."
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.text(0.012, 0.012,
                f"ConvNet on {report['samples']} handwritten digits; {lines} "
                f"popnorm {report['popnorm']['version']} ({report['popnorm']['isa']}).",
                fontsize=8, color=FAINT)
    figure.tight_layout(rect=(0, 0.035, 1, 0.98), w_pad=2.5)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=pathlib.Path, help="report.json of the digits program")
    parser.add_argument("folder", type=pathlib.Path, help="where the plots go")
    arguments = parser.parse_args()
    try:
        report = json.loads(arguments.report.read_text())
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"plot.py: {arguments.report}: {error}")

    figures = {
        "ema_vs_precise_error.png": draw_figure(
            report, "error_percent",
            title="At large batches EMA statistics hide what the network already knows",
            unit="validation error, %", limits=(0.3, 100), ticks=[0.5, 1, 2, 5, 10, 20, 50, 100]),
        "ema_vs_precise_drift.png": draw_figure(
            report, "drift",
            title="Before the rate falls the EMA's means are off, most of all at batch 600",
            unit="drift: rms of (mean − full mean) / full σ", limits=(1e-5, 1), ticks=[1e-4, 1e-3, 1e-2, 1e-1, 1]),
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        file = arguments.folder / name
        figure.savefig(file, dpi=160)
        print(file)


if __name__ == "__main__":
    main()
