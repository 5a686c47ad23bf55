"""The settings of the TR scheme, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fvcore.common.param_scheduler import ParamScheduler

from tr_det.core.transition.auto import AUTO
from tr_det.core.transition.controller import UPDATE_RULES
from tr_det.core.transition.pi import default_momentum
from tr_det.core.transition.rate import SIGNALS
from tr_det.core.transition.schedule import TargetSchedule

GRANULARITIES = ("layer", "model")
DECAYS = ("talr", "lr")


@dataclass(frozen=True, kw_only=True)
class TransitionSettings:
    """What is followed, and how; `TransitionScheduled` documents the fields under ``tr_*``.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    total_steps: int
    factor: float | str = 1e-3
    momentum: float | None = 0.99
    schedule: str | ParamScheduler = "cosine"
    warmup: int = 0
    final: float = 0.0
    update: str = "additive"
    signal: str = "transition_rate"
    granularity: str = "layer"
    gain: float | None = None
    decay: str = "talr"

    def __post_init__(self) -> None:
        """Check every field."""
        fits = self.factor == AUTO or (_is_finite(self.factor) and self.factor > 0)  # type: ignore[operator]
        check("tr_factor", self.factor, fits, f"positive and finite, or {AUTO!r}")
        fits = self.momentum is None or (_is_finite(self.momentum) and 0 <= self.momentum < 1)
        check("tr_momentum", self.momentum, fits, "None or in [0, 1)")
        fits = _is_finite(self.final) and 0 <= self.final <= 1
        check("tr_final", self.final, fits, "in [0, 1]")
        fits = self.gain is None or (_is_finite(self.gain) and self.gain >= 0)
        check("tr_gain", self.gain, fits, "None or finite and not negative")
        for name, value, allowed in (
            ("tr_update", self.update, sorted(UPDATE_RULES)),
            ("tr_signal", self.signal, sorted(SIGNALS)),
            ("tr_granularity", self.granularity, GRANULARITIES),
            ("tr_decay", self.decay, DECAYS),
        ):
            check(name, value, value in allowed, f"one of {list(allowed)}")
        object.__setattr__(
            self, "_shape", TargetSchedule(self.schedule, self.total_steps, self.warmup)
        )

    def running_momentum(self) -> float:
        """Return m of Eq. 10."""
        return default_momentum(self.total_steps) if self.momentum is None else self.momentum

    def shape(self, step: int) -> float:
        """Return the target's course: its share of R_0 before ``final`` is mixed in."""
        shape: TargetSchedule = self._shape  # type: ignore[attr-defined]
        return shape(step)

    def target(self, factor: float, bits: int, step: int) -> float:
        """Return R_t of a layer with weights of that many bits, for lambda."""
        shape = self.shape(step)
        return factor * math.sqrt(bits) * shape + self.final * (1.0 - shape)


def check(name: str, value: object, holds: bool, allowed: str) -> None:
    """Raise ValueError with the name, the value and what is allowed, unless it holds."""
    if not holds:
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]
