"""Images inside the page, with boxes that are drawn over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from tr_det.study.page.charts import COLOURS

LARGEST = 420
"""Longer side of an image in the page, in pixels."""
QUALITY = 85
MEETING = 0.5
"""IoU from which a detection is of an object."""
WIDTH, LETTER, LETTER_WIDTH = 400.0, 14.0, 8.0
"""Width of a picture, height and width of letters, in the units that it is drawn in."""
LONGEST = 20
"""Letters of a class's name in a label."""

Corners = tuple[float, float, float, float]
"""x, y, width, height in pixels of the file."""


class Found(NamedTuple):
    """An annotation or a detection.

    Attributes:
        corners: its box.
        name: of its class.
        place: of its class, which has a colour.
        score: None for annotations.
    """

    corners: Corners
    name: str
    place: int
    score: float | None


class Box(NamedTuple):
    """A box in units of the picture.

    Attributes:
        label: beside it.
        text: shown where the mouse points.
        colour: place in the palette.
        lone: without a partner.
        label_x, label_y: where the label begins, or ends if ``at_end``.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    text: str
    colour: int
    lone: bool
    label_x: float
    label_y: float
    at_end: bool


class Panel(NamedTuple):
    """One set of boxes."""

    title: str
    summary: str
    boxes: Sequence[Box]


@dataclass(frozen=True)
class Picture:
    """An image with several sets of boxes.

    Attributes:
        title: its name.
        uri: the image, as a data URI.
        width, height: in the units of its boxes.
        panels: what is drawn over it.
    """

    title: str
    uri: str
    width: float
    height: float
    panels: Sequence[Panel]


def picture_of(
    path: Path, title: str, truth: Sequence[Found], columns: Mapping[str, Sequence[Found]]
) -> Picture | None:
    """Return an image with its annotations and the detections of runs, None if it is unreadable.

    Args:
        path: of the image.
        title: its name.
        truth: annotations.
        columns: detections by the runs' names; objects that the first one misses are marked.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError):
        return None
    original = image.size
    image.thumbnail((LARGEST, LARGEST))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    unit = WIDTH / original[0]
    panels = []
    for place, (name, found) in enumerate(columns.items()):
        met, missed = partners(truth, found)
        if place == 0:
            panels.append(
                Panel("annotations", f"{len(truth)} objects", _boxes(truth, missed, unit))
            )
        false = set(range(len(found))) - met
        told = f"{len(truth) - len(missed)} of {len(truth)} found, {len(false)} false"
        panels.append(Panel(name, told, _boxes(found, false, unit)))
    return Picture(title, uri, WIDTH, unit * original[1], panels)


def partners(truth: Sequence[Found], found: Sequence[Found]) -> tuple[set[int], set[int]]:
    """Return the places of detections that meet an object, and of objects that none meets.

    By falling score, each detection takes the object of its class that it overlaps most.
    """
    met: set[int] = set()
    free = set(range(len(truth)))
    for number in sorted(range(len(found)), key=lambda n: -(found[n].score or 0)):
        own = found[number]
        rivals = {
            n: overlap(own.corners, truth[n].corners) for n in free if truth[n].name == own.name
        }
        best = max(rivals, key=rivals.__getitem__, default=None)
        if best is not None and rivals[best] >= MEETING:
            met.add(number)
            free.remove(best)
    return met, free


def overlap(one: Corners, other: Corners) -> float:
    """Return the intersection over union of two boxes.

    >>> overlap((0, 0, 2, 2), (1, 0, 2, 2))
    0.3333333333333333
    """
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    union = one[2] * one[3] + other[2] * other[3] - common
    return common / union if union > 0 else 0.0


def _boxes(found: Sequence[Found], lone: set[int], unit: float) -> list[Box]:
    boxes = []
    for number, one in enumerate(found):
        x, y, width, height = (unit * side for side in one.corners)
        name = one.name if len(one.name) <= LONGEST else f"{one.name[: LONGEST - 1]}…"
        score = "" if one.score is None else f" {one.score:.2f}"
        at_end = x + LETTER_WIDTH * len(name + score) > WIDTH
        boxes.append(
            Box(
                x,
                y,
                width,
                height,
                label=f"{name}{score}",
                text=f"{one.name}{score}" + (", without a partner" if number in lone else ""),
                colour=one.place % COLOURS,
                lone=number in lone,
                label_x=x + width if at_end else x,
                label_y=y - 0.35 * LETTER if y > 1.4 * LETTER else y + LETTER,
                at_end=at_end,
            )
        )
    return boxes
