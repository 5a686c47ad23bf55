"""Affine grids and their gradients on GPUs by a Triton kernel.

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
def _rounded(t, LOW: tl.constexpr, HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the clipped t and the rounded one."""
    t = tl.where(t < LOW, LOW * 1.0, t)
    t = tl.where(t > HIGH, HIGH * 1.0, t)
    # Rounds half to even: float32 numbers near 1.5 * 2^23 have no fraction bits.
    return t, (t + 12582912.0) - 12582912.0


@triton.jit  # type: ignore[untyped-decorator]
def _multiple(  # type: ignore[no-untyped-def]
    x, rounded, MUL: tl.constexpr, PLUS: tl.constexpr, SIGN: tl.constexpr, BELOW, ABOVE
):
    if SIGN:
        return tl.where(x < 0, BELOW, tl.where(x >= 0, ABOVE, x))
    return rounded * MUL + PLUS


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scales,
    shifts,
    grad_ptr,
    out_ptr,
    terms_ptr,
    count,
    channels,
    inner,
    GRADIENT: tl.constexpr,
    WANT_SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    DELTA: tl.constexpr,
    SPREAD: tl.constexpr,
    SLOPE: tl.constexpr,
    CLIPPED_ONLY: tl.constexpr,
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
    BY_CHANNEL: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write values, or with GRADIENT dL/dx and perhaps the terms of dL/dscale."""
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    x = tl.load(x_ptr + index, mask=valid, other=0.0).to(tl.float32)
    if BY_CHANNEL:
        place = (index // inner) % channels  # of an element by its place in memory
        scale = tl.load(scales + place, mask=valid, other=1.0).to(tl.float32)
    else:
        scale = tl.load(scales).to(tl.float32)
    shift = tl.zeros_like(scale)
    if SHIFTED and BY_CHANNEL:
        shift = tl.load(shifts + place, mask=valid, other=0.0).to(tl.float32)
    elif SHIFTED:
        shift = tl.load(shifts).to(tl.float32)
    scale = tl.where(scale < FLOOR, FLOOR, scale)  # comparisons, unlike max, keep NaN
    # div_rn rounds as IEEE requires, Triton's `/` does not: codes must equal the CPU's.
    step = tl.div_rn(scale, tl.zeros_like(scale) + DIVISOR)
    t = tl.div_rn(x - shift, tl.zeros_like(x) + step) - LEAD
    clipped, rounded = _rounded(t, LOW, HIGH)
    multiple = _multiple(x, rounded, MUL, PLUS, SIGN, BELOW, ABOVE)
    if GRADIENT:
        grad = tl.load(grad_ptr + index, mask=valid, other=0.0).to(tl.float32)
        outside = (t < FIRST) | (t > LAST)
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
            out = passed * SLOPE
            terms = grad * (multiple - tl.where(outside, 0.0, sloped))
        else:
            out = passed / (scale * SPREAD)
            terms = out * (x - shift)
        if WANT_SCALE and BY_CHANNEL:
            tl.store(terms_ptr + index, terms, mask=valid)
        elif WANT_SCALE:
            tl.store(terms_ptr + program, tl.sum(tl.where(valid, terms, 0.0), axis=0))
    else:
        out = multiple * (step if UNIT is None else UNIT)
        if OFFSET:
            out = out + shift
    tl.store(out_ptr + index, out.to(out_ptr.dtype.element_ty), mask=valid)


def quantize_triton(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return what `quantize_plain` returns (see there); x in float32, bfloat16 or float16."""
    x = _dense(x)
    out = torch.empty_like(x)  # keeps x's strides
    _launch(x, scale, shift, affine, x, out, x, GRADIENT=False, WANT_SCALE=False)
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
    _launch(x, scale, shift, affine, grad, grad_x, terms, GRADIENT=True, WANT_SCALE=want_scale)
    return (
        grad_x.to(x.dtype),
        scale_gradient(grad_x, x, terms, scale, affine) if want_scale else None,
        shift_gradient(grad_x, grad, affine) if want_shift else None,
    )


def _launch(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    affine: Affine,
    *tensors: Tensor,
    **flags: bool,
) -> None:
    """Run the kernel with more tensors: the gradient, the output and the terms of dL/dscale."""
    if not x.numel():
        return
    scales, shifts = scale.contiguous(), scale if shift is None else shift.contiguous()
    sizes = x.numel(), *channels_of(x, affine.axis)
    constants = _constants(shift, affine)
    with on_device_of(x):
        _kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, scales, shifts, *tensors, *sizes, **flags, **constants
        )


def _constants(shift: Tensor | None, affine: Affine) -> dict[str, Any]:
    """Return the compile-time constants that follow from the grid."""
    low, high = affine.bounds
    first, last = affine.window
    return {
        "FIRST": first,
        "LAST": last,
        "DELTA": affine.delta if affine.estimator == "ewgs" else None,
        "SPREAD": None if affine.unit is None else affine.spread,
        "SLOPE": affine.slope,
        "CLIPPED_ONLY": affine.scale_by_clipped,
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
        "OFFSET": affine.offset and shift is not None,
        "BY_CHANNEL": affine.axis is not None,
        "FLOOR": SCALE_FLOOR,
        "BLOCK": BLOCK,
    }


def _dense(x: Tensor) -> Tensor:
    """Return x if its elements fill its memory without gaps, in any order; else a copy."""
    dense: bool = torch.ops.aten.is_non_overlapping_and_dense(x)
    return x if dense else x.contiguous()
