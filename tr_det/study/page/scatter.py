"""Charts of points with bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tr_det.study.page.charts import COLOURS, HEIGHT, SHAPES, WIDTH, Chart, Mark, joined, margin
from tr_det.study.page.scale import Scale, fitted


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart.

    Attributes:
        x: place.
        y: value.
        low: lower end of a bar through it; NaN without one.
        high: upper end.
        text: shown where the mouse points.
    """

    x: float
    y: float
    text: str
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Series:
    """Points of one kind, in the order of x.

    Attributes:
        label: in the legend.
        points: of it.
        colour: place in the palette; the shape follows from it.
        joined: whether a line joins them.
    """

    label: str
    points: Sequence[Point]
    colour: int
    joined: bool = True


def scatter_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    names: Sequence[str] = (),
    log: bool = False,
    note: str = "",
) -> Chart | None:
    """Return a chart of points with bars; None if there is nothing to draw.

    Args:
        title: its heading.
        series: to draw.
        x_label: name of the axis.
        y_label: with the unit.
        names: of the places 0, 1, ... where the axis has names instead of numbers.
        log: logarithmic places.
        note: small print.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return None
    ends = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)]
    y = fitted(ends, HEIGHT - 36, 24)
    y_ticks = y.ticks(5)
    left, right = margin(y_ticks), WIDTH - 12
    if names:
        x = Scale(-0.5, len(names) - 0.5, left, right)
        x_ticks = [(x(place), name) for place, name in enumerate(names)]
    else:
        x = fitted([p.x for p in points], left, right, log=log)
        x = replace(x, high=x.high * 1.15 if log else x.high)
        x_ticks = x.ticks(5)
    return Chart(
        title=title,
        summary=". ".join(
            f"{one.label}: " + "; ".join(p.text for p in one.points) for one in series
        ),
        note=note,
        width=WIDTH,
        height=HEIGHT,
        x=x,
        y=y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_label=x_label,
        y_label=y_label,
        marks=[_series_mark(one, x, y, len(series), bool(names)) for one in series],
    )


def _series_mark(one: Series, x: Scale, y: Scale, count: int, named: bool) -> Mark:
    # Side by side, where places have names: bars of equal places would cover each other.
    apart = min(9.0, 0.6 * (x.end - x.start) / ((x.high - x.low) * count)) if named else 0.0
    aside = apart * (one.colour - (count - 1) / 2)
    points = [(x(p.x) + aside, y(p.y), y(p.low), y(p.high), p.text) for p in one.points]
    points = [
        (px, py, *((low, high) if math.isfinite(p.low) else (math.nan, math.nan)), text)
        for (px, py, low, high, text), p in zip(points, one.points, strict=True)
    ]
    path = joined([(px, py) for px, py, *_ in points]) if one.joined and len(points) > 1 else ""
    return Mark(
        label=one.label,
        colour=one.colour % COLOURS,
        path=path,
        shape=one.colour % SHAPES,
        points=points,
    )
