"""What a table can show of runs beside the metric: numbers of results.json, and of their curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tr_det.core.errors import check
from tr_det.runtime.results import Results

PARTS = ("metrics", "tr", "cost", "seconds", "updates")
"""Parts of results.json that a measure may name: ``tr.mean_rate``, ``cost.bops``, ``seconds``."""
TRACKING, LAST, FACTOR = "tracking_error", "last_over_first_target", "factor"
CURVES = {
    TRACKING: "mean abs(K - R) / R_0, %",
    LAST: "K at the end / R_0, %",
    FACTOR: "lambda found",
}
"""Measures of a TR-scheduled classifier's curves, and their titles."""


def check_name(name: str) -> None:
    """Raise ConfigError unless a measure has that name."""
    fits = name in CURVES or name.partition(".")[0] in PARTS
    check("MEASURES", name, fits, f"one of {[*CURVES]}, or a number of results.json: {PARTS}")


def title(name: str) -> str:
    """Return the head of a measure's column."""
    return CURVES.get(name, name)


def measure(name: str, folder: Path, results: Results) -> float | None:
    """Return a measure of a run that has ended, None where it has none.

    Args:
        name: as in MEASURES.
        folder: of the run.
        results: what it has written.
    """
    if name not in CURVES:
        found: Any = results
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return float(found) if isinstance(found, (int, float)) else None
    if "first_target" not in results["tr"]:
        return None
    from tr_det.core.transition import AUTO
    from tr_det.study.history import read_history

    history = read_history(folder)
    if name == FACTOR:
        return history.factor if history.config.tr.factor == AUTO else None
    if name == TRACKING:
        return 100 * history.tracking_error()
    return 100 * history.running.mean()[-1].item() / history.first_target
