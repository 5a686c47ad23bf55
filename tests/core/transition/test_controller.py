"""Eqs. 10, 11, S1 and S2 and the rule "pi" by hand, and what must hold for all numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tr_det.core.transition import UPDATE_RULES, Feedback, running_rate

RATES = st.floats(0.0, 1.0, width=32)
TALRS = st.floats(0.0, 10.0, width=32)
MOMENTA = st.floats(0.0, 0.999)
RULES = sorted(UPDATE_RULES)


def _tensors(*values: object) -> list[Tensor]:
    return [torch.as_tensor(value, dtype=torch.float32) for value in values]


def _update(rule: str, talr, running, target, gain=0.5, momentum=0.75) -> Tensor:
    return UPDATE_RULES[rule](_feedback(talr, running, target, gain, momentum))


def _feedback(talr, running, target, gain=0.5, momentum=0.75, base=1.0) -> Feedback:
    """Return feedback in a steady state: what was measured before is what is measured now."""
    talr, running, target, gain, base = _tensors(talr, running, target, gain, base)
    return Feedback(
        talr=talr,
        running=running,
        target=target,
        previous_running=running,
        previous_target=target,
        first_target=target,
        base=base.expand_as(talr),
        gain=gain,
        momentum=momentum,
        mass=torch.ones_like(running),
        previous_mass=torch.ones_like(running),
    )


def test_running_rate_is_eq_10() -> None:
    running = torch.zeros(2)
    expected = [[0.25, 0.0], [0.1875, 0.125], [0.390625, 0.09375]]
    for rate, line in zip([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0]], expected, strict=True):
        running = running_rate(running, torch.tensor(rate), momentum=0.75)
        assert running.tolist() == line


@given(RATES, RATES, MOMENTA)
def test_running_rate_stays_between_its_arguments(previous, rate, momentum) -> None:
    running = running_rate(*_tensors(previous, rate), momentum).item()
    assert min(previous, rate) - 1e-6 <= running <= max(previous, rate) + 1e-6


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # U + eta (R - K), eta = 0.5; never below zero
        ("additive", [1.0 + 0.5 * 0.25, 1.0 - 0.5 * 0.25, 0.0]),
        # U R / K
        ("multiplicative", [1.5, 0.75, 0.0625 * 0.25]),
        # m U + (1 - m) U R / K, m = 0.75
        ("momentum", [0.75 + 0.25 * 1.5, 0.75 + 0.25 * 0.75, 0.0625 * (0.75 + 0.25 * 0.25)]),
    ],
)
def test_rules_are_eqs_11_s1_s2_per_layer(rule: str, expected: list[float]) -> None:
    talr, running, target = [1.0, 1.0, 0.0625], [0.5, 1.0, 1.0], [0.75, 0.75, 0.25]
    torch.testing.assert_close(
        _update(rule, talr, running, target), torch.tensor(expected), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("rule", RULES)
@given(talr=TALRS, running=RATES, target=RATES, gain=TALRS, momentum=MOMENTA)
def test_talr_is_never_negative_and_finite(rule, talr, running, target, gain, momentum) -> None:
    new = _update(rule, talr, running, target, gain, momentum).item()
    assert 0.0 <= new < float("inf")


@pytest.mark.parametrize("rule", RULES)
@given(talr=TALRS, rate=st.floats(2**-20, 1.0, width=32), gain=TALRS, momentum=MOMENTA)
def test_talr_rests_where_the_target_is_met(rule, talr, rate, gain, momentum) -> None:
    # abs: the rule 'pi' keeps the TALR above a millionth of the base learning rate, here 1
    new = _update(rule, talr, rate, rate, gain, momentum).item()
    assert new == pytest.approx(talr, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
@given(talr=TALRS, running=RATES, target=RATES, gain=TALRS, momentum=MOMENTA)
def test_talr_moves_towards_the_target(rule, talr, running, target, gain, momentum) -> None:
    change = _update(rule, talr, running, target, gain, momentum).item() - talr
    # 1e-6: m U + (1 - m) U may be an ulp off U
    assert change * (target - running) >= -1e-6 * max(talr, 1.0)


@pytest.mark.parametrize("rule", ["multiplicative", "momentum"])
def test_ratio_rules_are_safe_where_nothing_has_moved(rule: str) -> None:
    assert 1.0 <= _update(rule, 1.0, 0.0, 0.01).item() < 1e3
    assert 0.0 <= _update(rule, 1.0, 0.0, 0.0).item() <= 1.0


@pytest.mark.parametrize("rule", RULES)
def test_talr_stays_finite_for_a_layer_that_stands_still(rule: str) -> None:
    """Its gradients are zero (dead, or all clipped): an infinite TALR would make weights NaN."""
    talr, running, target, gain = [0.01], [0.0], [2e-3], [0.01]
    for _ in range(12_000):
        talr = UPDATE_RULES[rule](_feedback(talr, running, target, gain, 0.99, base=0.01))
    assert torch.isfinite(talr).all()


@pytest.mark.parametrize("rule", RULES)
def test_talr_rises_again_after_a_target_of_zero(rule: str) -> None:
    """As at the start of a warm-up, or between two parts of a composite schedule."""
    talr = [0.01]
    for _ in range(50):
        talr = UPDATE_RULES[rule](_feedback(talr, [0.02], [0.0], [0.1], 0.5, base=0.01))
    low = float(talr[0])
    for _ in range(200):
        talr = UPDATE_RULES[rule](_feedback(talr, [0.0], [0.02], [0.1], 0.5, base=0.01))
    assert low < 0.005
    assert float(talr[0]) > 0.01


def _run_pi(targets: list[float], rates: list[float], momentum: float) -> list[float]:
    """Return the TALR at each update, from 0.01; ``rates[t]`` is what update t causes."""
    talr, base, running, rate = _tensors(0.01, 0.01, 0.0, 0.0)
    targets, course = _tensors(*targets), []
    for t, target in enumerate(targets):
        previous, running = running, running_rate(running, rate, momentum)
        talr = UPDATE_RULES["pi"](
            Feedback(
                talr=talr,
                running=running,
                target=target,
                previous_running=previous,
                previous_target=targets[max(t - 1, 0)],
                first_target=targets[0],
                base=base,
                gain=base,
                momentum=momentum,
                mass=torch.tensor(1.0 - momentum**t),
                previous_mass=torch.tensor(1.0 - momentum ** (t - 1) if t else 0.0),
            )
        )
        rate = torch.tensor(rates[t])
        course.append(talr.item())
    return course


def test_pi_is_its_formula_in_the_first_updates() -> None:
    targets, m = [0.02, 0.018, 0.015], 0.75
    course = _run_pi(targets, [0.03, 0.01, 0.0], m)
    f = 0.01 * targets[0]
    mean = {1: 0.03, 2: (m * 0.03 + 0.01) / (m + 1.0)}  # of the rates so far, newest weighs most
    error = {t: math.log((targets[t] + f) / (mean[t] + f)) for t in (1, 2)}
    feed = {t: math.log((targets[t] + f) / (targets[t - 1] + f)) for t in (1, 2)}
    first = 0.01 * math.exp(feed[1] + 0.25 * error[1])
    second = first * math.exp(feed[2] + 0.25 * error[2] + (error[2] - error[1]))
    assert course == pytest.approx([0.01, first, second], rel=1e-5)


@pytest.mark.parametrize(("rate", "bound"), [(0.0, 1e3), (1.0, 1e-6)])
def test_pi_holds_the_talr_within_its_bounds(rate: float, bound: float) -> None:
    talrs = _run_pi(800 * [0.01], 800 * [rate], 0.8)
    assert talrs[-1] == pytest.approx(0.01 * bound, rel=1e-5)


def test_pi_changes_the_talr_by_half_its_logarithm_at_most() -> None:
    talrs = _run_pi(20 * [0.01], 10 * [0.0, 1.0], momentum=0.0)
    changes = [math.log(after / before) for before, after in zip(talrs, talrs[1:], strict=False)]
    assert max(changes) == pytest.approx(0.5, rel=1e-5)
    assert min(changes) == pytest.approx(-0.5, rel=1e-5)
