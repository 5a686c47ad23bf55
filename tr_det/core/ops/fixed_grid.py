"""Eq. 13 of *Scheduling Weight Transitions for QAT* (ICCV 2025): quantization to a fixed grid.

    x_q = 1/gamma * round(clip(gamma * x / s, alpha, beta))          (Eq. 13, S4-S6)

with the straight-through gradients (clip mask on the value *before* rounding)

    dL/dx = dL/dx_q / s * [alpha <= gamma * x / s <= beta]
    dL/ds = -sum(dL/dx_q * x / s^2 * [alpha <= gamma * x / s <= beta])

Deviations from the paper:
  * sign(0) is +1 (the paper does not say; 0 would not be a level of the binary quantizer);
  * s is floored at ``SCALE_FLOOR`` so that a learned scale cannot reach zero; its gradient still
    passes.

Rounding is half to even. gamma is a power of two, so gamma * x / s, x / (s / gamma) and ONNX'
x / y_scale are the same float, and every x_q is exact in float32, float16 and bfloat16.

`fixed_grid_plain` is the definition. `fixed_grid_compiled`, `fixed_grid_cpu` and
`fixed_grid_triton` give the same codes to the bit and the same gradients up to float rounding, in
fewer passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tr_det.core.ops.backends import has_triton, is_watched
from tr_det.core.ops.fixed_grid_compiled import gradients_compiled, quantize_compiled
from tr_det.core.ops.fixed_grid_plain import discretise, gradients_plain, quantize_plain
from tr_det.core.ops.grid import Grid


class _FixedGridQuantize(torch.autograd.Function):
    """Eq. 13 with its straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        # What backward keeps is x itself, not a mask of what was clipped. x costs nothing: it is a
        # Parameter, or the output of a ReLU, which keeps the same storage for its own backward, or
        # what the full-precision layer would have kept. A mask would come on top, at one bit or
        # one byte per element, and dL/ds needs x anyway.
        ctx.save_for_backward(x, scale)
        ctx.grid = grid
        quantize, _ = _implementation(x, scale)
        return quantize(x, scale, grid)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale = ctx.saved_tensors
        _, gradients = _implementation(x, scale)
        want_x, want_scale, _ = ctx.needs_input_grad
        grad_x, grad_scale = gradients(grad, x, scale, ctx.grid, want_scale)
        if grad_scale is not None and grad_scale.dtype != scale.dtype:
            grad_scale = grad_scale.to(scale.dtype)
        return (grad_x if want_x else None), grad_scale, None


Quantize = Callable[[Tensor, Tensor, Grid], Tensor]
Gradients = Callable[[Tensor, Tensor, Tensor, Grid, bool], tuple[Tensor, Tensor | None]]


def _implementation(x: Tensor, scale: Tensor) -> tuple[Quantize, Gradients]:
    """Return the functions that are quickest for a tensor; all give the same codes."""
    # Subclasses may have no memory to point a kernel at.
    if is_watched() or type(x) not in (Tensor, Parameter):
        return quantize_plain, gradients_plain
    if x.device.type == "cpu":
        return quantize_compiled, gradients_compiled
    if x.is_cuda and scale.is_cuda and x.dtype != torch.float64 and has_triton():
        from tr_det.core.ops.fixed_grid_triton import gradients_triton, quantize_triton

        return quantize_triton, gradients_triton
    return quantize_plain, gradients_plain


def fixed_grid_quantize(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Fake-quantize with Eq. 13 and its straight-through gradients.

    Args:
        x: any shape, floating point.
        scale: 0-d, positive, units of x; the clipping range is ``scale * alpha/gamma .. scale *
            beta/gamma``.
        grid: the integer grid.

    Returns:
        Tensor of x's shape and dtype with values ``code / gamma``.

    >>> x = torch.tensor([-0.5, -0.2, 0.1, 0.4], requires_grad=True)
    >>> y = fixed_grid_quantize(x, torch.tensor(0.3), Grid.of(2, signed=True))
    >>> y.tolist()
    [-1.0, -0.5, 0.5, 0.5]
    >>> y.sum().backward(); [round(v, 3) for v in x.grad.tolist()]
    [0.0, 3.333, 3.333, 0.0]
    """
    out: Tensor = _FixedGridQuantize.apply(x, scale, grid)
    return out


@torch.no_grad()
def fixed_grid_codes(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return the integer codes of x (int8 for signed grids, uint8 for unsigned); no gradient."""
    return discretise(x, scale, grid).to(grid.code_dtype)
