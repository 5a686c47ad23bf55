"""The Triton kernels against NumPy, on a device; `test_triton` runs this in a subprocess."""

import math
from dataclasses import replace

import affine_oracle as oracle
import torch

from tr_det.core.ops.affine_triton import BLOCK, gradients_triton, quantize_triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = (((), None), ((0, 3), 1), ((1,), None), ((BLOCK,), None), ((BLOCK + 1,), 0))
SHAPES += (((3, 4, 5, 6), None), ((3, 4, 5, 6), 0), ((3, 4, 5, 6), 1))


def run(x, scale, shift, affine, upstream):
    shifted = shift is not None
    grads = gradients_triton(upstream, x, scale, shift, affine, True, shifted)
    alone, nothing, _ = gradients_triton(upstream, x, scale, shift, affine, False, shifted)
    assert torch.equal(grads[0].nan_to_num(), alone.nan_to_num())
    assert nothing is None
    return quantize_triton(x, scale, shift, affine), *grads


def case(shape, dtype, affine, device):
    scale, shift = oracle.parameters(affine, shape, dtype)
    x = oracle.sample(shape, dtype, 0.7, 0 if shift is None else -0.3, affine, seed=1)
    if device == "cpu" and dtype == torch.bfloat16:
        # Triton's interpreter, unlike its compiler, flushes subnormal bfloat16 to zero.
        x = torch.where(x.abs() < 1e-37, 0.0, x)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = oracle.Expected.of(x, scale, shift, upstream, affine)
    scale, shift = (t if t is None else t.to(device) for t in (scale, shift))
    pairs = [(x, upstream)]
    if x.ndim == 4 and dtype == torch.float32:
        pairs = zip(*(oracle.layouts(t).values() for t in (x, upstream)), strict=True)
        pairs = [*pairs, (x, oracle.layouts(upstream)["channels_last"])]
    for view, grad in pairs:
        view, grad = (torch.empty_like(t, device=device).copy_(t) for t in (view, grad))
        oracle.check(run(view, scale, shift, affine, grad), view, expected)


def odd_values(affine, device):
    ones = torch.ones(3, device=device)
    x = torch.tensor([0.1, math.nan, 0.2], device=device)
    scale, shift = (
        t if t is None else t.to(device) for t in oracle.parameters(affine, (3,), torch.float32)
    )
    out, _, grad_scale, _ = run(x, scale, shift, affine, ones)
    assert out.isnan().tolist() == [False, True, False]
    assert grad_scale.isnan()
    assert run(x, scale * math.nan, shift, affine, ones)[2].isnan()
    tiny = torch.tensor([-1.0, 0.0, 1e-9], device=device)  # the scale has a floor of 1e-8
    for ours, floored in zip(
        run(tiny, scale * 0, shift, affine, ones),
        run(tiny, torch.full_like(scale, 1e-8), shift, affine, ones),
        strict=True,
    ):
        assert ours is floored or torch.equal(ours, floored)


def main(device):
    for name, affine in oracle.GRIDS.items():
        every = name in ("1s", "lsq", "ewgs")  # Triton's interpreter takes its time
        for dtype in DTYPES if every else DTYPES[:1]:
            for shape, axis in SHAPES if every and dtype == torch.float32 else SHAPES[-3::2]:
                case(shape, dtype, replace(affine, axis=axis), device)
        odd_values(affine, device)
