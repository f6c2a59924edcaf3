#!/usr/bin/env python3
"""popnorm against PyTorch: what users of its layers expect, forward, backward and backward of backward.

PyTorch runs in f64 on the values that popnorm is given in f32 or f64. Exits with 77, a skip, where there is no PyTorch;
that the structures below are those of the library is checked before.
"""

import argparse
import ctypes
import pathlib
import sys

try:
    import torch
    from torch.nn import functional as F
except ImportError as error:
    torch, missing = None, error

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
from popnorm_ctypes import (CONTIGUOUS, F32, F64, GIVEN, IDENTITY, LEAKY_RELU, NCHW, NHWC, PER_SAMPLE, POINTER, RELU, WHOLE,
                            Backward, DoubleBackward, Forward, Map, Plan, PlanInfo, Problem, Source, Update, load)

EPSILON, MOMENTUM, SLOPE = 1e-5, 0.1, 0.2


class Layer:
    """One plan, and what its calls share."""

    def __init__(self, library, shape, layout, dtype, group, activation=IDENTITY, adds_residual=False):
        self.library, self.layout = library, layout
        n, c, s = shape
        storage = F32 if dtype == torch.float32 else F64
        self.plan = Plan(library, n=n, c=c, s=s, layout=layout, storage=storage, parameters=storage, statistics=storage,
                         epsilon=EPSILON, norm_group=group, activation=activation, slope=SLOPE,
                         adds_residual=int(adds_residual))

    def laid_out(self, tensor):
        return (tensor if self.layout == NCHW else tensor.transpose(1, 2)).contiguous()

    def empty(self, tensor):
        return self.laid_out(torch.full_like(tensor, float("nan")))

    def back(self, tensor):
        return tensor if self.layout == NCHW else tensor.transpose(1, 2)

    def call(self, entry, args, **tensors):
        self.plan.prepared(getattr(self.library, entry), args, **tensors)()

    def forward(self, x, scale, shift, source, update, residual=None):
        y = self.empty(x)
        more = {} if residual is None else {"residual": self.laid_out(residual)}
        self.call("popnorm_forward", Forward(source=source, update=update), x=self.laid_out(x), y=y,
                  scale=scale, shift=shift, **more)
        return self.back(y)

    def backward(self, x, dy, scale, adds_residual=False):
        dx, dscale, dshift = self.empty(x), torch.empty_like(scale), torch.empty_like(scale)
        more = {"dresidual": self.empty(x)} if adds_residual else {}
        self.call("popnorm_backward", Backward(), x=self.laid_out(x), dy=self.laid_out(dy), dx=dx,
                  dscale=dscale, dshift=dshift, **more)
        return self.back(dx), dscale, dshift, *(self.back(t) for t in more.values())

    def double_backward(self, x, dy, v, v_scale, v_shift):
        grad_x, grad_dy, grad_scale = self.empty(x), self.empty(x), torch.empty_like(v_scale)
        self.call("popnorm_double_backward", DoubleBackward(), x=self.laid_out(x), dy=self.laid_out(dy),
                  v=self.laid_out(v), v_scale=v_scale, v_shift=v_shift, grad_x=grad_x, grad_dy=grad_dy,
                  grad_scale=grad_scale)
        return self.back(grad_x), self.back(grad_dy), grad_scale


class Comparison:
    """Counts what agrees and reports what does not."""

    def __init__(self):
        self.compared, self.faults = 0, []

    def expect(self, what, got, reference, dtype):
        # Inputs are of the size 1, with means of 3 deviations: a few dozen units of the storage type, in f64 2^11 times
        # as many (docs/numerics.md), of the largest value of a tensor. Accuracy is tested elsewhere; this tests meaning.
        unit = 2.0**-24 if dtype == torch.float32 else 2.0**-42
        error = (got.double() - reference).abs().max().item()
        self.compared += 1
        if not error <= 64 * unit * reference.abs().max().item():
            self.faults.append(f"{what}: off by {error:.3g}, largest value {reference.abs().max().item():.3g}")


def ghost(k):
    """Batch normalization of k samples at a time."""
    return lambda x, w, b: torch.cat([F.batch_norm(part, None, None, w, b, True, 0, EPSILON) for part in x.split(k)])


def compare(library, comparison, shape, layout, dtype):
    n, c, s = shape
    x, dy, v = (torch.randn(shape).to(dtype) + offset for offset in (3, 0.2, 0.1))
    scale, shift, v_scale, v_shift = (torch.randn(c).to(dtype) for _ in range(4))
    mean, variance = 3 + 0.1 * torch.randn(c).to(dtype), 0.5 + torch.rand(c).to(dtype)
    given = Source(statistics=GIVEN, mean=mean.data_ptr(), variance=variance.data_ptr())
    running = [mean.clone(), variance.clone()]
    reference_running = [mean.double(), variance.double()]
    update = Update(running_mean=running[0].data_ptr(), running_variance=running[1].data_ptr(), momentum=MOMENTUM)

    cases = {
        "batch_norm, training": (Map(WHOLE, 0), Source(), update, lambda x, w, b: F.batch_norm(
            x, *reference_running, w, b, True, MOMENTUM, EPSILON)),
        "batch_norm, eval": (Map(WHOLE, 0), given, Update(), lambda x, w, b: F.batch_norm(
            x, mean.double(), variance.double(), w, b, False, 0, EPSILON)),
        "instance_norm": (Map(PER_SAMPLE, 0), Source(), Update(), lambda x, w, b: F.instance_norm(
            x, None, None, w, b, True, 0, EPSILON)),
        "ghost batches of 2": (Map(CONTIGUOUS, 2), Source(), Update(), ghost(2)),
        "ghost batches, the last one smaller": (Map(CONTIGUOUS, n - 2), Source(), Update(), ghost(n - 2)),
    }
    for name, (group, source, fed, normalize) in cases.items():
        inputs = [t.double().requires_grad_() for t in (x, scale, shift)]
        reference_dy = dy.double().requires_grad_()
        reference_y = normalize(*inputs)
        gradients = torch.autograd.grad(reference_y, inputs, reference_dy, create_graph=True)
        product = sum((t.double() * g).sum() for t, g in zip((v, v_scale, v_shift), gradients))
        second = torch.autograd.grad(product, (inputs[0], reference_dy, inputs[1]))

        layer = Layer(library, shape, layout, dtype, group)
        where = f"{name}, {tuple(shape)} {'NCHW' if layout == NCHW else 'NHWC'} {dtype}"
        comparison.expect(f"{where}: y", layer.forward(x, scale, shift, source, fed), reference_y.detach(), dtype)
        for of, got, reference in zip(("dx", "dscale", "dshift"), layer.backward(x, dy, scale), gradients):
            comparison.expect(f"{where}: {of}", got, reference.detach(), dtype)
        for of, got, reference in zip(("grad_x", "grad_dy", "grad_scale"),
                                      layer.double_backward(x, dy, v, v_scale, v_shift), second):
            comparison.expect(f"{where}: {of}", got, reference, dtype)
    compare_fusions(library, comparison, shape, layout, dtype)
    for of, got, reference in zip(("running_mean", "running_variance"), running, reference_running):
        comparison.expect(f"{tuple(shape)} {dtype}: {of}", got, reference, dtype)


def compare_fusions(library, comparison, shape, layout, dtype):
    x, dy, residual = (torch.randn(shape).to(dtype) + offset for offset in (3, 0.2, -0.3))
    scale, shift = (torch.randn(shape[1]).to(dtype) for _ in range(2))
    activations = {
        "identity": (IDENTITY, lambda z: z),
        "relu": (RELU, torch.relu),
        "leaky_relu": (LEAKY_RELU, lambda z: F.leaky_relu(z, SLOPE)),
    }
    for name, (activation, apply) in activations.items():
        for adds_residual in (False, True):
            inputs = [t.double().requires_grad_() for t in (x, scale, shift, residual)]
            z = F.batch_norm(inputs[0], None, None, inputs[1], inputs[2], True, 0, EPSILON)
            reference_y = apply(z + inputs[3] if adds_residual else z)
            gradients = torch.autograd.grad(reference_y, inputs[: 4 if adds_residual else 3], dy.double())
            layer = Layer(library, shape, layout, dtype, Map(WHOLE, 0), activation, adds_residual)
            where = f"{name}{' of a sum' if adds_residual else ''}, {tuple(shape)} layout {layout} {dtype}"
            y = layer.forward(x, scale, shift, Source(), Update(), residual if adds_residual else None)
            comparison.expect(f"{where}: y", y, reference_y.detach(), dtype)
            for of, got, reference in zip(("dx", "dscale", "dshift", "dresidual"),
                                          layer.backward(x, dy, scale, adds_residual), gradients):
                comparison.expect(f"{where}: {of}", got, reference, dtype)


def outdated(library):
    """Structures whose size the library does not take: its own may have grown."""
    plan = POINTER()
    problem = Problem(size=ctypes.sizeof(Problem), n=1, c=1, s=1, epsilon=EPSILON)
    if library.popnorm_plan_create(ctypes.byref(problem), None, ctypes.byref(plan)) != 0:
        return [library.popnorm_last_error().decode()]
    faults = []
    for entry, args in ((library.popnorm_plan_query, PlanInfo()), (library.popnorm_forward, Forward()),
                        (library.popnorm_backward, Backward()), (library.popnorm_double_backward, DoubleBackward())):
        args.size = ctypes.sizeof(args)
        stream = () if isinstance(args, PlanInfo) else (None,)
        if entry(plan, ctypes.byref(args), *stream) != 0 and b"struct" in library.popnorm_last_error():
            faults.append(library.popnorm_last_error().decode())
    library.popnorm_plan_destroy(plan)
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", help="the shared library")
    library = load(parser.parse_args().library)
    if faults := outdated(library):
        sys.exit("\n".join(faults))
    if torch is None:
        print(f"SKIP pytorch: {missing}")
        sys.exit(77)
    torch.manual_seed(20210517)
    comparison = Comparison()
    for shape in ((5, 3, 49), (7, 19, 16), (9, 4, 6), (4, 2, 2000)):
        for layout in (NCHW, NHWC):
            for dtype in (torch.float32, torch.float64):
                compare(library, comparison, shape, layout, dtype)
    print("\n".join(comparison.faults) or f"{comparison.compared} tensors agree with PyTorch {torch.__version__}")
    sys.exit(bool(comparison.faults))


if __name__ == "__main__":
    main()
