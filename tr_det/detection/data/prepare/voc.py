"""Pascal VOC: an XML file for each image; splits by ``ImageSets/Main``, or by folders' names.

The coordinates of a box are taken as its edges, as today's labelling tools write them. The VOC
challenge itself counted pixels from 1, which is a shift of one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from tr_det.detection.data.prepare.source import (
    SPLIT_NAMES,
    Box,
    Faults,
    ImageFiles,
    Photo,
    Source,
    in_order,
    split_of,
)

LISTS = ("train", "val", "trainval", "test")


def read_voc(root: Path, faults: Faults) -> Source:
    """Read all XML files below a folder.

    Args:
        root: with ``Annotations/``, ``JPEGImages/`` and maybe ``ImageSets/Main/``; other layouts
            will do in which each XML file has the name of its image; ``train``, ``valid`` and
            ``test`` among the folders' names tell the splits.
        faults: takes the files that cannot be used.

    Raises:
        ValueError: there are no XML files.
    """
    files = sorted((root / "Annotations").rglob("*.xml")) or sorted(root.rglob("*.xml"))
    if not files:
        raise ValueError(f"{root}: must hold .xml files, one for each image, in Pascal VOC's form")
    images, splits, notes = ImageFiles(root), _read_lists(root), []
    if splits:
        there = {path.stem for path in files}
        for name in sorted(splits.keys() - there):
            faults.add(root / "ImageSets/Main", f"lists {name!r}, of which there is no .xml file")
        listed = [path for path in files if path.stem in splits]
        if len(listed) < len(files):
            notes.append(f"{len(files) - len(listed)} images are in no list of ImageSets/Main")
        files = listed
    photos = []
    for file in files:
        try:
            split = splits[file.stem] if splits else split_of(file, root)
            photos.append(_read_file(file, images, split))
        except (ElementTree.ParseError, ValueError) as error:
            faults.add(file, error)
    unlabelled = len(images) - len(photos) - len(faults.found)
    if unlabelled > 0 and not splits:
        notes.append(f"{unlabelled} images have no .xml file")
    return Source(photos, in_order(box.label for photo in photos for box in photo.boxes), notes)


def _read_lists(root: Path) -> Mapping[str, str]:
    """Return name of image -> split."""
    splits: dict[str, str] = {}
    for name in LISTS:
        file = root / "ImageSets/Main" / f"{name}.txt"
        if file.is_file():
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                if line.strip():
                    splits.setdefault(line.split()[0], SPLIT_NAMES[name])
    return splits


def _read_file(file: Path, images: ImageFiles, split: str) -> Photo:
    top = ElementTree.parse(file).getroot()
    if top.tag != "annotation":
        raise ValueError(f"is <{top.tag}>; must be <annotation>")
    size = tuple(int(_number(top, f"size/{side}", "0")) for side in ("width", "height"))
    boxes = tuple(_boxes(top.iter("object")))
    path = images.find(file.stem, near=file)
    return Photo(path, boxes, split, (size[0], size[1]) if all(size) else None)


def _boxes(objects: Iterable[ElementTree.Element]) -> Iterable[Box]:
    for entry in objects:
        label = (entry.findtext("name") or "").strip()
        if not label:
            raise ValueError("an <object> has no <name>")
        left, top, right, bottom = (
            _number(entry, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        yield Box(label, left, top, right, bottom, _number(entry, "difficult", "0") != 0)


def _number(entry: ElementTree.Element, place: str, default: str = "") -> float:
    text = entry.findtext(place) or default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"<{entry.tag}> has {place}={text!r}; must be a number")
    return number
