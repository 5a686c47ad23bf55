"""The weight update on the host, where a TALR can be read: the torch step makes Eq. 12 itself."""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.optim.controllers import stack
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import TALR
from tr_det.core.optim.weight_update import WeightUpdate


class HostUpdate(WeightUpdate):
    """Runs the torch step with the TALR as the learning rate of each quantized weight."""

    def update(self, active: list[Group]) -> None:
        """Update all groups; ``active`` are the TR groups whose weight has a gradient."""
        before = [dict(group) for group in active]
        rates = stack(active, TALR).tolist()
        try:
            for group, rate in zip(active, rates, strict=True):
                if self.decay == "lr" and self.decay_is_decoupled(group):
                    group["params"][0].mul_(self.decay_factor(group))
                    group["weight_decay"] = 0.0
                group["lr"] = rate
                if self._may_be_fused(group):
                    group["fused"] = True
            self.torch_step()
        finally:
            for group, values in zip(active, before, strict=True):
                group.update(values)

    def _may_be_fused(self, group: Group) -> bool:
        """Return whether torch's fused implementation may be used: the user left the choice open.

        On the host it ignores strides, so those of the weight, gradient and state must agree.
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
