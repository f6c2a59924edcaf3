#!/usr/bin/python3
"""Draws the findings of a report that the digits program wrote, as one page of plots."""

import argparse
import json
import math
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK = "#333333"
FAINT = "#7a7a7a"
GRID = "#e6e6e6"
BLUE = "#1f5f99"
RED = "#c8502d"
AMBER = "#dd9c33"
GREEN = "#3f8f6b"

# What the figures of one colour have in common, in all panels: what BN is normalized by.
POPULATION = BLUE
MINI_BATCH = AMBER
OTHERS_MINI_BATCH = GREEN
WRONG_POPULATION = RED

plt.rcParams.update({
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#bbbbbb",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
})


def power(value):
    return f"$10^{{{round(math.log10(value))}}}$"


def log_scale(axes, which, ticks, text="{:g}".format):
    """A logarithmic axis ("x" or "y") with these ticks only."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_tick_params(length=0)
    axis.grid(color=GRID, lw=0.7)


def means(rows, column):
    return [row[column]["mean"] for row in rows]


def draw_lines(axes, positions, rows, series):
    """A line of means and dots for the seeds per (column, name, colour)."""
    for column, name, color in series:
        for position, row in zip(positions, rows):
            values = row[column]["values"]
            axes.plot([position] * len(values), values, ls="", marker="o", ms=3.5, mew=0, color=color, alpha=0.45)
        axes.plot(positions, means(rows, column), color=color, lw=2.2, label=name)


def draw_bars(axes, rows, names, series):
    """For every row a bar of the mean and dots for the seeds per (column, name, colour or one for each row)."""
    thickness = 0.8 / len(series)
    for i, (column, name, color) in enumerate(series):
        places = [row + (i - (len(series) - 1) / 2) * thickness for row in range(len(rows))]
        axes.barh(places, means(rows, column), thickness * 0.88, color=color, label=name)
        for place, row in zip(places, rows):
            values = row[column]["values"]
            axes.plot(values, [place] * len(values), ls="", marker="o", ms=3, mew=0, color=INK, alpha=0.6)
            axes.annotate(f"{row[column]['mean']:.1f}", (max(values), place), xytext=(5, 0), textcoords="offset points",
                          va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("validation error, %")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.15, -0.14), ncols=3, handlelength=1, columnspacing=1.4)


def draw_schedule(axes, recipe):
    """Warm-up as a tint, decays of the learning rate as dotted lines."""
    axes.axvspan(1, recipe["warmup"], color="#f1efe9", lw=0)
    text = {"transform": axes.get_xaxis_transform(), "fontsize": 7.5, "color": FAINT}
    axes.text((1 + recipe["warmup"]) / 2, 0.02, "warm-up", rotation=90, ha="center", va="bottom", **text)
    for decay in recipe["decays"]:
        axes.axvline(decay + 0.5, color=FAINT, lw=0.8, ls=(0, (1, 2.5)))
        axes.text(decay + 0.5, 0.985, " rate ÷ 10", ha="left", va="top", **text)


def draw_curves(axes, training):
    """Validation error after every epoch: thin lines for seeds, a bold one for their mean. Returns what was trained."""
    lowest = 0.3
    recipe = training["recipe"]
    epochs = range(1, recipe["epochs"] + 1)
    for key, name, color in (("ema", f"EMA, momentum {recipe['ema_momentum']:g}", WRONG_POPULATION),
                             ("precise", "PreciseBN", POPULATION)):
        runs = [[max(error, lowest) for error in run[key]["error_percent"]] for run in training["runs"]]
        for run in runs:
            axes.plot(epochs, run, color=color, lw=0.8, alpha=0.35)
        axes.plot(epochs, [statistics.fmean(errors) for errors in zip(*runs)], color=color, lw=2.2, label=name)
    log_scale(axes, "y", [0.5, 1, 2, 5, 10, 20, 50, 100])
    axes.set(xlim=(1, recipe["epochs"]), ylim=(lowest, 100), xlabel="epoch", ylabel="validation error, %")
    axes.tick_params(length=0)
    draw_schedule(axes, recipe)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    steps = -(-recipe["samples"] // recipe["batch"])
    return f"batch {recipe['batch']}, {steps} updates an epoch; thin: each seed"


def draw_ema_small(axes, finding):
    return "Small batches: the EMA follows the weights", draw_curves(axes, finding["curves"][0])


def draw_ema_large(axes, finding):
    return "Large batches: the EMA lags behind them", draw_curves(axes, finding["curves"][-1])


def draw_nbs(axes, finding):
    rows = finding["rows"]
    sizes = [row["settings"]["nbs"] for row in rows]
    draw_lines(axes, sizes, rows, [
        ("mini_batch_error_percent", "validation, mini-batch", MINI_BATCH),
        ("population_error_percent", "validation, population", POPULATION),
        ("train_mini_batch_error_percent", "training set, mini-batch", FAINT),
    ])
    log_scale(axes, "x", sizes)
    axes.set(ylim=(0, None), xlabel="normalization batch size", ylabel="error, %")
    axes.tick_params(length=0)
    axes.grid(axis="y", color=GRID, lw=0.7)
    axes.legend(loc="upper right", title="samples, statistics in inference", alignment="left")
    return ("The fewer are normalized together, the more noise",
            f"{finding['recipes'][0]['batch']} samples in every step of SGD")


def draw_scenes(axes, finding):
    rows = finding["rows"]
    draw_bars(axes, rows, [row["name"] for row in rows], [
        ("population_error_percent", "population", POPULATION),
        ("mini_batch_error_percent", "mini-batch: a scene", MINI_BATCH),
        ("random_mini_batch_error_percent", "mini-batch: 16 at random", OTHERS_MINI_BATCH),
    ])
    return ("Correlated batches: population statistics fail",
            f"groups in training (a scene: {finding['images_in_a_scene']} images under one light), "
            "statistics in inference")


def draw_leakage(axes, finding):
    rows = finding["rows"]
    draw_bars(axes, rows, [row["name"] for row in rows], [
        ("population_error_percent", "population", POPULATION),
        ("one_class_mini_batch_error_percent", "mini-batch: one class", MINI_BATCH),
        ("random_mini_batch_error_percent", "mini-batch: 16 at random", OTHERS_MINI_BATCH),
    ])
    return ("Leakage: groups of one class give it away",
            "groups in training, statistics in inference")


def draw_domain_shift(axes, finding):
    rows = finding["rows"]
    draw_bars(axes, rows, [row["name"] for row in rows], [
        ("training_statistics_error_percent", "population of the training set", WRONG_POPULATION),
        ("target_statistics_error_percent", f"of {finding['target_images']} images of the domain", POPULATION),
    ])
    return ("Domain shift: new statistics undo a change of contrast",
            "weights trained on clean images; noise is hardly undone, an inversion not at all")


def draw_domain_specific(axes, finding):
    rows = finding["rows"]
    names = ["{sgd} / {population} / {affine}".format(**row["settings"]) for row in rows]
    for name, color in (("SGD and population agree", POPULATION), ("they do not", WRONG_POPULATION)):
        axes.barh(0, 0, color=color, label=name)
    colors = [POPULATION if row["settings"]["consistent"] else WRONG_POPULATION for row in rows]
    draw_bars(axes, rows, names, [("error_percent", None, colors)])
    return ("Two domains: SGD and population have to agree",
            "shared or domain-specific: SGD batches / population / affine")


ESTIMATORS = [
    ("pooled_relative_error", "pooled moments (popnorm)", POPULATION),
    ("mean_of_variances_relative_error", "mean of batch variances", MINI_BATCH),
    ("textbook_relative_error", "E[μ² + σ²] − μ², float", WRONG_POPULATION),
]


def draw_estimators(axes, rows, positions, xlabel, legend):
    draw_lines(axes, positions, rows, ESTIMATORS)
    log_scale(axes, "x", positions)
    log_scale(axes, "y", [1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1, 1e3], power)
    axes.set(ylim=(1e-16, 1e4), xlabel=xlabel, ylabel="relative error")
    axes.legend(loc=legend)


def draw_estimators_over_batch(axes, finding):
    rows = [row for row in finding["rows"] if "mean_over_std" not in row["settings"]]
    draw_estimators(axes, rows, [row["settings"]["batch"] for row in rows], "images a batch", "upper right")
    return ("Averaged variances miss what lies between batches",
            "variance of a trained layer's inputs, against the exact one")


def draw_estimators_over_mean(axes, finding):
    rows = [row for row in finding["rows"] if row["settings"]["values"] == "normal"]
    draw_estimators(axes, rows, [row["settings"]["mean_over_std"] for row in rows], "mean / standard deviation",
                    "upper left")
    return ("A difference of squares cancels, pooled moments do not",
            "variance of normal values, against the exact one")


# Inches: the place of a panel on the page, what surrounds its axes, and the page's edge.
WIDTH, HEIGHT = 6.0, 4.5
BESIDE_LINES, BESIDE_BARS, RIGHT, ABOVE, BELOW = 0.75, 1.9, 0.3, 0.8, 0.8
EDGE, HEADER, FOOTER = 0.25, 0.6, 0.45

# A finding, what draws it and returns a title and a line below it, and the room for the ticks of its y axis.
PANELS = [
    ("ema_vs_precise", draw_ema_small, BESIDE_LINES),
    ("ema_vs_precise", draw_ema_large, BESIDE_LINES),
    ("nbs", draw_nbs, BESIDE_LINES),
    ("scenes", draw_scenes, BESIDE_BARS),
    ("leakage", draw_leakage, BESIDE_BARS),
    ("domain_shift", draw_domain_shift, BESIDE_BARS),
    ("domain_specific", draw_domain_specific, BESIDE_BARS),
    ("estimators", draw_estimators_over_batch, BESIDE_LINES),
    ("estimators", draw_estimators_over_mean, BESIDE_LINES),
]


def draw_page(report):
    panels = [panel for panel in PANELS if panel[0] in report]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = columns * WIDTH + EDGE, rows * HEIGHT + HEADER + FOOTER
    figure = plt.figure(figsize=(width, height))

    def write(left, bottom, text, **how):
        figure.text(left / width, bottom / height, text, **how)

    for i, (finding, draw, beside) in enumerate(panels):
        left, bottom = EDGE + i % columns * WIDTH, FOOTER + (rows - 1 - i // columns) * HEIGHT
        axes = figure.add_axes([(left + beside) / width, (bottom + BELOW) / height,
                                (WIDTH - beside - RIGHT) / width, (HEIGHT - ABOVE - BELOW) / height])
        title, detail = draw(axes, report[finding])
        write(left, bottom + HEIGHT - ABOVE + 0.37, title, fontsize=12, fontweight="bold")
        write(left, bottom + HEIGHT - ABOVE + 0.15, detail, fontsize=9, color=FAINT)

    seeds = len(report["seeds"])
    spread = f"lines and bars are means of {seeds} seeds, dots each seed" if seeds > 1 else "one seed"
    quick = "a quick run, short trainings; " if report["quick"] else ""
    write(EDGE, height - EDGE,
          "What is the batch? The findings of “Rethinking ‘Batch’ in BatchNorm” on handwritten digits",
          va="top", fontsize=17, fontweight="bold")
    write(EDGE, EDGE, f"A ConvNet of five BN layers, {report['samples']} digits of 8×8 pixels; {quick}{spread}. "
          f"popnorm {report['popnorm']['version']}, {report['popnorm']['isa']}.", fontsize=9, color=FAINT)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=pathlib.Path, help="report.json of the digits program")
    parser.add_argument("page", type=pathlib.Path, help="the PNG to write")
    arguments = parser.parse_args()
    try:
        report = json.loads(arguments.report.read_text())
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"plot.py: {arguments.report}: {error}")
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    draw_page(report).savefig(arguments.page, dpi=110)


if __name__ == "__main__":
    main()
