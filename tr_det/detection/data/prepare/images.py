"""An image on its way into the prepared folder, and its boxes with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from tr_det.detection.data.images import ORIENTATION, SIDEWAYS
from tr_det.detection.data.prepare.source import Box, Photo

Edges = tuple[float, float, float, float]

_TURNED: dict[int, Callable[[Edges, int, int], Edges]] = {
    2: lambda e, w, h: (w - e[2], e[1], w - e[0], e[3]),
    3: lambda e, w, h: (w - e[2], h - e[3], w - e[0], h - e[1]),
    4: lambda e, w, h: (e[0], h - e[3], e[2], h - e[1]),
    5: lambda e, w, h: (e[1], e[0], e[3], e[2]),
    6: lambda e, w, h: (h - e[3], e[0], h - e[1], e[2]),
    7: lambda e, w, h: (h - e[3], w - e[2], h - e[1], w - e[0]),
    8: lambda e, w, h: (e[1], w - e[2], e[3], w - e[0]),
}
"""EXIF orientation -> edges in the stored image, of width and height, to those in the upright."""


class Size(NamedTuple):
    """Sizes of an image, in pixels.

    Attributes:
        stored: width and height of the pixels in the source's file.
        upright: the same after the turn that EXIF asks for, which Detectron2 makes when it reads.
        written: the same of the prepared image.
        orientation: of EXIF, 1 to 8.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    written: tuple[int, int]
    orientation: int


def place_image(source: Path, target: Path, longest: int = 0, link: bool = False) -> Size:
    """Decode an image and copy it, or write it smaller; return its sizes.

    Args:
        source: the file, which must be whole.
        target: the file to write.
        longest: the longer side of what is written, which is upright; 0, or an image that is
            smaller: the file is copied as it is.
        link: make a symbolic link instead of a copy.

    Raises:
        OSError: the image cannot be read or written; also SyntaxError and ValueError by Pillow.
    """
    with Image.open(source) as image:
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        stored = image.size
        upright = stored[::-1] if orientation in SIDEWAYS else stored
        if longest and max(upright) > longest:
            factor = longest / max(upright)
            width, height = (max(1, round(side * factor)) for side in upright)
            small = ImageOps.exif_transpose(image).resize(
                (width, height), Image.Resampling.LANCZOS, reducing_gap=3.0
            )
            small.info.pop("exif", None)
            small.save(target, format=image.format, **_quality(image.format))
            return Size(stored, upright, (width, height), orientation)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
    return Size(stored, upright, upright, orientation)


def place_box(box: Box, photo: Photo, size: Size) -> Edges:
    """Return a box's edges in the prepared image, pixels; they may reach beyond it.

    Boxes are of the upright image, unless their source states the size of the stored one.
    """
    edges: Edges = box[1:5]
    if photo.relative:
        width, height = size.upright
        edges = edges[0] * width, edges[1] * height, edges[2] * width, edges[3] * height
    elif photo.size == size.stored != size.upright:
        edges = _TURNED[size.orientation](edges, *size.stored)
    across, down = (new / old for new, old in zip(size.written, size.upright, strict=True))
    return edges[0] * across, edges[1] * down, edges[2] * across, edges[3] * down


def _quality(form: str | None) -> dict[str, int]:
    return {"quality": 95} if form in ("JPEG", "WEBP") else {}
