"""Detectron2's gradient clipping, between methods' edits and the update."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tr_det.core.errors import check_among

CLIP_TYPES = ("value", "norm")


def clip_from(cfg: CfgNode) -> Callable[[list[Tensor]], None] | None:
    """Return what clips as ``SOLVER.CLIP_GRADIENTS`` says, for `attach`; None if nothing does.

    The same as Detectron2's ``maybe_add_gradient_clipping``: each parameter is clipped by itself.

    Raises:
        ConfigError: unknown CLIP_TYPE.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not node.ENABLED:
        return None
    check_among("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", node.CLIP_TYPE, CLIP_TYPES)

    def clip(parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if node.CLIP_TYPE == "value":
                clip_grad_value_(parameter, node.CLIP_VALUE)
            else:
                clip_grad_norm_(parameter, node.CLIP_VALUE, node.NORM_TYPE)

    return clip
