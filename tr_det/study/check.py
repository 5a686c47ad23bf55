"""What of a study can be checked before any run: every config that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tr_det.core.errors import ConfigError, check
from tr_det.study.cells import ROW, Cell
from tr_det.study.definition import Reference, Search, Study, Support
from tr_det.study.reading import listed, names_in, with_names
from tr_det.study.sides import SIDES, Side, Tree


def check_study(study: Study) -> None:
    """Load the config of every row, supporting run and value to try.

    Raises:
        ValueError: a config that cannot be, rows that are the same run, or a search that would be
            judged by the test set.
    """
    side = SIDES[study.side]
    supports = {
        name: _load(side, run.config, run.settings)
        for name, run in study.runs.items()
        if isinstance(run, Support)
    }
    for config in supports.values():
        side.check_data(config, is_compared=False)
    for labels in study.rows():
        own = _loaded(study, side, study.base(labels))
        for search in study.searches:
            if search.takes(labels):
                settings = study.candidate(search, labels)
                tried = _loaded(study, side, settings)
                side.check_off_test(tried, own)
                for name in _starts(study, settings):
                    side.check_start(supports[name], tried, own)
    for search in study.searches:
        _check_values(study, side, search)
    _check_rows_differ(study)


def _starts(study: Study, settings: Mapping[str, Any]) -> list[str]:
    """Return the supporting runs that a run starts from, and those that they start from."""
    found: dict[str, None] = {}
    waiting = names_in(settings)
    while waiting:
        name = waiting.pop()
        run = study.runs.get(name)
        if isinstance(run, Support) and name not in found:
            found[name] = None
            waiting += names_in(run.settings)
    return list(found)


def _check_values(study: Study, side: Side, search: Search) -> None:
    """Load the config of every value to try, with the settings of the first row that takes it."""
    rows = [labels for labels in study.rows() if search.takes(labels)]
    check("SEARCH: WHERE", dict(search.where), bool(rows), "of a row that is there")
    lost = [key for key in search.keys if key in search.settings]
    check("SEARCH: SETTINGS", lost, not lost, "other keys than KEYS")
    for key, values in search.keys.items():
        for value in values[1:]:
            tried = {**search.first(), key: listed(value)}
            _loaded(study, side, study.candidate(search, rows[0], tried))


def _check_rows_differ(study: Study) -> None:
    """Raise ConfigError for two rows that would be one run: the table would show it twice."""

    def told(labels: Mapping[str, str], name: str) -> str:
        run = study.runs[name]
        row = {**labels, **run.row} if isinstance(run, Reference) else {}
        return f"{name} {[*row.values()]}"

    seen: dict[tuple[Any, ...], Mapping[str, str]] = {}
    for labels in study.rows():
        settings = with_names(study.base(labels), partial(told, labels))
        cell = Cell(ROW, labels, study.seeds[0], study.side, study.config, settings)
        searched = [search.takes(labels) for search in study.searches]
        other = seen.setdefault((cell.identity, *searched), labels)
        allowed = f"rows that differ by a setting that can change numbers, unlike {dict(other)}"
        check("AXES", dict(labels), other is labels, allowed)


def _loaded(study: Study, side: Side, settings: Mapping[str, Any]) -> Tree:
    for name in names_in(settings):
        known = [f"{{{run}}}" for run in study.runs]
        check("RUNS", f"{{{name}}}", name in study.runs, f"one of {known}, which settings name")
    config = _load(side, study.config, settings)
    side.check_data(config, is_compared=True)
    return config


def _load(side: Side, config: Path, settings: Mapping[str, Any]) -> Tree:
    for key, instead in ((side.seed, "SEEDS"), (side.folder, "--output")):
        if key in settings:
            raise ConfigError(key, settings[key], f"left to the study, which has {instead}")
    return side.load(config, side.pairs(settings))
