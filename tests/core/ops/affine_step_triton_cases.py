"""The step kernel against torch operations, on a device; `test_triton` runs it in a subprocess."""

from dataclasses import replace

import torch

import tr_det.core
from tr_det.core import build_quantizer
from tr_det.core.ops import Affine, affine_codes
from tr_det.core.ops.affine_step import FREE, LayerStep, SGDOptions
from tr_det.core.ops.affine_step_triton import BLOCK, StepKernel
from tr_det.core.optim import device as device_update
from tr_det.core.optim import scheduled

SHAPES = ((1,), (7, 3), (BLOCK,), (BLOCK + 1,), (4, 3, 5, 6), (3, 2000))
BITS = (2, 1, 4, 8, 3, 1)
SIGN = Affine(-1, 0, unit=1.0, mul=2, add=1, sign=True)
EQ13 = tuple(
    SIGN if bits == 1 else Affine(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, divisor=2 ** (bits - 1))
    for bits in BITS
)
EWGS = Affine(-8, 7, divisor=15, unit=1 / 15, mul=2, add=1, base=-8)
MIXED = (
    EQ13[0],
    replace(SIGN, axis=1),
    replace(EWGS, axis=0),
    Affine(0, 255, divisor=255),
    Affine(-4, 3, divisor=3.5, add=0.5, lead=0.5, axis=1),
    replace(EWGS, axis=1),
)


def layers(device, seed, grids=EQ13, hold=False):
    """Return layers with some weights midway between levels or just outside the grid."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape, affine in zip(SHAPES, grids, strict=True):
        sizes = () if affine.axis is None else (shape[affine.axis],)
        scale = torch.full(sizes, 0.7) * (1 + torch.arange(sizes[0]) % 5 if sizes else 1)
        shift = -scale / 2 if affine.base or affine.low == 0 else None
        weight = torch.randn(shape, generator=generator)
        points = torch.arange(affine.bounds[0] - 1, affine.bounds[1] + 2) + 0.5
        flat = weight.view(-1)
        count = min(len(flat), len(points))
        flat[:count] = points[:count] * (0.7 / affine.divisor)
        order = {"memory_format": torch.channels_last} if len(shape) == 4 else {}
        weight = weight.contiguous(**order)
        codes = affine_codes(weight, scale, shift, affine)
        direction, buffer = (
            torch.randn(shape, generator=generator).contiguous(**order) for _ in range(2)
        )
        free = (torch.rand(shape, generator=generator) < 0.7).contiguous(**order)
        held = torch.where(free, FREE, codes.view(torch.int8)) if hold and len(shape) > 1 else None
        tensors = (weight, direction, buffer, codes, scale, shift, held)
        tensors = [t if t is None else t.to(device) for t in tensors]
        made.append(LayerStep(*tensors[:4], affine, *tensors[4:]))
    return made


def torch_step(layer, lr, options):
    """Take a step of torch's SGD on the layer's own tensors."""
    parameter = torch.nn.Parameter(layer.weight)
    optimizer = torch.optim.SGD([parameter], lr=lr, foreach=False, **vars(options))
    parameter.grad = layer.direction
    if options.momentum:
        optimizer.state[parameter]["momentum_buffer"] = layer.buffer
    optimizer.step()


def compare(ours, theirs, before, counts):
    stopped = 0
    for a, b, old in zip(ours, theirs, before, strict=True):
        torch.testing.assert_close(a.weight.cpu(), b.weight, rtol=1e-6, atol=5e-7)
        torch.testing.assert_close(a.buffer.cpu(), b.buffer, rtol=1e-6, atol=5e-7)
        # the codes are exactly those of the weight that the kernel wrote, or those held
        expected = affine_codes(a.weight, a.scale, a.shift, a.affine)
        kept = torch.zeros_like(old, dtype=torch.bool) if a.held is None else a.held != FREE
        assert torch.equal(a.codes, torch.where(kept, old, expected))
        stopped += int((expected != a.codes).sum())
    changed = [int((a.codes != old).sum()) for a, old in zip(ours, before, strict=True)]
    assert counts.dtype == torch.int32
    assert counts.tolist() == changed
    assert sum(changed) > 100
    assert (stopped > 100) == any(a.held is not None for a in ours)


def optimizers(device):
    """With and without the kernel: equal codes; rates, TALRs and weights equal to rounding."""
    for name, options in (
        ("SGDT", {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
        ("SGDT", {}),
        ("AdamT", {"weight_decay": 1e-2}),
        ("AdamWT", {"weight_decay": 0.1}),
        ("AdamWT", {"weight_decay": 0.1, "tr_decay": "lr"}),
    ):
        runs = []
        for use_kernel in (False, True):
            device_update.runs_on = lambda weight, use=use_kernel: use
            scheduled.is_on_host = lambda tensor, use=use_kernel: not use
            groups = []
            for layer, start in enumerate(layers(device, 3)):
                quantizer = build_quantizer("fixed_grid", BITS[layer], True, learn_scale=False)
                parameter = torch.nn.Parameter(start.weight)
                quantizer.calibrate(parameter)
                groups.append({"params": [parameter], "name": str(layer), "quantizer": quantizer})
                quantizer.to(device)
            optimizer = getattr(tr_det.core, name)(
                groups, lr=0.05, total_steps=9, tr_factor=0.1, tr_momentum=0.5, **options
            )
            metrics = []
            for step in range(3):
                for group, layer in zip(groups, layers("cpu", 10 + step), strict=True):
                    grad = torch.empty_like(group["params"][0])
                    group["params"][0].grad = grad.copy_(layer.weight)
                optimizer.step()
                shown = optimizer.transition_metrics()
                metrics.append(torch.stack([shown.rate, shown.running, shown.talr]).cpu())
            runs.append(
                (
                    torch.stack(metrics),
                    [group["params"][0].detach().cpu() for group in groups],
                    [g["quantizer"].codes(g["params"][0]).cpu() for g in groups],
                )
            )
            launched = bool(getattr(optimizer._weight_update, "_kernels", None))
            assert launched == use_kernel
        (metrics, weights, codes), (fused_metrics, fused_weights, fused_codes) = runs
        torch.testing.assert_close(metrics, fused_metrics, rtol=1e-4, atol=1e-6)
        for a, b in zip(weights, fused_weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert all(map(torch.equal, codes, fused_codes))


def schedules_and_versions(device):
    """Changing the momentum reuses the cached kernel; each step bumps the weight's version."""
    device_update.runs_on = lambda weight: True
    scheduled.is_on_host = lambda tensor: False
    parameter = torch.nn.Parameter(torch.randn(40, device=device))
    quantizer = build_quantizer("fixed_grid", 4, True, learn_scale=False).to(device)
    quantizer.calibrate(parameter)
    group = {"params": [parameter], "name": "w", "quantizer": quantizer}
    optimizer = tr_det.core.SGDT([group], lr=0.1, total_steps=9, momentum=0.5)
    for step in range(5):
        group = optimizer.param_groups[0]
        group["momentum"] = 0.5 + 0.05 * step
        parameter.grad = torch.ones(40, device=device)
        before = parameter._version
        optimizer.step()
        assert parameter._version > before
    assert len(optimizer._weight_update._kernels) == 1


def main(device):
    optimizers(device)
    schedules_and_versions(device)
    talr = torch.tensor([0.0, 0.1, 0.5, 0.01, 1.0, 0.3])
    kernel = StepKernel()
    for seed, (grids, hold, options) in enumerate(
        (
            (EQ13, False, SGDOptions(0.9, 0.0, 1e-2, nesterov=False, maximize=False)),
            (EQ13, True, SGDOptions(0.9, 0.0, 1e-2, nesterov=True, maximize=True)),
            (MIXED, False, SGDOptions(0.5, 0.5, 0.0, nesterov=False, maximize=False)),
            (MIXED, True, SGDOptions(0.0, 0.0, 1e-1, nesterov=False, maximize=False)),
        )
    ):
        ours, theirs = layers(device, seed, grids, hold), layers("cpu", seed, grids, hold)
        before = [layer.codes.clone() for layer in ours]
        counts = kernel(ours, talr.to(device), sgd=options)
        for layer, rate in zip(theirs, talr, strict=True):
            torch_step(layer, rate.item(), options)
        compare(ours, theirs, before, counts)
        assert ours[0].weight.cpu() == theirs[0].weight
    keep = torch.tensor([1.0, 0.9, 0.5, 1.0, 0.99, 0.0])
    ours, theirs = layers(device, 9, MIXED), layers("cpu", 9, MIXED)
    before = [layer.codes.clone() for layer in ours]
    counts = kernel(ours, talr.to(device), keep=keep.to(device))
    for layer, rate, kept in zip(theirs, talr, keep, strict=True):
        layer.weight.mul_(kept).addcmul_(layer.direction, rate)
    compare(ours, theirs, before, counts)
