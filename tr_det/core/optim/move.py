"""Eq. 12 for one layer, and what it did to the codes."""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.quantizers import Quantizer
from tr_det.core.transition import SIGNALS


def move(weight: Tensor, direction: Tensor, talr: Tensor, keep: Tensor | float) -> None:
    """Move a latent weight in place, after decoupled decay: ``w = keep w + U g``.

    Args:
        weight: floating point, any shape.
        direction: of descent, same shape and dtype.
        talr: U, 0-d float32.
        keep: what decoupled decay leaves of the weight; 1.0 without.
    """
    if weight.dtype in (torch.float16, torch.bfloat16):
        # A 0-d factor takes the tensor's dtype, which would round U, and ``keep`` to 1.
        wide = weight.float() * keep
        weight.copy_(wide.addcmul_(direction.float(), talr))
        return
    if isinstance(keep, Tensor) or keep != 1.0:
        weight.mul_(keep)
    weight.addcmul_(direction, talr)


def recode(weight: Tensor, quantizer: Quantizer, codes: Tensor, signal: str) -> Tensor:
    """Bring the codes of a weight up to date in place and return what that changed.

    Args:
        weight: the latent weight.
        quantizer: its quantizer.
        codes: codes before the update; afterwards those of the weight.
        signal: name in SIGNALS.

    Returns:
        Eq. 5 or S3, 0-d float32 on the weight's device.
    """
    if signal == "transition_rate":
        return quantizer.recode_(weight, codes).to(torch.float32) / max(codes.numel(), 1)
    new = quantizer.codes(weight)
    rate = SIGNALS[signal](new, codes, quantizer.grid.gamma)
    codes.copy_(new)
    return rate
