"""The geometry of charts; `templates/parts.html` writes it as SVG.

Pixels are those of the drawing's own coordinates; the page scales it to its column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tr_det.study.page.scale import Scale

COLOURS, SHAPES = 8, 4
"""Colours of the style sheet, and shapes of points: together they tell 32 series apart."""

WIDTH, HEIGHT = 400.0, 240.0
LETTER = 6.4
"""Width of a letter of an axis' labels."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is drawn of a line or a series, in pixels.

    Attributes:
        label: in the legend; "" for none.
        colour: place in the palette.
        path: SVG path of the line.
        band: SVG path of the area around it.
        dashed: how the line is drawn.
        filled: whether the path is an area.
        shape: of the points.
        points: (x, y, low, high, text); low and high are NaN without a bar.
    """

    label: str
    colour: int
    path: str = ""
    band: str = ""
    dashed: bool = False
    filled: bool = False
    shape: int = -1
    points: list[tuple[float, float, float, float, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, ready to be written.

    Attributes:
        title: its heading.
        summary: what it shows, for those who do not see it.
        note: small print below; "" for none.
        width, height: of the drawing.
        x, y: axes.
        x_ticks, y_ticks: pixels and labels.
        x_label, y_label: names with units.
        marks: what is drawn.
        rules: pixels of vertical dotted lines.
        zero: pixel of a line at 0 across the chart, NaN for none.
        hover: what the script needs to show values: lines and scales; {} where points have texts.
        small: one of many.
    """

    title: str
    summary: str
    note: str = ""
    width: float
    height: float
    x: Scale
    y: Scale
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    y_label: str
    marks: list[Mark]
    rules: list[float] = field(default_factory=list)
    zero: float = math.nan
    hover: dict[str, object] = field(default_factory=dict)
    small: bool = False

    def legend(self) -> list[Mark]:
        """Return the marks that a legend has: none, if there is one mark only."""
        return [mark for mark in self.marks if mark.label] if len(self.marks) > 1 else []


def margin(ticks: Sequence[tuple[float, str]]) -> float:
    """Return the room that the labels of a vertical axis need."""
    return 10 + LETTER * max((len(label) for _, label in ticks), default=1)


def joined(points: Sequence[tuple[float, float]]) -> str:
    """Return an SVG path through some pixels."""
    return "M" + "L".join(f"{pixel(a)},{pixel(b)}" for a, b in points)


def pixel(value: float) -> str:
    """Return a pixel as SVG has it."""
    return f"{value:.1f}".removesuffix(".0")
