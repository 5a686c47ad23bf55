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
"""

from __future__ import annotations

from dataclasses import dataclass
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
    if x.dtype in (torch.float16, torch.bfloat16):
        x = (
            x.float()
        )  # a quotient rounded to half precision would fall on the wrong side of a transition point
    if grid.binary:
        # The clip does not move any value across zero, so sign needs neither it nor s.
        return torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    return torch.div(x, scale / grid.gamma).clamp_(grid.alpha, grid.beta).round_()


class _FixedGridQuantize(torch.autograd.Function):
    """Eq. 13 with its straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.grid = grid
        out = _discretise(x, scale.clamp_min(SCALE_FLOOR), grid)
        if grid.gamma != 1:
            out.mul_(1.0 / grid.gamma)
        return out.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # x is kept instead of a mask: it is nearly always the output of a ReLU, which keeps the
        # same storage for its own backward, so this costs no memory.
        x, scale = ctx.saved_tensors
        grid: Grid = ctx.grid
        step = scale.clamp_min(SCALE_FLOOR) / grid.gamma
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        inside = torch.div(
            wide, step
        )  # the same quotient as in forward, so both agree on what is clipped
        mask = (inside >= grid.alpha) & (inside <= grid.beta)
        grad_x = torch.where(mask, grad, 0).div_(scale.clamp_min(SCALE_FLOOR))
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # -sum(g x / s^2) = -sum(grad_x * x) / s
            total = (grad_x * wide).sum(
                dtype=torch.float32 if wide.dtype != torch.float64 else None
            )
            grad_scale = (-total / scale.clamp_min(SCALE_FLOOR)).to(scale.dtype)
        return (grad_x if ctx.needs_input_grad[0] else None), grad_scale, None


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
    return _discretise(x, scale.clamp_min(SCALE_FLOOR), grid).to(grid.code_dtype)
