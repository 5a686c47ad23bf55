"""Ranges of least squared error among a few candidates, for initial values.

All numbers between two thresholds get one level. So, once the numbers are sorted, the error of a
candidate follows from cumulative sums at its thresholds, without another pass over the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

SCALES = 100
"""Candidates of `best_scale`."""

SHRINKS = 40
"""Candidates of `best_range` for each end."""

_BLOCK = 2**20  # float64 levels at a time: 8 MB
_ALIKE = 1e-12  # errors this near, relative to the sum of squares, differ by rounding only


def best_scale(rows: Tensor, low: int, high: int) -> Tensor:
    """Return the scale of each row with the least squared error.

    Nagel et al., ICML 2022: the candidates are i/100 of max|x|, i = 1..100, divided by the largest
    code; the error is that of rounding, then clipping; of equal ones the smallest scale is taken.
    Their code takes max|x| + 0.5, which is coarse for small weights; here nothing is added.

    Args:
        rows: shape (scales, elements), at least one element; the caller draws a sample of many.
        low: smallest code.
        high: largest code, > 0.

    Returns:
        Shape (scales,), float64, positive; 1 / high for a row of zeros.

    >>> best_scale(torch.tensor([[-1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]), -2, 1).tolist()
    [0.5, 1.0]
    """
    wide = rows.double()
    reach = wide.abs().amax(1, keepdim=True)
    reach = torch.where(reach > 0, reach, 1.0)
    parts = torch.arange(1, SCALES + 1, device=rows.device).double() / SCALES
    step = (parts / high).expand(len(rows), -1)
    best = _least(wide / reach, step, torch.zeros_like(step), low, high)
    best = torch.where((rows != 0).any(1), best, SCALES - 1)
    return (reach * step).gather(1, best[:, None]).squeeze(1)


def best_range(sample: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return the step and the offset of values ``step * code + offset`` of least squared error.

    The candidates are the ranges from the minimum to the maximum with either end moved towards the
    mean by i/40 of its distance, i = 0..39; of equal errors the widest range is taken. So numbers
    from zero on have an offset of exactly zero (for unsigned codes), unless another is better.

    Args:
        sample: 1-d, at least one element.
        low: smallest code.
        high: largest code.

    Returns:
        Step, positive, and offset: 0-d, float64. A constant is an end of a range that begins or
        ends at zero; zeros have the range from 0 to 1.

    >>> step, offset = best_range(torch.tensor([-1.0, 0.0, 1.0, 2.0]), 0, 3)
    >>> (step.item(), offset.item())
    (1.0, -1.0)
    """
    wide = sample.double()
    least, most = wide.aminmax()
    mean = wide.mean().clamp(least, most)  # which a constant's may leave, by rounding
    flat = least == most
    least = torch.where(flat, least.clamp_max(0.0), least)
    most = torch.where(flat, most.clamp_min(0.0), most)
    most = torch.where(least == most, 1.0, most)
    shares = torch.arange(SHRINKS, device=sample.device).double() / SHRINKS
    lower, upper = torch.lerp(least, mean, shares), torch.lerp(most, mean, shares)
    lower, upper = (ends.flatten() for ends in torch.meshgrid(lower, upper, indexing="ij"))
    step = (upper - lower) / (high - low)
    offset = lower - low * step
    span = most - least
    candidates = (step / span)[None], ((offset - mean) / span)[None]
    best = _least(((wide - mean) / span)[None], *candidates, low, high)
    return step[best].squeeze(0), offset[best].squeeze(0)


def _least(rows: Tensor, step: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
    """Return the index of each row's first candidate of least squared error, int64, (rows,).

    Args:
        rows: shape (rows, elements), float64, of the order of 1.
        step: shape (rows, candidates), float64, positive.
        offset: likewise.
        low: smallest code.
        high: largest code.
    """
    ordered = rows.sort(1).values.contiguous()
    totals = pad(ordered.cumsum(1), (1, 0))
    size = max(1, _BLOCK // (len(rows) * (high - low + 1)))
    blocks = zip(torch.split(step, size, 1), torch.split(offset, size, 1), strict=True)
    found = [_errors(ordered, totals, *block, low, high) for block in blocks]
    errors = torch.cat(found, 1)
    near = errors.amin(1, keepdim=True) + _ALIKE * rows.square().sum(1, keepdim=True)
    return (errors <= near).int().argmax(1)


def _errors(
    ordered: Tensor, totals: Tensor, step: Tensor, offset: Tensor, low: int, high: int
) -> Tensor:
    """Return the squared error of each candidate, less the row's sum of squares."""
    codes = torch.arange(low, high + 1, device=ordered.device)
    levels = step[..., None] * codes + offset[..., None]
    middles = (levels[..., 1:] + levels[..., :-1]) / 2
    ends = torch.searchsorted(ordered, middles.flatten(1)).view(middles.shape)
    ends = pad(pad(ends, (1, 0)), (0, 1), value=ordered.shape[1])
    counts = ends.diff()
    sums = totals.gather(1, ends.flatten(1)).view(ends.shape).diff()
    # The sum of (x - v)^2, x^2 left out.
    return (levels * (levels * counts - 2 * sums)).sum(-1)
