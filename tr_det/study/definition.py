"""A study's YAML file, checked once: which runs are compared, and how their settings are found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tr_det.core.errors import check, check_among, is_number, is_whole
from tr_det.runtime.configs import config_files, overlaid
from tr_det.study import measures
from tr_det.study.reading import (
    Section,
    hashable,
    label_lists,
    labels_of,
    listed,
    names_in,
    settings_of,
    text_of,
    with_names,
)

METRICS = {
    "detection": ("bbox/AP", r"(bbox|segm|keypoints)/AP(50|75|s|m|l|-.+)?"),
    "classification": ("accuracy", "accuracy|top5"),
}
"""Side -> what its runs are compared by, and what METRIC may name: more is better."""
SAME, NEXT = "same", "next"
"""Seeds of supporting runs: the row's own, or the next one in SEEDS; the first follows the last."""

Settings = Mapping[str, Any]
"""Dotted config key -> value. ``{name}`` in a text is a row's label of that axis, or the folder of
the supporting run of that name."""
Labels = Mapping[str, str]
"""Axis -> label."""


@dataclass(frozen=True)
class Support:
    """A run that rows start from or read: its settings and its seed."""

    config: Path
    settings: Settings
    seed: int | str  # SAME, or one for all


@dataclass(frozen=True)
class Reference:
    """The run of another row."""

    row: Labels  # axes that differ from those of the row that refers to it
    seed: int | str  # SAME, NEXT or a seed


@dataclass(frozen=True)
class Search:
    """Settings that are chosen by runs on a part of the training set."""

    where: Mapping[str, tuple[str, ...]]  # rows that adopt what is found
    keys: Mapping[str, tuple[Any, ...]]  # every combination is tried; lists are tuples here
    settings: Settings  # of the candidates, on top of the row's: must name other test data
    seeds: tuple[int, ...]
    per: tuple[str, ...]  # axes whose labels are searched separately
    extend: float  # factor by which a grid is extended where its best value is at an end; 0: never

    def takes(self, labels: Labels) -> bool:
        """Return whether a row adopts what this search finds."""
        return all(labels[axis] in allowed for axis, allowed in self.where.items())

    def at(self, point: Iterable[Any]) -> dict[str, Any]:
        """Return settings: a value for each key."""
        return {key: listed(value) for key, value in zip(self.keys, point, strict=True)}

    def first(self) -> dict[str, Any]:
        """Return the first value of each key."""
        return self.at(values[0] for values in self.keys.values())


@dataclass(frozen=True)
class Estimate:
    """What a run costs before any was measured, as the study's author says."""

    seconds: float  # of an update, or of an epoch where the config counts epochs
    hardware: str
    gpus: int  # of it, that a run uses; 0: none


@dataclass(frozen=True)
class Study:
    """What a YAML file holds; its keys in capitals are these names."""

    path: Path
    name: str
    side: str
    config: Path
    settings: Settings
    seeds: tuple[int, ...]
    axes: Mapping[str, Mapping[str, Settings]]
    exclude: tuple[Mapping[str, tuple[str, ...]], ...]
    baseline: Labels
    metric: str
    measures: tuple[str, ...]
    columns: str  # the axis whose labels are columns of the table; "" for none
    runs: Mapping[str, Support | Reference]
    searches: tuple[Search, ...]
    estimate: Estimate | None

    def rows(self) -> list[dict[str, str]]:
        """Return the labels of all rows, the last axis fastest."""
        combined = itertools.product(*self.axes.values())
        rows = [dict(zip(self.axes, labels, strict=True)) for labels in combined]
        return [row for row in rows if not self._is_excluded(row)]

    def base(self, labels: Labels) -> dict[str, Any]:
        """Return a row's settings, but for what is searched: later axes win."""
        settings = dict(self.settings)
        for axis, label in labels.items():
            settings |= self.axes[axis][label]
        return with_names(settings, lambda name: labels.get(name, f"{{{name}}}"))

    def candidate(
        self, search: Search, labels: Labels, values: Settings | None = None
    ) -> dict[str, Any]:
        """Return the settings of a run of a search.

        Args:
            search: one that takes the row.
            labels: of the row.
            values: of the keys that are searched; None: the first of each.
        """
        tried = search.first() if values is None else values
        own = with_names(search.settings, lambda name: labels.get(name, f"{{{name}}}"))
        return {**self.base(labels), **tried, **own}

    def baseline_of(self, labels: Labels) -> dict[str, str] | None:
        """Return the labels of the row that a row is compared with, None if there is none."""
        other = {**labels, **self.baseline}
        alone = not self.baseline or other == labels or self._is_excluded(other)
        return None if alone else other

    def following(self, seed: int) -> int:
        """Return the seed after one of SEEDS; the first one after any other."""
        if seed not in self.seeds:
            return self.seeds[0]
        return self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]

    def _is_excluded(self, labels: Labels) -> bool:
        return any(
            all(labels[axis] in names for axis, names in part.items()) for part in self.exclude
        )


def read_study(path: Path) -> Study:
    """Return the study that a YAML file, and those that it builds on, define.

    Raises:
        ValueError: an unknown key, or a value that cannot be; names the file and the key.
        OSError: there is no such file.
    """
    tree: dict[str, Any] = {}
    for file, own in reversed([*config_files(path)]):
        _anchor(own, file.parent)
        tree = overlaid(own, tree)
    with Section(str(path), tree) as section:
        return _study(path, section)


def _anchor(tree: dict[str, Any], folder: Path) -> None:
    """Let the configs that a file names be relative to it."""
    runs = tree.get("RUNS")
    for part in (tree, *(runs.values() if isinstance(runs, dict) else ())):
        if isinstance(part, dict) and isinstance(part.get("CONFIG"), str):
            part["CONFIG"] = str(folder / part["CONFIG"])


def _study(path: Path, section: Section) -> Study:
    side = section.take("SIDE", text_of)
    check_among("SIDE", side, METRICS)
    usual, others = METRICS[side]
    metric = section.take("METRIC", text_of, usual)
    fits = re.fullmatch(others, metric) is not None
    check("METRIC", metric, fits, f"of the form {others}")
    axes = section.take("AXES", _axes)
    seeds = section.take("SEEDS", _seeds)
    settings = section.take("SETTINGS", settings_of, {})
    config = Path(section.take("CONFIG", text_of))
    last = list(axes)[-1] if len(axes) > 1 else ""
    chosen = section.take("MEASURES", _texts, ())
    for name in chosen:
        measures.check_name(name)
    columns = section.take("COLUMNS", lambda _, given: given, "" if chosen else last)
    check_among("COLUMNS", columns, ["", *axes])
    check("COLUMNS", columns, not (chosen and columns), "'' with MEASURES, which are columns")
    parts = section.take("EXCLUDE", lambda key, value: _list_of(key, value, _labels), ())
    exclude = tuple(label_lists(part, axes, "EXCLUDE") for part in parts)
    check("EXCLUDE", list(parts), all(exclude), "parts that name labels")
    baseline = labels_of(section.take("BASELINE", _labels, {}), axes, "BASELINE")
    runs = section.take("RUNS", lambda key, value: _runs(key, value, axes, seeds), {})
    for name, run in runs.items():
        needed = names_in(getattr(run, "settings", {}))
        rows = [other for other in needed if isinstance(runs.get(other), Reference)]
        check(f"RUNS.{name}", rows, not rows, "settings without the run of a row")
    searches = section.take("SEARCH", lambda key, value: _searches(key, value, axes), ())
    estimate = section.take("ESTIMATE", _estimate, None)
    study = Study(
        path=path,
        name=section.take("NAME", _name, path.stem),
        side=side,
        config=config,
        settings=settings,
        seeds=seeds,
        axes=axes,
        exclude=exclude,
        baseline=baseline,
        metric=metric,
        measures=chosen,
        columns=columns,
        runs=runs,
        searches=searches,
        estimate=estimate,
    )
    check("EXCLUDE", list(parts), bool(study.rows()), "such that rows are left")
    return study


def _name(key: str, value: Any) -> str:
    name = text_of(key, value)
    check(key, name, name not in (".", "..") and Path(name).name == name, "the name of a folder")
    return name


def _axes(key: str, value: Any) -> dict[str, dict[str, Settings]]:
    fits = isinstance(value, dict) and bool(value)
    check(key, value, fits, "a mapping: axis -> {label: {key: value, ...}}")
    axes: dict[str, dict[str, Settings]] = {}
    for axis, labels in value.items():
        check(f"{key}.{axis}", labels, isinstance(labels, dict) and bool(labels), "labels")
        axes[axis] = {
            label: settings_of(f"{key}.{axis}.{label}", own or {}) for label, own in labels.items()
        }
    return axes


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    fits = isinstance(value, list) and bool(value) and all(type(seed) is int for seed in value)
    fits = fits and min(value) >= 0 and len(set(value)) == len(value)
    check(key, value, fits, "a list of different integers, not negative")
    return tuple(value)


def _texts(key: str, value: Any) -> tuple[str, ...]:
    return tuple(_list_of(key, value, text_of))


def _list_of(key: str, value: Any, read: Any) -> list[Any]:
    check(key, value, isinstance(value, list), "a list")
    return [read(f"{key}[{place}]", item) for place, item in enumerate(value)]


def _labels(key: str, value: Any) -> dict[str, Any]:
    check(key, value, isinstance(value, dict), "a mapping: axis -> label")
    return dict(value)


def _runs(
    key: str, value: Any, axes: Mapping[str, Any], seeds: tuple[int, ...]
) -> dict[str, Support | Reference]:
    check(key, value, isinstance(value, dict), "a mapping: name -> {CONFIG or ROW, ...}")
    runs: dict[str, Support | Reference] = {}
    for name, tree in value.items():
        fits = name.isidentifier() and name not in axes
        check(f"{key}.{name}", name, fits, "a name of letters, digits and _ that is no axis'")
        with Section(f"{key}.{name}", tree) as section:
            if "ROW" in tree:
                row = labels_of(section.take("ROW", _labels), axes, "ROW")
                seed = section.take("SEED", lambda _, given: given, SAME)
                fits = seed in (SAME, NEXT, *seeds)
                check("SEED", seed, fits, f"{SAME}, {NEXT} or one of SEEDS")
                fits = seed != NEXT or len(seeds) > 1
                check("SEED", seed, fits, "another one where SEEDS has one seed")
                runs[name] = Reference(row, seed)
            else:
                config = Path(section.take("CONFIG", text_of))
                settings = section.take("SETTINGS", settings_of, {})
                runs[name] = Support(config, settings, section.take("SEEDS", _seed, SAME))
    return runs


def _seed(key: str, value: Any) -> int | str:
    if value == SAME:
        return SAME
    (seed, *more) = _seeds(key, value)
    check(key, value, not more, f"{SAME} (the row's), or a list of one seed for all rows")
    return seed


def _searches(key: str, value: Any, axes: Mapping[str, Any]) -> tuple[Search, ...]:
    check(key, value, isinstance(value, list), "a list")
    searches = []
    for place, tree in enumerate(value):
        with Section(f"{key}[{place}]", tree) as section:
            keys = section.take("KEYS", settings_of)
            check("KEYS", keys, bool(keys), "a mapping: dotted config key -> values to try")
            for name, values in keys.items():
                fits = isinstance(values, list) and len(values) > 0
                fits = fits and not any(isinstance(value, dict) for value in values)
                check(f"KEYS.{name}", values, fits, "a list of the values to try")
            per = section.take("PER", _texts, tuple(axes))
            for axis in per:
                check_among("PER", axis, axes)
            extend = section.take("EXTEND", lambda _, given: given, 0)
            fits = type(extend) in (int, float) and (extend == 0 or extend > 1)
            check("EXTEND", extend, fits, "a factor above 1, or 0")
            searches.append(
                Search(
                    where=label_lists(section.take("WHERE", _labels, {}), axes, "WHERE"),
                    keys={name: hashable(values) for name, values in keys.items()},
                    settings=section.take("SETTINGS", settings_of),
                    seeds=section.take("SEEDS", _seeds, (100,)),
                    per=per,
                    extend=float(extend),
                )
            )
    return tuple(searches)


def _estimate(key: str, value: Any) -> Estimate:
    with Section(key, value) as section:
        seconds = section.take("SECONDS", lambda _, given: given)
        check("SECONDS", seconds, is_number(seconds) and seconds > 0, "above 0")
        gpus = section.take("GPUS", lambda _, given: given, 0)
        check("GPUS", gpus, is_whole(gpus) and gpus >= 0, "a number of GPUs")
        return Estimate(float(seconds), section.take("HARDWARE", text_of), gpus)
