"""COCO files that exist: several are one source, whose boxes are cleaned and split again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tr_det.detection.data.coco_file import PARTS, read_categories
from tr_det.detection.data.prepare.source import (
    Box,
    Faults,
    ImageFiles,
    Photo,
    Source,
    split_of,
)


def read_coco(source: Path, faults: Faults) -> Source:
    """Read a COCO file, or all of a folder; a file's name or folder tells its split.

    Args:
        source: JSON file or folder, with the images below the folder or beside the file.
        faults: takes the entries that cannot be used.

    Raises:
        ValueError: there is no COCO file, or one that is broken.
    """
    root = source if source.is_dir() else source.parent
    files = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    tables = [(file, table) for file in files if (table := _read(file, source.is_file()))]
    if not tables:
        raise ValueError(f"{source}: must hold a .json file in COCO's form")
    # A file in annotations/ speaks of images in folders beside it.
    base = root.parent if source.is_file() and root.name == "annotations" else root
    images = ImageFiles(base)
    classes = tuple(
        dict.fromkeys(name for file, _ in tables for name in read_categories(str(file)))
    )
    photos: list[Photo] = []
    for file, table in tables:
        split = split_of(file, root) if len(tables) > 1 else ""
        photos += _photos(file, table, split, images, faults)
    return Source(photos, classes, [])


def _read(file: Path, needed: bool) -> dict[str, Any] | None:
    """Return a COCO file's content; None of another JSON file, unless it is needed."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: no JSON ({error})") from None
    fits = isinstance(table, dict) and all(isinstance(table.get(part), list) for part in PARTS)
    if needed and not fits:
        raise ValueError(f"{file}: no COCO file; must have the lists {', '.join(PARTS)}")
    return table if fits else None


def _photos(
    file: Path, table: Mapping[str, Any], split: str, images: ImageFiles, faults: Faults
) -> Iterable[Photo]:
    names = {entry["id"]: entry["name"] for entry in table["categories"]}
    boxes = defaultdict(list)
    for note in table["annotations"]:
        try:
            x, y, w, h = map(float, note["bbox"])
            box = Box(names[note["category_id"]], x, y, x + w, y + h, bool(note.get("iscrowd")))
            boxes[note["image_id"]].append(box)
        except (KeyError, TypeError, ValueError) as error:
            name = note.get("id") if isinstance(note, dict) else note
            faults.add(file, f"annotation {name!r}: {type(error).__name__} {error}")
    for image in table["images"]:
        try:
            path = Path(image["file_name"])
            size = int(image["width"]), int(image["height"])
            beside = file.parent / path
            found = beside if beside.is_file() else images.find(path.stem, file, split)
            yield Photo(found, tuple(boxes[image["id"]]), split, size)
        except (KeyError, TypeError, ValueError) as error:
            name = image.get("file_name") if isinstance(image, dict) else image
            faults.add(file, f"image {name!r}: {type(error).__name__} {error}")
