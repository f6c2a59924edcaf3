#!/usr/bin/env python3
"""PyTorch's batch_norm on the layers of shapes.tsv, in Google Benchmark's JSON, beside popnorm_bench_cuda's.

  bench/cuda/pytorch.py shapes.tsv OUT.json [NETWORK]

Ends with 77 where there is no torch with CUDA. Outputs are allocated by PyTorch, whose cache makes that cheap.
"""
import csv
import json
import statistics
import sys

ROUNDS, RUNS = 7, 10


def times(torch, run, flush):
    """Median milliseconds of runs with a cold L2 cache, per round."""
    result = []
    for _ in range(ROUNDS):
        events = []
        for _ in range(RUNS):
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        result.append(statistics.median(begin.elapsed_time(end) for begin, end in events))
    return statistics.median(result)


def main():
    try:
        import torch
    except ImportError:
        print("SKIP pytorch: no torch", file=sys.stderr)
        return 77
    if not torch.cuda.is_available():
        print("SKIP pytorch: torch without a CUDA device", file=sys.stderr)
        return 77
    network = sys.argv[3] if len(sys.argv) > 3 else "resnet_50"
    flush = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.uint8, device="cuda")
    rows = []
    with open(sys.argv[1]) as file:
        layers = [row for row in csv.reader(file, delimiter="\t")][1:]
    for n, c, h, w, name, _ in layers:
        if name != network:
            continue
        for storage, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            for layout, memory in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
                x = torch.randn(int(n), int(c), int(h), int(w), device="cuda", dtype=dtype).to(memory_format=memory)
                dy = torch.randn_like(x)
                norm = torch.nn.BatchNorm2d(int(c)).cuda()
                x.requires_grad_(True)
                y = norm(x)
                runs = {
                    "forward_training": lambda: norm(x.detach()),
                    "backward": lambda: torch.autograd.grad(y, (x, norm.weight, norm.bias), dy, retain_graph=True),
                    "forward_inference": lambda: torch.nn.functional.batch_norm(
                        x.detach(), norm.running_mean, norm.running_var, norm.weight, norm.bias),
                }
                for operation, run in runs.items():
                    run()
                    torch.cuda.synchronize()
                    rows.append({"name": f"{operation}/{layout}/{storage}/{name}/{n}x{c}x{h}x{w}/cold/pytorch",
                                 "real_time": 1e3 * times(torch, run, flush), "time_unit": "us"})
    with open(sys.argv[2], "w") as file:
        json.dump({"context": {"device": torch.cuda.get_device_name(0), "torch": torch.__version__,
                               "cudnn": torch.backends.cudnn.version()}, "benchmarks": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
