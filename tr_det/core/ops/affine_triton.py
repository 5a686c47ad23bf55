"""Affine grids and their gradients on GPUs: one Triton kernel each.

Forward reads x and writes the values (in float32 8 bytes per element). Backward reads g and x and
writes dL/dx (12 bytes per element) while it adds up dL/dscale per block; the blocks' sums are added
in a fixed order, so results do not change from run to run. With a scale per channel the terms of
dL/dscale are written (4 bytes more) for torch to sum. Scales and shifts stay on the device.

Imported only for CUDA tensors. ``TRITON_INTERPRET=1`` runs the kernels on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tr_det.core.ops.affine_grid import SCALE_FLOOR, Affine
from tr_det.core.ops.affine_plain import scale_gradient, shift_gradient
from tr_det.core.ops.backends import channels_of, on_device_of

BLOCK = 2048
"""Elements per program."""


@triton.jit  # type: ignore[untyped-decorator]
def _load(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    shift_ptr,
    index,
    valid,
    channels,
    inner,
    DIVISOR: tl.constexpr,
    SHIFTED: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """Return x, x - shift, shift, s and step."""
    x = tl.load(x_ptr + index, mask=valid, other=0.0).to(tl.float32)
    if PER_CHANNEL:
        place = (index // inner) % channels  # of an element by its place in memory
        scale = tl.load(scale_ptr + place, mask=valid, other=1.0).to(tl.float32)
    else:
        scale = tl.load(scale_ptr).to(tl.float32)
    shift = tl.zeros_like(scale)
    if SHIFTED and PER_CHANNEL:
        shift = tl.load(shift_ptr + place, mask=valid, other=0.0).to(tl.float32)
    elif SHIFTED:
        shift = tl.load(shift_ptr).to(tl.float32)
    scale = tl.where(scale < FLOOR, FLOOR, scale)  # comparisons, unlike max, let NaN through
    # div_rn rounds as IEEE asks; Triton's `/` does not, and codes must not depend on that.
    step = tl.div_rn(scale, tl.zeros_like(scale) + DIVISOR)
    return x, x - shift, shift, scale, step


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(t, LOW: tl.constexpr, HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the clipped t and what it is rounded to."""
    t = tl.where(t < LOW, LOW * 1.0, t)
    t = tl.where(t > HIGH, HIGH * 1.0, t)
    # Half to even by float32's own rounding: 1.5 * 2^23 leaves no fraction bits.
    return t, (t + 12582912.0) - 12582912.0


@triton.jit  # type: ignore[untyped-decorator]
def _multiple(  # type: ignore[no-untyped-def]
    x, rounded, MUL: tl.constexpr, PLUS: tl.constexpr, SIGN: tl.constexpr, BELOW, ABOVE
):
    if SIGN:
        return tl.where(x < 0, BELOW, tl.where(x >= 0, ABOVE, x))
    return rounded * MUL + PLUS


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    count,
    channels,
    inner,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DIVISOR: tl.constexpr,
    LEAD: tl.constexpr,
    UNIT: tl.constexpr,
    MUL: tl.constexpr,
    PLUS: tl.constexpr,
    SIGN: tl.constexpr,
    BELOW: tl.constexpr,
    ABOVE: tl.constexpr,
    SHIFTED: tl.constexpr,
    OFFSET: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    x, moved, shift, _, step = _load(
        x_ptr,
        scale_ptr,
        shift_ptr,
        index,
        valid,
        channels,
        inner,
        DIVISOR,
        SHIFTED,
        PER_CHANNEL,
        FLOOR,
    )
    _, rounded = _rounded(tl.div_rn(moved, tl.zeros_like(x) + step) - LEAD, LOW, HIGH)
    out = _multiple(x, rounded, MUL, PLUS, SIGN, BELOW, ABOVE)
    if UNIT is None:
        out = out * step
    else:
        out = out * UNIT
    if OFFSET:
        out = out + shift
    tl.store(out_ptr + index, out.to(out_ptr.dtype.element_ty), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    scale_ptr,
    shift_ptr,
    grad_x_ptr,
    terms_ptr,
    count,
    channels,
    inner,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    DELTA: tl.constexpr,
    SPREAD: tl.constexpr,
    SLOPE: tl.constexpr,
    CLIPPED_ONLY: tl.constexpr,
    WANT_SCALE: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DIVISOR: tl.constexpr,
    LEAD: tl.constexpr,
    UNIT: tl.constexpr,
    MUL: tl.constexpr,
    PLUS: tl.constexpr,
    SIGN: tl.constexpr,
    BELOW: tl.constexpr,
    ABOVE: tl.constexpr,
    SHIFTED: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    x, moved, _, scale, step = _load(
        x_ptr,
        scale_ptr,
        shift_ptr,
        index,
        valid,
        channels,
        inner,
        DIVISOR,
        SHIFTED,
        PER_CHANNEL,
        FLOOR,
    )
    grad = tl.load(grad_ptr + index, mask=valid, other=0.0).to(tl.float32)
    t = tl.div_rn(moved, tl.zeros_like(x) + step) - LEAD
    outside = (t < FIRST) | (t > LAST)
    clipped, rounded = _rounded(t, LOW, HIGH)
    multiple = _multiple(x, rounded, MUL, PLUS, SIGN, BELOW, ABOVE)
    passed, sloped = grad, (t + LEAD) * SLOPE
    if DELTA is not None:
        nearest = multiple if SIGN else rounded
        sign = tl.where(grad > 0, DELTA, tl.where(grad < 0, -DELTA, 0.0))
        bend = (clipped - nearest) * sign + 1.0
        passed, sloped = grad * bend, sloped * bend
    if CLIPPED_ONLY:
        sloped = multiple
    passed = tl.where(outside, 0.0, passed)
    if UNIT is None:
        grad_x = passed * SLOPE
        terms = grad * (multiple - tl.where(outside, 0.0, sloped))
    else:
        grad_x = passed / (scale * SPREAD)
        terms = grad_x * moved
    tl.store(grad_x_ptr + index, grad_x.to(grad_x_ptr.dtype.element_ty), mask=valid)
    if WANT_SCALE:
        if PER_CHANNEL:
            tl.store(terms_ptr + index, terms, mask=valid)
        else:
            tl.store(terms_ptr + program, tl.sum(tl.where(valid, terms, 0.0), axis=0))


def quantize_triton(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return what `quantize_plain` returns (see there); x in float32, bfloat16 or float16."""
    x = _dense(x)
    out = torch.empty_like(x)  # keeps x's strides
    if x.numel():
        with on_device_of(x):
            _quantize_kernel[(triton.cdiv(x.numel(), BLOCK),)](
                x,
                scale.contiguous(),
                scale if shift is None else shift.contiguous(),
                out,
                x.numel(),
                *channels_of(x, affine.axis),
                OFFSET=affine.offset and shift is not None,
                **_constants(shift, affine),
            )
    return out


def gradients_triton(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    affine: Affine,
    want_scale: bool,
    want_shift: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what `gradients_plain` returns (see there); x in float32, bfloat16 or float16."""
    x = _dense(x)
    # Half precision is summed before it is rounded.
    grad_x = torch.empty_like(x, dtype=torch.float32 if want_shift else x.dtype)
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    programs = triton.cdiv(x.numel(), BLOCK)
    terms = torch.empty(programs, dtype=torch.float32, device=x.device)
    if affine.axis is not None and want_scale:
        terms = torch.empty_like(x, dtype=torch.float32)
    if x.numel():
        with on_device_of(x):
            _gradient_kernel[(programs,)](
                grad,
                x,
                scale.contiguous(),
                scale if shift is None else shift.contiguous(),
                grad_x,
                terms,
                x.numel(),
                *channels_of(x, affine.axis),
                FIRST=affine.window[0],
                LAST=affine.window[1],
                DELTA=affine.delta if affine.estimator == "ewgs" else None,
                SPREAD=None if affine.unit is None else affine.spread,
                SLOPE=affine.slope,
                CLIPPED_ONLY=affine.scale_by_clipped,
                WANT_SCALE=want_scale,
                **_constants(shift, affine),
            )
    return (
        grad_x.to(x.dtype),
        scale_gradient(grad_x, x, terms, scale, affine) if want_scale else None,
        shift_gradient(grad_x, grad, affine) if want_shift else None,
    )


def _constants(shift: Tensor | None, affine: Affine) -> dict[str, Any]:
    """Return what both kernels are compiled for."""
    low, high = affine.bounds
    return {
        "LOW": low,
        "HIGH": high,
        "DIVISOR": affine.divisor,
        "LEAD": float(affine.lead),
        "UNIT": affine.unit,
        "MUL": affine.mul,
        "PLUS": affine.mul * affine.base + affine.add,
        "SIGN": affine.sign,
        "BELOW": float(affine.mul * affine.low + affine.add),
        "ABOVE": float(affine.mul * affine.high + affine.add),
        "SHIFTED": shift is not None,
        "PER_CHANNEL": affine.axis is not None,
        "FLOOR": SCALE_FLOOR,
        "BLOCK": BLOCK,
    }


def _dense(x: Tensor) -> Tensor:
    """Return x if its elements fill its memory without gaps, in any order; else a copy."""
    dense: bool = torch.ops.aten.is_non_overlapping_and_dense(x)
    return x if dense else x.contiguous()
