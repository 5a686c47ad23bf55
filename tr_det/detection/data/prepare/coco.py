"""COCO files that exist: several are one source, whose boxes are cleaned and split again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tr_det.core.errors import check
from tr_det.detection.data.coco_file import PARTS, categories_of
from tr_det.detection.data.prepare.source import (
    Box,
    Faults,
    ImageFiles,
    Photo,
    Source,
    is_in,
    merged,
    split_of,
)

_BROKEN = (KeyError, TypeError, ValueError, OverflowError)


def read_coco(source: Path, faults: Faults) -> Source:
    """Read a COCO file, or all of a folder; a file's name or folder tells its split.

    Args:
        source: JSON file or folder, with the images below the folder or beside the file.
        faults: takes the entries that cannot be used.

    Raises:
        ValueError: there is no COCO file, or one that is broken, or has two categories of one id.
    """
    root = source if source.is_dir() else source.parent
    files = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    tables = [(file, table) for file in files if (table := _read(file, source.is_file()))]
    if not tables:
        raise ValueError(f"{source}: must hold a .json file in COCO's form")
    # A file in annotations/ speaks of images in folders beside it.
    base = root.parent if source.is_file() and root.name == "annotations" else root
    images = ImageFiles(base)
    named = [categories_of(table, str(file)) for file, table in tables]
    classes = tuple(dict.fromkeys(name for names in named for name in names))
    notes = list(dict.fromkeys(note for names in named for note in merged(names)))
    photos: list[Photo] = []
    for file, table in tables:
        split = split_of(file, root) if len(tables) > 1 else ""
        photos += _photos(file, table, split, images, faults)
    return Source(photos, classes, notes)


def _read(file: Path, needed: bool) -> dict[str, Any] | None:
    """Return a COCO file's content; None of another JSON file, unless it is needed."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no JSON ({error})") from None
    fits = isinstance(table, dict) and all(isinstance(table.get(part), list) for part in PARTS)
    if needed and not fits:
        raise ValueError(f"{file}: no COCO file; must have the lists {', '.join(PARTS)}")
    return table if fits else None


def _photos(
    file: Path, table: Mapping[str, Any], split: str, images: ImageFiles, faults: Faults
) -> list[Photo]:
    names = _category_names(file, table["categories"])
    entries = [entry for entry in table["images"] if isinstance(entry, dict)]
    counts = Counter(repr(entry.get("id")) for entry in entries)
    stems = Counter(Path(str(entry.get("file_name"))).stem for entry in entries)
    boxes: dict[Any, list[Box]] = {}  # id of an image -> its boxes
    found = []
    for image in table["images"]:
        try:
            number, path = image["id"], Path(image["file_name"])
            check("id", number, counts[repr(number)] == 1, "unique")
            boxes[number] = []
            size = int(image["width"]), int(image["height"])
            place = _place(file, path, split, images, stems[path.stem] == 1)
            found.append((number, place, size))
        except _BROKEN as error:
            name = image.get("file_name") if isinstance(image, dict) else image
            faults.add(file, f"image {name!r}: {_reason(error)}")
    for note in table["annotations"]:
        try:
            check("image_id", note["image_id"], note["image_id"] in boxes, "the id of one image")
            boxes[note["image_id"]].append(_box(note, names))
        except _BROKEN as error:
            name = note.get("id") if isinstance(note, dict) else note
            faults.add(file, f"annotation {name!r}: {_reason(error)}")
    return [Photo(place, tuple(boxes[number]), split, size) for number, place, size in found]


def _place(file: Path, path: Path, split: str, images: ImageFiles, is_alone: bool) -> Path:
    """Return the image of a ``file_name``: beside the COCO file, or below the source.

    Args:
        file: the COCO file.
        path: the ``file_name``.
        split: of the file.
        images: below the source.
        is_alone: whether no other entry has this name: then it may be in another folder.
    """
    beside = file.parent / path
    if beside.is_file():
        return beside
    # An absolute path is another machine's.
    parts = () if path.is_absolute() else path.parent.parts
    folders = tuple(part for part in parts if part != "..")
    found = images.find(path.stem, file, split, folders)
    if not (is_alone or is_in(found, folders)):
        raise ValueError(f"there is no image {path.with_suffix('')}.jpg, .png or the like")
    return found


def _category_names(file: Path, categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in categories:
        if entry["id"] in names:
            raise ValueError(f"{file}: two categories have the id {entry['id']}")
        names[entry["id"]] = entry["name"]
    return names


def _box(note: Mapping[str, Any], names: Mapping[int, str]) -> Box:
    number, crowd = note["category_id"], note.get("iscrowd") or 0
    check("category_id", number, number in names, "the id of a category")
    check("iscrowd", crowd, crowd in (0, 1), "0 or 1")
    box = note["bbox"]
    whole = type(box) is list and len(box) == 4 and all(type(edge) in (int, float) for edge in box)
    check("bbox", box, whole and all(map(math.isfinite, box)), "four finite numbers")
    x, y, w, h = map(float, box)
    return Box(names[number], x, y, x + w, y + h, bool(crowd))


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no {error}"
    return f"is no entry of COCO's form ({error})" if isinstance(error, TypeError) else str(error)
