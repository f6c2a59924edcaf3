#!/usr/bin/python3
"""PyTorch's batch normalization and popnorm's, in turn, in one process.

  bench/peers/pytorch.py LIBPOPNORM [--layers FILE] [--network NAME] [--threads N] [--seconds S] [--out JSON]

Rows are those of popnorm_bench, f32; both write into memory that has been written before: PyTorch's outputs, which it allocates, come
from a heap that never shrinks. Outputs are compared before anything is timed. Ends with 77 where there is no torch.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import statistics
import sys
import time

# Read by the C library when the process starts.
HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 62), "MALLOC_TOP_PAD_": str(1 << 30)}
EPSILON = 1e-5

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))


class Row:
    """An operation on a layer, by both; `outputs` are what each has written."""

    def __init__(self, torch, api, library, operation, layout, n, c, h, w):
        memory = torch.contiguous_format if layout == "NCHW" else torch.channels_last
        tensor = lambda: torch.randn(n, c, h, w).to(memory_format=memory)
        x, dy, ours = tensor(), tensor(), torch.empty_like(tensor())
        scale, shift, mean, invstd = torch.rand(c) + 0.5, torch.randn(c), torch.empty(c), torch.empty(c)
        dscale, dshift = torch.empty(c), torch.empty(c)
        given_mean, given_variance = torch.randn(c), torch.rand(c) + 0.5
        plan = api.Plan(library, n=n, c=c, s=h * w, layout=api.NCHW if layout == "NCHW" else api.NHWC, epsilon=EPSILON)
        forward = plan.prepared(library.popnorm_forward, api.Forward(), x=x, y=ours, scale=scale, shift=shift,
                                saved_mean=mean, saved_invstd=invstd)
        forward()
        if operation == "forward_training":
            self.popnorm = forward
            self.pytorch = lambda: torch.native_batch_norm(x, scale, shift, None, None, True, 0, EPSILON)
        elif operation == "forward_inference":
            source = api.Source(statistics=api.GIVEN, mean=given_mean.data_ptr(), variance=given_variance.data_ptr())
            self.popnorm = plan.prepared(library.popnorm_forward, api.Forward(source=source), x=x, y=ours, scale=scale,
                                         shift=shift)
            self.pytorch = lambda: torch.native_batch_norm(x, scale, shift, given_mean, given_variance, False, 0, EPSILON)
        else:
            self.popnorm = plan.prepared(library.popnorm_backward, api.Backward(), x=x, dy=dy, dx=ours, dscale=dscale,
                                         dshift=dshift)
            self.pytorch = lambda: torch.ops.aten.native_batch_norm_backward(
                dy, x, scale, None, None, mean, invstd, True, EPSILON, [True, True, True])
        self.given = given_mean, given_variance  # of which popnorm has the addresses
        self.popnorm()
        theirs = self.pytorch()[0]
        self.distance = ((ours - theirs).abs() / (1 + ours.abs())).max().item()


def measured(row, seconds, rounds=7, limit=25, block=0.015):
    """Seconds of both in each round, taken in random order: idle, runs that are discarded, the median of those that fill a block.

    After that idle threads and clocks take milliseconds to be up again."""
    times = {"popnorm": [], "pytorch": []}
    order, begin = list(times), time.perf_counter()

    def once(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    for done in range(limit):
        if done >= rounds and time.perf_counter() - begin > seconds:
            break
        random.shuffle(order)
        for name in order:
            time.sleep(0.04)  # OpenMP's workers wait actively for up to a dozen milliseconds
            run = getattr(row, name)
            start = time.perf_counter()
            once(run)
            while time.perf_counter() - start < block:
                once(run)
            taken = []
            while not taken or sum(taken) < block:
                taken.append(once(run))
            times[name].append(statistics.median(taken))
    return times


def interval(ratios, resamples=2000):
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(resamples))
    return medians[resamples // 40], medians[-1 - resamples // 40]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--layers", default=str(pathlib.Path(__file__).resolve().parents[1] / "shapes.tsv"))
    parser.add_argument("--network", help="all, unless said")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=1.5, help="per row")
    parser.add_argument("--out")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in HEAP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HEAP})
    # Both take as many threads as there are processors to run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    try:
        import torch
    except ImportError as error:
        print(f"SKIP pytorch: {error}")
        return 77
    import popnorm_ctypes as api

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    random.seed(1)
    library = api.load(options.library)
    with open(options.layers) as file:
        layers = [row for row in csv.reader(file, delimiter="\t")][1:]
    rows, disagreed = [], 0
    print(f"PyTorch {torch.__version__}, {options.threads} threads: its time over popnorm's")
    for n, c, h, w, network, _ in layers:
        if options.network not in (None, network):
            continue
        for operation in ("forward_training", "backward", "forward_inference"):
            for layout in ("NCHW", "NHWC"):
                name = f"{operation}/{layout}/{network}/{n}x{c}x{h}x{w}"
                row = Row(torch, api, library, operation, layout, int(n), int(c), int(h), int(w))
                if not row.distance <= 2e-3:  # NaN too
                    disagreed += 1
                    print(f"{name:56} disagrees by {row.distance:.2g}")
                    continue
                times = measured(row, options.seconds)
                ratios = [theirs / ours for theirs, ours in zip(times["pytorch"], times["popnorm"])]
                low, high = interval(ratios)
                ratio = statistics.median(ratios)
                rows.append({"name": name, "op": operation, "layout": layout, "network": network,
                             "pytorch_ms": 1e3 * statistics.median(times["pytorch"]),
                             "popnorm_ms": 1e3 * statistics.median(times["popnorm"]), "pytorch_ratio": ratio,
                             "ci95": [low, high]})
                print(f"{name:56} {ratio:6.2f}x [{low:.2f}, {high:.2f}]", flush=True)
    for operation in ("forward_training", "backward", "forward_inference"):
        for layout in ("NCHW", "NHWC"):
            of = [row["pytorch_ratio"] for row in rows if (row["op"], row["layout"]) == (operation, layout)]
            if of:
                print(f"{operation} {layout}: {statistics.geometric_mean(of):.2f}x, worst {min(of):.2f}x, {len(of)} rows")
    if options.out:
        setup = {"pytorch_version": torch.__version__, "popnorm_version": library.popnorm_version(),
                 "threads": options.threads}
        with open(options.out, "w") as file:
            json.dump({"setup": setup, "rows": rows}, file, indent=1)
            file.write("\n")
    return 1 if disagreed else 0


if __name__ == "__main__":
    sys.exit(main())
