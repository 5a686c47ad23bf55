"""Optimizers by name: torch's and their TR-scheduled twins (Table S5), for both sides' configs.

A twin is torch's class with `TransitionScheduled` before it. Constructor: ``Opt(groups, lr=...,
total_steps=T, tr_factor=1e-3, ...)`` with the ``tr_*`` arguments of `TransitionScheduled` and the
torch optimizer's own. Groups without a ``quantizer`` train exactly like the torch optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tr_det.core.errors import check_among
from tr_det.core.optim.device import SGDDeviceUpdate
from tr_det.core.optim.groups import Group
from tr_det.core.optim.scheduled import TransitionScheduled
from tr_det.core.transition.settings import arguments_from


class SGDT(TransitionScheduled, torch.optim.SGD):
    """TR-scheduled SGD; the direction is the momentum buffer with weight decay folded in."""

    _device_update = SGDDeviceUpdate


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


_TABLE: dict[str, tuple[type[torch.optim.Optimizer], type[torch.optim.Optimizer], tuple[str, ...]]]
_TABLE = {
    "SGD": (torch.optim.SGD, SGDT, ("momentum", "nesterov")),
    "Adam": (torch.optim.Adam, AdamT, ("betas",)),
    "NAdam": (torch.optim.NAdam, NAdamT, ("betas",)),
    "Adamax": (torch.optim.Adamax, AdamaxT, ("betas",)),
    "AdamW": (torch.optim.AdamW, AdamWT, ("betas",)),
    "RMSprop": (torch.optim.RMSprop, RMSpropT, ("momentum",)),
    "Adagrad": (torch.optim.Adagrad, AdagradT, ()),
}
"""torch's name -> (torch class, TR twin, arguments of it that configs have)."""


class OptimizerEntry(NamedTuple):
    """An optimizer of the registry.

    Attributes:
        make: its class.
        arguments: names of its own arguments that configs have.
        plain: name of the torch optimizer.
        transition: whether it is TR-scheduled.
    """

    make: type[torch.optim.Optimizer]
    arguments: tuple[str, ...]
    plain: str
    transition: bool


OPTIMIZERS: dict[str, OptimizerEntry] = {
    **{name: OptimizerEntry(t[0], t[2], name, False) for name, t in _TABLE.items()},
    **{f"{name}T": OptimizerEntry(t[1], t[2], name, True) for name, t in _TABLE.items()},
}
"""Name -> optimizer; a T at the end is for TR scheduling."""


def make_optimizer(
    name: str,
    groups: list[Group],
    *,
    total_steps: int,
    transition: Mapping[str, Any],
    arguments: Mapping[str, Any],
    replay: Mapping[str, Sequence[float]] | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer by name.

    Args:
        name: in `OPTIMIZERS`.
        groups: as `tr_param_groups` makes them; plain optimizers keep no quantizer in theirs.
        total_steps: updates of the run.
        transition: a config's settings of TR scheduling by name, for optimizers that have it.
        arguments: what the config has for some optimizers (``momentum``, ``nesterov``,
            ``betas``); each takes its own.
        replay: ``tr_replay`` of optimizers that have TR scheduling.
        **options: for every optimizer, e.g. ``lr`` and ``weight_decay``.

    Raises:
        ConfigError: an unknown name (key ``optimizer``) or a value out of range (``tr_...``).
    """
    check_among("optimizer", name, OPTIMIZERS)
    entry = OPTIMIZERS[name]
    own = {key: arguments[key] for key in entry.arguments}
    if entry.transition:
        own |= {"total_steps": total_steps, "tr_replay": replay, **arguments_from(transition)}
    return entry.make(groups, **options, **own)
