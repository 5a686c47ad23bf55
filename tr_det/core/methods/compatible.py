"""What a model must be for a method to make sense on it, alone or beside TR scheduling.

A method names what it `needs`; what cannot be had is refused with the reason. Everything else goes
together: TR scheduling with every method, methods with each other, each of them with every
estimator (EWGS) and with trained, frozen or refitted scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from tr_det.core.errors import check
from tr_det.core.methods.base import Method, Run


class Need(NamedTuple):
    """Something that a run has or has not.

    Attributes:
        is_met: tells whether it has.
        reason: why a method that needs it must be "left out ..." otherwise.
    """

    is_met: Callable[[Run], bool]
    reason: str


def _any_weight(run: Run) -> bool:
    return bool(run.codes.weights())


def _any_spare_code(run: Run) -> bool:
    return any(quantizer.bits < 8 for _, quantizer in run.codes.weights().values())


def _no_soft_weight(run: Run) -> bool:
    return not any(quantizer.soft for _, quantizer in run.codes.weights().values())


def _any_norm(run: Run) -> bool:
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for module in run.model.modules()
    )


def _batches(run: Run) -> bool:
    return run.batches is not None


NEEDS = {
    "weights": Need(_any_weight, "where no weight is quantized"),
    "spare codes": Need(
        _any_spare_code, "where all weights have 8 bits: no code says that one is free"
    ),
    "hard weights": Need(
        _no_soft_weight,
        "where weights are soft in training (sigmoids, or a map towards the levels): the forward "
        "does not have the codes that the method acts on, and such a map pulls weights to their "
        "levels by itself",
    ),
    "batch norms": Need(_any_norm, "where no batch norm has running statistics"),
    "batches": Need(_batches, "where attach gets no batches to run the model on"),
}
"""Name -> what it is."""


def check_compatible(name: str, method: Method, run: Run) -> None:
    """Raise ConfigError (key ``methods``) unless the run has what the method needs."""
    for need in method.needs:
        check("methods", name, NEEDS[need].is_met(run), f"left out {NEEDS[need].reason}")
