"""The prepared folder: images, COCO files of its parts, and a picture to look at.

images/                    all of them
train.json, test.json      the parts that are trained on and tested on
fit.json, select.json      train.json once more, in two parts: searches (of a learning rate)
                           train on one and look at the other, never at the test images
examples.png               twelve images with their boxes
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tr_det.core.errors import check
from tr_det.detection.data.coco_file import check_coco_file
from tr_det.detection.data.images import UNREADABLE
from tr_det.detection.data.prepare.examples import draw_examples
from tr_det.detection.data.prepare.images import Edges, place_box, place_image
from tr_det.detection.data.prepare.source import Faults, Photo, Source
from tr_det.detection.data.prepare.split import drawn, tested_names
from tr_det.detection.data.register import IMAGES
from tr_det.runtime.files import write_text

EXAMPLES = "examples.png"


@dataclass(frozen=True)
class Options:
    """How a folder is prepared.

    Attributes:
        size: the longer side of larger images, pixels; 0 leaves all as they are.
        test_share: of the images, where the source has no split; in (0, 1).
        select_share: of the training images; in (0, 1).
        seed: of what is drawn.
        link: link to the images instead of copying them.
    """

    size: int = 0
    test_share: float = 0.2
    select_share: float = 0.2
    seed: int = 0
    link: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for an option that cannot be followed."""
        check("--size", self.size, self.size >= 0, "at least 0")
        for option in ("test_share", "select_share"):
            value = getattr(self, option)
            check(f"--{option.replace('_', '-')}", value, 0 < value < 1, "in (0, 1)")
        allowed = "without --size, which writes new images"
        check("--link", self.link, not (self.link and self.size), allowed)


@dataclass
class Prepared:
    """What was made.

    Attributes:
        tables: name of a part -> the content of its COCO file.
        notes: what was changed or left out, a line each.
    """

    tables: dict[str, dict[str, Any]]
    notes: list[str]


def prepare_folder(
    source: Source,
    target: Path,
    options: Options,
    faults: Faults,
    progress: Callable[[], Any] = lambda: None,
) -> Prepared:
    """Write a prepared folder, which appears complete, in one rename.

    Args:
        source: what is to be written.
        target: the folder; must not exist, or be empty.
        options: see there.
        faults: takes images that cannot be read.
        progress: called after each image.

    Raises:
        ValueError: the target exists, an image cannot be read, or too little is left.
        OSError: the disk is full, or something else cannot be written.
    """
    check_target(target)
    faults.settle()  # before anything is written
    with _written_aside(target) as aside:
        images, notes = _place_all(source.photos, aside / IMAGES, options, faults, progress)
        broken = faults.settle()
        categories = _categories(source, images, notes)
        tables = _tables(images, categories, options)
        _note_missing(tables, notes)
        for name, table in tables.items():
            file = aside / f"{name}.json"
            write_text(file, json.dumps(table))
            check_coco_file(str(file), scored=True)
        draw_examples(aside / EXAMPLES, aside / IMAGES, tables)
    return Prepared(tables, [*source.notes, *([broken] if broken else []), *notes])


def check_target(target: Path) -> None:
    """Raise ConfigError unless a folder can be made there."""
    free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    check("TARGET", str(target), free, "a new or an empty folder")


@dataclass
class _Image:
    """A prepared image: its name, size, boxes as (label, edges, crowd), and part."""

    name: str
    size: tuple[int, int]
    boxes: list[tuple[str, Edges, bool]]
    tested: bool


def _place_all(
    photos: Sequence[Photo],
    folder: Path,
    options: Options,
    faults: Faults,
    progress: Callable[[], Any],
) -> tuple[list[_Image], list[str]]:
    """Write all images; return them in the order of their names, and notes."""
    folder.mkdir(parents=True)
    if len(photos) < 2:
        raise ValueError(f"{len(photos)} labelled images are found; must be 2 or more")
    names = _names([photo.path for photo in photos])
    tested = tested_names(photos, names, options.test_share, options.seed)
    images, counts = [], Counter[str]()
    for name, photo in sorted(zip(names, photos, strict=True)):
        progress()
        try:
            size = place_image(photo.path, folder / name, options.size, options.link)
        except UNREADABLE as error:
            faults.add(photo.path, error)
            continue
        counts["resized"] += size.written != size.upright
        counts["odd"] += photo.size not in (None, size.stored, size.upright)
        boxes = []
        for box in photo.boxes:
            counts["crowd"] += box.crowd
            edges = place_box(box, photo, size)
            cut = _cut(edges, size.written)
            if cut[2] <= cut[0] or cut[3] <= cut[1]:
                counts["empty"] += 1
                continue
            counts["cut"] += any(abs(a - b) > 1 for a, b in zip(cut, edges, strict=True))
            boxes.append((box.label, cut, box.crowd))
        different = list(dict.fromkeys(boxes))
        counts["twice"] += len(boxes) - len(different)
        images.append(_Image(name, size.written, different, name in tested))
    said = {
        "resized": f"images are smaller now, their longer side {options.size} pixels",
        "odd": "images have another size than their annotation says; boxes are taken as they are",
        "empty": "boxes without area in their image are left out",
        "twice": "boxes repeat another one of their image and are left out",
        "cut": "boxes reached beyond their image by more than a pixel and are cut",
        "crowd": "boxes are marked as difficult or crowd: neither trained on nor scored",
    }
    return images, [f"{counts[key]} {text}" for key, text in said.items() if counts[key]]


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own, or with its folders' where several have the same."""
    if len({path.name.lower() for path in paths}) == len(paths):
        return [path.name for path in paths]
    parts = [path.parts for path in paths]
    levels = [len(set(level)) for level in zip(*parts, strict=False)]
    shared = next((i for i, count in enumerate(levels) if count > 1), len(levels) - 1)
    names = ["_".join(path[shared:]) for path in parts]
    counts = Counter(name.lower() for name in names)
    for name in names:
        if counts[name.lower()] > 1:
            raise ValueError(f"{name}: is listed twice, or two images would have this name")
    return names


def _cut(edges: Edges, size: tuple[int, int]) -> Edges:
    limits = (*size, *size)
    left, top, right, bottom = (
        round(min(max(edge, 0.0), float(limit)), 2)
        for edge, limit in zip(edges, limits, strict=True)
    )
    return left, top, right, bottom


def _categories(source: Source, images: Sequence[_Image], notes: list[str]) -> dict[str, int]:
    """Return name -> id of the classes that have boxes; the others are noted."""
    used = {label for image in images for label, _, _ in image.boxes}
    unused = [name for name in source.classes if name not in used]
    if unused:
        notes.append(f"classes without a box are left out: {', '.join(unused)}")
    names = [name for name in source.classes if name in used]
    return {name: number for number, name in enumerate(names, start=1)}


def _tables(
    images: Sequence[_Image], categories: Mapping[str, int], options: Options
) -> dict[str, dict[str, Any]]:
    trained = [image.name for image in images if not image.tested]
    if len(trained) < 2 or len(trained) == len(images):
        raise ValueError(
            f"{len(trained)} images to train on and {len(images) - len(trained)} to test on are "
            "left; must be 2 or more, and 1 or more"
        )
    select = drawn(trained, options.select_share, options.seed)
    tested = {image.name for image in images if image.tested}
    parts = {
        "train": set(trained),
        "test": tested,
        "fit": set(trained) - select,
        "select": select,
    }
    entries, notes = _entries(images, categories)
    tables = {}
    for part, names in parts.items():
        own = [entry for entry in entries if entry["file_name"] in names]
        ids = {entry["id"] for entry in own}
        tables[part] = {
            "images": own,
            "annotations": [note for note in notes if note["image_id"] in ids],
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
        }
        if not tables[part]["annotations"]:
            raise ValueError(f"{part}: none of its {len(own)} images has a box")
    return tables


def _entries(
    images: Sequence[_Image], categories: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    entries: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        width, height = image.size
        entries.append({"id": number, "file_name": image.name, "width": width, "height": height})
        for label, (left, top, right, bottom), crowd in image.boxes:
            w, h = round(right - left, 2), round(bottom - top, 2)
            note = {
                "id": len(notes) + 1,
                "image_id": number,
                "category_id": categories[label],
                "bbox": [left, top, w, h],
                "area": round(w * h, 2),
                "iscrowd": int(crowd),
            }
            notes.append(note)
    return entries, notes


def _note_missing(tables: Mapping[str, Mapping[str, Any]], notes: list[str]) -> None:
    for part, table in tables.items():
        used = {note["category_id"] for note in table["annotations"]}
        missing = [entry["name"] for entry in table["categories"] if entry["id"] not in used]
        if missing:
            notes.append(f"{part} has no box of {', '.join(missing)}")


@contextlib.contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target, which it becomes if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        if target.is_dir():
            target.rmdir()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
