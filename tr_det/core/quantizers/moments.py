"""Moments of calibration data, and the first ranges that follow from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tr_det.core.quantizers.pool import Pool

HALF_NORMAL_STD = math.sqrt(1.0 - 2.0 / math.pi)
"""Standard deviation of |z| for a standard normal z: 0.6028."""


def deviation(rows: Tensor, pool: Pool) -> Tensor | None:
    """Return the unbiased standard deviation of each row over all processes.

    Where it is zero or undefined (a constant, one element) the root mean square is returned, or 1/3
    if that is zero too: a scale must not be zero.

    Args:
        rows: shape (scales, elements).
        pool: sums over processes.

    Returns:
        Shape (scales,), float64; None if there is no element.
    """
    wide = rows.double()
    count = wide.new_full((len(wide),), wide.shape[1])
    count, total, squares = pool(
        torch.stack((count, wide.sum(1), wide.square().sum(1))), "sum"
    ).unbind()
    if count[0] == 0:
        return None
    variance = (squares - total.square() / count) / (count - 1)
    # Cancellation leaves about 1e-16 of the mean square where all elements are equal.
    degenerate = ~(variance > 1e-14 * squares / count)
    rms = (squares / count).sqrt()
    rms = torch.where(rms > 0, rms, 1.0 / 3.0)
    return torch.where(degenerate, rms, variance.clamp_min(0).sqrt())


def three_deviations(rows: Tensor, signed: bool, pool: Pool) -> Tensor | None:
    """Return the upper end of the first range: 3 std, or 3 std / sqrt(1 - 2/pi) if unsigned.

    That is three deviations of the normal distribution whose numbers, or magnitudes, these are.
    Arguments and shape as of `deviation`.
    """
    std = deviation(rows, pool)
    return std if std is None else 3.0 * std if signed else 3.0 * std / HALF_NORMAL_STD


def first_range(rows: Tensor, signed: bool, pool: Pool) -> tuple[Tensor, Tensor] | None:
    """Return the lower and the upper end of the first range.

    Signed data have -3 std and 3 std. Unsigned data have their minimum and ``3 std / sqrt(1 -
    2/pi)`` or, if that is larger (data far from zero), minimum + 3 std. Arguments, shapes and dtype
    as of `deviation`.
    """
    std = deviation(rows, pool)
    if std is None:
        return None
    if signed:
        return -3.0 * std, 3.0 * std
    wide = rows.double()
    least = wide.amin(1) if wide.numel() else wide.new_full((len(wide),), torch.inf)
    least = -pool(-least, "max")
    return least, torch.maximum(3.0 * std / HALF_NORMAL_STD, least + 3.0 * std)
