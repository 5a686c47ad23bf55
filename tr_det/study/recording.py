"""Makes of a study's plan, and of how its runs have ended, what study.json holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from tr_det.runtime.results import Results
from tr_det.study.cells import RUN, Cell
from tr_det.study.definition import Study
from tr_det.study.measures import measures_of
from tr_det.study.outcomes import DONE, Outcome, Outcomes
from tr_det.study.plan import Found, Plan
from tr_det.study.record import (
    Environment,
    PointEntry,
    Record,
    RowEntry,
    RunEntry,
    SearchEntry,
    candidates,
)
from tr_det.study.states import SEARCHED, state_of
from tr_det.study.statistics import paired, spread


def make_record(
    plan: Plan,
    outcomes: Outcomes,
    *,
    command: str,
    running: Iterable[str] = (),
) -> Record:
    """Return what study.json holds.

    Args:
        plan: the runs.
        outcomes: how they have ended.
        command: that makes the study.
        running: identities of the runs that go on.
    """
    study, running = plan.study, set(running)

    def entry(cell: Cell) -> RunEntry:
        state = state_of(cell, outcomes, running)
        return _run(cell, cell.folder(outcomes.folder).name, outcomes(cell) or Outcome(state))

    cells = [
        _unknown(labels, seed) if cell is None else entry(cell)
        for labels, row in plan.rows
        for seed, cell in row.items()
    ]
    runs = [entry(cell) for cell in plan.cells() if cell.kind == RUN]
    searches = [_search(found, entry) for found in plan.searches]
    made: Record = {
        "name": study.name,
        "side": study.side,
        "metric": study.metric,
        "axes": {axis: list(labels) for axis, labels in study.axes.items()},
        "columns": study.columns,
        "baseline": dict(study.baseline),
        "seeds": list(study.seeds),
        "measures": list(study.measures),
        "command": command,
        "environments": [],
        "hours": {},
        "cells": cells,
        "runs": runs,
        "searches": searches,
        "rows": _rows(study, cells, searches),
    }
    parts = {"runs": cells, "search": candidates(made), "supports": runs}
    made["hours"] = {key: _hours(part) for key, part in parts.items()}
    made["environments"] = _environments([run for part in parts.values() for run in part])
    return made


def _run(cell: Cell, folder: str, outcome: Outcome) -> RunEntry:
    return {
        "labels": dict(cell.labels),
        "seed": cell.seed,
        "identity": cell.identity,
        "folder": folder,
        "state": outcome.state,
        "value": outcome.value,
        "settings": dict(cell.settings),
        "results": {key: value for key, value in outcome.results.items() if key != "config"},
        "error": outcome.error,
        "origin": outcome.origin,
    }


def _unknown(labels: Mapping[str, str], seed: int) -> RunEntry:
    return {
        "labels": dict(labels),
        "seed": seed,
        "identity": "",
        "folder": "",
        "state": SEARCHED,
        "value": None,
        "settings": {},
        "results": {},
        "error": "",
        "origin": "",
    }


def _search(found: Found, entry: Callable[[Cell], RunEntry]) -> SearchEntry:
    tried: list[RunEntry] = []
    points: list[PointEntry] = []
    for point, cells in found.points.items():
        own = [entry(cell) for cell in cells]
        tried += own
        others = [run["state"] for run in own if run["state"] != DONE]
        value = None if others else statistics.fmean(_values(own).values())
        points.append({"point": list(point), "value": value, "state": (others or [DONE])[0]})
    return {
        "labels": dict(found.labels),
        "rows": [dict(row) for row in found.rows],
        "keys": {key: list(values) for key, values in found.search.keys.items()},
        "settings": dict(found.search.settings),
        "seeds": list(found.search.seeds),
        "chosen": found.chosen,
        "at_edge": found.edges,
        "candidates": tried,
        "points": points,
    }


def _rows(study: Study, cells: list[RunEntry], searches: list[SearchEntry]) -> list[RowEntry]:
    rows: list[RowEntry] = []
    for labels in study.rows():
        own = [cell for cell in cells if cell["labels"] == labels]
        other = study.baseline_of(labels)
        baseline = _values(cell for cell in cells if cell["labels"] == other)
        values = _values(own)
        found = spread(list(values.values())) if values else None
        difference = paired(values, baseline)
        chosen: dict[str, Any] = {}
        for search in searches:
            if labels in search["rows"]:
                chosen |= search["chosen"] or {}
        done = [cell for cell in own if cell["state"] == DONE]
        rows.append(
            {
                "labels": labels,
                "n": len(values),
                "mean": found.mean if found else None,
                "std": found.std if found else None,
                "values": values,
                "states": {str(cell["seed"]): cell["state"] for cell in own},
                "difference": asdict(difference) if difference else None,  # type: ignore[typeddict-item]
                "chosen": chosen,
                "cost": done[0]["results"]["cost"] if done else {},
                "tr": _means([cell["results"]["tr"] for cell in done]),
                "measures": _means([measures_of(c["results"], study.measures) for c in done]),
            }
        )
    return rows


def _values(runs: Iterable[RunEntry]) -> dict[str, float]:
    """Return the metric of the runs that are done, by seed."""
    return {str(run["seed"]): run["value"] for run in runs if run["value"] is not None}


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    numbers: dict[str, list[float]] = {}
    for part in parts:
        for key, number in part.items():
            if number is not None:
                numbers.setdefault(key, []).append(number)
    return {key: statistics.fmean(values) for key, values in numbers.items()}


def _done(runs: Iterable[RunEntry]) -> Iterable[Results]:
    """Return the results of the runs that are done, each once."""
    return {run["identity"]: run["results"] for run in runs if run["state"] == DONE}.values()


def _hours(runs: Iterable[RunEntry]) -> float:
    total = 0.0
    for results in _done(runs):
        machine = results.get("machine", {})
        each = 1 if machine.get("gpu") else machine.get("threads", 1)
        total += results["seconds"] * each * machine.get("processes", 1)
    return total / 3600


def _environments(runs: Iterable[RunEntry]) -> list[Environment]:
    found: list[Environment] = []
    for results in _done(runs):
        versions, machine = results.get("versions", {}), results.get("machine", {})
        for known in found:
            if (known["versions"], known["machine"]) == (versions, machine):
                known["runs"] += 1
                break
        else:
            found.append({"versions": versions, "machine": machine, "runs": 1})
    return found
