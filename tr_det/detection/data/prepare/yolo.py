"""YOLO: a text file for each image, a line for each box: class, centre, width, height as shares.

The names of the classes are in ``data.yaml``, which also says where the splits are, or in
``classes.txt`` or ``obj.names``, a line each. A line with more numbers is a polygon.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tr_det.detection.data.prepare.source import (
    SPLIT_NAMES,
    Box,
    Faults,
    Photo,
    Source,
    merged,
    read_text,
    split_of,
)
from tr_det.export.images import IMAGE_SUFFIXES
from tr_det.runtime.configs import PlainLoader

NAME_FILES = ("classes.txt", "obj.names")


def read_yolo(source: Path, faults: Faults) -> Source:
    """Read the images and labels of a folder.

    Args:
        source: a folder, or the YAML file in it.
        faults: takes the label files that cannot be used.

    Raises:
        ValueError: the names of the classes, the images or all labels are missing.
    """
    root = source if source.is_dir() else source.parent
    file = source if source.is_file() else _yaml_in(root)
    if file is not None:
        table = _read_yaml(file)
        classes = _names(table.get("names"), file)
        images, notes = _listed_images(table, file)
    else:
        classes, notes = _names_file(root), []
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        images = [(path, split_of(path, root)) for path in paths]
    photos, without, taken = [], 0, set[Path]()
    for path, split in images:
        labels = _labels_of(path)
        without += labels is None
        taken |= {labels} if labels else set()
        try:
            boxes = tuple(_boxes(labels, classes)) if labels else ()
        except ValueError as error:
            faults.add(labels or path, error)
            continue
        photos.append(Photo(path, boxes, split, relative=True))
    if without == len(images):
        raise ValueError(f"{source}: has {len(images)} images, and no .txt file of labels for them")
    notes += merged(classes)
    if without:
        notes.append(f"{without} images have no file of labels: taken as images without objects")
    if left := _left_over(taken):
        notes.append(f"{len(left)} files of labels belong to no image, e.g. {left[0].name}")
    return Source(photos, tuple(dict.fromkeys(classes)), notes)


def _yaml_in(root: Path) -> Path | None:
    files = [file for suffix in ("yaml", "yml") for file in sorted(root.glob(f"*.{suffix}"))]
    named = [file for file in files if file.stem in ("data", "dataset")]
    return next(iter(named or files), None)


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        table = yaml.load(read_text(file), PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(table, dict):
        raise ValueError(f"{file}: must be a mapping with 'names'")
    return table


def _names(given: Any, file: Path) -> tuple[str, ...]:
    if isinstance(given, dict):
        numbers = {str(key): name for key, name in given.items()}
        if numbers.keys() != {str(number) for number in range(len(given))}:
            raise ValueError(f"{file}: names={given!r}: must be numbered from 0 on")
        given = [numbers[str(number)] for number in range(len(given))]
    fits = isinstance(given, list) and given and all(type(n) in (str, int, float) for n in given)
    if not fits:  # YAML takes yes, no and on for truth values, null and ~ for nothing
        allowed = "a list of the names of the classes, each a text: in quotes if need be"
        raise ValueError(f"{file}: names={given!r}: must be {allowed}")
    return tuple(str(name).strip() for name in given)


def _names_file(root: Path) -> tuple[str, ...]:
    found: dict[tuple[str, ...], Path] = {}
    for file in (path for name in NAME_FILES for path in sorted(root.rglob(name))):
        lines = read_text(file).rstrip().splitlines()
        names = tuple(line.strip() for line in lines)
        if not all(names):
            raise ValueError(f"{file}: line {names.index('') + 1} must be the name of a class")
        if names:
            found.setdefault(names, file)
    if len(found) > 1:
        one, other, *_ = found.values()
        raise ValueError(f"{other}: names other classes than {one}")
    if found:
        return next(iter(found))
    raise ValueError(f"{root}: must hold data.yaml, or the names of the classes in classes.txt")


def _listed_images(
    table: Mapping[str, Any], file: Path
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return images with their splits, and notes."""
    base = file.parent / str(table.get("path") or "")
    if not base.is_dir():  # that of another machine
        base = file.parent
    splits, twice = dict[Path, str](), set[Path]()
    for split in ("train", "val", "valid", "test"):
        given = table.get(split) or []
        for place in given if isinstance(given, list) else [given]:
            for path in _images_at(base, str(place), file):
                if splits.setdefault(path, SPLIT_NAMES[split]) != SPLIT_NAMES[split]:
                    twice.add(path)
    if not splits:
        raise ValueError(f"{file}: must name folders of images by 'train', 'val' or 'test'")
    notes = [f"{len(twice)} images are in several parts: taken for the first one"] if twice else []
    return [*splits.items()], notes


def _images_at(base: Path, place: str, file: Path) -> list[Path]:
    """Return the images of a folder, or those that a text file lists."""
    # Exports of some services say "../train/images" of a folder beside data.yaml.
    for folder in (base / place, file.parent / place, file.parent / place.removeprefix("../")):
        if folder.is_dir():
            return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if folder.is_file():
            lines = read_text(folder).split("\n")
            return [folder.parent / line.strip() for line in lines if line.strip()]
    raise ValueError(f"{file}: names {place!r}, which does not exist")


def _labels_of(image: Path) -> Path | None:
    """Return the file of an image's labels: in ``labels`` for ``images``, or beside it."""
    name = image.with_suffix(".txt").name
    folders = [image.parent, image.parent / "labels"]
    parts = image.parent.parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        folders.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _left_over(taken: Collection[Path]) -> list[Path]:
    """Return the files of labels in folders named so that were not taken."""
    folders = {path.parent for path in taken if "labels" in path.parent.parts}
    files = {file for folder in folders for file in folder.glob("*.txt")}
    return sorted(file for file in files - {*taken} if file.name not in NAME_FILES)


def _boxes(file: Path, classes: tuple[str, ...]) -> Iterator[Box]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, *values = map(_finite, line.split())
        except ValueError:
            raise ValueError(f"line {number}: {line[:60]!r} must be finite numbers") from None
        if not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
            raise ValueError(f"line {number}: must be a class and four numbers, or a polygon")
        if index not in range(len(classes)):
            raise ValueError(f"line {number}: class {index:g} of the {len(classes)} that are named")
        if len(values) == 4:
            x, y, w, h = values
            edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        else:
            xs, ys = values[::2], values[1::2]
            edges = (min(xs), min(ys), max(xs), max(ys))
        x, y = (edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(
                f"line {number}: the box's centre ({x:g}, {y:g}) must be in the image, in shares "
                "of its width and height from 0 to 1"
            )
        yield Box(classes[int(index)], *edges)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
