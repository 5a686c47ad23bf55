"""Feedback to an update rule."""

from tr_det.core.transition import Feedback


def feedback(talr, running, target, base, **others):
    """Return feedback in a steady state: K and R are those of before, corrections are one."""
    steady = {"previous_running": running, "previous_target": target, "first_target": target}
    one = base / base
    steady |= {"gain": base, "correction": one, "previous_correction": one}
    return Feedback(talr=talr, running=running, target=target, base=base, **{**steady, **others})
