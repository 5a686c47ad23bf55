"""What is wrong with a dataset's images and annotations, found before hours of training.

* An image file that does not exist, or a test image that cannot be read, is an error at the
start: scores of an incomplete test set mean nothing.
* A training image that cannot be read is skipped when its turn comes, logged and counted:
decoding all of them first would take longer than many a run.
* Boxes without area are counted and logged; Detectron2's mapper leaves them out.
* A category that the model has no class for is an error at the start.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from PIL import Image

Dicts = Sequence[dict[str, Any]]

LAST_BYTES = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}
"""First bytes of a JPEG or PNG file -> the last ones of a whole one."""

UNREADABLE = (OSError, SyntaxError, ValueError)
"""What PIL raises about a broken file, and Detectron2 about one of another size than annotated."""


def check_files(dicts: Dicts, dataset: str) -> None:
    """Raise ValueError if image files of a dataset do not exist; one look at each folder."""
    wanted = defaultdict(set)
    for image in dicts:
        folder, name = os.path.split(image.get("file_name", ""))
        if name:
            wanted[folder].add(name)
    missing = []
    for folder, names in wanted.items():
        if "://" in folder:
            continue
        there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing += [os.path.join(folder, name) for name in sorted(names - there)]
    if missing:
        raise ValueError(
            f"dataset {dataset!r}: {len(missing)} of {len(dicts)} image files do not exist, "
            f"e.g. {missing[0]}"
        )


def check_readable(dicts: Dicts, dataset: str) -> None:
    """Raise ValueError if image files of a dataset are cut off or no images.

    Only files that do not end as they should are decoded, which is quick.
    """
    broken = []
    for path in (image["file_name"] for image in dicts if "file_name" in image):
        if "://" in path or _ends_as_it_should(path):
            continue
        try:
            with Image.open(path) as image:
                image.load()
        except UNREADABLE as error:
            broken.append(f"{path} ({error})")
    if broken:
        raise ValueError(
            f"dataset {dataset!r}: {len(broken)} of {len(dicts)} images cannot be read, "
            f"e.g. {broken[0]}"
        )


def check_categories(dicts: Dicts, cfg: CfgNode) -> None:
    """Raise ValueError if an annotation has a class that the model does not have."""
    in_head = "Retina" in cfg.MODEL.META_ARCHITECTURE or "FCOS" in cfg.MODEL.META_ARCHITECTURE
    key = "RETINANET" if in_head else "ROI_HEADS"
    classes = cfg.MODEL[key].NUM_CLASSES
    highest = max(
        (note["category_id"] for image in dicts for note in image.get("annotations", ())),
        default=-1,
    )
    if highest >= classes:
        raise ValueError(
            f"MODEL.{key}.NUM_CLASSES={classes!r}: must be at least {highest + 1}, as "
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has that many categories"
        )


def log_empty_boxes(dicts: Dicts) -> int:
    """Return how many annotated boxes have no area, and log it if there are any."""
    count = images = 0
    for image in dicts:
        empty = sum(
            1
            for note in image.get("annotations", ())
            if len(note.get("bbox", ())) == 4 and not (note["bbox"][2] > 0 and note["bbox"][3] > 0)
        )
        count += empty
        images += bool(empty)
    if count:
        logging.getLogger(__name__).warning(
            "%d boxes in %d images have no area; they are left out of training", count, images
        )
    return count


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


def _ends_as_it_should(path: str) -> bool:
    with open(path, "rb") as file:
        first = file.read(4)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8))
        last = file.read()
    return any(first.startswith(head) and last.endswith(end) for head, end in LAST_BYTES.items())
