"""What the one-pass update of a quantized weight reads and writes; see `affine_step_triton`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tr_det.core.ops.affine_grid import Affine

FREE = -128
"""In `LayerStep.held`: the code follows its weight."""


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
        codes: int8 or uint8, strides of weight; written.
        affine: the grid.
        scale: float32; 0-d, or (channels,) and dense if the grid has an axis.
        shift: likewise, or None for 0.
        held: int8, strides of weight: the code where it is not ``FREE``; None: all are free.
    """

    weight: Tensor
    direction: Tensor
    buffer: Tensor | None
    codes: Tensor
    affine: Affine
    scale: Tensor
    shift: Tensor | None = None
    held: Tensor | None = None
