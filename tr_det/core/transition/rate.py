"""What one update did to the quantized weights (Lee et al., ICCV 2025, Eq. 5)."""

from __future__ import annotations

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
    return torch.count_nonzero(codes != previous).to(torch.float32) / codes.numel()
