"""Moments of calibration data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tr_det.core.quantizers.pool import Pool

HALF_NORMAL_STD = math.sqrt(1.0 - 2.0 / math.pi)
"""Standard deviation of |z| for a standard normal z: 0.6028."""


def deviation(rows: Tensor, pool: Pool) -> Tensor | None:
    """Return the unbiased standard deviation of each row over all processes.

    Where it is zero or undefined (a constant, one element) the root mean square stands for it, or
    1/3 if that is zero too: a scale must not be zero.

    Args:
        rows: shape (scales, elements).
        pool: sums over processes.

    Returns:
        Shape (scales,), float64; None without any element.
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
