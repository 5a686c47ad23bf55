"""The TR-scheduled optimizers of Table S5: torch's, with `TransitionScheduled` before them.

Constructor: ``Opt(groups, lr=..., total_steps=T, tr_factor=1e-3, ...)`` with the ``tr_*`` arguments
of `TransitionScheduled` and the torch optimizer's own. Groups without a ``quantizer`` train exactly
like the torch optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tr_det.core.ops import SGDOptions
from tr_det.core.optim.groups import Group
from tr_det.core.optim.scheduled import TransitionScheduled


class SGDT(TransitionScheduled, torch.optim.SGD):
    """TR-scheduled SGD; the direction is the momentum buffer with weight decay folded in.

    On a GPU most updates need no torch step on zeros: the kernel makes SGD's step as well.
    """

    def _update_on_device(self, active: list[Group]) -> None:
        launches: dict[SGDOptions, list[Group]] = {}
        rest = []
        for group in active:
            if self._fits_one_pass(group):
                options = SGDOptions(**{key: group[key] for key in SGDOptions.__annotations__})
                launches.setdefault(options, []).append(group)
            else:
                rest.append(group)
        with _hidden_gradients([group for groups in launches.values() for group in groups]):
            super()._update_on_device(rest)
        for options, groups in launches.items():
            weights = [group["params"][0] for group in groups]
            self._fused.step(
                groups,
                [weight.grad for weight in weights],
                [self._buffer(group) for group in groups],
                [self._codes[weight] for weight in weights],
                sgd=options,
            )

    def _buffer(self, group: Group) -> Tensor | None:
        state = self.state[group["params"][0]]
        return state.get("momentum_buffer") if group["momentum"] != 0 else None

    def _fits_one_pass(self, group: Group) -> bool:
        weight = group["params"][0]
        buffer = self._buffer(group)
        if group["momentum"] != 0 and buffer is None:  # the first update makes it
            return False
        return self._tr.signal == "transition_rate" and self._fused.fit(
            group, weight.grad, buffer, self._codes[weight]
        )


@contextmanager
def _hidden_gradients(groups: list[Group]) -> Iterator[None]:
    """Let the torch step pass some weights over."""
    grads = [group["params"][0].grad for group in groups]
    try:
        for group in groups:
            group["params"][0].grad = None
        yield
    finally:
        for group, grad in zip(groups, grads, strict=True):
            group["params"][0].grad = grad


class AdamT(TransitionScheduled, torch.optim.Adam):
    """TR-scheduled Adam; the direction is m / (sqrt(v) + eps), bias-corrected."""


class AdamWT(TransitionScheduled, torch.optim.AdamW):
    """TR-scheduled AdamW; ``tr_decay`` says what multiplies the decoupled decay."""


class NAdamT(TransitionScheduled, torch.optim.NAdam):
    """TR-scheduled NAdam."""


class AdamaxT(TransitionScheduled, torch.optim.Adamax):
    """TR-scheduled Adamax."""


class RMSpropT(TransitionScheduled, torch.optim.RMSprop):
    """TR-scheduled RMSprop; the paper uses momentum 0.9 (supplement S2.4)."""


class AdagradT(TransitionScheduled, torch.optim.Adagrad):
    """TR-scheduled Adagrad."""
