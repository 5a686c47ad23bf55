"""The config's section on TR scheduling, made from the core's table of settings."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from tr_det.core.errors import check, check_among
from tr_det.core.transition import SCHEDULES
from tr_det.core.transition.settings import config_defaults, knobs


def _fields() -> list[tuple[str, Any, Any]]:
    """Return name, type and default of the core's settings."""
    fields = []
    for name, default in config_defaults().items():
        stands_for = knobs()[name].stands_for
        # YAML can say "auto" itself.
        named = stands_for is not None and isinstance(stands_for[1], str)
        kind = Any if named else type(default)
        fields.append((name, kind, field(default=default)))
    return fields


_Settings: Any = make_dataclass("_Settings", _fields(), frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class TransitionConfig(_Settings):
    """Transition-rate scheduling, for optimizers whose name ends in T.

    Keys, meanings and values are those of ``tr_det/docs/tr_settings.md``.
    """

    # "" takes the shape of the learning rate.
    schedule: str = ""

    def __post_init__(self) -> None:
        """Check every key; what depends on the run's length is checked with the optimizer."""
        check_among("tr.schedule", self.schedule, ("", *SCHEDULES))
        for name, knob in knobs().items():
            value, allowed = getattr(self, name), knob.allowed
            fits = name == "schedule" or knob.fits(value)
            if knob.stands_for is not None:
                number, meaning = knob.stands_for
                fits = fits or value == number
                allowed += f"; {number:g} stands for None" if meaning is None else ""
            check(f"tr.{name}", value, fits, allowed)
