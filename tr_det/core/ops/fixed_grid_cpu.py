"""Gradients of Eq. 13 on CPUs where the C kernels do not fit: two passes and no temporaries.

The plain formula divides x again, compares twice, selects, divides and sums: eight passes, six new
tensors. On a CPU the new tensors are the price (first touch of their pages), so this file uses

  * ``hardtanh_backward``, one ATen kernel that reads g and x and writes g where x is strictly
    between two bounds, else 0. The quotient x / step rounds, but it is monotone in x, so what Eq.
    13 clips is exactly what lies at or beyond two floats: the nearest ones whose quotient leaves
    the grid. `excluded_bounds` finds them;
  * a dot product for dL/ds, which needs no tensor of products.

Tried and left: chunks that fit the cache gain from 4 million elements on only, and lose below.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct

import torch
from torch import Tensor

from tr_det.core.ops.fixed_grid_plain import gradients_plain
from tr_det.core.ops.grid import SCALE_FLOOR, Grid

_DOT_BLOCK = 2**20
"""Longest float32 dot product: BLAS adds one after the other, so errors grow with the length."""


def gradients_cpu(
    grad: Tensor, x: Tensor, scale: Tensor, grid: Grid, want_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what `gradients_plain` returns (see there), in fewer passes.

    But elements of x that are NaN may get a gradient of 0: ATen's kernel treats them either way.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        wide, grad_scale = gradients_cpu(grad.float(), x.float(), scale, grid, want_scale)
        return wide.to(x.dtype), grad_scale
    floored = scale.clamp_min(SCALE_FLOOR).item()  # a read that blocks nothing on a CPU
    step = floored / grid.gamma
    if not 1e-30 < step < 1e30:  # NaN, inf, or bounds near the ends of float32
        return gradients_plain(grad, x, scale, grid, want_scale)
    low, high = excluded_bounds(step, grid.alpha, grid.beta, x.dtype == torch.float64)
    grad_x: Tensor = torch.ops.aten.hardtanh_backward.default(grad, x, low, high).div_(floored)
    # -sum(g x / s^2) = -sum(grad_x x) / s
    return grad_x, inner(grad_x, x).div_(-floored) if want_scale else None


@functools.lru_cache(maxsize=4096)  # frozen scales ask the same again at every step
def excluded_bounds(
    step: float, alpha: int, beta: int, double: bool = False
) -> tuple[float, float]:
    """Return the largest x with x / step < alpha and the smallest with x / step > beta.

    Args:
        step: between 1e-30 and 1e30, representable in the precision asked for.
        alpha: smallest code, <= 0.
        beta: largest code, >= 1.
        double: whether numbers and quotients are float64; otherwise they are float32.
    """
    rounded, neighbour = (float, math.nextafter) if double else (_float32, _next_float32)

    def first_beyond(code: int) -> float:
        """Walk from near code * step, in magnitudes; two or three steps at most."""
        # Next to 0 it takes half of the smallest number for the quotient not to round to 0.
        tiny = math.ulp(0.0) if double else 2.0**-149
        x = rounded(code * step if code else tiny / 2 * step)
        while rounded(x / step) > code:
            x = neighbour(x, 0.0)
        while not rounded(x / step) > code:
            x = neighbour(x, math.inf)
        return x

    return -first_beyond(-alpha), first_beyond(beta)


def _float32(x: float) -> float:
    return ctypes.c_float(x).value


def _next_float32(x: float, towards: float) -> float:
    """Return the float32 after x >= 0, up or (``towards`` 0) down."""
    (bits,) = struct.unpack("<i", struct.pack("<f", x))
    value: float = struct.unpack("<f", struct.pack("<i", bits + (1 if towards > x else -1)))[0]
    return value


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return sum(a b) of two tensors of one shape, 0-d."""
    a, b = _flat_alike(a, b)
    if a.ndim != 1:
        return (a * b).sum()
    if a.numel() <= _DOT_BLOCK:
        return torch.dot(a, b)
    starts = range(0, a.numel(), _DOT_BLOCK)
    blocks = [torch.dot(a[i : i + _DOT_BLOCK], b[i : i + _DOT_BLOCK]) for i in starts]
    return torch.stack(blocks).sum()


def _flat_alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as 1-d views in the order of memory, or as they are if they differ in layout."""
    if a.is_contiguous() and b.is_contiguous():
        return a.view(-1), b.view(-1)
    last = torch.channels_last
    if a.ndim == 4 and a.is_contiguous(memory_format=last) and b.is_contiguous(memory_format=last):
        return a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1)
    return a, b
