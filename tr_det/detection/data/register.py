"""``DATASETS.REGISTER``: datasets of COCO files by name, from any config or command line.

An entry is a text of words as a shell splits them, so that a path with spaces can be quoted:

    "NAME ANNOTATIONS.json IMAGES/"     one dataset
    "NAME FOLDER"                       NAME_train, NAME_test, NAME_fit and NAME_select of a folder
                                        that tools/prepare_dataset.py has written

Relative paths are of the working folder, as Detectron2's own are; ``~`` is the home folder.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tr_det.core.errors import ConfigError, check
from tr_det.detection.data.annotations import classes_of
from tr_det.detection.data.coco_file import read_categories, read_image_names

KEY = "DATASETS.REGISTER"

SPLITS = ("train", "test", "fit", "select")
"""What a prepared folder has: a file of that name each; fit and select share out train."""
IMAGES = "images"
"""Its folder of all images."""

UNSET = 80
"""Detectron2's default of NUM_CLASSES: it counts as not given, and the file's is taken."""


class Entry(NamedTuple):
    """A dataset by its name and its files."""

    name: str
    json_file: str
    image_root: str


def entries_from(lines: Sequence[str]) -> list[Entry]:
    """Return what ``DATASETS.REGISTER`` lists.

    Raises:
        ConfigError: a line that is not of one of the two forms.

    >>> entries_from(["a 'my files/a.json' photos"])
    [Entry(name='a', json_file='my files/a.json', image_root='photos')]
    >>> entries_from(["b there"])[1]
    Entry(name='b_test', json_file='there/test.json', image_root='there/images')
    """
    entries = []
    for line in lines:
        try:
            words = shlex.split(line)
        except (AttributeError, TypeError, ValueError):  # no text, an open quote
            words = []
        form = "'NAME ANNOTATIONS.json IMAGES' or 'NAME FOLDER', paths with spaces in quotes"
        check(KEY, line, len(words) in (2, 3), form)
        name, *paths = words[0], *map(os.path.expanduser, words[1:])
        if len(paths) == 2:
            entries.append(Entry(name, *paths))
        else:
            entries += [
                Entry(
                    f"{name}_{split}",
                    os.path.join(paths[0], f"{split}.json"),
                    os.path.join(paths[0], IMAGES),
                )
                for split in SPLITS
            ]
    return entries


def register(lines: Sequence[str]) -> list[Entry]:
    """Register what is not registered yet with Detectron2; the files need not exist.

    Raises:
        ConfigError: a line of another form, or a name that is registered for other files.
    """
    entries = entries_from(lines)
    for entry in entries:
        if entry.name not in DatasetCatalog.list():
            register_coco_instances(entry.name, {}, entry.json_file, entry.image_root)
            continue
        metadata = MetadataCatalog.get(entry.name)
        known = [metadata.get(what, "") for what in ("json_file", "image_root")]
        same = all(map(_same_path, known, entry[1:]))
        allowed = f"another name, as {entry.name!r} is registered for {' and '.join(known)}"
        check(KEY, " ".join(entry), same, allowed)
    return entries


def check_registered(key: str, names: Iterable[str], lines: Sequence[str] = ()) -> None:
    """Raise ConfigError for a dataset that neither Detectron2 nor ``DATASETS.REGISTER`` knows.

    Args:
        key: of the config, for the error.
        names: of datasets.
        lines: of ``DATASETS.REGISTER``.
    """
    register(lines)
    for name in names:
        known = name in DatasetCatalog.list()
        check(key, name, known, f"a dataset that is registered with Detectron2, or by {KEY}")


def files_of(name: str, lines: Sequence[str]) -> Entry:
    """Return the files of a dataset that Detectron2 knows, or that ``DATASETS.REGISTER`` lists.

    Raises:
        ConfigError: a line of another form, or neither knows the name.
    """
    register(lines)
    metadata = MetadataCatalog.get(name) if name in DatasetCatalog.list() else None
    files = [getattr(metadata, what, None) for what in ("json_file", "image_root")]
    check("DATASETS", name, all(files), "a registered dataset of a COCO file")
    return Entry(name, *map(str, files))


def share_images(names: Sequence[str], others: Sequence[str], lines: Sequence[str]) -> bool:
    """Return whether two lists of datasets have an image in common.

    Images are the same if their files are. Of datasets that Detectron2 does not know as COCO files,
    or whose files are not there, names are compared alone.

    Args:
        names: of datasets.
        others: likewise.
        lines: of ``DATASETS.REGISTER``.
    """
    if {*names} & {*others}:
        return True
    register(lines)
    return bool(_images_of(names) & _images_of(others))


def _images_of(names: Sequence[str]) -> set[str]:
    """Return the paths of the images of datasets, as far as they are known."""
    known = [MetadataCatalog.get(name) for name in names if name in DatasetCatalog.list()]
    return {
        os.path.normpath(os.path.join(os.path.realpath(data.image_root), name))
        for data in known
        if os.path.isfile(data.get("json_file", ""))
        for name in read_image_names(data.json_file)
    }


def check_categories_alike(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Return the names of the categories of datasets, in the order of their ids.

    Files that do not exist are passed over; () if there is none.

    Raises:
        ConfigError: two datasets have other categories.
    """
    first, names = "", tuple[str, ...]()
    for entry in entries:
        if not os.path.isfile(entry.json_file):
            continue
        own = read_categories(entry.json_file)
        if not first:
            first, names = entry.name, own
        elif own != names:
            words = f"{entry.name} with the categories {_listed(own)}"
            raise ConfigError(KEY, words, f"of the categories of {first}, {_listed(names)}")
    return names


def follow_register(cfg: CfgNode) -> None:
    """Register the datasets of a config, in place; its NUM_CLASSES is that of their files.

    A second call changes nothing. A frozen config stays frozen.

    Raises:
        ConfigError: an entry that cannot be followed, datasets for training and testing that have
            other categories, or a number of classes that contradicts them.
        AnnotationFileError: a file has no list of categories.
    """
    entries = register(cfg.DATASETS.REGISTER)
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    names = check_categories_alike(entry for entry in entries if entry.name in used)
    key, count = classes_of(cfg)
    if not names or count in (None, len(names)):
        return
    allowed = f"{len(names)}, the number of the categories of {KEY}, or left out: {_listed(names)}"
    check(key, count, count == UNSET, allowed)
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.merge_from_list([key, len(names)])
    if frozen:
        cfg.freeze()
    logging.getLogger(__name__).info("%s is %d: %s", key, len(names), _listed(names))


def _same_path(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of many.

    >>> _listed(["a", "b"]), _listed("abcdefg")
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
