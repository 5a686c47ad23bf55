"""Detectron2's gradient clipping, for parameters with and without gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

CLIP_TYPES = ("value", "norm")


def with_gradient_clipping(cfg: CfgNode, optimizer: type) -> type:
    """Return an optimizer class whose step clips first, as ``SOLVER.CLIP_GRADIENTS`` says.

    The same as Detectron2's ``maybe_add_gradient_clipping`` (each parameter is clipped by itself)
    but for parameters without gradient, at which torch's ``clip_grad_value_`` fails: they are
    passed over.

    Raises:
        ValueError: unknown CLIP_TYPE.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not node.ENABLED:
        return optimizer
    clip = _clipper(node.CLIP_TYPE, node.CLIP_VALUE, node.NORM_TYPE)

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    clip(parameter)
        return optimizer.step(self, closure)  # type: ignore[attr-defined]

    return type(f"{optimizer.__name__}WithGradientClip", (optimizer,), {"step": step})


def _clipper(kind: str, value: float, norm_type: float) -> Callable[[Tensor], Any]:
    if kind == "value":
        return lambda parameter: clip_grad_value_(parameter, value)
    if kind == "norm":
        return lambda parameter: clip_grad_norm_(parameter, value, norm_type)
    raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={kind!r}: must be one of {list(CLIP_TYPES)}")
