"""Checks of a dataset's annotations before training.

* A box that is not a list of numbers, a category that the model has no class for, and a test
  annotation that pycocotools cannot score are errors at the start.
* Boxes without area are counted and logged; Detectron2's mapper leaves them out.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from tr_det.core.errors import check
from tr_det.detection.data.images import Dicts

SCORED = ("area", "iscrowd")
"""What pycocotools needs of a test annotation besides its box, and reads after all detections."""


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
            f"dataset {dataset!r}: the bbox of {len(wrong)} annotations is not four numbers, "
            f"e.g. {wrong[0]}"
        )


def check_categories(dicts: Dicts, cfg: CfgNode) -> None:
    """Raise ValueError if an annotation has a class that the model does not have."""
    key, classes = _classes(cfg)
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
    """Raise ValueError for a test dataset that COCO evaluation would stop at."""
    metadata = MetadataCatalog.get(dataset)
    key, classes = _classes(cfg)
    known = len(metadata.get("thing_dataset_id_to_contiguous_id", ()))  # what the scores go by
    if known and classes is not None:
        allowed = f"at most {known}, the number of categories of DATASETS.TEST {dataset!r}"
        check(key, classes, classes <= known, allowed)
    file = metadata.get("json_file", None)
    if file is None:
        return  # COCOEvaluator writes one
    with PathManager.open(file) as opened:
        notes = json.load(opened).get("annotations", ())
    for lacking in SCORED:
        ids = [note.get("id") for note in notes if lacking not in note]
        if ids:
            raise ValueError(
                f"DATASETS.TEST {dataset!r}: {len(ids)} of {len(notes)} annotations in {file} have "
                f"no {lacking!r}, without which they cannot be scored, e.g. id {ids[0]}"
            )


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


def _is_empty(note: dict[str, Any]) -> bool:
    x, y, width, height = note["bbox"][:4]
    if note.get("bbox_mode") == BoxMode.XYXY_ABS:
        width, height = width - x, height - y
    return not (width > 0 and height > 0 and math.isfinite(x) and math.isfinite(y))


def _is_box(values: Any, mode: BoxMode | None) -> bool:
    numbers = list(values) if isinstance(values, Iterable) else []
    count = 5 if mode == BoxMode.XYWHA_ABS else 4
    return len(numbers) == count and all(isinstance(number, Real) for number in numbers)


def _classes(cfg: CfgNode) -> tuple[str, int | None]:
    """Return the key of the model's number of classes and the number, None if we do not know."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if "Retina" in architecture or "FCOS" in architecture:
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    if "RCNN" in architecture:
        return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return "", None
