"""The demo's picture of detections side by side.

matplotlib (for its font) and Pillow are imported when a picture is drawn, so importing this module
is cheap.
"""

from __future__ import annotations

import colorsys
import functools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tr_det.runtime.files import written_aside

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from PIL.ImageFont import FreeTypeFont

__all__ = ["draw_detections"]

# Box (x0, y0, x1, y1) in image pixels, class index, score or None for ground truth.
Detection = tuple[Sequence[float], int, float | None]
Rectangle = tuple[float, float, float, float]

_INK = "#222222"
# Ten hues that stay apart on grey images; more classes walk around the colour circle.
_PALETTE = (
    "#ff5c57",
    "#36c95f",
    "#4aa3ff",
    "#ffd23f",
    "#d77bff",
    "#2de0d6",
    "#ff9838",
    "#ff8fc7",
    "#b4e33d",
    "#b59b83",
)


def draw_detections(
    path: str | os.PathLike[str],
    rows: Sequence[tuple[np.ndarray, Sequence[Sequence[Detection]]]],
    class_names: Sequence[str],
    columns: Sequence[str] = ("ground truth", "full precision", "4-bit"),
    score_threshold: float = 0.4,
) -> None:
    """Draws a grid: one image per row, one set of boxes per column, one colour per class.

    Small images are enlarged by a whole factor and large ones reduced, to about 360 pixels a side,
    before boxes and labels are drawn, so that both stay sharp.

    Args:
        path: the picture to write; its suffix is the format (PNG without one).
        rows: per image its (H, W, 3) uint8 RGB pixels and, for each column, a list of
            (box xyxy in image pixels, class index, score or None).
        class_names: names by class index; a class beyond it shows its index.
        columns: headings.
        score_threshold: detections with a score below it are left out; a score of None is always
            drawn and shows no number.

    Raises:
        ValueError: an image isn't (H, W, 3) uint8, or a row hasn't one list per column.
    """
    from PIL import Image, ImageDraw

    for number, (image, per_column) in enumerate(rows):
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"row {number}: the image is {image.dtype} {image.shape}, not uint8 (H, W, 3)"
            )
        if len(per_column) != len(columns):
            raise ValueError(
                f"row {number} has {len(per_column)} lists of boxes for the {len(columns)} columns "
                f"{tuple(columns)}"
            )

    margin, gap, header, footer = 16, 8, 36, 32
    scales = [_scale(*np.asarray(image).shape[:2]) for image, _ in rows]
    sizes = [
        (max(1, round(np.shape(image)[1] * scale)), max(1, round(np.shape(image)[0] * scale)))
        for (image, _), scale in zip(rows, scales, strict=True)
    ]
    cell = max((width for width, _ in sizes), default=_CELL)
    heights = [height for _, height in sizes] or [_CELL // 2]
    sheet = Image.new(
        "RGB",
        (
            2 * margin + len(columns) * cell + (len(columns) - 1) * gap,
            header + sum(heights) + (len(heights) - 1) * gap + footer,
        ),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    lefts = [margin + i * (cell + gap) for i in range(len(columns))]
    for left, heading in zip(lefts, columns, strict=True):
        place = (left + cell / 2, header / 2)
        pen.text(place, heading, fill=_INK, font=_font(18), anchor="mm")

    top = header
    for (image, per_column), scale, size in zip(rows, scales, sizes, strict=True):
        enlarged = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.BICUBIC)
        for left, detections in zip(lefts, per_column, strict=True):
            picture = enlarged.copy()
            _draw_boxes(picture, _shown(detections, score_threshold), class_names, scale)
            sheet.paste(picture, (left + (cell - size[0]) // 2, top))
        top += size[1] + gap

    foot = f"detections with a score of at least {score_threshold:g}"
    if not rows:
        pen.text((sheet.width / 2, top + heights[0] / 2), "no images", "#777777", _font(24), "mm")
    pen.text((margin, sheet.height - footer / 2), foot, fill="#666666", font=_font(13), anchor="lm")
    with written_aside(path) as aside:
        sheet.save(aside, format=None if aside.suffix else "PNG")


_CELL = 360  # about the longer side of an image on the sheet, in pixels


def _scale(height: int, width: int) -> float:
    longest = max(height, width)
    return math.ceil(_CELL / longest) if longest < _CELL else _CELL / longest


def _shown(
    detections: Sequence[Detection], threshold: float
) -> list[tuple[Rectangle, int, float | None]]:
    """Returns the finite boxes at or above `threshold`, weakest first: the strongest end on top."""
    shown = []
    for box, index, score in detections:
        x0, y0, x1, y1 = (float(v) for v in box)
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            continue
        if score is None or float(score) >= threshold:
            rectangle = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            shown.append((rectangle, int(index), None if score is None else float(score)))
    return sorted(shown, key=lambda detection: 1.0 if detection[2] is None else detection[2])


def _draw_boxes(
    picture: Image.Image,
    detections: Sequence[tuple[Rectangle, int, float | None]],
    class_names: Sequence[str],
    scale: float,
) -> None:
    """Draws boxes first and labels over them, strongest labels first to their favourite places."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture)
    scaled = []
    for box, index, score in detections:
        x0, y0, x1, y1 = (v * scale for v in box)
        # The band lies around the object, which may be small, but never outside the picture.
        x0, x1 = (min(max(v, 0), picture.width - 1) for v in (x0 - 2, x1 + 2))
        y0, y1 = (min(max(v, 0), picture.height - 1) for v in (y0 - 2, y1 + 2))
        # A dark rim of one pixel keeps every colour visible on every background.
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_INK, width=5)
        pen.rectangle((x0, y0, x1, y1), outline=_colour(index), width=3)
        scaled.append(((x0, y0, x1, y1), index, score))

    taken: list[Rectangle] = []
    for box, index, score in reversed(scaled):
        name = class_names[index] if 0 <= index < len(class_names) else str(index)
        text = name if score is None else f"{name} {score:.2f}"
        _draw_label(pen, picture.size, box, text, _colour(index), taken)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Rectangle,
    text: str,
    colour: str,
    taken: list[Rectangle],
) -> None:
    """Draws a label where it covers other labels least: above its box, below, beside or inside."""
    font = _font(13)
    pad = 3
    width = math.ceil(pen.textlength(text, font=font)) + 2 * pad
    height = sum(font.getmetrics()) + 1
    x0, y0, x1, y1 = box
    places = [
        (x0, y0 - height),
        (x1 + 1 - width, y0 - height),
        (x0, y1 + 1),
        (x1 + 1 - width, y1 + 1),
        (x1 + 1, y0),
        (x0 - width, y0),
        (x1 + 1, y1 + 1 - height),
        (x0 - width, y1 + 1 - height),
        (x0, y0),
    ]

    def clamped(place: tuple[float, float]) -> Rectangle:
        left = min(max(place[0], 0), max(size[0] - width, 0))
        up = min(max(place[1], 0), max(size[1] - height, 0))
        return (left, up, left + width, up + height)

    # Covering another label is worst, then leaving the favourite place, then covering the object.
    def cost(order: int) -> tuple[float, float]:
        area = clamped(places[order])
        return (sum(_overlap(area, other) for other in taken), 0.3 * _overlap(area, box) + order)

    best = clamped(places[min(range(len(places)), key=cost)])
    taken.append(best)
    pen.rectangle((best[0], best[1], best[2] - 1, best[3] - 1), fill=colour)
    place = (best[0] + pad, (best[1] + best[3]) / 2)
    pen.text(place, text, fill=_on(colour), font=font, anchor="lm")


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _colour(index: int) -> str:
    """Returns the colour of a class as "#rrggbb"."""
    if 0 <= index < len(_PALETTE):
        return _PALETTE[index]
    hue = (index * 0.618034) % 1.0
    rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[index % 2], 1.0)
    return "#" + "".join(f"{round(255 * v):02x}" for v in rgb)


def _on(colour: str) -> str:
    """Returns black or white, whichever reads better on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"


@functools.cache
def _font(size: int) -> FreeTypeFont:
    """Returns DejaVu Sans as matplotlib ships it: the same on every machine."""
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
