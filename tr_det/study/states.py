"""How far a study has come: the state of each run, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tr_det.study.cells import ROW, Cell
from tr_det.study.definition import Study
from tr_det.study.outcomes import DIVERGED, DONE, Outcome, Outcomes
from tr_det.study.plan import Plan
from tr_det.study.reading import with_names
from tr_det.study.sides import SIDES

BESIDE = 10.0
"""Seconds that a run takes beside its training (imports, evaluation), until one was measured."""

MISSING, RUNNING, SEARCHED = "missing", "running", "searched"
"""States of runs that have not ended; the settings of the last are still being searched."""


def needed(plan: Plan, outcomes: Outcomes) -> list[Cell]:
    """Return the runs that have not ended, those that others read before them.

    A run that others read must have ended here, where its files are.
    """
    wanted: dict[str, Cell] = {}

    def require(cell: Cell, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.state in (DONE, DIVERGED):
            return
        for other in cell.needs.values():
            require(other, outcomes.files(other))
        wanted.setdefault(cell.identity, cell)

    for cell in plan.own_cells():
        require(cell, outcomes(cell))
    return list(wanted.values())


def expected(plan: Plan) -> list[Cell]:
    """Return a run for each row and seed that waits for a search: as long as the real one."""
    study, cells = plan.study, []
    for labels, own in plan.rows:
        settings = study.base(labels)
        for search in study.searches:
            if search.takes(labels):
                settings |= search.first()
        settings = with_names(settings, lambda name: name)  # folders, which are not known yet
        for seed in [seed for seed, cell in own.items() if cell is None]:
            cells.append(Cell(ROW, labels, seed, study.side, study.config, settings))
    return cells


def searched_rows(plan: Plan) -> list[str]:
    """Return the labels and the seeds of the rows whose settings a search has not found yet."""
    names = []
    for labels, cells in plan.rows:
        unknown = [str(seed) for seed, cell in cells.items() if cell is None]
        if unknown:
            names.append(f"{', '.join(labels.values())}, seed {', '.join(unknown)}")
    return names


class Rest(NamedTuple):
    """How long runs take.

    Attributes:
        seconds: of each.
        estimated: GPU hours of the runs that only the study's ESTIMATE tells; None without any.
    """

    seconds: list[float]
    estimated: float | None


class Clock:
    """Says how long runs take.

    Args:
        study: whose author may have said so.
        folder: of the study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self._lengths: dict[str, tuple[float, str]] = {}
        self._beside: list[float] = []

    def ended(self, outcome: Outcome, seconds: float) -> None:
        """Note how long a run took that began and ended here: it also starts and evaluates."""
        self._beside.append(max(0.0, seconds - float(outcome.results["seconds"])))

    def rest(self, cells: Iterable[Cell], plan: Plan, outcomes: Outcomes) -> Rest | None:
        """Return how long runs take; None where nothing is known."""
        measured: dict[tuple[str, ...], list[float]] = {}
        for cell in plan.cells():
            outcome = outcomes(cell)
            if outcome is not None and outcome.state == DONE:
                length, unit = self._length(cell)
                pace = float(outcome.results["seconds"]) / length
                for key in self._alike(cell, unit):
                    measured.setdefault(key, []).append(pace)
        beside = statistics.median(self._beside) if self._beside else BESIDE
        estimate, lengths, estimated = self.study.estimate, [], []
        for cell in cells:
            length, unit = self._length(cell)
            paces = next((measured[key] for key in self._alike(cell, unit) if key in measured), [])
            if paces:
                lengths.append(length * statistics.median(paces) + beside)
            elif estimate is not None:
                lengths.append(length * estimate.seconds + beside)
                estimated.append(length * estimate.seconds * estimate.gpus / 3600)
            else:
                return None
        return Rest(lengths, sum(estimated) if estimated else None)

    def _alike(self, cell: Cell, unit: str) -> list[tuple[str, ...]]:
        """Return what runs of the same pace share, the nearest first."""
        axes = [cell.labels[axis] for axis in self.study.axes if axis in cell.labels]
        return [(unit, cell.kind, *axes), (unit, *axes), (unit,)]

    def _length(self, cell: Cell) -> tuple[float, str]:
        if cell.identity not in self._lengths:
            side = SIDES[cell.side]
            config = side.load(cell.config, cell.pairs(self.folder))
            self._lengths[cell.identity] = side.length(config)
        return self._lengths[cell.identity]


def in_words(seconds: float) -> str:
    """Return a time for people.

    >>> in_words(45), in_words(4000)
    ('45 s', '1 h 07 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def state_of(cell: Cell | None, outcomes: Outcomes, running: Iterable[str] = ()) -> str:
    """Return the state of a run, `SEARCHED` where it is not known yet."""
    if cell is None:
        return SEARCHED
    outcome = outcomes(cell)
    if outcome is not None:
        return outcome.state
    return RUNNING if cell.identity in running else MISSING
