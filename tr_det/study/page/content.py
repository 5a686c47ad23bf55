"""What a page is made of. `templates/parts.html` has a macro for each kind of block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from tr_det.study.page.charts import Chart, Mark
from tr_det.study.page.pictures import Picture


class Tile(NamedTuple):
    """A number in the head of the page."""

    label: str
    value: str
    note: str = ""


class Strip(NamedTuple):
    """Values on a scale that all rows share, in pixels of 120.

    Attributes:
        points: of seeds.
        mean: of them.
        text: the same in words.
        edges: of an interval, two or none.
        zero: where 0 is, NaN where it is of no interest.
    """

    points: Sequence[float]
    mean: float
    text: str
    edges: Sequence[float] = ()
    zero: float = math.nan


class Cell(NamedTuple):
    """A cell: what is shown, and by which number it is sorted."""

    text: str
    sort: float | None = None
    small: str = ""
    strip: Strip | None = None


class Column(NamedTuple):
    """A column's head."""

    title: str
    numeric: bool = True


class Row(NamedTuple):
    """A row; its style is ``best``, ``own``, ``missing`` or nothing."""

    cells: Sequence[Cell]
    style: str = ""


class Filter(NamedTuple):
    """A choice among the texts of a column."""

    title: str
    column: int
    options: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it is of.
        columns: heads.
        rows: cells.
        sortable: by a click on a head.
        filters: choices beside the filter by text; None for no filter.
        note: small print.
        whole: whether a long one is shown without scrolling.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sortable: bool = True
    filters: Sequence[Filter] | None = None
    note: str = ""
    whole: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Charts:
    """Charts side by side; with a legend that all share, they have none of their own."""

    charts: Sequence[Chart]
    small: bool = False
    legend: Sequence[Mark] = ()
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Pictures:
    """Images with boxes."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Code:
    """Text as it is in a file or a terminal."""

    title: str
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Folded:
    """Blocks that a click shows."""

    title: str
    blocks: Sequence[Block]
    note: str = ""
    open: bool = False
    kind: ClassVar[str] = "folded"


Block = Table | Charts | Pictures | Code | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        key: of its address in the page: letters and hyphens.
        title: heading.
        texts: paragraphs.
        blocks: what follows.
    """

    key: str
    title: str
    texts: Sequence[str] = ()
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page.

    Attributes:
        kind: what it is of, above the title.
        title: heading.
        subtitle: below it.
        lead: the answer, in sentences.
        tiles: numbers.
        sections: parts.
        footer: how it was made.
    """

    kind: str
    title: str
    subtitle: str = ""
    lead: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = field(default_factory=list)
    footer: str
