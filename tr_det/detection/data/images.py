"""Checks of a dataset's image files, before training and while they are read.

* A missing image file is an error at the start, and so is a test image that cannot be read or has
  another size than annotated: scores of an incomplete test set mean nothing.
* Such a training image is skipped when it is read, logged and counted: decoding all images first
  would take too long.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

Dicts = Sequence[dict[str, Any]]

LAST_BYTES = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}
"""First bytes of a JPEG or PNG file -> the last ones of a whole one."""

ORIENTATION = 0x0112
"""EXIF's tag of how an image is turned."""
SIDEWAYS = (5, 6, 7, 8)
"""Its values that swap width and height."""

UNREADABLE = (OSError, SyntaxError, ValueError)
"""What PIL raises about a broken file, and Detectron2 about one of another size than annotated."""


def check_files(dicts: Dicts, dataset: str) -> None:
    """Raise ValueError if image files of a dataset do not exist; each folder is listed once."""
    wanted = defaultdict(set)
    for image in dicts:
        folder, name = os.path.split(image.get("file_name", ""))
        if name:
            wanted[folder].add(name)
    missing = []
    for folder, names in wanted.items():
        if "://" in folder:
            continue
        there = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        missing += [os.path.join(folder, name) for name in sorted(names - there)]
    _refuse(dataset, dicts, missing, "image files do not exist")


def check_readable(dicts: Dicts, dataset: str) -> None:
    """Raise ValueError if image files of a dataset are cut off, no images, or of another size.

    Only files that do not end as they should are decoded, which is quick.
    """
    broken = []
    for record in dicts:
        path = record.get("file_name", "://")
        if "://" in path:
            continue
        try:
            whole = _is_whole(path)
            with Image.open(path) as image:
                if not whole:
                    image.load()
                _check_size(image, record)
        except UNREADABLE as error:
            broken.append(f"{path} ({error})")
    _refuse(dataset, dicts, broken, "images cannot be used")


def _refuse(dataset: str, dicts: Dicts, found: list[str], what: str) -> None:
    if found:
        count = f"{len(found)} of {len(dicts)}"
        raise ValueError(f"dataset {dataset!r}: {count} {what}, e.g. {found[0]}")


class SkipUnreadable:
    """A dataset mapper that gives None, "take another image", for images that cannot be read.

    Args:
        mapper: the mapper, e.g. Detectron2's ``DatasetMapper``.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper
        self.skipped = 0

    def __call__(self, image: dict[str, Any]) -> Any:
        """Map one of Detectron2's dataset dicts."""
        try:
            return self.mapper(image)
        except UNREADABLE as error:
            self.skipped += 1
            logging.getLogger(__name__).warning(
                "Skipping a training image that cannot be read (%d so far in this process): %s: %s",
                self.skipped,
                image.get("file_name"),
                error,
            )
            return None


def _check_size(image: Image.Image, record: dict[str, Any]) -> None:
    """Raise ValueError unless an image has the size of its record, as Detectron2 will turn it."""
    size = image.size
    expected = record.get("width", size[0]), record.get("height", size[1])
    # PIL decodes a whole PNG to look for EXIF behind its pixels.
    if (size != expected or image.format != "PNG") and (
        image.getexif().get(ORIENTATION, 1) in SIDEWAYS
    ):
        size = size[::-1]
        expected = record.get("width", size[0]), record.get("height", size[1])
    if size != expected:
        raise ValueError(
            f"it is {size[0]} x {size[1]}, its record says {expected[0]} x {expected[1]}"
        )


def _is_whole(path: str) -> bool:
    with open(path, "rb") as file:
        first = file.read(4)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8))
        last = file.read()
    return any(first.startswith(head) and last.endswith(end) for head, end in LAST_BYTES.items())
