"""The Triton kernels against NumPy, on a device: ``python triton_cases.py cpu`` interprets them.

Triton decides when it is imported whether it interprets, so this is a program of its own.
"""

import importlib.util
import math
import sys
from pathlib import Path

import torch

from tr_det.core.ops import Grid
from tr_det.core.ops.fixed_grid_triton import BLOCK, gradients_triton, quantize_triton

_SPEC = importlib.util.spec_from_file_location("eq13", Path(__file__).with_name("eq13.py"))
eq13 = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(eq13)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (0, 3), (1,), (BLOCK,), (BLOCK + 1,), (3, 4, 5, 6))


def run(x, scale, bits, signed, upstream):
    grid, scale = Grid.of(bits, signed), torch.tensor(scale, device=x.device)
    grad_x, grad_scale = gradients_triton(upstream, x, scale, grid, True)
    alone, nothing = gradients_triton(upstream, x, scale, grid, False)
    assert torch.equal(grad_x.nan_to_num(), alone.nan_to_num())
    assert nothing is None
    return quantize_triton(x, scale, grid), grad_x, grad_scale


def case(shape, dtype, bits, signed, device):
    x = eq13.sample(shape, dtype, 0.7, bits, signed, seed=bits)
    if device == "cpu" and dtype == torch.bfloat16:
        # Triton's interpreter, not its compiler, widens subnormal bfloat16 to zero.
        x = torch.where(x.abs() < 1e-37, 0.0, x)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = eq13.Expected.of(x, 0.7, upstream, bits, signed)
    pairs = [(x, upstream)]
    if x.ndim == 4 and dtype == torch.float32:
        upstreams = eq13.layouts(upstream).values()
        pairs = [(view, grad) for view in eq13.layouts(x).values() for grad in upstreams]
    for view, grad in pairs:
        view, grad = (torch.empty_like(t, device=device).copy_(t) for t in (view, grad))
        eq13.check(run(view, 0.7, bits, signed, grad), view, expected)


def odd_values(bits, signed, device):
    grad = torch.ones(3, device=device)
    x = torch.tensor([0.1, math.nan, 0.2], device=device)
    out, _, grad_scale = run(x, 0.5, bits, signed, grad)
    assert out.isnan().tolist() == [False, True, False]
    assert grad_scale.isnan()
    _, grad_x, _ = run(x, math.nan, bits, signed, grad)
    assert grad_x.isnan().all()
    tiny = torch.tensor([-1.0, 0.0, 1e-9], device=device)  # the scale has a floor of 1e-8
    out, grad_x, _ = run(tiny, 0.0, bits, signed, grad)
    at_floor, grads_at_floor, _ = run(tiny, 1e-8, bits, signed, grad)
    assert torch.equal(out, at_floor)
    assert torch.equal(grad_x, grads_at_floor)


def main(device):
    for bits, signed in eq13.GRIDS:
        for dtype in DTYPES:
            for shape in SHAPES:
                case(shape, dtype, bits, signed, device)
        odd_values(bits, signed, device)


if __name__ == "__main__":
    main(sys.argv[1])
