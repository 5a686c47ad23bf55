"""Numbers of results.json that a table shows beside the metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tr_det.core.errors import check
from tr_det.runtime.results import Results

PARTS = ("metrics", "tr", "cost", "seconds", "updates")
"""Parts of results.json that a measure may name: ``tr.mean_rate``, ``cost.bops``, ``seconds``."""


def check_name(name: str) -> None:
    """Raise ConfigError unless a measure may have that name."""
    fits = name.partition(".")[0] in PARTS
    check("MEASURES", name, fits, f"a number of results.json: one of {PARTS}, or PART.NAME")


def measures_of(results: Results, names: Iterable[str]) -> dict[str, float]:
    """Return the measures of a run by name, without those that it does not have.

    >>> measures_of({"tr": {"mean_rate": 0.1}, "seconds": 3}, ["tr.mean_rate", "tr.factor"])
    {'tr.mean_rate': 0.1}
    """
    numbers = {}
    for name in names:
        found: Any = results
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, (int, float)):
            numbers[name] = float(found)
    return numbers
