"""The TR scheme as pure functions: running rate, target, TALR rules, settings."""

from tr_det.core.transition.auto import AUTO, factor_from, probe_steps
from tr_det.core.transition.pi import default_momentum
from tr_det.core.transition.rules import UPDATE_RULES, Feedback, running_rate
from tr_det.core.transition.schedule import SCHEDULES, TargetSchedule
from tr_det.core.transition.settings import TransitionSettings

__all__ = [
    "AUTO",
    "SCHEDULES",
    "UPDATE_RULES",
    "Feedback",
    "TargetSchedule",
    "TransitionSettings",
    "default_momentum",
    "factor_from",
    "probe_steps",
    "running_rate",
]
