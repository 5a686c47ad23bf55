"""Charts of a study: the metric against costs, curves of several rows, and searches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tr_det.study.page.charts import COLOURS, Chart
from tr_det.study.page.panels import compared_charts
from tr_det.study.page.recorded import RecordedRun, bits_name
from tr_det.study.page.scale import number
from tr_det.study.page.scatter import Point, Series, scatter_chart
from tr_det.study.page.studied import Key, Studied, bits_axis, key_of, name_of
from tr_det.study.record import RowEntry, SearchEntry
from tr_det.study.statistics import mean_text

Runs = Mapping[Key, RecordedRun]
MOST_POINTS = 120


def cost_charts(study: Studied, bits: Mapping[Key, tuple[int, int]]) -> list[Chart]:
    """Return the metric against bits, bit operations and storage, where they are known."""
    axis, rows = bits_axis(study, bits), [row for row in study.rows if row["n"]]
    series: dict[str, list[RowEntry]] = {}
    for row in rows:
        labels = [label for name, label in row["labels"].items() if name != axis]
        series.setdefault(", ".join(labels), []).append(row)
    all_of_them = len(series)
    series = _most_important(study, series)
    note = (
        ""
        if len(series) == all_of_them
        else f"{len(series)} of {all_of_them}: the baseline and the best."
    )
    order = sorted(
        {bits[k] for k in map(key_of, rows) if k in bits}, key=lambda b: (b[0] * b[1], b)
    )
    titles = [bits_name(both) for both in order]
    places = {key: float(order.index(both)) for key, both in bits.items() if both in order}
    name = study.metric[:1].upper() + study.metric[1:]
    charts = []
    if len(order) > 1:
        found = _series(series, lambda row: places.get(key_of(row)), lambda x: titles[int(x)])
        charts.append(
            scatter_chart(
                f"{name} against bits",
                found,
                x_label="bits of weights and activations",
                y_label=f"{study.metric}, mean ± std",
                names=titles,
                note=note,
            )
        )
    kilobytes = max((row["cost"].get("storage_mb", 0) for row in rows), default=0) < 0.1
    for key, heading, unit, label, sign in (
        ("bops", "bit operations", 1e9, "10⁹ bit operations of one image", "G BOPs"),
        ("storage_mb", "storage", 1e-3, "kB of all parameters", "kB")
        if kilobytes
        else ("storage_mb", "storage", 1.0, "MB of all parameters", "MB"),
    ):
        costs = [c for row in rows if (c := row["cost"].get(key)) is not None]
        if len(set(costs)) > 1:

            def place(row: RowEntry, key: str = key, unit: float = unit) -> float | None:
                cost = row["cost"].get(key)
                return None if cost is None else cost / unit

            found = _series(series, place, lambda x, sign=sign: f"{number(x)} {sign}")
            charts.append(
                scatter_chart(
                    f"{name} against {heading}",
                    found,
                    x_label=label,
                    y_label=f"{study.metric}, mean ± std",
                    log=max(costs) > 4 * min(costs),
                    note=note,
                )
            )
    return [chart for chart in charts if chart is not None]


def _most_important(
    study: Studied, series: Mapping[str, list[RowEntry]]
) -> dict[str, list[RowEntry]]:
    """Return as many series as there are colours: the baseline's, and the best by their means."""
    compared = [id(group.baseline) for group in study.groups() if group.baseline is not None]

    def rank(label: str) -> tuple[bool, float]:
        rows = series[label]
        return any(id(row) in compared for row in rows), fmean(row["mean"] for row in rows)

    kept = sorted(series, key=rank, reverse=True)[:COLOURS]
    return {label: rows for label, rows in series.items() if label in kept}


def curve_charts(rows: Sequence[RowEntry], runs: Runs) -> list[Chart]:
    """Return curves of the runs of some rows, one line for each; at most `COLOURS`."""
    shown = [(name_of(row), runs[key_of(row)].records) for row in rows if key_of(row) in runs]
    return compared_charts(shown[:COLOURS], MOST_POINTS)


def search_chart(search: SearchEntry, metric: str) -> Chart | None:
    """Return the metric over the values of a search for one number, None where there is no line."""
    points = search["points"]
    numbers = all(_is_number(entry["point"][0]) for entry in points)
    if len(search["keys"]) != 1 or not numbers or len(points) < 2:
        return None
    (key,) = search["keys"]
    known = sorted(
        (float(entry["point"][0]), entry["value"]) for entry in points if entry["value"] is not None
    )
    chosen = (search["chosen"] or {}).get(key)
    made = [
        Point(x, y, f"{key} {number(x)}: {y:.2f}" + (", chosen" if x == chosen else ""))
        for x, y in known
    ]
    series = [Series("tried", made, 0)]
    best = [point for point in made if point.x == chosen]
    series += [Series("chosen", best, 1)] if best else []
    rows = "; ".join(", ".join(row.values()) for row in search["rows"])
    return scatter_chart(
        rows,
        series,
        x_label=key,
        y_label=f"{metric}, on part of the training set",
        log=all(point.x > 0 for point in made),
        note="The best value is at an end of what was tried." if search["at_edge"] else "",
    )


def _series(series: Mapping[str, list[RowEntry]], place: Any, told: Any) -> list[Series]:
    made = []
    for number_, (label, rows) in enumerate(series.items()):
        points = []
        for row in rows:
            x = place(row)
            if x is None:
                continue
            std = row["std"] if row["std"] is not None else math.nan
            value = mean_text(row["mean"], row["std"])
            text = f"{label or name_of(row)}, {told(x)}: {value}"
            points.append(Point(x, row["mean"], text, row["mean"] - std, row["mean"] + std))
        if points:
            points.sort(key=lambda point: point.x)
            made.append(Series(label or "all", points, number_))
    return made


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
