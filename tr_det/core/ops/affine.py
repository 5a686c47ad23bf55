"""Quantization to affine grids, with a choice of straight-through gradients.

An `Affine` describes a grid: Eq. 13 of the paper, LSQ, EWGS, uniform grids with a zero point, per
tensor or per channel. `affine_plain` defines values and gradients. `affine_compiled` gives the same
floats to the bit, `affine_triton` the same codes to the bit and the same gradients up to float
rounding, in fewer passes.

Deviations from the papers:
  * sign(0) is +1 (0 would not be a level of a binary quantizer);
  * s is at least ``SCALE_FLOOR``, so that a learned scale cannot reach zero; its gradient passes.

Rounding is half to even.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tr_det.core.ops.affine_compiled import gradients_compiled, quantize_compiled, recode_compiled
from tr_det.core.ops.affine_grid import Affine
from tr_det.core.ops.affine_plain import codes_plain, gradients_plain, quantize_plain, values_plain
from tr_det.core.ops.backends import applied, has_triton, is_traced


class _AffineQuantize(torch.autograd.Function):
    """Quantization with straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
        # Backward saves x itself, not a mask of what was clipped. x costs no memory: it is a
        # Parameter, or the output of a ReLU, which saves the same storage for its own backward, or
        # what the full-precision layer would have saved. And dL/dscale needs x anyway.
        ctx.save_for_backward(x, scale, shift)
        ctx.affine = affine
        quantize, _ = _implementation(x, scale)
        return quantize(x, scale, shift, affine)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, scale, shift = ctx.saved_tensors
        _, gradients = _implementation(x, scale)
        want_x, want_scale, want_shift, _ = ctx.needs_input_grad
        grad_x, grad_scale, grad_shift = gradients(
            grad, x, scale, shift, ctx.affine, want_scale, want_shift
        )
        grad_scale = None if grad_scale is None else grad_scale.to(scale.dtype)
        grad_shift = None if grad_shift is None else grad_shift.to(shift.dtype)
        return (grad_x if want_x else None), grad_scale, grad_shift, None


Quantize = Callable[[Tensor, Tensor, Tensor | None, Affine], Tensor]
Gradients = Callable[
    [Tensor, Tensor, Tensor, Tensor | None, Affine, bool, bool],
    tuple[Tensor, Tensor | None, Tensor | None],
]


def _implementation(x: Tensor, scale: Tensor) -> tuple[Quantize, Gradients]:
    """Return the fastest functions for a tensor; all give the same codes."""
    # Subclasses may have no memory of their own.
    if is_traced() or type(x) not in (Tensor, Parameter):
        return quantize_plain, gradients_plain
    if x.is_cpu:
        return quantize_compiled, gradients_compiled
    if x.is_cuda and scale.is_cuda and x.dtype != torch.float64 and has_triton():
        from tr_det.core.ops.affine_triton import gradients_triton, quantize_triton

        return quantize_triton, gradients_triton
    return quantize_plain, gradients_plain


def affine_quantize(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Fake-quantize; differentiable in x, scale and shift.

    Args:
        x: any shape, floating point; half precision is computed in float32.
        scale: positive, units of x; 0-d, or one number per channel if the grid has an axis.
        shift: likewise, where the code is ``affine.base``; None for 0.
        affine: the grid and its straight-through estimator.

    Returns:
        Tensor of x's shape, dtype and layout.

    Eq. 13 of the paper with 2 bits: the output grid is fixed, -1 to 0.5:

    >>> x = torch.tensor([-0.5, -0.2, 0.1, 0.4], requires_grad=True)
    >>> s = torch.tensor(0.3, requires_grad=True)
    >>> y = affine_quantize(x, s, None, Affine(-2, 1, divisor=2, unit=1 / 2))
    >>> y.tolist()
    [-1.0, -0.5, 0.5, 0.5]
    >>> y.sum().backward(); [round(v, 3) for v in x.grad.tolist()]  # 1/s, or 0 where clipped
    [0.0, 3.333, 3.333, 0.0]
    >>> round(s.grad.item(), 3)  # -sum(dL/dx x) / s
    1.111

    LSQ (Esser et al., ICLR 2020): values in units of x, the gradient of a step is code - t within
    the bounds, else the code:

    >>> x = torch.tensor([[0.3, 0.8], [0.3, 5.0]], requires_grad=True)
    >>> steps = torch.tensor([0.5, 1.0], requires_grad=True)
    >>> y = affine_quantize(x, steps, None, Affine(-2, 1, axis=0))
    >>> y.tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    >>> y.sum().backward(); x.grad.tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    >>> [round(v, 3) for v in steps.grad.tolist()]  # 1 - 0.6 + 1, 0 - 0.3 + 1
    [1.4, 0.7]
    """
    return applied(_AffineQuantize, x, scale, shift, affine)


@torch.no_grad()
def affine_codes(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return the integer codes of x, in its shape and ``affine.code_dtype``; no gradient.

    Arguments as of `affine_quantize`.

    >>> uniform = Affine(0, 3, divisor=3, offset=True)  # 4 levels from shift to shift + scale
    >>> x = torch.tensor([-1.0, 0.2, 0.9])
    >>> codes = affine_codes(x, torch.tensor(1.5), torch.tensor(-0.5), uniform); codes.tolist()
    [0, 1, 3]
    >>> affine_values(codes, torch.tensor(1.5), torch.tensor(-0.5), uniform).tolist()
    [-0.5, 0.0, 1.0]
    """
    return codes_plain(x, scale, shift, affine)


def affine_values(codes: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return the float32 values of integer codes, in their shape; see `affine_codes`.

    Differentiable in scale and shift, in which a value is linear.
    """
    return values_plain(codes, scale, shift, affine)


def affine_recode_(
    x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine, codes: Tensor
) -> Tensor:
    """Overwrite codes with those of x; return how many changed; no gradient.

    Args:
        x: as of `affine_quantize`.
        scale: likewise.
        shift: likewise.
        affine: the grid.
        codes: of `affine_codes`, shape of x; written.

    Returns:
        0-d int64 on x's device.

    >>> codes = torch.tensor([-1, 0, 1], dtype=torch.int8)
    >>> x = torch.tensor([-1.0, 0.7, 1.0])
    >>> affine_recode_(x, torch.tensor(1.0), None, Affine(-2, 1), codes), codes.tolist()
    (tensor(1), [-1, 1, 1])
    """
    counted = recode_compiled(x, scale, shift, affine, codes)
    if counted is not None:
        return counted
    new = affine_codes(x, scale, shift, affine)
    changed = torch.count_nonzero(new != codes)
    codes.copy_(new)
    return changed
