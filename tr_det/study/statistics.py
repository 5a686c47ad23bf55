"""Means, spreads and paired differences over seeds, and how tables write them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Values over seeds.

    Attributes:
        n: how many.
        mean: of them.
        std: sample standard deviation; None of one value.
    """

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference(Spread):
    """Differences of pairs.

    Attributes:
        low: end of the interval in which the mean difference over all seeds is expected, by
            Student's t with n - 1 degrees of freedom; None of one pair.
        high: its other end.
    """

    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of one or more values.

    >>> spread([1.0, 3.0])
    Spread(n=2, mean=2.0, std=1.4142135623730951)
    """
    several = len(values) > 1
    return Spread(
        len(values), statistics.fmean(values), statistics.stdev(values) if several else None
    )


def paired(values: Mapping[str, float], others: Mapping[str, float]) -> Difference | None:
    """Return how far values are from others of the same seeds, None where no seed has both.

    >>> found = paired({"0": 3.0, "1": 5.0, "2": 9.0}, {"0": 1.0, "1": 2.0})
    >>> found.n, found.mean, round(found.low, 3), round(found.high, 3)
    (2, 2.5, -3.853, 8.853)
    """
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    if not differences:
        return None
    found = spread(differences)
    if found.std is None:
        return Difference(found.n, found.mean, None, None, None)
    half = quantile(found.n - 1) * found.std / math.sqrt(found.n)
    return Difference(found.n, found.mean, found.std, found.mean - half, found.mean + half)


def mean_text(mean: float, std: float | None) -> str:
    """Return a mean and a standard deviation, if there is one, as tables have them.

    >>> mean_text(56, 6), mean_text(56, None)
    ('56.00 ± 6.00', '56.00')
    """
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def interval_text(low: float, high: float) -> str:
    """Return an interval as tables have it.

    >>> interval_text(-29.27, 34.271)
    '[-29.27, +34.27]'
    """
    return f"[{low:+.2f}, {high:+.2f}]"


def quantile(freedom: int) -> float:
    """Return the t by which a two-sided interval of `CONFIDENCE` reaches.

    >>> round(quantile(2), 3)
    4.303
    """
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))
