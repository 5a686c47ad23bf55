"""Charts of lines, bands and histograms over a common axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tr_det.study.page.charts import HEIGHT, WIDTH, Chart, Mark, joined, margin, pixel
from tr_det.study.page.scale import Scale, fitted, number

SMALL_WIDTH, SMALL_HEIGHT = 190.0, 104.0
Numbers = Sequence[float]


@dataclass(frozen=True)
class Line:
    """A line of a chart, or the stairs of a histogram.

    Attributes:
        label: in the legend and where the mouse points.
        x: ascending.
        y: one for each x; not finite: left out.
        low: lower edge of a band around the line, empty without one.
        high: upper edge.
        colour: place in the palette.
        dashed: how it is drawn.
        filled: down to the axis.
        in_legend: whether the legend has it.
    """

    label: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    colour: int = 0
    dashed: bool = False
    filled: bool = False
    in_legend: bool = True


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "update",
    y_label: str,
    log: bool = False,
    zero: bool = True,
    note: str = "",
    rules: Numbers = (),
    small: bool = False,
    span: tuple[float, float] | None = None,
    first: float = math.inf,
) -> Chart | None:
    """Return a chart of lines over a common axis, of two points at least; None without one.

    Args:
        title: its heading.
        lines: to draw, first ones below.
        x_label: name of the axis.
        y_label: with the unit.
        log: logarithmic values; those that are not positive are at the lower edge.
        zero: values begin at 0.
        note: small print.
        rules: where there are vertical dotted lines.
        small: one of many, with fewer ticks and no legend.
        span: smallest and largest value shown, where charts shall be compared or cut off.
        first: where the axis begins at the latest.
    """
    lines = [line for line in map(_finite, lines) if len(line.x) > 1]
    # The lower edge of a band may come near 0, where a logarithmic axis would have no end.
    edges = [[line.y, line.high] if log else [line.y, line.low, line.high] for line in lines]
    values = [v for each in edges for part in each for v in part if v > 0 or not log]
    if not values:
        return None
    height = SMALL_HEIGHT if small else HEIGHT
    width = SMALL_WIDTH if small else WIDTH
    top, bottom = (8.0, height - 18) if small else (24.0, height - 36)
    y = fitted(span or values, bottom, top, log=log, zero=zero)
    y_ticks = y.ticks(3 if small else 5)
    left = margin(y_ticks)
    places = [*(place for line in lines for place in line.x), *rules]
    begin, end = min(*places, first), max(places)
    x = Scale(begin, end if end > begin else begin + 1, left, width - 10)
    marks = [
        Mark(
            label=line.label if line.in_legend else "",
            colour=line.colour,
            path=_area(line, x, y) if line.filled else _path(line.x, line.y, x, y),
            band=_band(line, x, y),
            dashed=line.dashed,
            filled=line.filled,
        )
        for line in lines
    ]
    hover = {
        "x": [x.low, x.high, x.start, x.end, False],
        "y": [y.low, y.high, y.start, y.end, y.log],
        "lines": [[line.label, [*map(short, line.x)], [*map(short, line.y)]] for line in lines],
    }
    return Chart(
        title=title,
        summary=". ".join(map(_told, lines)),
        note=note,
        width=width,
        height=height,
        x=x,
        y=y,
        x_ticks=x.ticks(2 if small else 5),
        y_ticks=y_ticks,
        x_label=x_label,
        y_label=y_label,
        marks=marks,
        rules=[x(place) for place in rules],
        hover=hover,
        small=small,
    )


def short(value: float) -> float:
    """Return a number of four significant digits: charts show no more."""
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _finite(line: Line) -> Line:
    parts = {key: list(getattr(line, key)) for key in ("x", "y", "low", "high")}
    parts = {key: values for key, values in parts.items() if values}
    kept = [row for row in zip(*parts.values(), strict=True) if all(map(math.isfinite, row))]
    columns = zip(*kept, strict=True) if kept else [()] * len(parts)
    return replace(line, **dict(zip(parts, columns, strict=True)))  # type: ignore[arg-type]


def _path(xs: Numbers, ys: Numbers, x: Scale, y: Scale) -> str:
    return joined([(x(a), y(b)) for a, b in zip(xs, ys, strict=True)])


def _area(line: Line, x: Scale, y: Scale) -> str:
    begin, end = pixel(x(line.x[0])), pixel(x(line.x[-1]))
    return f"{_path(line.x, line.y, x, y)}L{end},{pixel(y.start)}H{begin}Z"


def _band(line: Line, x: Scale, y: Scale) -> str:
    if not len(line.low) or len(line.x) < 2:
        return ""
    back = [(x(a), y(b)) for a, b in zip(reversed(line.x), reversed(line.low), strict=True)]
    return f"{_path(line.x, line.high, x, y)}L{joined(back)[1:]}Z"


def _told(line: Line) -> str:
    values = line.y
    return (
        f"{line.label}: from {number(values[0])} to {number(values[-1])}, "
        f"between {number(min(values))} and {number(max(values))}"
    )
