"""The target's shape over a run: by hand inside, exact at both ends, held past the end."""

import math
import re

import pytest
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from tr_det.core.transition import SCHEDULES, TargetSchedule


class Parabola(ParamScheduler):
    """A user's own schedule."""

    def __call__(self, where: float) -> float:
        return 1.0 - where * where


FORMULAS = {
    "cosine": lambda where: 0.5 * (1.0 + math.cos(math.pi * where)),
    "linear": lambda where: 1.0 - where,
    "step": lambda where: 5.0 ** -math.floor(4.0 * where),
    "constant": lambda where: 1.0,
}
COMPOSITE = CompositeParamScheduler(
    [LinearParamScheduler(1.0, 0.5), ConstantParamScheduler(0.5)], [0.5, 0.5], 2 * ["rescaled"]
)
ENDS = [
    *(("cosine", 0.0), ("linear", 0.0), ("step", 0.2**3), ("constant", 1.0)),
    (LinearParamScheduler(1.0, 0.25), 0.25),
    (MultiStepParamScheduler([1.0, 0.1, 0.01], num_updates=10, milestones=[5, 8]), 0.01),
    (COMPOSITE, 0.5),
    (Parabola(), 0.0),
]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total_steps", [1, 3, 8, 90_000])
def test_schedule_follows_its_formula(name: str, total_steps: int) -> None:
    shape = TargetSchedule(name, total_steps)
    for step in range(0, total_steps, max(1, total_steps // 16)):
        assert shape(step) == pytest.approx(FORMULAS[name](step / total_steps), abs=1e-12)


@pytest.mark.parametrize(("schedule", "end"), ENDS)
@pytest.mark.parametrize("total_steps", [1, 7, 90_000])
def test_schedule_ends_exactly_and_holds(schedule, end: float, total_steps: int) -> None:
    shape = TargetSchedule(schedule, total_steps)
    assert shape(0) == 1.0
    # fvcore's schedulers need not accept 1.0, so a user's may end one ulp before it.
    tolerance = 0.0 if schedule in SCHEDULES else 1e-12
    assert shape(total_steps) == pytest.approx(end, rel=1e-12, abs=tolerance)
    assert shape(total_steps + 1) == shape(10 * total_steps) == shape(total_steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_last_update_of_a_very_long_run_is_inside(name: str) -> None:
    total_steps = 3_000_000  # (T - 1) / T is nearer to 1 than fvcore's own epsilon
    shape = TargetSchedule(name, total_steps)
    assert 0.0 <= shape(total_steps - 1) <= shape(total_steps - 2) <= 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@given(total_steps=st.integers(1, 100_000), data=st.data())
def test_schedule_never_rises_and_stays_within_0_and_1(name, total_steps, data) -> None:
    shape = TargetSchedule(name, total_steps)
    earlier = data.draw(st.integers(0, total_steps - 1))
    later = data.draw(st.integers(earlier, total_steps - 1))
    assert 1.0 >= shape(earlier) >= shape(later) >= 0.0


@pytest.mark.parametrize("total_steps", [0, -1, 10.0, True, "10"])
def test_total_steps_must_be_a_positive_integer(total_steps: object) -> None:
    with pytest.raises(ValueError, match=rf"total_steps={re.escape(repr(total_steps))}: .*least 1"):
        TargetSchedule("cosine", total_steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_from_zero_to_where_the_schedule_then_is(name: str) -> None:
    plain, warm = TargetSchedule(name, 40), TargetSchedule(name, 40, warmup_steps=8)
    top = FORMULAS[name](8 / 40)
    assert [warm(t) for t in range(8)] == pytest.approx([top * t / 8 for t in range(8)])
    assert [warm(t) for t in range(8, 45)] == pytest.approx([plain(t) for t in range(8, 45)])
