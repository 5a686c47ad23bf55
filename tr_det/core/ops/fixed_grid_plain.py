"""Eq. 13 and its gradients in plain torch operations: the definition of what the others compute.

Serves every device, and compilers, which fuse it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.ops.grid import SCALE_FLOOR, Grid


def discretise(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return float codes of x; a new tensor that the caller may overwrite.

    Args:
        x: any shape, floating point; half precision gives float32 codes.
        scale: 0-d, units of x.
        grid: the integer grid.
    """
    x = _wide(x)  # a quotient in half precision would fall on the wrong side of a transition point
    if grid.binary:
        # The clip does not move any value across zero, so sign needs neither it nor s.
        return torch.where(x < 0, -1.0, torch.where(x >= 0, 1.0, x)).to(x.dtype)  # NaN stays
    scale = scale.clamp_min(SCALE_FLOOR)
    return (
        torch.div(x, scale / grid.gamma if grid.gamma != 1 else scale)
        .clamp_(grid.alpha, grid.beta)
        .round_()
    )


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def quantize_plain(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return Eq. 13 in torch operations, for any device.

    One new tensor and three passes over it in place: measured on CPUs, that is near the cost of a
    copy, since most of it is memory that is touched for the first time.

    Args:
        x: any shape, floating point.
        scale: 0-d, units of x.
        grid: the integer grid.
    """
    out = discretise(x, scale, grid)
    if grid.gamma != 1:
        out.mul_(1.0 / grid.gamma)
    return out.to(x.dtype)


def gradients_plain(
    grad: Tensor, x: Tensor, scale: Tensor, grid: Grid, want_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """Return dL/dx and, if asked for, dL/ds; torch operations, for any device.

    Args:
        grad: dL/dx_q, shape and dtype of x.
        x: any shape, floating point.
        scale: 0-d, units of x.
        grid: the integer grid.
        want_scale: whether to compute dL/ds.

    Returns:
        dL/dx, in the shape and dtype of x, and dL/ds, 0-d float32 (float64 for float64), or None.
        Elements of x that are NaN pass the gradient, so that they show in both.
    """
    wide, scale = _wide(x), scale.clamp_min(SCALE_FLOOR)
    quotient = torch.div(wide, scale / grid.gamma)  # as in forward: both agree on what is clipped
    outside = (quotient < grid.alpha) | (quotient > grid.beta)
    grad_x = torch.where(outside, 0, _wide(grad)).div_(scale)
    # -sum(g x / s^2) = -sum(grad_x x) / s
    grad_scale = -(grad_x * wide).sum() / scale if want_scale else None
    return grad_x.to(x.dtype), grad_scale
