"""The table of a study, and what won."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tr_det.study.outcomes import DONE
from tr_det.study.page.content import Cell, Column, Filter, Row, Strip, Table
from tr_det.study.page.scale import Scale, number, size
from tr_det.study.page.studied import Group, Studied, name_of
from tr_det.study.record import DifferenceEntry, Record, RowEntry
from tr_det.study.statistics import interval_text, mean_text

EMPTY = Cell("–")


def main_table(study: Studied) -> Table:
    """Return the table of all rows: it sorts and filters."""
    record, rows = study.record, study.rows
    best = [id(group.best) for group in study.groups()]
    values = [v for row in rows for v in row["values"].values() if v is not None]
    compared = any(row["difference"] for row in rows)
    ends = [v for row in rows for v in _ends(row["difference"]) if v is not None]
    chosen = list(dict.fromkeys(key for row in rows for key in row["chosen"]))
    several = len(record["seeds"]) > 1
    columns = [Column(axis, numeric=False) for axis in study.axes]
    columns.append(Column(f"{study.metric}{' ± std' if several else ''}"))
    columns += [Column("seeds", numeric=False)] if several and values else []
    if compared:
        columns += [Column("difference"), Column("95 % interval", numeric=False)]
    storage = any(row["cost"].get("storage_mb") for row in rows)
    bops = any(row["cost"].get("bops") for row in rows)
    columns += [Column("storage")] * storage + [Column("BOPs")] * bops
    columns += [Column(key) for key in chosen] + [Column(name) for name in record["measures"]]
    made = []
    for row in rows:
        cells = [Cell(label) for label in row["labels"].values()] + [_value(row, record)]
        if several and values:
            cells.append(_seeds(row, min(values), max(values)))
        if compared:
            cells += _difference(row["difference"], ends, len(record["seeds"]))
        cells += [_storage(row)] * storage + [_bops(row)] * bops
        cells += [_any(row["chosen"].get(key)) for key in chosen]
        cells += [_any(row["measures"].get(name)) for name in record["measures"]]
        style = "best" if id(row) in best else "" if row["n"] else "missing"
        made.append(Row(cells, style))
    filters = [
        Filter(axis, place, labels)
        for place, (axis, labels) in enumerate(record["axes"].items())
        if len(labels) > 1
    ]
    return Table(
        f"Results of {record['name']}",
        columns,
        made,
        filters=filters,
        note=_note(study),
        whole=True,
    )


def sentence(group: Group, metric: str, unit: str = "") -> str:
    """Return what won in a group, and by how much."""
    best, baseline = group.best, group.baseline
    where = f"{group.name}: " if group.name else ""
    if best is None:
        return f"{where}no run has ended yet."
    value = mean_text(best["mean"], best["std"])
    text = f"{where}{_own(best, group)} is best with {value}{unit} {metric}"
    text += f" ({best['n']} seed{'s' * (best['n'] > 1)})"
    rest = [row for row in group.rows if row["n"] and row is not best]
    if baseline is not None and best is not baseline and best["difference"]:
        text += f", {_apart(best['difference']['mean'])} {_own(baseline, group)}"
        text += _interval(best["difference"])
    elif rest:
        second = max(rest, key=lambda row: row["mean"])
        text += f", {_apart(best['mean'] - second['mean'])} {_own(second, group)}"
        if second["difference"] and best is baseline:
            text += _interval(second["difference"], sign=-1)
    return f"{text}."


def _apart(difference: float) -> str:
    if abs(difference) < 0.005:
        return "no more than"
    return f"{abs(difference):.2f} {'above' if difference > 0 else 'below'}"


def _interval(found: DifferenceEntry, sign: int = 1) -> str:
    if found["low"] is None:
        return "; one pair of seeds says nothing of chance"
    low, high = sorted((sign * found["low"], sign * found["high"]))
    told = ", which holds 0: these seeds do not tell them apart" if low <= 0 <= high else ""
    return f" {interval_text(low, high)}{told}"


def _own(row: RowEntry, group: Group) -> str:
    """Return the labels of a row that the others of its group do not all have."""
    labels = [
        label
        for axis, label in row["labels"].items()
        if len({other["labels"][axis] for other in group.rows}) > 1
    ]
    return ", ".join(labels) or name_of(row)


def _value(row: RowEntry, record: Record) -> Cell:
    states = list(row["states"].values())
    others = {state: states.count(state) for state in dict.fromkeys(states) if state != DONE}
    told = ", ".join(f"{count} {state}" for state, count in others.items())
    if row["mean"] is None:
        return Cell("–", small=told or "not run")
    text = mean_text(row["mean"], row["std"])
    missing = f"n = {row['n']}: {told}" if row["n"] < len(record["seeds"]) else ""
    return Cell(text, row["mean"], small=missing)


def _seeds(row: RowEntry, low: float, high: float) -> Cell:
    if not row["n"]:
        return EMPTY
    scale = Scale(low, high if high > low else low + 1, 6, 114)
    shown = {seed: value for seed, value in row["values"].items() if value is not None}
    text = ", ".join(f"seed {seed}: {value:.2f}" for seed, value in shown.items())
    points = [scale(value) for value in shown.values()]
    return Cell("", row["mean"], strip=Strip(points, scale(row["mean"]), text))


def _difference(found: DifferenceEntry | None, ends: Sequence[float], seeds: int) -> list[Cell]:
    if found is None:
        return [EMPTY, EMPTY]
    scale = Scale(min(*ends, 0.0), max(*ends, 0.0) or 1.0, 6, 114)
    mean, low, high = found["mean"], found["low"], found["high"]
    small = "one pair" if low is None else interval_text(low, high)
    edges = [] if low is None else [scale(low), scale(high)]
    strip = Strip([], scale(mean), f"{mean:+.2f}, {small}", edges, scale(0.0))
    small += f", {found['n']} pairs" if 1 < found["n"] < seeds else ""
    return [Cell(f"{mean:+.2f}", mean, small=small), Cell("", mean, strip=strip)]


def _ends(found: DifferenceEntry | None) -> list[float]:
    return [] if found is None else [found[key] for key in ("mean", "low", "high")]


def _storage(row: RowEntry) -> Cell:
    megabytes = row["cost"].get("storage_mb")
    return Cell(size(megabytes), megabytes) if megabytes else EMPTY


def _bops(row: RowEntry) -> Cell:
    bops = row["cost"].get("bops")
    return Cell(f"{number(bops / 1e9)} G", bops) if bops else EMPTY


def _any(value: object) -> Cell:
    if value is None:
        return EMPTY
    if isinstance(value, (int, float)) and math.isfinite(value):
        return Cell(number(value), value)
    return Cell(str(value))


def _note(study: Studied) -> str:
    parts = [f"Mean and standard deviation over {len(study.record['seeds'])} seeds."]
    if study.record["baseline"]:
        name = ", ".join(study.record["baseline"].values())
        parts.append(
            f"Differences are from {name}, seed by seed, with the 95 % interval of their mean "
            "(Student's t); where it holds 0, these seeds do not tell the two apart."
        )
    if len(study.rows) > 2:
        parts.append("Chance favours the best of many rows.")
    return " ".join(parts)
