"""The settings of TR scheduling: one table with defaults, meanings and checks.

From it follow the ``tr_*`` arguments of the optimizers, the keys of both configs (``SOLVER.TR.*``
in Detectron2's, ``tr.*`` in the classifier's) and the table in ``docs/tr_settings.md``. A new
setting is a field here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler

from tr_det.core.errors import check, is_number, is_whole
from tr_det.core.transition.auto import AUTO
from tr_det.core.transition.pi import default_momentum
from tr_det.core.transition.rules import UPDATE_RULES
from tr_det.core.transition.schedule import SCHEDULES, TargetSchedule
from tr_det.core.weight_stats import SIGNALS


@dataclass(frozen=True)
class Knob:
    """The description of a setting.

    Attributes:
        meaning: one or two sentences.
        allowed: what it must be.
        fits: whether a value is allowed.
        stands_for: (number in a config, value here) for a value of another type than the config's
            key, which has one type.
    """

    meaning: str
    allowed: str
    fits: Callable[[Any], bool]
    stands_for: tuple[float, Any] | None = None

    def rule(self) -> str:
        """Return what is allowed, in code and in configs."""
        if self.stands_for is None:
            return self.allowed
        number, value = self.stands_for
        return f"{self.allowed}; {number} in a config means {value!r}"


def _knob(
    default: Any, meaning: str, allowed: str, fits: Callable[[Any], bool], **more: Any
) -> Any:
    return field(default=default, metadata={"knob": Knob(meaning, allowed, fits, **more)})


def _choice(default: str, meaning: str, names: Iterable[str]) -> Any:
    known = list(names)
    return _knob(default, meaning, f"one of {known}", lambda value: value in known)


@dataclass(frozen=True, kw_only=True)
class TransitionSettings:
    """The settings of one optimizer.

    Args:
        total_steps: T, length of the run in updates.
        others: see their `Knob.meaning`, or ``docs/tr_settings.md``.

    Raises:
        ConfigError: naming the argument as ``tr_<field>``, its value and what is allowed.
    """

    total_steps: int
    factor: float | str = _knob(
        1e-3,
        "lambda: the first target TR of a layer with b-bit weights is lambda * sqrt(b). 'auto' "
        "finds it in the first updates.",
        f"in (0, 1], or {AUTO!r}",
        lambda value: value == AUTO or (is_number(value) and 0 < value <= 1),
        stands_for=(-1.0, AUTO),
    )
    momentum: float | None = _knob(
        0.99,
        "m: momentum of the running TR; None derives it from the run's length.",
        "None or in [0, 1)",
        lambda value: value is None or (is_number(value) and 0 <= value < 1),
        stands_for=(-1.0, None),
    )
    schedule: str | ParamScheduler = _knob(
        "cosine",
        "The target over the run: cosine, linear, step or constant; in code any fvcore "
        "ParamScheduler.",
        f"one of {list(SCHEDULES)}, or an fvcore ParamScheduler",
        lambda value: value in SCHEDULES or isinstance(value, ParamScheduler),
    )
    warmup: int = _knob(
        0,
        "Updates over which the target first rises from 0.",
        "an integer, not negative",
        lambda value: is_whole(value) and value >= 0,
    )
    final: float = _knob(
        0.0,
        "Last target TR, approached instead of 0 (Table S6).",
        "in [0, 1]",
        lambda value: is_number(value) and 0 <= value <= 1,
    )
    update: str = _choice(
        "additive",
        "TALR rule: additive (Eq. 11, the paper's), multiplicative (S1), momentum (S2) or pi "
        "(ours, tracks best).",
        sorted(UPDATE_RULES),
    )
    signal: str = _choice(
        "transition_rate",
        "What is measured and followed: transition_rate (Eq. 5), or effective_step_size (S3; "
        "lambda is then in units of levels).",
        sorted(SIGNALS),
    )
    scales: str = _choice(
        "frozen",
        "Trained scales of quantized weights: frozen refuses them, as in the paper; by_weight "
        "follows the transitions that the weights' moves cause at the scale in use; sum adds "
        "those that the scales' moves and refits of levels cause.",
        ("frozen", "by_weight", "sum"),
    )
    granularity: str = _choice(
        "layer",
        "One controller per layer, or one for the model, which follows the means over all "
        "quantized weights.",
        ("layer", "model"),
    )
    gain: float | None = _knob(
        None,
        "eta of the additive rule; None means the base learning rate, as in the paper. Short runs "
        "need a larger one, about lr / (R_0 * T / 20).",
        "None, or finite and not negative",
        lambda value: value is None or (is_number(value) and value >= 0),
        stands_for=(0.0, None),
    )
    decay: str = _choice(
        "talr",
        "What multiplies decoupled weight decay (AdamW): the TALR or the group's learning rate.",
        ("talr", "lr"),
    )
    nonfinite: str = _choice(
        "refuse",
        "What NaN or inf in a gradient does: refuse stops with an error, skip leaves the step out.",
        ("refuse", "skip"),
    )

    def __post_init__(self) -> None:
        """Check every field."""
        for name, knob in knobs(type(self)).items():
            value = getattr(self, name)
            check(f"tr_{name}", value, knob.fits(value), knob.rule())
        fits = self.scales != "sum" or self.signal == "transition_rate"
        allowed = "'frozen' or 'by_weight' with tr_signal='effective_step_size'"
        check("tr_scales", self.scales, fits, allowed)
        object.__setattr__(
            self, "_shape", TargetSchedule(self.schedule, self.total_steps, self.warmup)
        )

    def running_momentum(self) -> float:
        """Return m of Eq. 10."""
        return default_momentum(self.total_steps) if self.momentum is None else self.momentum

    def shape(self, step: int) -> float:
        """Return the schedule's multiplier of R_0, before ``final`` is mixed in."""
        shape: TargetSchedule = self._shape  # type: ignore[attr-defined]
        return shape(step)

    def target(self, factor: float, bits: int, step: int) -> float:
        """Return R_t of a layer with weights of that many bits, for lambda."""
        shape = self.shape(step)
        return factor * math.sqrt(bits) * shape + self.final * (1.0 - shape)


def knobs(settings: type[TransitionSettings] = TransitionSettings) -> dict[str, Knob]:
    """Return the table: name -> description, in order."""
    return {f.name: f.metadata["knob"] for f in fields(settings) if "knob" in f.metadata}


def config_defaults() -> dict[str, Any]:
    """Return the defaults of a config, whose keys have one type each."""
    found = {f.name: f.default for f in fields(TransitionSettings) if "knob" in f.metadata}
    return {name: config_value(name, value) for name, value in found.items()}


def config_value(name: str, value: Any) -> Any:
    """Return a setting as a config has it: the number that stands for ``'auto'`` or None.

    >>> config_value("factor", "auto"), config_value("factor", 0.01)
    (-1.0, 0.01)
    """
    stands_for = knobs()[name].stands_for if name in knobs() else None
    return stands_for[0] if stands_for is not None and value == stands_for[1] else value


def arguments_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optimizers' ``tr_*`` arguments from a config's values by name."""
    arguments = {}
    for name, knob in knobs().items():
        value = values[name]
        if knob.stands_for is not None and value == knob.stands_for[0]:
            value = knob.stands_for[1]
        arguments[f"tr_{name}"] = value
    return arguments


def table() -> str:
    """Return the settings as a Markdown table, for the docs."""
    rows = ["| setting | default in configs | meaning | allowed |", "| --- | --- | --- | --- |"]
    defaults = config_defaults()
    for name, knob in knobs().items():
        rows.append(f"| `{name}` | `{defaults[name]}` | {knob.meaning} | {knob.rule()} |")
    return "\n".join(rows) + "\n"
