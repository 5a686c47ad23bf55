import doctest
import statistics

import pytest

from tr_det.study import statistics as ours
from tr_det.study.statistics import paired, quantile, spread


def test_an_interval_is_the_textbooks():
    """Differences 1, 2, 6: mean 3, sd sqrt(7), half width 4.3027 sd / sqrt(3)."""
    found = paired({0: 11.0, 1: 12.0, 2: 16.0, 9: 0.0}, {2: 10.0, 1: 10.0, 0: 10.0})
    assert (found.n, found.mean) == (3, 3.0)
    assert found.std == pytest.approx(7**0.5)
    assert found.high == pytest.approx(3 + 4.302653 * (7 / 3) ** 0.5, abs=1e-3)
    assert found.low == pytest.approx(6 - found.high, abs=1e-3)


def test_quantiles_are_those_of_tables():
    table = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045}
    assert {n: round(quantile(n), 3) for n in table} == table


def test_one_pair_has_no_interval_and_no_pair_no_difference():
    found = paired({0: 2.0}, {0: 1.5})
    assert (found.n, found.mean, found.std, found.low, found.high) == (1, 0.5, None, None, None)
    assert paired({0: 2.0}, {1: 1.5}) is None


def test_spread_is_that_of_a_sample():
    assert spread([1.0, 2.0, 4.0]).std == pytest.approx(statistics.stdev([1, 2, 4]))
    assert spread([1.0]).std is None
    assert doctest.testmod(ours).failed == 0
