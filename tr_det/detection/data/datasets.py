"""The embedded dataset as ordinary COCO datasets of Detectron2."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from tr_det.core.errors import check
from tr_det.detection.data.annotations import check_boxes, check_scoring
from tr_det.detection.data.coco_file import AnnotationFileError, check_coco_file
from tr_det.detection.data.images import check_files, check_readable
from tr_det.detection.data.register import check_registered, entries_from
from tr_det.digits.dataset import CLASS_NAMES, SPLITS, build_digit_scenes

FULL, MINI = "digit_scenes", "digit_scenes_mini"
SIZES: dict[str, dict[str, Any]] = {FULL: {}, MINI: {"num_train": 64, "num_val": 32}}
"""Dataset -> what it has other than `build_digit_scenes`'s defaults."""

NAMES = {(dataset, split): f"{dataset}_{split}" for dataset in SIZES for split in SPLITS}


def datasets_root() -> str:
    """Return Detectron2's folder of datasets: ``DETECTRON2_DATASETS``, or ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_digit_scenes() -> None:
    """Register ``digit_scenes_{train,val}`` and the small ``digit_scenes_mini_{train,val}``.

    They are built when first loaded.
    """
    for (dataset, split), name in NAMES.items():
        if name in DatasetCatalog.list():
            continue
        folder = os.path.join(_root(dataset), "digit_scenes")
        DatasetCatalog.register(name, partial(_load, dataset, split))
        MetadataCatalog.get(name).set(
            json_file=os.path.join(folder, "annotations", f"instances_{split}.json"),
            image_root=os.path.join(folder, split),
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
        )


def _root(dataset: str) -> str:
    return datasets_root() if dataset == FULL else os.path.join(datasets_root(), dataset)


def _load(dataset: str, split: str) -> list[dict[str, Any]]:
    scenes = build_digit_scenes(_root(dataset), **SIZES[dataset])
    json_file, image_root = {
        "train": (scenes.train_json, scenes.train_images),
        "val": (scenes.val_json, scenes.val_images),
    }[split]
    return load_coco_json(str(json_file), str(image_root), NAMES[dataset, split])


def check_datasets(cfg: CfgNode, splits: tuple[str, ...] = ("TRAIN", "TEST")) -> None:
    """Raise ValueError for a dataset that is not registered or whose files are missing."""
    if "TRAIN" in splits:
        check("DATASETS.TRAIN", cfg.DATASETS.TRAIN, any(cfg.DATASETS.TRAIN), "at least one name")
    listed = {entry.name for entry in entries_from(cfg.DATASETS.REGISTER)}
    for key in splits:
        check_registered(f"DATASETS.{key}", cfg.DATASETS[key])
        for name in cfg.DATASETS[key]:
            metadata = MetadataCatalog.get(name)
            for what in ("json_file", "image_root"):
                path = metadata.get(what, None)
                if path is None or os.path.exists(path) or name in NAMES.values():
                    continue
                where = f"DETECTRON2_DATASETS is {os.getenv('DETECTRON2_DATASETS', 'not set')}"
                if name in listed:
                    where = f"DATASETS.REGISTER says so, in the working folder {os.getcwd()}"
                raise ValueError(f"DATASETS.{key}={name!r}: {what} {path} does not exist; {where}")


def check_annotation_file(name: str, scored: bool, may_lack_annotations: bool = False) -> None:
    """Raise AnnotationFileError if a dataset's COCO file cannot be trained on or scored as it is.

    Args:
        name: of the dataset; one without such a file is left to its own loader.
        scored: whether `COCOEvaluator` will score detections by it.
        may_lack_annotations: whether it may write detections only.
    """
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file", None)
    is_coco = scored or metadata.get("evaluator_type", None) == "coco"
    ours = name in NAMES.values()  # made, or repaired, when loaded
    if is_coco and file is not None and not ours:
        check_coco_file(file, scored, may_lack_annotations)


def check_test_dataset(
    cfg: CfgNode, name: str, scored_as_coco: bool, may_lack_annotations: bool = False
) -> None:
    """Raise ValueError for a test dataset with broken annotations or images.

    Args:
        cfg: the config.
        name: of the dataset.
        scored_as_coco: whether the annotations must be what `COCOEvaluator` takes.
        may_lack_annotations: whether it may write detections only.
    """
    if scored_as_coco:
        check_annotation_file(name, True, may_lack_annotations)
    with named_dataset_errors([name]):
        dicts = DatasetCatalog.get(name)
    if scored_as_coco:
        check_boxes(dicts, name)
        check_scoring(name, cfg)
    check_files(dicts, name)
    check_readable(dicts, name)


@contextmanager
def named_dataset_errors(names: Iterable[str]) -> Iterator[None]:
    """Turn what loading a broken annotation file raises into a ValueError that names the file.

    pycocotools and Detectron2 read the file without checking it. An error that has another cause
    passes unchanged.
    """
    try:
        yield
    except AnnotationFileError:
        raise
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        for name in names:
            reason = _why_unreadable(name)
            if reason:
                file = MetadataCatalog.get(name).get("json_file", name)
                message = f"DATASETS: {file}: not a COCO annotation file ({reason})"
                raise ValueError(message) from error
        if isinstance(error, AssertionError):  # Detectron2's, e.g. "No valid data found in ..."
            raise ValueError(f"DATASETS {tuple(names)}: {error}") from error
        raise


def _why_unreadable(name: str) -> str:
    """Return why a dataset does not load or is empty, or an empty string if it is fine."""
    try:
        return "" if DatasetCatalog.get(name) else "no images"
    except Exception as error:  # whatever comes of a broken file
        return f"{type(error).__name__}: {error}"
