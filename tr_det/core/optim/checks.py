"""Checks of parameter groups and of saved states."""

from __future__ import annotations

import math

from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import BITS, NAME, OPTIMIZER, QUANTIZER, TALR


def checked_group(group: Group, index: int, scales: str) -> Group:
    """Return a TR group with its parameter in a list and a name.

    Raises:
        ConfigError: it does not hold exactly one parameter, or its quantizer is trained though
            ``tr_scales`` is "frozen".
    """
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    name = group.get(NAME, f"group {index}")
    check(f"{name}: params", len(params), len(params) == 1, "one, with a quantizer")
    learned = any(p.requires_grad for p in group[QUANTIZER].parameters())
    check(
        "learn_weight_scale",
        learned,
        not learned or scales != "frozen",
        "False under TR scheduling: with a trained scale weights transit without being updated "
        f"({name}); or set tr_scales (SOLVER.TR.SCALES, tr.scales) to tell the two apart",
    )
    return {**group, "params": params, NAME: name}


def check_options(group: Group) -> None:
    """Raise ConfigError for an option of a group that torch takes and no run survives."""
    for key, high, allowed in (
        ("lr", math.inf, "finite and not negative"),
        ("weight_decay", math.inf, "finite and not negative"),
        ("momentum", 1, "in [0, 1)"),
    ):
        value = group.get(key, 0)
        # Asking a tensor would wait for its device.
        check(key, value, isinstance(value, Tensor) or 0 <= value < high, allowed)


def check_same_state(saved: list[Group], own: list[Group]) -> None:
    """Check that saved groups are from the same optimizer, for the same weights in the same order.

    Raises:
        ValueError: naming the first weight, bit-width or optimizer that differs.
    """
    saved_count = sum(TALR in group for group in saved)
    own_count = sum(QUANTIZER in group for group in own)
    if saved_count != own_count:
        raise ValueError(
            f"optimizer state has {saved_count} TR-scheduled weights, this optimizer has "
            f"{own_count}: it was written with another optimizer, or for another model"
        )
    for before, now in zip(saved, own, strict=False):
        names = _described(before), _described(now)
        if names[0] != names[1]:
            raise ValueError(f"optimizer state has {names[0]} where this model has {names[1]}")
        if TALR not in now:
            continue
        if before[BITS] != now[BITS]:
            raise ValueError(
                f"optimizer state of {names[0]} is for {before[BITS]} bits, this model has "
                f"{now[BITS]}; resume with the bit-width the run was started with"
            )
        if before[OPTIMIZER] != now[OPTIMIZER]:
            raise ValueError(
                f"optimizer state was written by TR-scheduled {before[OPTIMIZER]}, this is "
                f"{now[OPTIMIZER]}; resume with the optimizer the run was started with"
            )


def _described(group: Group) -> str:
    return repr(group[NAME]) if TALR in group else "an ordinary group"
