"""Statistics of an update of quantized weights (Lee et al., ICCV 2025, Eqs. 5 and S3, Fig. S3d)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tr_det.core.codes import Update
from tr_det.core.ops import SCALE_FLOOR
from tr_det.core.quantizers import FREE, Quantizer


def effective_step_size(update: Update) -> Tensor:
    """Return the mean change of the quantized weights' levels, Eq. S3.

    It equals the transition rate times the distance between levels if no code moves by more than
    one and the levels stay.

    Args:
        update: with the previous codes.

    Returns:
        0-d float32, units of levels, on the weight's device.
    """
    assert update.previous is not None
    quantizer = update.quantizer
    with torch.no_grad():
        moves = quantizer.values(update.codes) - quantizer.values(update.previous)
        return moves.abs().sum() / max(moves.numel(), 1)


@torch.no_grad()
def scale_drift(update: Update) -> Tensor:
    """Return the relative change of the quantizer's parameters by the update.

    Returns:
        0-d float32, the mean over its trained or refitted tensors of ``|new - old| / |old|`` in
        Euclidean norms; 0 where it has none.
    """
    now = update.quantizer.moving_tensors()
    changes = [
        (now[name] - before).norm() / before.norm().clamp_min(SCALE_FLOOR)
        for name, before in update.parameters.items()
    ]
    if not changes:
        return torch.zeros((), device=update.codes.device)
    return torch.stack(changes).mean().float()


@torch.no_grad()
def distances(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Return each weight's distance to the nearest transition point, in units of codes.

    Returns:
        Float32, as many elements as the weight, 1-d.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("lsq", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.5]))  # step 1
    >>> [round(d, 2) for d in distances(quantizer, torch.tensor([0.4, 0.6, -5.0])).tolist()]
    [0.1, 0.1, 0.5]
    """
    points = quantizer.transition_points()
    units = quantizer.normalized(weight).flatten().contiguous()
    after = torch.bucketize(units, points).clamp(1, max(1, len(points) - 1))
    below = (units - points[after - 1]).abs()
    return below if len(points) == 1 else torch.minimum(below, (units - points[after]).abs())


def held_share(weights: Mapping[str, tuple[Tensor, Quantizer]]) -> Tensor:
    """Return the share of all quantized weights that are held: 0-d float32, on their device.

    Args:
        weights: of `CodeBook.weights`, at least one.
    """
    held = [
        torch.zeros((), dtype=torch.int64, device=weight.device)
        if quantizer.held is None
        else torch.count_nonzero(quantizer.held != FREE)
        for weight, quantizer in weights.values()
    ]
    return torch.stack(held).sum() / sum(weight.numel() for weight, _ in weights.values())


SIGNALS: dict[str, Callable[[Update], Tensor]] = {
    "transition_rate": Update.rate,
    "effective_step_size": effective_step_size,
}
"""Name -> what controllers measure and follow."""
