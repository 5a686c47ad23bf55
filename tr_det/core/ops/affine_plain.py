"""Affine grids and their gradients in torch operations: the definition of all implementations.

For every device, and for compilers, which fuse it. The order of operations is that of the C
kernels, which give the same floats to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.ops.affine_grid import SCALE_FLOOR, Affine
from tr_det.core.ops.backends import is_traced

_DOT_BLOCK = 2**20
"""Longest float32 dot product: BLAS adds in sequence, so errors grow with the length."""


def codes_plain(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return the integer codes of x, int8 or uint8.

    Args:
        x: any shape, floating point.
        scale: 0-d, or (channels,) if the grid has an axis; units of x.
        shift: likewise, or None for 0.
        affine: the grid.
    """
    x, scale, shift = _prepared(x, scale, shift, affine)
    if affine.sign:
        return torch.where(x < 0, affine.low, affine.high).to(affine.code_dtype)
    t = _quotient(x, scale, shift, affine)
    return t.clamp_(*affine.bounds).round_().add_(affine.base).to(affine.code_dtype)


def values_plain(codes: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return the float32 values of codes; arguments as of `codes_plain`."""
    codes, scale, shift = _prepared(codes.float(), scale, shift, affine)
    out = codes * affine.mul + affine.add
    out = out * (scale / affine.divisor if affine.unit is None else affine.unit)
    return out + shift if affine.offset and shift is not None else out


def quantize_plain(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return the quantized values of x, in its shape and dtype; arguments as of `codes_plain`.

    In place on one new tensor: on CPUs the first access to new memory is most of the cost.
    """
    wide, scale, shift = _prepared(x, scale, shift, affine)
    t = wide if affine.sign else _quotient(wide, scale, shift, affine)
    out = _multiples(wide, t, affine)
    if affine.unit is None:
        out.mul_(scale / affine.divisor)
    elif affine.unit != 1:
        out.mul_(affine.unit)
    if affine.offset and shift is not None:
        out.add_(shift)
    return out.to(x.dtype)


def gradients_plain(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    affine: Affine,
    want_scale: bool,
    want_shift: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return dL/dx and, if asked for, dL/dscale and dL/dshift.

    With g = dL/dvalue, the mask M and the factor F of the estimator, m = mul * code + add, k = mul
    (1 by sign) and sums over what shares a scale:

        unit     dL/dx = g F M divisor unit k / s      dL/dscale = -sum(dL/dx (x - shift)) / s
        no unit  dL/dx = g F M k                       dL/dscale = sum(g (m - M F k u)) / divisor
        both     dL/dshift = -sum(dL/dx), and with offset + sum(g)

    Without unit and with ``scale_by_clipped``, m replaces F k u.

    Args:
        grad: g, shape and dtype of x.
        x: any shape, floating point.
        scale: as of `codes_plain`.
        shift: likewise.
        affine: the grid.
        want_scale: whether to compute dL/dscale.
        want_shift: whether to compute dL/dshift.

    Returns:
        dL/dx, in the shape and dtype of x; the others in the shape of scale, float32 (float64 for
        float64), or None. The gradient passes at elements that are NaN, so that they propagate.
    """
    dtype, small = x.dtype, scale
    x, scale, shift = _prepared(x, scale, shift, affine)
    grad, (low, high) = _wide(grad), affine.bounds
    t = _quotient(x, scale, shift, affine)  # as in forward: both agree on what is clipped
    passed, bend, outside = grad, None, None
    if affine.estimator == "ewgs":
        clipped = t.clamp(low, high)
        nearest = _multiples(x, t, affine) if affine.sign else clipped.round()
        bend = (clipped - nearest) * (torch.sign(grad) * affine.delta) + 1
        passed = grad * bend
    if affine.estimator != "identity":
        judged = t.round() if affine.estimator == "round" else t
        outside = (judged < low) | (judged > high)
        passed = torch.where(outside, 0, passed)
    if affine.unit is None:
        grad_x = passed * affine.slope if affine.slope != 1 else passed
    else:
        grad_x = passed / (scale * affine.spread)
    products = None
    if want_scale and affine.unit is None:
        slope = (t + affine.lead if affine.lead else t) * affine.slope
        slope = slope if bend is None else slope * bend
        multiples = _multiples(x, t, affine)
        slope = multiples if affine.scale_by_clipped else slope
        slope = slope if outside is None else torch.where(outside, 0, slope)
        products = grad * (multiples - slope)
    elif want_scale and has_products(shift, affine):
        products = grad_x * (x if shift is None else x - shift)
    return (
        grad_x.to(dtype),
        scale_gradient(grad_x, x, products, small, affine) if want_scale else None,
        shift_gradient(grad_x, grad, affine) if want_shift else None,
    )


def has_products(shift: Tensor | None, affine: Affine) -> bool:
    """Return whether dL/dscale is the sum of an array of products, not a dot product."""
    return affine.unit is None or shift is not None or affine.axis is not None


def scale_gradient(
    grad_x: Tensor, x: Tensor, products: Tensor | None, scale: Tensor, affine: Affine
) -> Tensor:
    """Return dL/dscale, in the shape of scale, from dL/dx and x or from the array of products."""
    total = inner(grad_x, x) if products is None else _sum(products, affine)
    if affine.unit is None:
        return total / affine.divisor
    return total / -scale.to(total.dtype).clamp_min(SCALE_FLOOR)


def shift_gradient(grad_x: Tensor, grad: Tensor, affine: Affine) -> Tensor:
    """Return dL/dshift, in the shape of scale."""
    total = -_sum(grad_x, affine)
    return total + _sum(_wide(grad), affine) if affine.offset else total


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return sum(a b) of two tensors of one shape, 0-d; on CPUs without a tensor of products."""
    if is_traced() or not a.is_cpu:
        return (a * b).sum()
    a, b = _flat_alike(a, b)
    if a.ndim != 1:
        return (a * b).sum()
    if a.numel() <= _DOT_BLOCK:
        return torch.dot(a, b)
    starts = range(0, a.numel(), _DOT_BLOCK)
    blocks = [torch.dot(a[i : i + _DOT_BLOCK], b[i : i + _DOT_BLOCK]) for i in starts]
    return torch.stack(blocks).sum()


def _flat_alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as 1-d views in memory order, or unchanged if their layouts differ."""
    if a.is_contiguous() and b.is_contiguous():
        return a.view(-1), b.view(-1)
    last = torch.channels_last
    if a.ndim == 4 and a.is_contiguous(memory_format=last) and b.is_contiguous(memory_format=last):
        return a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1)
    return a, b


def _sum(x: Tensor, affine: Affine) -> Tensor:
    """Return the sums over elements that share a scale."""
    if affine.axis is None:
        return x.sum()
    kept = affine.axis % x.ndim
    others = [dim for dim in range(x.ndim) if dim != kept]
    return x.sum(others) if others else x


def _prepared(
    x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return x, s and shift in the precision of the computation, s and shift broadcastable to x."""
    x = _wide(x)  # a quotient in half precision would fall on the wrong side of a transition point
    scale = scale.to(x.dtype).clamp_min(SCALE_FLOOR)
    shift = None if shift is None else shift.to(x.dtype)
    if affine.axis is not None:
        shape = [1] * x.ndim
        shape[affine.axis] = x.shape[affine.axis]
        scale = scale.view(shape)
        shift = None if shift is None else shift.view(shape)
    return x, scale, shift


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _quotient(x: Tensor, scale: Tensor, shift: Tensor | None, affine: Affine) -> Tensor:
    """Return t, a new tensor."""
    u = torch.div(x if shift is None else x - shift, scale / affine.divisor)
    return u.sub_(affine.lead) if affine.lead else u


def _multiples(x: Tensor, t: Tensor, affine: Affine) -> Tensor:
    """Return mul * code + add, in place on t unless by sign; NaN stays NaN."""
    if affine.sign:
        below, above = (float(affine.mul * code + affine.add) for code in (affine.low, affine.high))
        return torch.where(x < 0, below, torch.where(x >= 0, above, x)).to(x.dtype)
    out = t.clamp_(*affine.bounds).round_()
    plus = affine.mul * affine.base + affine.add
    if affine.mul != 1:
        out.mul_(affine.mul)
    return out.add_(plus) if plus else out
