"""Eqs. 10, 11, S1 and S2 by hand, and laws of all rules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.core.transition.feedback import feedback
from tr_det.core.transition import UPDATE_RULES, running_rate

RATES = st.floats(0.0, 1.0, width=32)
TALRS = st.floats(0.0, 10.0, width=32)
MOMENTA = st.floats(0.0, 0.999)
RULES = sorted(UPDATE_RULES)


def _tensors(*values: object) -> list[Tensor]:
    return [torch.as_tensor(value, dtype=torch.float32) for value in values]


def _update(rule: str, talr, running, target, gain=0.5, momentum=0.75, base=1.0) -> Tensor:
    """Return the next TALR in a steady state: K and R are those of the previous update."""
    talr, running, target, gain, base = _tensors(talr, running, target, gain, base)
    base = base.expand_as(talr)
    return UPDATE_RULES[rule](feedback(talr, running, target, base, gain=gain, momentum=momentum))


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


@pytest.mark.parametrize("rule", RULES)
def test_talr_stays_finite_for_a_layer_without_transitions(rule: str) -> None:
    """Its gradients are zero (dead, or all clipped): an infinite TALR would make weights NaN."""
    talr = torch.tensor(0.01)
    for _ in range(1_500):
        talr = _update(rule, talr, 0.0, 2e-3, gain=0.01, momentum=0.9, base=0.01)
    assert torch.isfinite(talr)


@pytest.mark.parametrize("rule", RULES)
def test_talr_rises_again_after_a_target_of_zero(rule: str) -> None:
    """As at the start of a warm-up, or between two parts of a composite schedule."""
    talr = torch.tensor(0.01)
    for _ in range(50):
        talr = _update(rule, talr, 0.02, 0.0, gain=0.1, momentum=0.5, base=0.01)
    assert talr < 0.005
    for _ in range(200):
        talr = _update(rule, talr, 0.0, 0.02, gain=0.1, momentum=0.5, base=0.01)
    assert talr > 0.01
