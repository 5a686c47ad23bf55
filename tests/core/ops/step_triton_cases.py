"""The step kernel against the plain implementation: ``TRITON_INTERPRET=1 python THIS cpu``.

Triton decides when it is imported whether it interprets, so this is a program of its own.
"""

import sys

import torch

import tr_det.core
from tr_det.core import build_quantizer
from tr_det.core.ops import Grid, LayerStep, SGDOptions, fixed_grid_codes
from tr_det.core.ops.step_triton import BLOCK, StepKernel
from tr_det.core.optim import fused, scheduled

SHAPES = ((1,), (7, 3), (BLOCK,), (BLOCK + 1,), (4, 3, 5, 6), (3, 2000))
BITS = (2, 1, 4, 8, 3, 1)


def layers(device, seed):
    """Return layers with weights on the bounds, on transition points and anywhere."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape, bits in zip(SHAPES, BITS, strict=True):
        grid, scale = Grid.of(bits, True), torch.tensor(0.7)
        weight = torch.randn(shape, generator=generator)
        flat = weight.view(-1)
        points = torch.arange(grid.alpha - 1, grid.beta + 2) + 0.5
        count = min(len(flat), len(points))
        flat[:count] = points[:count] * (0.7 / grid.gamma)
        if len(shape) == 4:
            weight = weight.to(memory_format=torch.channels_last)
        codes = fixed_grid_codes(weight, scale, grid)
        tensors = [
            torch.empty_like(weight).copy_(torch.randn(shape, generator=generator))
            for _ in range(2)
        ]
        made.append(
            LayerStep(
                weight.to(device),
                tensors[0].to(device),
                tensors[1].to(device),
                codes.to(device),
                scale.to(device),
                grid,
            )
        )
    return made


def torch_step(layer, rate, options):
    """Make torch's step on the layer's own tensors."""
    parameter = torch.nn.Parameter(layer.weight)
    optimizer = torch.optim.SGD([parameter], lr=rate, foreach=False, **vars(options))
    parameter.grad = layer.direction
    if options.momentum:
        optimizer.state[parameter]["momentum_buffer"] = layer.buffer
    optimizer.step()


def compare(ours, theirs, rates, expected):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.weight.cpu(), b.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(a.buffer.cpu(), b.buffer, rtol=1e-6, atol=1e-7)
        # the codes are exactly those of the weight that the kernel wrote
        assert torch.equal(a.codes.cpu(), fixed_grid_codes(a.weight, a.scale, a.grid).cpu())
    shares = [n / layer.weight.numel() for n, layer in zip(expected, ours, strict=True)]
    torch.testing.assert_close(rates.cpu(), torch.tensor(shares), rtol=1e-6, atol=0)


def optimizers(device):
    """Whole runs with the kernel and without: equal codes, rates and controllers."""
    for name, options in (
        ("SGDT", {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
        ("SGDT", {}),
        ("AdamT", {"weight_decay": 1e-2}),
        ("AdamWT", {"weight_decay": 0.1}),
        ("AdamWT", {"weight_decay": 0.1, "tr_decay": "lr"}),
    ):
        runs = []
        for use_kernel in (False, True):
            fused._runs_on = lambda weight, use=use_kernel: use
            scheduled.is_on_host = lambda tensor, use=use_kernel: not use
            groups = []
            for layer, start in enumerate(layers(device, 3)):
                quantizer = build_quantizer("fixed_grid", BITS[layer], True, learn_scale=False)
                parameter = torch.nn.Parameter(start.weight)
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
            launched = bool(optimizer._fused._kernels)
            assert launched == use_kernel
        (metrics, weights, codes), (fused_metrics, fused_weights, fused_codes) = runs
        torch.testing.assert_close(metrics, fused_metrics, rtol=1e-4, atol=1e-6)
        for a, b in zip(weights, fused_weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert all(map(torch.equal, codes, fused_codes))


def schedules_and_versions(device):
    """A momentum that changes makes no new tables; autograd sees that weights have changed."""
    fused._runs_on = lambda weight: True
    scheduled.is_on_host = lambda tensor: False
    parameter = torch.nn.Parameter(torch.randn(40, device=device))
    quantizer = build_quantizer("fixed_grid", 4, True, learn_scale=False).to(device)
    group = {"params": [parameter], "name": "w", "quantizer": quantizer}
    optimizer = tr_det.core.SGDT([group], lr=0.1, total_steps=9, momentum=0.5)
    for step in range(5):
        group = optimizer.param_groups[0]
        group["momentum"] = 0.5 + 0.05 * step
        parameter.grad = torch.ones(40, device=device)
        before = parameter._version
        optimizer.step()
        assert parameter._version > before
    assert len(optimizer._fused._kernels) == 1


def main(device):
    optimizers(device)
    schedules_and_versions(device)
    talr = torch.tensor([0.0, 0.1, 0.5, 0.01, 1.0, 0.3])
    kernel = StepKernel()
    for seed, options in enumerate(
        (
            SGDOptions(0.9, 0.0, 1e-2, nesterov=False, maximize=False),
            SGDOptions(0.9, 0.0, 1e-2, nesterov=True, maximize=True),
            SGDOptions(0.5, 0.5, 0.0, nesterov=False, maximize=False),
            SGDOptions(0.0, 0.0, 1e-1, nesterov=False, maximize=False),
        )
    ):
        ours, theirs = layers(device, seed), layers("cpu", seed)
        before = [layer.codes.clone() for layer in ours]
        rates = kernel(ours, talr.to(device), sgd=options)
        for layer, rate in zip(theirs, talr, strict=True):
            torch_step(layer, rate.item(), options)
        expected = [int((a.codes != b).sum()) for a, b in zip(ours, before, strict=True)]
        assert sum(expected) > 100
        compare(ours, theirs, rates, expected)
        assert ours[0].weight.cpu() == theirs[0].weight
    keep = torch.tensor([1.0, 0.9, 0.5, 1.0, 0.99, 0.0])
    ours, theirs = layers(device, 9), layers("cpu", 9)
    before = [layer.codes.clone() for layer in ours]
    rates = kernel(ours, talr.to(device), keep=keep.to(device))
    for layer, rate, kept in zip(theirs, talr, keep, strict=True):
        layer.weight.mul_(kept).addcmul_(layer.direction, rate)
    compare(
        ours, theirs, rates, [int((a.codes != b).sum()) for a, b in zip(ours, before, strict=True)]
    )


if __name__ == "__main__":
    main(sys.argv[1])
