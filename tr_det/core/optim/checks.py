"""What a TR-scheduled optimizer refuses: groups it can't schedule, checkpoints of another model."""

from __future__ import annotations

from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import BITS, NAME, OPTIMIZER, QUANTIZER, STATE, TALR


def checked_group(group: Group, index: int, scales: str) -> Group:
    """Return a TR group with its parameter in a list and a name.

    Raises:
        ConfigError: it holds not exactly one parameter, or its quantizer is trained though
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
        f"({name}); or set tr_scales to tell the two apart",
    )
    return {**group, "params": params, NAME: name}


def check_same_state(saved: list[Group], own: list[Group]) -> None:
    """Check that saved groups are from the same optimizer, for the same weights in the same order.

    Raises:
        ValueError: naming the first weight, bit-width or optimizer that differs.
    """
    theirs = [(group.get(NAME, "?"), group[BITS]) if TALR in group else None for group in saved]
    ours = [(group[NAME], group[BITS]) if QUANTIZER in group else None for group in own]
    their_count, our_count = (sum(map(bool, entries)) for entries in (theirs, ours))
    if their_count != our_count:
        raise ValueError(
            f"optimizer state has {their_count} TR-scheduled weights, this optimizer has "
            f"{our_count}: it was written with another optimizer, or for another model"
        )
    for their, our in zip(theirs, ours, strict=False):
        if their is not None and our is not None and their[0] == our[0]:
            if their[1] != our[1]:
                raise ValueError(
                    f"optimizer state of {our[0]!r} is for {their[1]} bits, this model has "
                    f"{our[1]}; resume with the bit-width the run was started with"
                )
        elif their is not our:  # not ordinary groups both
            raise ValueError(
                f"optimizer state has {_described(their)} where this model has {_described(our)}"
            )
    for group, mine in zip(saved, own, strict=False):
        if TALR not in group:
            continue
        missing = [key for key in STATE if key not in group]
        if missing:
            raise ValueError(
                f"optimizer state of {group[NAME]!r} lacks {missing}: an older version of tr_det "
                "wrote it; finish the run with that version, or start from its weights alone"
            )
        if group[OPTIMIZER] != mine[OPTIMIZER]:
            raise ValueError(
                f"optimizer state was written by TR-scheduled {group[OPTIMIZER]}, this is "
                f"{mine[OPTIMIZER]}; resume with the optimizer the run was started with"
            )


def _described(entry: tuple[str, int] | None) -> str:
    return "an ordinary group" if entry is None else repr(entry[0])
