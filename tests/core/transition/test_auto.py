"""lambda from the rates of plain training."""

import pytest

from tr_det.core.transition import factor_from, probe_steps


def test_the_mean_of_a_target_that_falls_to_zero_is_the_rate_of_plain_training() -> None:
    rate, bits = 0.012, 4
    assert 0.5 * factor_from([rate], [bits]) * bits**0.5 == pytest.approx(rate)


def test_layers_of_other_widths_are_compared_at_the_same_lambda() -> None:
    rates = [0.01, 0.01 * 2**0.5, 0.01 * 8**0.5]
    assert factor_from(rates, [1, 2, 8]) == pytest.approx(factor_from([0.01], [1]))


def test_a_layer_that_stands_still_or_races_does_not_count() -> None:
    assert factor_from([0.0, 0.009, 0.01, 0.011, 1.0], 5 * [1]) == pytest.approx(0.02)


@pytest.mark.parametrize(("rate", "factor"), [(0.0, 1e-5), (1.0, 0.1)])
def test_a_run_that_does_not_work_gives_a_bound(rate: float, factor: float) -> None:
    assert factor_from([rate], [1]) == factor


@pytest.mark.parametrize(("steps", "probe"), [(1, 2), (100, 5), (4_000, 200), (10**6, 200)])
def test_the_probe_is_a_twentieth_within_bounds(steps: int, probe: int) -> None:
    assert probe_steps(steps) == probe
