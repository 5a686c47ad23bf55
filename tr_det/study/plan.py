"""Which runs a study needs, as far as that is known from those that have ended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tr_det.core.errors import check
from tr_det.study.cells import CANDIDATE, ROW, RUN, Cell
from tr_det.study.definition import NEXT, SAME, Labels, Reference, Search, Study
from tr_det.study.outcomes import DIVERGED, DONE, Outcome
from tr_det.study.reading import names_in
from tr_det.study.sides import SIDES, Side

Look = Callable[[Cell], Outcome | None]
"""Returns how a run has ended, None if it has not."""
Point = tuple[Any, ...]
"""A value for each key of a search, with tuples for lists."""

MOST_EXTENSIONS = 3
"""Steps beyond a grid, for each of its keys and in each direction."""


@dataclass
class Found:
    """A search for some of the rows, as far as it has come.

    Attributes:
        labels: of the first row that it is for, whose settings its runs have.
        rows: the labels of those that adopt what it finds.
        earlier: what the searches before it found for them.
        points: what is tried, in order, and its runs.
        values: mean metric of each point; -inf where a run diverged. Not there while one is
            missing.
        best: the first point with the largest value; None while one is missing.
        edges: keys of which it is the smallest or largest value tried.
    """

    search: Search
    labels: Labels
    rows: list[Labels]
    earlier: dict[str, Any]
    points: dict[Point, list[Cell]]
    values: dict[Point, float]
    best: Point | None
    edges: list[str]

    @property
    def chosen(self) -> dict[str, Any] | None:
        """Settings that the rows adopt."""
        return None if self.best is None else self.search.at(self.best)


class Plan:
    """The runs of a study; those whose settings are still searched come later.

    Args:
        study: what is compared.
        look: how runs have ended.

    Attributes:
        rows: the labels of each row and its runs by seed; None while its settings are searched.
        searches: one for each group of rows that is searched separately.
    """

    def __init__(self, study: Study, look: Look) -> None:
        self.study, self.look = study, look
        self.searches: list[Found] = []
        self._found: dict[tuple[int, tuple[str, ...]], Found | None] = {}
        self._settings: dict[tuple[str, ...], dict[str, Any] | None] = {}
        self.rows = [
            (labels, {seed: self._cell(labels, seed) for seed in study.seeds})
            for labels in study.rows()
        ]

    def cells(self) -> list[Cell]:
        """Return all runs that are known, each once, those that others need before them."""
        ordered: dict[str, Cell] = {}

        def add(cell: Cell) -> None:
            for needed in cell.needs.values():
                add(needed)
            ordered.setdefault(cell.identity, cell)

        for cell in self.own_cells():
            add(cell)
        return list(ordered.values())

    def own_cells(self) -> list[Cell]:
        """Return the runs of searches and rows, as far as they are known.

        Then those that the other rows will start from: nothing keeps them waiting.
        """
        own = [cell for s in self.searches for cells in s.points.values() for cell in cells]
        own += [cell for _, cells in self.rows for cell in cells.values() if cell is not None]
        for labels, cells in self.rows:
            for seed in [seed for seed, cell in cells.items() if cell is None]:
                names = names_in(self.study.base(labels))
                needs = [self._needed(name, labels, seed, ()) for name in names]
                own += [cell for cell in needs if cell is not None]
        return own

    def _cell(self, labels: Labels, seed: int, above: tuple[Any, ...] = ()) -> Cell | None:
        settings = self._settings_of(labels)
        if settings is None:
            return None
        return self._made(ROW, labels, seed, settings, above)

    def _settings_of(self, labels: Labels) -> dict[str, Any] | None:
        """Return a row's settings with what searches found, None while one has not ended."""
        place = tuple(labels.values())
        if place not in self._settings:
            settings: dict[str, Any] | None = self.study.base(labels)
            for number, search in enumerate(self.study.searches):
                if settings is None or not search.takes(labels):
                    continue
                found = self._search(number, labels)
                chosen = None if found is None else found.chosen
                settings = None if chosen is None else {**settings, **chosen}
            self._settings[place] = settings
        return self._settings[place]

    def _search(self, number: int, labels: Labels) -> Found | None:
        """Return the search for a row, None while one before it has not ended."""
        search = self.study.searches[number]
        place = (number, tuple(labels[axis] for axis in search.per))
        if place not in self._found:
            rows = [
                row
                for row in self.study.rows()
                if search.takes(row) and all(row[axis] == labels[axis] for axis in search.per)
            ]
            self._found[place] = self._searched(number, rows)
        return self._found[place]

    def _searched(self, number: int, rows: list[dict[str, str]]) -> Found | None:
        search, first = self.study.searches[number], rows[0]
        earlier: dict[str, Any] = {}
        for before in range(number):
            if self.study.searches[before].takes(first):
                found = self._search(before, first)
                if found is None or found.chosen is None:
                    return None
                earlier |= found.chosen
        made = Found(search, first, [*rows], earlier, {}, {}, None, [])
        self.searches.append(made)
        waiting = list(itertools.product(*search.keys.values()))
        while waiting:
            for point in waiting:
                self._try(made, point)
            if len(made.values) < len(made.points):
                return made  # some have not ended
            best = _best(search, made.values)
            made.edges = _edges(search, made.points, best)
            beyond = _beyond(search, made.points, best) if search.extend else []
            waiting = [p for p in beyond if self._can_be(self._settings_at(made, p))]
        if made.values[best] > -math.inf:
            made.best = best
        else:
            made.edges = []
        return made

    def _can_be(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a config takes settings; those of the study's file have been checked."""
        side = SIDES[self.study.side]
        return _loads(side, self.study.config, tuple(side.pairs(settings)))

    def _settings_at(self, found: Found, point: Point) -> dict[str, Any]:
        values = {**found.earlier, **found.search.at(point)}
        return self.study.candidate(found.search, found.labels, values)

    def _try(self, found: Found, point: Point) -> None:
        search, labels = found.search, found.labels
        own = self._settings_at(found, point)
        shown = {
            key: f"{key.rpartition('.')[2]}{_short(value)}"
            for key, value in zip(search.keys, point, strict=True)
        }
        labels = {**labels, **shown}
        cells = [self._made(CANDIDATE, labels, seed, own) for seed in search.seeds]
        found.points[point] = [cell for cell in cells if cell is not None]
        outcomes = [self.look(cell) for cell in found.points[point]]
        ended = [o for o in outcomes if o is not None and o.state in (DONE, DIVERGED)]
        if cells and len(ended) == len(cells):
            values = [-math.inf if o.value is None else o.value for o in ended]
            found.values[point] = sum(values) / len(values)

    def _made(
        self,
        kind: str,
        labels: Labels,
        seed: int,
        settings: Mapping[str, Any],
        above: tuple[Any, ...] = (),
    ) -> Cell | None:
        """Return a run with those that it needs, None while a search for one has not ended."""
        here = (kind, *labels.values(), seed)
        check("RUNS", here, here not in above, "no run that needs itself")
        needs = {}
        for name in names_in(settings):
            is_other = isinstance(self.study.runs.get(name), Reference)
            allowed = "no run of a row in a search: it has seen what candidates are judged by"
            check("SEARCH", f"{{{name}}}", kind != CANDIDATE or not is_other, allowed)
            cell = self._needed(name, labels, seed, (*above, here))
            if cell is None:
                return None
            needs[name] = cell
        config = self.study.config
        if kind == RUN:
            config = self.study.runs[labels["run"]].config  # type: ignore[union-attr]
        return Cell(kind, labels, seed, self.study.side, config, settings, needs)

    def _needed(self, name: str, labels: Labels, seed: int, above: tuple[Any, ...]) -> Cell | None:
        known = self.study.runs
        check("RUNS", f"{{{name}}}", name in known, f"one of {[f'{{{run}}}' for run in known]}")
        run = known[name]
        if isinstance(run, Reference):
            wanted = {axis: run.row.get(axis, labels[axis]) for axis in self.study.axes}
            check("RUNS", name, wanted in self.study.rows(), f"of a row that is there: {wanted}")
            seeds: dict[int | str, int] = {SAME: seed, NEXT: self.study.following(seed)}
            return self._cell(
                wanted, seeds[run.seed] if run.seed in seeds else int(run.seed), above
            )
        own = seed if run.seed == SAME else int(run.seed)
        return self._made(RUN, {"run": name}, own, run.settings, above)


def _best(search: Search, values: Mapping[Point, float]) -> Point:
    """Return the first point with the largest value; where all diverged that of least numbers."""
    if max(values.values()) == -math.inf:
        return min(values, key=lambda point: [value for value in point if _is_number(value)])
    return max(values, key=values.__getitem__)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _edges(search: Search, points: Mapping[Point, Any], best: Point) -> list[str]:
    """Return the keys with several values, all numbers, of which the best is the last on a side."""
    edges = []
    for place, key in enumerate(search.keys):
        tried = {point[place] for point in points}
        numbers = len(tried) > 1 and all(map(_is_number, tried))
        if numbers and best[place] in (min(tried), max(tried)):
            edges.append(key)
    return edges


@cache
def _loads(side: Side, config: Path, pairs: tuple[str, ...]) -> bool:
    try:
        side.load(config, pairs)
    except ValueError:
        return False
    return True


def _beyond(search: Search, points: Mapping[Point, Any], best: Point) -> list[Point]:
    """Return the next points beyond the ends at which the best one is."""
    more = []
    for place, key in enumerate(search.keys):
        given = search.keys[key]
        if key not in _edges(search, points, best) or best[place] <= 0:
            continue
        tried = {point[place] for point in points}
        up = best[place] == max(tried)
        steps = len([v for v in tried if (v > max(given) if up else v < min(given))])
        if steps < MOST_EXTENSIONS:
            value = best[place] * search.extend if up else best[place] / search.extend
            value = round(value) if type(best[place]) is int else float(f"{value:.3g}")
            more.append((*best[:place], value, *best[place + 1 :]))
    return [point for point in more if point not in points]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
