"""The nearest level at all times: plain quantization with straight-through gradients."""

from __future__ import annotations

from torch import Tensor


def softness(n: int, start: float, end: float, steepness: float) -> float:
    """Return 0."""
    return 0.0


def apply(x: Tensor, nearest: Tensor, levels: Tensor, softness: float) -> Tensor:
    """Return the nearest levels."""
    return nearest
