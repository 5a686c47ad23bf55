"""The arguments of the one-pass update of quantized weights in `affine_step_triton`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tr_det.core.ops.affine_grid import Affine

FREE = -128
"""The number in `LayerStep.held` of a weight that is not held."""


@dataclass(frozen=True)
class SGDOptions:
    """The options of ``torch.optim.SGD``."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False


@dataclass(frozen=True)
class LayerStep:
    """The tensors and the grid of one quantized weight.

    Attributes:
        weight: float32, dense; written.
        direction: the gradient for SGD, else g_t of Eq. 12 (of descent); float32, strides of
            weight.
        buffer: momentum buffer, likewise; written; None without momentum.
        codes: int8 or uint8, strides of weight; written.
        affine: the grid.
        scale: float32; 0-d, or (channels,) and dense if the grid has an axis.
        shift: likewise, or None for 0.
        held: int8, strides of weight: the code of a held weight, else ``FREE``; None: none is held.
    """

    weight: Tensor
    direction: Tensor
    buffer: Tensor | None
    codes: Tensor
    affine: Affine
    scale: Tensor
    shift: Tensor | None = None
    held: Tensor | None = None
