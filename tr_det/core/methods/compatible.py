"""Requirements of methods on the run that they are attached to.

A method lists its `needs`; where one is not met, the method is refused with the reason. All other
combinations are allowed: TR scheduling with every method, methods with each other, each of them
with every estimator (EWGS) and with trained, frozen or refitted scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import nn

from tr_det.core.errors import check
from tr_det.core.methods.base import Method, Run
from tr_det.core.quantizers import Quantizer


class Need(NamedTuple):
    """A requirement on a run.

    Attributes:
        is_met: whether a run meets it.
        reason: why a method that needs it must be "left out ..." otherwise.
    """

    is_met: Callable[[Run], bool]
    reason: str


def _weight_quantizers(run: Run) -> Iterable[Quantizer]:
    return (quantizer for _, quantizer in run.codes.weights().values())


def _has_batch_norm(run: Run) -> bool:
    norms = (m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(norm.track_running_stats for norm in norms)


NEEDS = {
    "weights": Need(lambda run: bool(run.codes.weights()), "where no weight is quantized"),
    "spare codes": Need(
        lambda run: any(q.bits < 8 for q in _weight_quantizers(run)),
        "where all weights have 8 bits: no code is left to mark free weights",
    ),
    "hard weights": Need(
        lambda run: not any(q.soft for q in _weight_quantizers(run)),
        "where weights are soft in training (sigmoids, or a map towards the levels): the forward "
        "does not use the codes that the method acts on, and such a map pulls weights to their "
        "levels by itself",
    ),
    "batch norms": Need(_has_batch_norm, "where no batch norm has running statistics"),
    "batches": Need(
        lambda run: run.batches is not None, "where attach gets no batches to run the model on"
    ),
}


def check_compatible(name: str, method: Method, run: Run) -> None:
    """Raise ConfigError (key ``methods``) unless the run meets the needs of the method."""
    for need in method.needs:
        check("methods", name, NEEDS[need].is_met(run), f"left out {NEEDS[need].reason}")
