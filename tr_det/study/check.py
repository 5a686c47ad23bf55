"""What of a study can be checked before any run: every config that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tr_det.core.errors import check
from tr_det.study.definition import Search, Study, Support
from tr_det.study.reading import names_in
from tr_det.study.sides import SIDES, Side, Tree


def check_study(study: Study) -> None:
    """Load the config of every row, supporting run and value to try.

    Raises:
        ValueError: a config that cannot be, or a search that would be judged by the test set.
    """
    side = SIDES[study.side]
    supports = {
        name: side.load(run.config, side.pairs(run.settings))
        for name, run in study.runs.items()
        if isinstance(run, Support)
    }
    for labels in study.rows():
        base = study.base(labels)
        own = _loaded(study, side, base)
        for search in study.searches:
            if search.takes(labels):
                first = {key: values[0] for key, values in search.keys.items()}
                settings = {**base, **first, **search.settings}
                tried = _loaded(study, side, settings)
                side.check_off_test(tried, own)
                for name in names_in(settings):
                    if name in supports:
                        side.check_start(supports[name], tried, own)
    for search in study.searches:
        _check_values(study, side, search)


def _check_values(study: Study, side: Side, search: Search) -> None:
    """Load the config of every value to try, with the settings of the first row that takes it."""
    rows = [labels for labels in study.rows() if search.takes(labels)]
    check("SEARCH: WHERE", dict(search.where), bool(rows), "of a row that is there")
    lost = [key for key in search.keys if key in search.settings]
    check("SEARCH: SETTINGS", lost, not lost, "other keys than KEYS")
    first = {key: values[0] for key, values in search.keys.items()}
    for key, values in search.keys.items():
        for value in values[1:]:
            _loaded(study, side, {**study.base(rows[0]), **first, key: value, **search.settings})


def _loaded(study: Study, side: Side, settings: Mapping[str, Any]) -> Tree:
    for name in names_in(settings):
        known = [f"{{{run}}}" for run in study.runs]
        check("RUNS", f"{{{name}}}", name in study.runs, f"one of {known}, which settings name")
    return side.load(study.config, side.pairs(settings))
