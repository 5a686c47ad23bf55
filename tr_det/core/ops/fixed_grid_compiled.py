"""Eq. 13 on CPUs by the kernels of `fixed_grid.c`: one pass each, where torch takes several.

Values, codes and dL/dx are those of `fixed_grid_plain` to the bit, dL/ds is that of
`fixed_grid_cpu`: whether a machine has a compiler changes no number. Where the kernels cannot be
given a tensor (other dtypes, gaps, no compiler), those files do the work.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import Parameter

from tr_det.core.ops.backends import is_watched
from tr_det.core.ops.build import library
from tr_det.core.ops.fixed_grid_cpu import gradients_cpu, inner
from tr_det.core.ops.fixed_grid_plain import quantize_plain
from tr_det.core.ops.grid import SCALE_FLOOR, Grid

FEW = 32_768
"""Elements that one thread works through at a time; kernels without threads get no more of them
where torch would use several."""


def kernels_for(x: Tensor, scale: Tensor, *others: Tensor) -> ctypes.CDLL | None:
    """Return the kernels if they can be given these tensors.

    Args:
        x: what is quantized.
        scale: its scale.
        *others: tensors of x's shape that are read or written along with it: a gradient of x's
            dtype, or codes.
    """
    kernels = library()
    if (
        kernels is None
        or not (x.is_cpu and scale.is_cpu)
        or not x.dtype == scale.dtype == torch.float32
        or type(x) not in (Tensor, Parameter)
        or x.is_neg()
        or not (x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x))
        or not all(_in_step(x, other) for other in others)
    ):
        return None
    if x.numel() > FEW and torch.get_num_threads() > 1 and not kernels.is_parallel():
        return None
    return kernels


def _in_step(x: Tensor, other: Tensor) -> bool:
    """Return whether two tensors, one of them dense, have their elements in the same order."""
    return (
        x.shape == other.shape
        and (x.stride() == other.stride() or (x.is_contiguous() and other.is_contiguous()))
        and (other.dtype == x.dtype or other.element_size() == 1)
        and not other.is_neg()
    )


def quantize_compiled(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return what `quantize_plain` returns."""
    kernels = kernels_for(x, scale)
    if kernels is None:
        return quantize_plain(x, scale, grid)
    out = torch.empty_like(x)
    kernels.quantize(
        x.data_ptr(),
        out.data_ptr(),
        x.numel(),
        _floored(scale) / grid.gamma,
        grid.alpha,
        grid.beta,
        1.0 / grid.gamma,
        grid.binary,
        torch.get_num_threads(),
    )
    return out


def gradients_compiled(
    grad: Tensor, x: Tensor, scale: Tensor, grid: Grid, want_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what `gradients_plain` returns."""
    kernels = kernels_for(x, scale, grad)
    if kernels is None:
        return gradients_cpu(grad, x, scale, grid, want_scale)
    out, floored = torch.empty_like(x), _floored(scale)
    kernels.gradient(
        grad.data_ptr(),
        x.data_ptr(),
        out.data_ptr(),
        x.numel(),
        floored / grid.gamma,
        floored,
        grid.alpha,
        grid.beta,
        torch.get_num_threads(),
    )
    return out, inner(out, x).div_(-floored) if want_scale else None


def recode_compiled(x: Tensor, scale: Tensor, grid: Grid, codes: Tensor) -> Tensor | None:
    """Do what `fixed_grid_recode_` does, or return None if the kernels do not fit."""
    kernels = None if is_watched() else kernels_for(x, scale, codes)
    if kernels is None:
        return None
    changed = kernels.recode(
        x.data_ptr(),
        codes.data_ptr(),
        x.numel(),
        _floored(scale) / grid.gamma,
        grid.alpha,
        grid.beta,
        grid.binary,
        torch.get_num_threads(),
    )
    return torch.tensor(changed)


def _floored(scale: Tensor) -> float:
    """Return the scale as a number; NaN stays. A read that blocks nothing on a CPU."""
    return max(scale.item(), SCALE_FLOOR)
