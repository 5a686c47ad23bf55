"""The target over a run: R_t = lambda sqrt(b) * schedule(t / T) (ICCV 2025, S4.1)."""

from __future__ import annotations

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
    StepParamScheduler,
)

from tr_det.core.errors import ConfigError, check, is_whole

SCHEDULES = ("cosine", "linear", "step", "constant")
"""Schedules known by name; any fvcore ``ParamScheduler`` that starts at 1 can be given instead."""

_LAST = 1.0 - 2 * ParamScheduler.WHERE_EPSILON


class TargetSchedule:
    """The target's shape over a run: 1 at the start, by default 0 at the end.

    Args:
        schedule: ``"cosine"`` or ``"linear"`` to 0, ``"step"`` (divided by 5 after each
            quarter, supplement S2.2), ``"constant"``, or an fvcore ``ParamScheduler`` (``where`` in
            [0, 1) -> multiplier of the first target).
        total_steps: length of the run in optimizer updates, T >= 1. Past it the last value is held.
        warmup_steps: updates over which the multiplier first rises from 0, linearly, to where the
            schedule then is, as Detectron2 does with learning rates; in [0, T).

    Raises:
        ConfigError: unknown name, or a number out of range.

    >>> shape = TargetSchedule("cosine", total_steps=4)
    >>> [round(shape(t), 4) for t in range(6)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    >>> shape = TargetSchedule("constant", total_steps=4, warmup_steps=2)
    >>> [shape(t) for t in range(4)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(
        self, schedule: str | ParamScheduler, total_steps: int, warmup_steps: int = 0
    ) -> None:
        for key, value, low, high in (
            ("total_steps", total_steps, 1, None),
            ("tr_warmup", warmup_steps, 0, total_steps),
        ):
            fits = is_whole(value) and value >= low and (high is None or value < high)
            below = "" if high is None else f", below total_steps ({high})"
            check(key, value, fits, f"an integer of at least {low}{below}")
        self.total_steps = total_steps
        self.scheduler = schedule if isinstance(schedule, ParamScheduler) else _by_name(schedule)
        if warmup_steps:
            self.scheduler = _with_warmup(self.scheduler, warmup_steps / total_steps)

    def __call__(self, step: int) -> float:
        """Return the multiplier of the first target for update ``step`` (0-based)."""
        where = min(step / self.total_steps, 1.0)
        try:
            return float(self.scheduler(where))
        except (IndexError, RuntimeError):
            # fvcore's schedulers are defined on [0, 1): some accept 1, some refuse it.
            if where < _LAST:
                raise
            return float(self.scheduler(_LAST))


def _with_warmup(scheduler: ParamScheduler, length: float) -> ParamScheduler:
    """Return the scheduler with a rise from 0 over that share of the run before it."""
    return CompositeParamScheduler(
        [LinearParamScheduler(0.0, scheduler(length)), scheduler],
        lengths=[length, 1.0 - length],
        interval_scaling=["rescaled", "fixed"],
    )


def _by_name(name: str) -> ParamScheduler:
    if name == "cosine":
        return CosineParamScheduler(1.0, 0.0)
    if name == "linear":
        return LinearParamScheduler(1.0, 0.0)
    if name == "step":
        return StepParamScheduler(num_updates=4, values=[1.0, 0.2, 0.04, 0.008])
    if name == "constant":
        return ConstantParamScheduler(1.0)
    raise ConfigError("tr_schedule", name, f"one of {list(SCHEDULES)} or an fvcore ParamScheduler")
