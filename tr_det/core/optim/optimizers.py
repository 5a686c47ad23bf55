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

from tr_det.core.ops import SGDOptions, blocks_fit, sgd_step_
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import QUANTIZER, RATE, TALR
from tr_det.core.optim.scheduled import TransitionScheduled
from tr_det.core.quantizers.fixed_grid import FixedGridQuantizer


class SGDT(TransitionScheduled, torch.optim.SGD):
    """TR-scheduled SGD; the direction is the momentum buffer with weight decay folded in.

    The buffer is at hand, so most updates need no torch step on zeros but one pass over memory:
    the same numbers, sooner.
    """

    def _update(self, active: list[Group]) -> None:
        quick = [group for group in active if self._fits_one_pass(group)]
        taken = set(map(id, quick))
        with _hidden_gradients(quick):
            super()._update([group for group in active if id(group) not in taken])
        launches: dict[SGDOptions, list[Group]] = {}
        for group in quick:
            options = SGDOptions(**{key: group[key] for key in SGDOptions.__annotations__})
            if self._fused.fit(group):
                launches.setdefault(options, []).append(group)
                continue
            weight, quantizer = group["params"][0], group[QUANTIZER]
            changed = sgd_step_(
                weight,
                weight.grad,
                self._buffer(group),
                self._codes[weight],
                group[TALR],
                quantizer.scale,
                quantizer.grid,
                options,
            )
            group[RATE] = changed.to(torch.float32) / weight.numel()
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
        tensors = [t for t in (weight.grad, buffer, self._codes[weight]) if t is not None]
        return (
            isinstance(group[QUANTIZER], FixedGridQuantizer)
            and self._tr.signal == "transition_rate"
            and (self._fused.fit(group, *tensors) or blocks_fit(weight, *tensors))
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
