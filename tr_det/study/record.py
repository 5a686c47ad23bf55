"""study.json: all that a study's table and page are made of.

    name, side, metric, axes {axis: [labels]}, columns, baseline {axis: label}, seeds, measures
    command      that writes it
    environment  versions, cpu, gpu, cores, threads
    others       environments of the studies that results were taken from, by the path of theirs
    hours        {"runs": h, "search": h, "supports": h}: hours of training of the processes that
                 ended the runs, times their threads
    cells        runs of the table: labels, seed, identity, folder, state, value, settings (as the
                 study's file writes them), measures, results (results.json without its config),
                 error, origin (the study.json that it was taken from, "" if it was run here)
    runs         supporting runs, likewise, their labels {"run": name}
    searches     labels of the first row, rows that adopt what is found, keys {key: [values]},
                 settings, seeds, chosen {key: value} or null, at_edge [keys], candidates (cells),
                 points: point (a value for each key), value (mean over seeds, null unless all are
                 done), state (of the first that is not done)
    rows         labels, n, mean, std, values {seed: value}, states {seed: state}, difference {mean,
                 std, low, high, n} from the baseline's row or null, chosen {key: value}, cost, tr
                 and measures (means over seeds)

State is one of done, diverged, failed, running, missing and searched: of a row whose settings are
being searched, there is no folder yet. Numbers that are not there are null.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tr_det import __version__
from tr_det.runtime.files import write_json
from tr_det.study.adopt import STUDY
from tr_det.study.cells import RUN, Cell
from tr_det.study.definition import Study
from tr_det.study.outcomes import DONE, Outcome, Outcomes
from tr_det.study.plan import Found, Plan
from tr_det.study.states import SEARCHED, state_of
from tr_det.study.statistics import paired, spread

Tree = dict[str, Any]


def environment(threads: int) -> Tree:
    """Return what results depend on beside settings.

    Args:
        threads: of each run.
    """
    return {
        "tr_det": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
    }


def make_record(
    plan: Plan,
    outcomes: Outcomes,
    *,
    command: str,
    environment: Tree,
    running: Iterable[str] = (),
) -> Tree:
    """Return what study.json holds.

    Args:
        plan: the runs.
        outcomes: how they have ended.
        command: that makes the study.
        environment: of the runs that are made here.
        running: identities of the runs that go on.
    """
    study, running = plan.study, set(running)

    def entry(cell: Cell) -> Tree:
        state = state_of(cell, outcomes, running)
        return _entry(cell, cell.folder(outcomes.folder).name, outcomes(cell), state)

    cells = [
        _unknown(labels, seed) if cell is None else entry(cell)
        for labels, row in plan.rows
        for seed, cell in row.items()
    ]
    runs = [entry(cell) for cell in plan.cells() if cell.kind == RUN]
    searches = [_search(found, entry) for found in plan.searches]
    tried = [cell for search in searches for cell in search["candidates"]]
    threads = environment["threads"]
    hours = {"runs": cells, "search": tried, "supports": runs}
    found = [outcome for cell in plan.cells() if (outcome := outcomes(cell)) is not None]
    return {
        "name": study.name,
        "side": study.side,
        "metric": study.metric,
        "axes": {axis: list(labels) for axis, labels in study.axes.items()},
        "columns": study.columns,
        "baseline": dict(study.baseline),
        "seeds": list(study.seeds),
        "measures": list(study.measures),
        "command": command,
        "environment": environment,
        "others": {o.origin: dict(o.environment) for o in found if o.origin},
        "hours": {key: threads * _hours(part) for key, part in hours.items()},
        "cells": cells,
        "runs": runs,
        "searches": searches,
        "rows": _rows(study, cells, searches),
    }


def write_record(folder: Path, record: Tree) -> None:
    """Write study.json to a study's folder."""
    write_json(folder / STUDY, record)


def _entry(cell: Cell, folder: str, outcome: Outcome | None, state: str) -> Tree:
    outcome = outcome or Outcome(state)
    results = {key: value for key, value in outcome.results.items() if key != "config"}
    return {
        "labels": dict(cell.labels),
        "seed": cell.seed,
        "identity": cell.identity,
        "folder": folder,
        "state": state,
        "value": outcome.value,
        "settings": dict(cell.settings),
        "measures": dict(outcome.measures),
        "results": results,
        "error": outcome.error,
        "origin": outcome.origin,
    }


def _unknown(labels: Mapping[str, str], seed: int) -> Tree:
    empty: Tree = {"identity": "", "folder": "", "state": SEARCHED, "value": None, "settings": {}}
    empty |= {"measures": {}, "results": {}, "error": "", "origin": ""}
    return {"labels": dict(labels), "seed": seed, **empty}


def _search(found: Found, entry: Any) -> Tree:
    candidates, points = [], []
    for point, cells in found.points.items():
        own = [entry(cell) for cell in cells]
        candidates += own
        others = [cell["state"] for cell in own if cell["state"] != DONE]
        value = None if others else statistics.fmean(cell["value"] for cell in own)
        points.append({"point": list(point), "value": value, "state": (others or [DONE])[0]})
    return {
        "labels": dict(found.labels),
        "rows": [dict(row) for row in found.rows],
        "keys": {key: list(values) for key, values in found.search.keys.items()},
        "settings": dict(found.search.settings),
        "seeds": list(found.search.seeds),
        "chosen": found.chosen,
        "at_edge": found.edges,
        "candidates": candidates,
        "points": points,
    }


def _rows(study: Study, cells: list[Tree], searches: list[Tree]) -> list[Tree]:
    rows: list[Tree] = []
    for labels in study.rows():
        own = [cell for cell in cells if cell["labels"] == labels]
        values = {cell["seed"]: cell["value"] for cell in own if cell["state"] == DONE}
        found = spread(list(values.values())) if values else None
        other = study.baseline_of(labels)
        baseline = {
            cell["seed"]: cell["value"]
            for cell in cells
            if cell["labels"] == other and cell["state"] == DONE
        }
        difference = paired(values, baseline)
        chosen: Tree = {}
        for search in searches:
            if labels in search["rows"]:
                chosen |= search["chosen"] or {}
        done = [cell for cell in own if cell["state"] == DONE]
        rows.append(
            {
                "labels": labels,
                "n": len(values),
                "mean": found and found.mean,
                "std": found and found.std,
                "values": values,
                "states": {cell["seed"]: cell["state"] for cell in own},
                "difference": difference and asdict(difference),
                "chosen": chosen,
                "cost": done[0]["results"]["cost"] if done else {},
                "tr": _means([cell["results"]["tr"] for cell in done]),
                "measures": _means([cell["measures"] for cell in done]),
            }
        )
    return rows


def _means(parts: list[Mapping[str, float]]) -> Tree:
    numbers: dict[str, list[float]] = {}
    for part in parts:
        for key, number in part.items():
            if number is not None:
                numbers.setdefault(key, []).append(number)
    return {key: statistics.fmean(values) for key, values in numbers.items()}


def _hours(cells: list[Tree]) -> float:
    done = {cell["identity"]: cell["results"] for cell in cells if cell["state"] == DONE}
    return sum(results["seconds"] for results in done.values()) / 3600


def _cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
