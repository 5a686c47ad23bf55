"""The TR scheme as pure functions: what is measured, which target it has, how it follows."""

from tr_det.core.transition.controller import UPDATE_RULES, running_rate
from tr_det.core.transition.rate import transition_rate
from tr_det.core.transition.schedule import SCHEDULES, TargetSchedule

__all__ = ["SCHEDULES", "UPDATE_RULES", "TargetSchedule", "running_rate", "transition_rate"]
