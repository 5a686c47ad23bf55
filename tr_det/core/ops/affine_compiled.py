"""Affine grids on CPUs by the kernels of `affine.c`: one pass each, where torch takes several.

All numbers equal those of `affine_plain` to the bit, which is used where the kernels cannot be
(other dtypes, tensors with gaps, no compiler).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import Parameter

from tr_det.core.ops.affine_grid import SCALE_FLOOR, Affine
from tr_det.core.ops.affine_plain import (
    gradients_plain,
    has_products,
    inner,
    quantize_plain,
    scale_gradient,
    shift_gradient,
)
from tr_det.core.ops.backends import channels_of, is_traced
from tr_det.core.ops.build import library

FEW = 32_768
"""Elements that one thread processes at a time; kernels without threads are not used for more where
torch would use several threads."""


def kernels_for(
    affine: Affine, x: Tensor, scale: Tensor, shift: Tensor | None, other: Tensor | None = None
) -> ctypes.CDLL | None:
    """Return the kernels if they can process these tensors, else None.

    Args:
        affine: the grid.
        x: what is quantized.
        scale: its scale.
        shift: its shift, if it has one.
        other: a tensor of x's shape that is read or written as well: a gradient of x's dtype, or
            codes.
    """
    kernels = library()
    if (
        kernels is None
        or not (x.is_cpu and scale.is_cpu)
        or not x.dtype == scale.dtype == torch.float32
        or type(x) not in (Tensor, Parameter)
        or x.is_neg()
        or not (x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x))
        or not (other is None or _in_step(x, other))
        or not (scale.ndim == 0 if affine.axis is None else _fits(scale, x, affine.axis))
        or not (shift is None or _alike(shift, scale))
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


def _fits(scale: Tensor, x: Tensor, axis: int) -> bool:
    """Return whether a scale is dense, with one number per channel of x."""
    return scale.shape == x.shape[axis : axis + 1 or None] and scale.is_contiguous()


def _alike(shift: Tensor, scale: Tensor) -> bool:
    return (
        shift.shape == scale.shape
        and shift.dtype == scale.dtype
        and shift.is_cpu
        and shift.is_contiguous()
        and not shift.is_neg()
    )


def _rest(
    x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine
) -> tuple[int, int | None, int, int, int, bytes, int]:
    """Return the arguments that all kernels share."""
    count = x.numel()
    return (
        scale.data_ptr(),
        None if shift is None else shift.data_ptr(),
        count,
        *((1, count or 1) if affine.axis is None else channels_of(x, affine.axis)),
        affine.packed,
        torch.get_num_threads(),
    )


def quantize_compiled(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return what `quantize_plain` returns."""
    kernels = kernels_for(affine, x, scale, shift)
    if kernels is None:
        return quantize_plain(x, scale, shift, affine)
    out = torch.empty_like(x)
    kernels.quantize(x.data_ptr(), out.data_ptr(), *_rest(x, scale, shift, affine))
    return out


def gradients_compiled(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    affine: Affine,
    want_scale: bool,
    want_shift: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what `gradients_plain` returns."""
    kernels = kernels_for(affine, x, scale, shift, grad)
    if kernels is None:
        return gradients_plain(grad, x, scale, shift, affine, want_scale, want_shift)
    out, products = torch.empty_like(x), None
    by_products = want_scale and has_products(shift, affine)
    if by_products or affine.estimator == "ewgs":  # whose kernel always writes them
        products = torch.empty_like(x)
    kernels.gradient(
        grad.data_ptr(),
        x.data_ptr(),
        out.data_ptr(),
        None if products is None else products.data_ptr(),
        *_rest(x, scale, shift, affine),
    )
    grad_scale = None
    if by_products:
        grad_scale = scale_gradient(out, x, products, scale, affine)
    elif want_scale:  # on a CPU, reading the number is cheaper than a tensor operation
        grad_scale = inner(out, x).div_(-max(scale.item(), SCALE_FLOOR))
    return out, grad_scale, shift_gradient(out, grad, affine) if want_shift else None


def recode_compiled(
    x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine, codes: Tensor
) -> Tensor | None:
    """Do what `affine_recode_` does, or return None if the kernels cannot be used."""
    kernels = None if is_traced() else kernels_for(affine, x, scale, shift, codes)
    if kernels is None:
        return None
    arguments = _rest(x, scale, shift, affine)
    return torch.tensor(kernels.recode(x.data_ptr(), codes.data_ptr(), *arguments))


def fingerprint(x: Tensor) -> int:
    """Return a hash of a few elements of a weight, or 0 where the kernel cannot be used.

    It detects an edit through ``x.data``, which does not change the tensor's version.
    """
    if not x.is_cpu or x.dtype != torch.float32 or not x.is_contiguous():
        return 0
    kernels = library()
    return 0 if kernels is None else int(kernels.fingerprint(x.data_ptr(), x.numel()))
