"""The update on the host, where a TALR can be read: the torch step makes Eq. 12 itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tr_det.core.optim.controllers import stack
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import TALR

if TYPE_CHECKING:
    from tr_det.core.optim.scheduled import TransitionScheduled


def is_on_host(tensor: Tensor) -> bool:
    """Return whether reading the tensor's value blocks nothing."""
    return tensor.device.type == "cpu"


class HostUpdate:
    """Makes Eq. 12 by the torch step, with U for a learning rate.

    Args:
        optimizer: whose groups it updates.
    """

    def __init__(self, optimizer: TransitionScheduled) -> None:
        self.optimizer = optimizer

    def update(self, active: list[Group]) -> None:
        """Update all groups; those of quantized weights with a gradient are ``active``."""
        optimizer = self.optimizer
        before = [dict(group) for group in active]
        rates = stack(active, TALR).tolist() if active else []
        try:
            for group, rate in zip(active, rates, strict=True):
                if optimizer.decay_by_lr(group):
                    group["params"][0].mul_(optimizer.kept_by_decay(group))
                    group["weight_decay"] = 0.0
                group["lr"] = rate
                if self._may_be_fused(group):
                    group["fused"] = True
            optimizer.torch_step()
        finally:
            for group, values in zip(active, before, strict=True):
                group.update(values)

    def _may_be_fused(self, group: Group) -> bool:
        """Return whether torch's quickest implementation may be taken, the choice being open.

        On the host it goes through memory without looking at strides, so they must all be alike.
        """
        weight = group["params"][0]
        state = self.optimizer.state.get(weight, {}).values()
        others = [t for t in state if isinstance(t, Tensor) and t.shape == weight.shape]
        dense: bool = torch.ops.aten.is_non_overlapping_and_dense(weight)
        return (
            group.get("fused", False) is None
            and group.get("foreach") is None
            and dense
            and weight.grad.layout == torch.strided
            and all(t.stride() == weight.stride() for t in (weight.grad, *others))
        )
