"""What one update did to the quantized weights (Lee et al., ICCV 2025, Eqs. 5 and S3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def transition_rate(codes: Tensor, previous: Tensor) -> Tensor:
    """Return the share of codes that changed, Eq. 5.

    Args:
        codes: integer codes after an update, any shape.
        previous: integer codes before it, same shape and dtype.

    Returns:
        0-d float32 in [0, 1], on the codes' device (nothing is synchronised). Codes are compared,
        never de-quantized values: those would also change with a scale (supplement S5.1).

    >>> transition_rate(torch.tensor([1, 0, -2, 1]), torch.tensor([1, 0, -1, 1])).item()
    0.25
    """
    return torch.count_nonzero(codes != previous).to(torch.float32) / max(codes.numel(), 1)


def effective_step_size(codes: Tensor, previous: Tensor, gamma: int) -> Tensor:
    """Return the mean change of the quantized weights' levels, Eq. S3.

    Args:
        codes: integer codes after an update, any shape.
        previous: integer codes before it, same shape and dtype.
        gamma: divisor from code to level (Eq. 13).

    Returns:
        0-d float32, units of levels, on the codes' device. It equals the transition rate over
        gamma where no code moves by more than one.

    >>> effective_step_size(torch.tensor([1, 0, -2, 1]), torch.tensor([1, 0, 0, 1]), gamma=2).item()
    0.25
    """
    moves = (codes.float() - previous.float()).abs().sum()
    return moves / (gamma * max(codes.numel(), 1))


SIGNALS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "transition_rate": lambda codes, previous, gamma: transition_rate(codes, previous),
    "effective_step_size": effective_step_size,
}
"""Name -> what is measured and followed: ``(codes, previous, gamma) -> 0-d float32``."""
