"""The judgement of a COCO annotation file before it is used, by what reads and what scores it.

pycocotools reads a file without checking it. What does not fit is dropped, or counts as missed, and
the scores change without a word: annotation id 0 means "not found" to it, an annotation of an
unknown image is gone, ids that are no integers match nothing.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

BEYOND = 1.0
"""Pixels by which a box may reach beyond its image without a word; COCO's own are rounded."""


class AnnotationFileError(ValueError):
    """A COCO annotation file that cannot be used as it is."""


ANNOTATIONS = "annotations"
PARTS = ("images", "categories", ANNOTATIONS)


class Fault(NamedTuple):
    """A value that cannot be used: of which entry, and what is allowed."""

    kind: str
    entry: Mapping[str, Any]
    key: str
    allowed: str

    def __str__(self) -> str:
        """Return the fault as the end of a line."""
        text = repr(self.entry.get(self.key))
        text = text if len(text) < 80 else f"{text[:76]} ..."
        return (
            f"{self.kind} with id {self.entry.get('id')!r} has {self.key}={text}; must be "
            f"{self.allowed}"
        )


def check_coco_file(file: str, scored: bool, may_lack_annotations: bool = False) -> None:
    """Raise AnnotationFileError, naming the first fault, if a file cannot be used as it is.

    One pass: seconds for COCO's 860,000 annotations.

    Args:
        file: path of the annotations.
        scored: whether pycocotools will score detections by it.
        may_lack_annotations: whether a file without them, as COCO's of test-dev, will do.
    """
    coco = _read(file)
    parts: tuple[str, ...] = PARTS
    if may_lack_annotations and isinstance(coco, dict) and ANNOTATIONS not in coco:
        message = "%s has no annotations: detections are written, not scored"
        logging.getLogger(__name__).warning(message, file)
        parts = tuple(part for part in PARTS if part != ANNOTATIONS)
    for part in parts:
        entries = coco.get(part) if isinstance(coco, dict) else None
        if not (isinstance(entries, list) and entries and all(type(e) is dict for e in entries)):
            reason = f"{part!r} must be a list of at least one mapping"
            raise AnnotationFileError(f"{file}: not a COCO annotation file ({reason})")
    # Detectron2 allows COCO's minival files, which repeat annotations.
    found = list(_faults(coco, scored, unique="minival" not in file))
    if found:
        more = f" (one of {len(found)} faults)" if len(found) > 1 else ""
        raise AnnotationFileError(f"{file}: {found[0]}{more}")


def read_categories(file: str) -> tuple[str, ...]:
    """Return the names of a file's categories in the order of their ids, as classes have it.

    Raises:
        AnnotationFileError: it has none, or some without an id or a name.
    """
    status = os.stat(file)
    return _categories(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)  # a config is read several times in a process
def _categories(file: str, time: int, size: int) -> tuple[str, ...]:
    return categories_of(_read(file), file)


def categories_of(coco: Any, file: str) -> tuple[str, ...]:
    """Return what `read_categories` does, of a file's parsed content."""
    found = coco.get("categories") if isinstance(coco, dict) else None
    entries = found if isinstance(found, list) else []
    whole = all(
        type(e) is dict and type(e.get("id")) is int and isinstance(e.get("name"), str)
        for e in entries
    )
    if not (entries and whole):
        reason = "'categories' must be a list of at least one mapping with an id and a name"
        raise AnnotationFileError(f"{file}: not a COCO annotation file ({reason})")
    return tuple(entry["name"] for entry in sorted(entries, key=lambda entry: entry["id"]))


def read_image_names(file: str) -> tuple[str, ...]:
    """Return the ``file_name`` of every image of a file.

    Raises:
        AnnotationFileError: it has no list of images, or some without a name.
    """
    status = os.stat(file)
    return _image_names(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _image_names(file: str, time: int, size: int) -> tuple[str, ...]:
    coco = _read(file)
    found = coco.get("images") if isinstance(coco, dict) else None
    images: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(e, dict) and isinstance(e.get("file_name"), str) for e in images):
        reason = "'images' must be a list of mappings with a file_name"
        raise AnnotationFileError(f"{file}: not a COCO annotation file ({reason})")
    return tuple(image["file_name"] for image in images)


def _read(file: str) -> Any:
    collects = gc.isenabled()
    gc.disable()  # it would look again and again at all that has been read, for half of the time
    try:
        with PathManager.open(file) as opened:
            return json.load(opened)
    except (ValueError, RecursionError) as error:
        raise AnnotationFileError(f"{file}: not a COCO annotation file ({error})") from None
    finally:
        if collects:
            gc.enable()


def _faults(
    coco: Mapping[str, list[dict[str, Any]]], scored: bool, unique: bool
) -> Iterator[Fault]:
    images: dict[int, tuple[int, int]] = {}
    categories: set[int] = set()
    for image in coco["images"]:
        key, allowed = _image_fault(image, images)
        if key:
            yield Fault("image", image, key, allowed)
        else:
            images[image["id"]] = image["width"], image["height"]
    for category in coco["categories"]:
        number = category.get("id")
        if type(number) is not int or number in categories:
            yield Fault("category", category, "id", "an integer, and unique")
        elif not isinstance(category.get("name"), str):
            yield Fault("category", category, "name", "a string")
        else:
            categories.add(number)
    if len(images) < len(coco["images"]) or len(categories) < len(coco["categories"]):
        return  # annotations would be blamed for it
    ids: set[int] = set()
    for note in coco.get(ANNOTATIONS, ()):
        key, allowed = _annotation_fault(note, images, categories, scored)
        if not key and unique and note["id"] in ids:
            key, allowed = "id", "unique"
        if key:
            yield Fault("annotation", note, key, allowed)
        else:
            ids.add(note["id"])


def _image_fault(image: Mapping[str, Any], others: Mapping[int, Any]) -> tuple[str, str]:
    """Return the key that is wrong and what is allowed, or ("", "")."""
    number, name = image.get("id"), image.get("file_name")
    if type(number) is not int or number in others:
        return "id", "an integer, and unique"
    if not isinstance(name, str) or not name or "://" in name:
        return "file_name", "the path of a file in the dataset's folder"
    for key in ("width", "height"):
        if type(image.get(key)) is not int or not 0 < image[key] < 2**31:
            return key, "a positive integer below 2**31"
    return "", ""


def _annotation_fault(
    note: Mapping[str, Any],
    images: Mapping[int, tuple[int, int]],
    categories: set[int],
    scored: bool,
) -> tuple[str, str]:
    number, image, category = note.get("id"), note.get("image_id"), note.get("category_id")
    if type(number) is not int or number < scored:
        return "id", "a positive integer" if scored else "an integer, not negative"
    if type(image) is not int or image not in images:
        return "image_id", "the integer id of one of the images"
    if type(category) is not int or category not in categories:
        return "category_id", "the integer id of one of the categories"
    if (scored or "iscrowd" in note) and note.get("iscrowd") not in (0, 1):
        return "iscrowd", "0 or 1"
    if scored and not (_is_number(note.get("area")) and note["area"] >= 0):
        return "area", "a number that is finite and not negative, by which objects are scored"
    return _box_fault(note.get("bbox"), images[image], scored)


def _box_fault(box: Any, size: tuple[int, int], scored: bool) -> tuple[str, str]:
    if type(box) is not list or len(box) != 4 or not all(map(_is_number, box)):
        return "bbox", "four finite numbers: left, top, width, height"
    (x, y, w, h), (width, height) = box, size
    if w < 0 or h < 0:
        return "bbox", "left, top, width, height, the last two not negative"
    outside = f"in the image of {width} x {height} pixels"
    if scored:
        if w == 0 or h == 0:
            return "bbox", "left, top, width, height, the last two positive, or it is never found"
        if min(x, y, width - x - w, height - y - h) < -BEYOND:
            return "bbox", outside
    elif w > 0 < h and (x >= width or y >= height or x + w <= 0 or y + h <= 0):
        return "bbox", f"at least in part {outside}"
    return "", ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e12 < value < 1e12  # not so for NaN
