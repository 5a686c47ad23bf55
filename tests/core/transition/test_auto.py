"""Lambda from the rates of plain training."""

import pytest

from tr_det.core.transition import factor_from, probe_steps


def test_the_mean_of_a_target_that_falls_to_zero_is_the_rate_of_plain_training() -> None:
    rate, bits = 0.012, 4
    assert 0.5 * factor_from([rate], [bits]) * bits**0.5 == pytest.approx(rate)


@pytest.mark.parametrize(
    ("rates", "bits", "factor"),
    [
        ([0.01, 0.01 * 2**0.5, 0.01 * 8**0.5], [1, 2, 8], 0.02),  # lambda * sqrt(bits)
        ([0.0, 0.009, 0.01, 0.011, 1.0], 5 * [1], 0.02),  # layers without transitions, or all
        ([0.0], [1], 1e-5),
        ([1.0], [1], 0.1),
    ],
)
def test_lambda_is_twice_the_median_within_bounds(rates, bits, factor) -> None:
    assert factor_from(rates, bits) == pytest.approx(factor)


@pytest.mark.parametrize(("steps", "probe"), [(1, 2), (100, 5), (4_000, 200), (10**6, 200)])
def test_the_probe_is_a_twentieth_within_bounds(steps: int, probe: int) -> None:
    assert probe_steps(steps) == probe
