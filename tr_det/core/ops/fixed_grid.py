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

The plain implementation here is the definition. `fixed_grid_cpu` and `fixed_grid_triton` give the
same codes to the bit and the same gradients up to float rounding, in fewer passes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

SCALE_FLOOR = 1e-8


@dataclass(frozen=True)
class Grid:
    """Integer grid of Eq. 13: codes ``alpha..beta``, real levels ``code / gamma``.

    Attributes:
        alpha: smallest code.
        beta: largest code.
        gamma: divisor from code to level, a power of two.
        binary: True for codes {-1, +1}, taken by sign instead of by rounding.
    """

    alpha: int
    beta: int
    gamma: int
    binary: bool = False

    @classmethod
    def of(cls, bits: int, signed: bool) -> Grid:
        """Return the paper's grid for a bit-width.

        Args:
            bits: width in bits, 1 to 8.
            signed: True for weights (and inputs that can be negative), False for non-negative
                inputs.

        Raises:
            ValueError: if bits is not an integer in 1..8.
        """
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError(f"bits={bits!r}: must be an integer from 1 to 8")
        if bits == 1:
            return cls(-1, 1, 1, binary=True) if signed else cls(0, 1, 1)
        if signed:
            half = 2 ** (bits - 1)
            return cls(-half, half - 1, half)
        return cls(0, 2**bits - 1, 2**bits)

    def codes(self) -> list[int]:
        """Return all codes, ascending."""
        return [-1, 1] if self.binary else list(range(self.alpha, self.beta + 1))

    @property
    def code_dtype(self) -> torch.dtype:
        """Smallest torch dtype that holds every code."""
        return torch.uint8 if self.alpha == 0 else torch.int8


def _discretise(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return float codes of x; a new tensor that the caller may overwrite."""
    x = _wide(x)  # a quotient in half precision would fall on the wrong side of a transition point
    if grid.binary:
        # The clip does not move any value across zero, so sign needs neither it nor s.
        return torch.where(x < 0, -1.0, torch.where(x >= 0, 1.0, x)).to(x.dtype)  # NaN stays
    step = scale.clamp_min(SCALE_FLOOR) / grid.gamma
    return torch.div(x, step).clamp_(grid.alpha, grid.beta).round_()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def quantize_plain(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return Eq. 13 in torch operations, for any device and for compilers.

    One new tensor and three passes over it in place: measured on CPUs, that is near the cost of a
    copy, since most of it is memory that is touched for the first time.

    Args:
        x: any shape, floating point.
        scale: 0-d, units of x.
        grid: the integer grid.
    """
    out = _discretise(x, scale, grid)
    if grid.gamma != 1:
        out.mul_(1.0 / grid.gamma)
    return out.to(x.dtype)


def gradients_plain(
    grad: Tensor, x: Tensor, scale: Tensor, grid: Grid, want_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """Return dL/dx and, if asked for, dL/ds; torch operations, for any device and for compilers.

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
        if grad_scale is not None:
            grad_scale = grad_scale.to(scale.dtype)
        return (grad_x if want_x else None), grad_scale, None


Quantize = Callable[[Tensor, Tensor, Grid], Tensor]
Gradients = Callable[[Tensor, Tensor, Tensor, Grid, bool], tuple[Tensor, Tensor | None]]


def _implementation(x: Tensor, scale: Tensor) -> tuple[Quantize, Gradients]:
    """Return the functions that are quickest for a tensor; all give the same codes."""
    # A compiler fuses the plain ones; subclasses may have no memory to point a kernel at.
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return quantize_plain, gradients_plain
    if x.device.type == "cpu":
        from tr_det.core.ops.fixed_grid_cpu import gradients_cpu

        return quantize_plain, gradients_cpu
    if x.is_cuda and scale.is_cuda and x.dtype != torch.float64 and _has_triton():
        from tr_det.core.ops.fixed_grid_triton import gradients_triton, quantize_triton

        return quantize_triton, gradients_triton
    return quantize_plain, gradients_plain


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


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
    return _discretise(x, scale, grid).to(grid.code_dtype)
