"""Eq. 13 and its gradients on GPUs: one Triton kernel each.

Forward reads x and writes x_q (in float32 8 bytes per element). Backward reads g and x and writes
dL/dx (12 bytes per element) while it adds up dL/ds per block; the blocks' sums are added in a
fixed order, so results do not change from run to run. The scale stays on the device.

Imported only for CUDA tensors. ``TRITON_INTERPRET=1`` runs the kernels on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tr_det.core.ops.backends import on_device_of
from tr_det.core.ops.grid import SCALE_FLOOR, Grid

BLOCK = 2048
"""Elements per program."""


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    out_ptr,
    count,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    GAMMA: tl.constexpr,
    BINARY: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    x = tl.load(x_ptr + index, mask=valid, other=0.0).to(tl.float32)
    if BINARY:
        code = tl.where(x < 0, -1.0, tl.where(x >= 0, 1.0, x))
    else:
        # div_rn rounds as IEEE asks; Triton's `/` does not, and codes must not depend on that.
        scale = tl.load(scale_ptr).to(tl.float32)
        scale = tl.where(scale < FLOOR, FLOOR, scale)  # comparisons, unlike max, let NaN through
        code = tl.div_rn(x, tl.zeros_like(x) + scale * (1.0 / GAMMA))
        code = tl.where(code < ALPHA, ALPHA * 1.0, code)
        code = tl.where(code > BETA, BETA * 1.0, code)
        # Half to even by float32's own rounding: 1.5 * 2^23 leaves no fraction bits.
        code = (code + 12582912.0) - 12582912.0
    tl.store(out_ptr + index, (code * (1.0 / GAMMA)).to(out_ptr.dtype.element_ty), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    scale_ptr,
    grad_x_ptr,
    sums_ptr,
    count,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    GAMMA: tl.constexpr,
    WANT_SCALE: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    x = tl.load(x_ptr + index, mask=valid, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + index, mask=valid, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr).to(tl.float32)
    scale = tl.where(scale < FLOOR, FLOOR, scale)
    quotient = tl.div_rn(x, tl.zeros_like(x) + scale * (1.0 / GAMMA))
    outside = (quotient < ALPHA) | (quotient > BETA)
    grad_x = tl.where(outside, 0.0, grad / scale)
    tl.store(grad_x_ptr + index, grad_x.to(grad_x_ptr.dtype.element_ty), mask=valid)
    if WANT_SCALE:
        total = tl.sum(tl.where(valid, grad_x * x, 0.0), axis=0)
        tl.store(sums_ptr + program, -total / scale)


def quantize_triton(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return what `quantize_plain` returns (see there); x in float32, bfloat16 or float16."""
    x = _dense(x)
    out = torch.empty_like(x)  # keeps x's strides
    if x.numel():
        with on_device_of(x):
            _quantize_kernel[(triton.cdiv(x.numel(), BLOCK),)](
                x,
                scale,
                out,
                x.numel(),
                ALPHA=grid.alpha,
                BETA=grid.beta,
                GAMMA=grid.gamma,
                BINARY=grid.binary,
                FLOOR=SCALE_FLOOR,
                BLOCK=BLOCK,
            )
    return out


def gradients_triton(
    grad: Tensor, x: Tensor, scale: Tensor, grid: Grid, want_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what `gradients_plain` returns (see there); x in float32, bfloat16 or float16."""
    x = _dense(x)
    grad_x = torch.empty_like(x)
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    programs = triton.cdiv(x.numel(), BLOCK)
    sums = torch.empty(programs, dtype=torch.float32, device=x.device)
    if x.numel():
        with on_device_of(x):
            _gradient_kernel[(programs,)](
                grad,
                x,
                scale,
                grad_x,
                sums,
                x.numel(),
                ALPHA=grid.alpha,
                BETA=grid.beta,
                GAMMA=grid.gamma,
                WANT_SCALE=want_scale,
                FLOOR=SCALE_FLOOR,
                BLOCK=BLOCK,
            )
    return grad_x, sums.sum() if want_scale else None


def _dense(x: Tensor) -> Tensor:
    """Return x if its elements fill its memory without gaps, in any order; else a copy."""
    dense: bool = torch.ops.aten.is_non_overlapping_and_dense(x)
    return x if dense else x.contiguous()
