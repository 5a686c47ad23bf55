"""Checks of a dataset's annotations as Detectron2 has loaded them.

* A box that is not a list of finite numbers, and a category that the model has no class for, are
  errors at the start. Files are judged before (`tr_det.detection.data.coco_file`).
* Boxes without area, which Detectron2's mapper leaves out, and those beyond their image, which it
  cuts, are counted and logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from tr_det.core.errors import check
from tr_det.detection.data.coco_file import BEYOND
from tr_det.detection.data.images import Dicts


def check_boxes(dicts: Dicts, dataset: str) -> None:
    """Raise ValueError if an annotation of Detectron2's dataset dicts has no box of numbers."""
    wrong = [
        f"{note.get('bbox')!r} in {image.get('file_name')}"
        for image in dicts
        for note in image.get("annotations", ())
        if not _is_box(note.get("bbox"), note.get("bbox_mode"))
    ]
    if wrong:
        raise ValueError(
            f"dataset {dataset!r}: the bbox of {len(wrong)} annotations is not four finite "
            f"numbers, e.g. {wrong[0]}"
        )


def check_categories(dicts: Dicts, cfg: CfgNode) -> None:
    """Raise ValueError if an annotation has a class that the model does not have."""
    key, classes = classes_of(cfg)
    if classes is None:
        return
    highest = max(
        (note["category_id"] for image in dicts for note in image.get("annotations", ())),
        default=-1,
    )
    names = f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}"
    allowed = f"at least {highest + 1}, as {names} has that many categories"
    check(key, classes, highest < classes, allowed)


def check_scoring(dataset: str, cfg: CfgNode) -> None:
    """Raise ValueError if a model has classes that a test dataset does not have."""
    metadata = MetadataCatalog.get(dataset)
    key, classes = classes_of(cfg)
    known = len(metadata.get("thing_dataset_id_to_contiguous_id", ()))  # what the scores go by
    if known and classes is not None:
        allowed = f"at most {known}, the number of categories of DATASETS.TEST {dataset!r}"
        check(key, classes, classes <= known, allowed)


def log_empty_boxes(dicts: Dicts) -> int:
    """Return how many annotated boxes have no area, and log it if there are any."""
    count = images = 0
    for image in dicts:
        empty = sum(map(_is_empty, image.get("annotations", ())))
        count, images = count + empty, images + bool(empty)
    if count:
        logging.getLogger(__name__).warning(
            "%d boxes in %d images have no area; they are left out of training", count, images
        )
    return count


def log_cut_boxes(dicts: Dicts) -> int:
    """Return how many annotated boxes reach beyond their image, and log it if there are any."""
    count = sum(
        _is_beyond(note, image["width"], image["height"])
        for image in dicts
        if "width" in image and "height" in image
        for note in image.get("annotations", ())
    )
    if count:
        logging.getLogger(__name__).warning(
            "%d boxes reach beyond their images; in training they are cut", count
        )
    return count


def _is_beyond(note: dict[str, Any], width: float, height: float) -> bool:
    mode = note.get("bbox_mode")
    if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return False
    x, y, right, bottom = note["bbox"]
    if mode == BoxMode.XYWH_ABS:
        right, bottom = right + x, bottom + y
    return bool(min(x, y, width - right, height - bottom) < -BEYOND)


def _is_empty(note: dict[str, Any]) -> bool:
    x, y, width, height = note["bbox"][:4]
    if note.get("bbox_mode") == BoxMode.XYXY_ABS:
        width, height = width - x, height - y
    return not (width > 0 and height > 0)


def _is_box(values: Any, mode: BoxMode | None) -> bool:
    numbers = list(values) if isinstance(values, Iterable) else []
    count = 5 if mode == BoxMode.XYWHA_ABS else 4
    return len(numbers) == count and all(
        isinstance(number, Real) and math.isfinite(number) for number in numbers
    )


def classes_of(cfg: CfgNode) -> tuple[str, int | None]:
    """Return the key of the model's number of classes and the number, None if we do not know."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if "Retina" in architecture or "FCOS" in architecture:
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    if "RCNN" in architecture:
        return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return "", None
