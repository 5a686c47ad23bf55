"""What the one-pass update of a quantized weight reads and writes; see `step_triton`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tr_det.core.ops.grid import Grid


@dataclass(frozen=True)
class SGDOptions:
    """As of ``torch.optim.SGD``."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False


@dataclass(frozen=True)
class LayerStep:
    """One quantized weight and what its update reads and writes.

    Attributes:
        weight: float32, dense; written.
        direction: the gradient for SGD, else g_t of Eq. 12 (of descent); float32, strides of
            weight.
        buffer: momentum buffer, likewise; written; None without momentum.
        codes: int8, strides of weight; written.
        scale: 0-d float32.
        grid: the integer grid.
    """

    weight: Tensor
    direction: Tensor
    buffer: Tensor | None
    codes: Tensor
    scale: Tensor
    grid: Grid
