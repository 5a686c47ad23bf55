"""study.json: all that a study's table and page are made of.

Keys that stand for seeds are texts, as JSON has them. Numbers that are not there are null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from tr_det.runtime.files import write_json
from tr_det.runtime.results import Results

STUDY = "study.json"

Labels = dict[str, str]
"""The label of each axis; of a supporting run ``{"run": name}``."""
Number = Any
"""A float, or None where there are too few runs for it, as ``n`` tells."""


class Environment(TypedDict):
    """What results depend on beside settings: as results.json has it, {} where it has it not.

    Attributes:
        runs: how many are done there, those of searches and of ``RUNS`` included.
    """

    versions: dict[str, str]
    machine: dict[str, Any]
    runs: int


class RunEntry(TypedDict):
    """A run.

    Attributes:
        state: done, diverged, failed, running, missing or searched: its settings are being
            searched, there is no folder yet.
        value: of the study's metric.
        settings: as the study's file writes them.
        results: results.json without its config.
        origin: the study.json that it was taken from, "" if it was made for this study.
    """

    labels: Labels
    seed: int
    identity: str
    folder: str
    state: str
    value: float | None
    settings: dict[str, Any]
    results: Results
    error: str
    origin: str


class PointEntry(TypedDict):
    """What a search tried.

    Attributes:
        point: a value for each key.
        value: mean over seeds, null unless all are done.
        state: of the first that is not done.
    """

    point: list[Any]
    value: float | None
    state: str


class SearchEntry(TypedDict):
    """A search.

    Attributes:
        labels: of the first row that it is for.
        rows: those that adopt what is found.
        keys: values that were asked for.
        chosen: null until all have ended.
        at_edge: keys of which the best value is at an end of what was tried.
    """

    labels: Labels
    rows: list[Labels]
    keys: dict[str, list[Any]]
    settings: dict[str, Any]
    seeds: list[int]
    chosen: dict[str, Any] | None
    at_edge: list[str]
    candidates: list[RunEntry]
    points: list[PointEntry]


class DifferenceEntry(TypedDict):
    """Paired differences, as `tr_det.study.statistics.Difference`."""

    n: int
    mean: float
    std: Number
    low: Number
    high: Number


class RowEntry(TypedDict):
    """A row of the table.

    Attributes:
        n: runs that are done.
        values: of those, by seed.
        states: of all, by seed.
        difference: from the baseline's row.
        chosen: what searches found for it.
        cost: as in results.json.
        tr: mean over seeds, likewise.
        measures: means over seeds.
    """

    labels: Labels
    n: int
    mean: Number
    std: Number
    values: dict[str, float]
    states: dict[str, str]
    difference: DifferenceEntry | None
    chosen: dict[str, Any]
    cost: dict[str, Any]
    tr: dict[str, float]
    measures: dict[str, float]


class Record(TypedDict):
    """A study.

    Attributes:
        axes: labels of each.
        columns: the axis whose labels are columns, "" for none.
        baseline: labels of the row that others are compared with.
        measures: names of what the table shows beside the metric.
        command: that writes the file.
        environments: where runs were made.
        hours: of training of the processes that ended the runs, times their threads, or where
            they had GPUs their number: "runs", "search" and "supports".
        cells: runs of the table.
        runs: supporting runs.
    """

    name: str
    side: str
    metric: str
    axes: dict[str, list[str]]
    columns: str
    baseline: Labels
    seeds: list[int]
    measures: list[str]
    command: str
    environments: list[Environment]
    hours: dict[str, float]
    cells: list[RunEntry]
    runs: list[RunEntry]
    searches: list[SearchEntry]
    rows: list[RowEntry]


def write_record(folder: Path, record: Record) -> None:
    """Write study.json to a study's folder."""
    write_json(folder / STUDY, record)


def read_record(path: Path) -> Record:
    """Return what a study.json holds.

    Raises:
        ValueError: it is damaged or something else.
        OSError: there is no such file.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        _check([tree], Record)
        _check([*tree["cells"], *tree["runs"], *candidates(tree)], RunEntry)
        _check(tree["searches"], SearchEntry)
        _check(tree["rows"], RowEntry)
    except (ValueError, KeyError, TypeError):
        allowed = "not written by this version of tools/run_study.py, or damaged"
        raise ValueError(f"{path}: {allowed}") from None
    return tree  # type: ignore[no-any-return]


def candidates(record: Record) -> list[RunEntry]:
    """Return the runs of all searches."""
    return [run for search in record["searches"] for run in search["candidates"]]


def without_value(record: Record) -> list[str]:
    """Return the measures that no run has, once a run is done; their columns stay empty."""
    rows = [row for row in record["rows"] if row["n"]]
    return [
        name for name in record["measures"] if rows and all(name not in r["measures"] for r in rows)
    ]


def _check(trees: Iterable[Mapping[str, Any]], kind: Any) -> None:
    for tree in trees:
        if not kind.__required_keys__ <= set(tree):
            raise KeyError(kind.__name__)
