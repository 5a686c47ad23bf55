"""The common part of the two weight updates, `HostUpdate` and `DeviceUpdate`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tr_det.core.codes import CodeBook
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import TALR


def is_on_host(tensor: Tensor) -> bool:
    """Return whether the tensor's values can be read without waiting for a device."""
    return tensor.device.type == "cpu"


class WeightUpdate:
    """Makes Eq. 12 for quantized weights, and the torch optimizer's step for all other groups.

    Args:
        optimizer: owner of the groups.
        torch_step: makes the torch optimizer's own step on all groups as they are.
        codes: of the quantized weights.
        decay: what multiplies decoupled weight decay, "talr" or "lr".
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        torch_step: Callable[[], None],
        codes: CodeBook,
        decay: str,
    ) -> None:
        self.optimizer, self.torch_step, self.codes = optimizer, torch_step, codes
        self.decay = decay

    def update(self, active: list[Group]) -> None:
        """Update all groups; ``active`` are the TR groups whose weight has a gradient."""
        raise NotImplementedError

    def decay_is_decoupled(self, group: Group) -> bool:
        """Return whether a group's weight decay is AdamW's."""
        is_adamw = isinstance(self.optimizer, torch.optim.AdamW)
        return bool(group.get("decoupled_weight_decay", is_adamw))

    def decay_factor(self, group: Group) -> Tensor | float:
        """Return what decoupled decay multiplies a weight by: 0-d, or 1.0 without such decay."""
        if group["weight_decay"] == 0 or not self.decay_is_decoupled(group):
            return 1.0
        factor: Tensor | float
        factor = 1.0 - group["weight_decay"] * group[TALR if self.decay == "talr" else "lr"]
        return factor
