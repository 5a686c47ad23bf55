"""Pascal VOC: an XML file for each image; splits by ``ImageSets/Main``, or by folders' names.

The coordinates of a box are taken as its edges, as today's labelling tools write them. The VOC
challenge itself counted pixels from 1, which is a shift of one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    read_text,
    split_of,
)

LISTS = ("train", "val", "trainval", "test")
LIST_FOLDER = "ImageSets/Main"


def read_voc(root: Path, faults: Faults) -> Source:
    """Read all XML files below a folder.

    Args:
        root: with ``Annotations/``, ``JPEGImages/`` and maybe ``ImageSets/Main/``, or folders with
            these; other layouts will do in which each XML file has the name of its image;
            ``train``, ``valid`` and ``test`` among the folders' names tell the splits.
        faults: takes the files that cannot be used.

    Raises:
        ValueError: there are no XML files.
    """
    files = sorted((root / "Annotations").rglob("*.xml")) or sorted(root.rglob("*.xml"))
    if not files:
        raise ValueError(f"{root}: must hold .xml files, one for each image, in Pascal VOC's form")
    images, notes = ImageFiles(root), list[str]()
    listed = _listed(root, files, faults, notes)
    photos = []
    for file in files if listed is None else listed:
        try:
            split = split_of(file, root) if listed is None else listed[file]
            photos.append(_read_file(file, images, split))
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            faults.add(file, error)
    unlabelled = len(images) - len(photos) - len(faults.found)
    if unlabelled > 0 and listed is None:
        notes.append(f"{unlabelled} images have no .xml file")
    return Source(photos, in_order(box.label for photo in photos for box in photo.boxes), notes)


def _listed(
    root: Path, files: Sequence[Path], faults: Faults, notes: list[str]
) -> dict[Path, str] | None:
    """Return XML file -> split, of those that lists name; None without lists.

    Lists speak of the files below the folder that holds ``ImageSets``.
    """
    lists = {
        place.parents[1]: _read_lists(place, notes) for place in sorted(root.rglob(LIST_FOLDER))
    }
    lists = {folder: names for folder, names in lists.items() if names}
    if not lists:
        return None
    splits, there = {}, {(folder, name) for folder, names in lists.items() for name in names}
    for file in files:
        folder = next((above for above in file.parents if above in lists), None)
        if folder is not None and file.stem in lists[folder]:
            splits[file] = lists[folder][file.stem]
            there.discard((folder, file.stem))
    for folder, name in sorted(there):
        faults.add(folder / LIST_FOLDER, f"lists {name!r}, of which there is no .xml file")
    if len(splits) < len(files):
        notes.append(f"{len(files) - len(splits)} images are in no list of {LIST_FOLDER}")
    return splits


def _read_lists(place: Path, notes: list[str]) -> dict[str, str]:
    """Return name of image -> split."""
    splits, twice = dict[str, str](), set[str]()
    for name in LISTS:
        file = place / f"{name}.txt"
        for line in read_text(file).splitlines() if file.is_file() else ():
            for image in line.split()[:1]:
                if name == "test" and image in splits:
                    twice.add(image)
                splits.setdefault(image, SPLIT_NAMES[name])
    if twice:
        notes.append(f"{len(twice)} images of {place / 'test.txt'} are in a list to train on, too")
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
