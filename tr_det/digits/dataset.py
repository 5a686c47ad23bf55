"""The embedded detection dataset: scenes of handwritten digits on disk, in COCO format.

``build_digit_scenes(root)`` writes, on first use,

    root/digit_scenes/annotations/instances_train.json   instances_val.json
    root/digit_scenes/train/000001.png ...               val/000001.png ...
    root/digit_scenes/dataset.json                       parameters and checksum

Scene i of a split depends on nothing but the seed, the split, i and the image size. Train and val
are drawn from different digits of scikit-learn's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tr_det.digits.images import held_out
from tr_det.digits.scenes import Glyphs, Scene, compose_scene

DATASET_VERSION = 1  # raise it with every change that alters a scene or an annotation
CLASS_NAMES = tuple("0123456789")
SPLITS = ("train", "val")
VAL_SOURCE_SHARE = 0.2  # of each class's source digits

_NAME = "digit_scenes"
_MANIFEST = "dataset.json"
_LIMITS = {
    "seed": (0, 2**63 - 1),
    "num_train": (1, 999_999),
    "num_val": (1, 999_999),
    "image_size": (64, 512),
}


@dataclass(frozen=True)
class DigitScenes:
    """Paths of the dataset.

    Attributes:
        root: the folder ``<root>/digit_scenes``.
        train_json: COCO annotations of the training images; ``val_json`` likewise.
        train_images: folder of the training images; ``val_images`` likewise.
    """

    root: Path
    train_json: Path
    val_json: Path
    train_images: Path
    val_images: Path


def build_digit_scenes(
    root: str | os.PathLike[str],
    seed: int = 0,
    num_train: int = 2000,
    num_val: int = 300,
    image_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> DigitScenes:
    """Build the dataset under ``root`` unless it is there.

    The folder appears complete, in one rename. Of processes that build at the same time, all use
    the folder of the first one that finishes.

    Args:
        root: folder that will hold ``digit_scenes``; created when missing.
        seed: of the scenes, not of the train/val split of the source digits.
        num_train: number of training images.
        num_val: number of validation images.
        image_size: side of the square images in px; digits are 14 px high or more.
        progress: called as ``progress(done, total)`` after each image.

    Returns:
        The paths.

    Raises:
        ValueError: a parameter is out of range, or the folder is incomplete or was built with
            other parameters.
    """
    parameters = {
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
    }
    for key, value in parameters.items():
        low, high = _LIMITS[key]
        if not low <= value <= high:
            raise ValueError(f"{key}={value}: must be an integer from {low} to {high}")
    final = (Path(root) / _NAME).resolve()
    if not final.exists() or not any(final.iterdir()):
        draft = final.with_name(f".{_NAME}.{uuid.uuid4().hex}")
        draft.mkdir(parents=True)
        try:
            _write(draft, parameters, progress)
            draft.rename(final)
        except OSError:
            if not final.exists():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    if not _is_complete(final, parameters):
        raise ValueError(
            f"{final}: is not the complete dataset with {parameters}; delete the folder to have it "
            "built again"
        )
    return DigitScenes(
        root=final,
        train_json=final / "annotations" / "instances_train.json",
        val_json=final / "annotations" / "instances_val.json",
        train_images=final / "train",
        val_images=final / "val",
    )


def _write(
    folder: Path, parameters: dict[str, int], progress: Callable[[int, int], None] | None
) -> None:
    """Write the whole dataset into an empty folder."""
    glyphs = Glyphs()
    in_val = held_out(glyphs.labels, VAL_SOURCE_SHARE)
    total = parameters["num_train"] + parameters["num_val"]
    done = 0
    (folder / "annotations").mkdir()
    for number, (split, chosen) in enumerate(zip(SPLITS, (~in_val, in_val), strict=True)):
        (folder / split).mkdir()
        pools = [np.flatnonzero(chosen & (glyphs.labels == c)) for c in range(len(CLASS_NAMES))]
        coco = _coco_header(split, np.flatnonzero(chosen).tolist(), parameters)
        for index in range(parameters[f"num_{split}"]):
            rng = np.random.default_rng(np.random.SeedSequence([parameters["seed"], number, index]))
            scene = compose_scene(rng, parameters["image_size"], glyphs, pools)
            file_name = f"{index + 1:06d}.png"
            Image.fromarray(scene.image).save(folder / split / file_name, compress_level=3)
            _add_to_coco(coco, scene, file_name)
            done += 1
            if progress is not None:
                progress(done, total)
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(coco), encoding="utf-8")
    manifest = json.dumps(_manifest(folder, parameters), indent=1)
    (folder / _MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def _coco_header(split: str, sources: list[int], parameters: dict[str, int]) -> dict[str, Any]:
    return {
        "info": {
            "description": "Scenes composed from scikit-learn's handwritten digits (load_digits)",
            "version": str(DATASET_VERSION),
            "split": split,
            "parameters": parameters,
            # No date here: the same parameters must give the same bytes on any day.
            "source": "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
            "source_digits_note": "indices into load_digits(); train and val share none",
            "source_digits": sources,
        },
        "licenses": [
            {
                "id": 1,
                "name": "Creative Commons Attribution 4.0 International",
                "url": "https://creativecommons.org/licenses/by/4.0/",
            }
        ],
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "digit"}
            for label, name in enumerate(CLASS_NAMES)
        ],
        "images": [],
        "annotations": [],
    }


def _add_to_coco(coco: dict[str, Any], scene: Scene, file_name: str) -> None:
    """Append one image and its annotations; ids count from 1 within the file."""
    image_id = len(coco["images"]) + 1
    height, width = scene.image.shape[:2]
    coco["images"].append(
        {"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1}
    )
    for box, label, source in zip(scene.boxes.tolist(), scene.labels, scene.sources):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": box,
                # The box's area, so that ground truth and detections fall into the same size class.
                "area": box[2] * box[3],
                "iscrowd": 0,
                "source_digit": int(source),
            }
        )


def _is_complete(folder: Path, parameters: dict[str, int]) -> bool:
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == _manifest(folder, parameters))


def _manifest(folder: Path, parameters: dict[str, int]) -> dict[str, Any]:
    """Describe the files; of images only names and sizes, so that a start takes no second."""
    digest = hashlib.sha256()
    annotations = [folder / "annotations" / f"instances_{split}.json" for split in SPLITS]
    images = [path for split in SPLITS for path in folder.glob(f"{split}/??????.png")]
    for path in sorted([*annotations, *images]):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return {
        "name": _NAME,
        "version": DATASET_VERSION,
        "parameters": parameters,
        "checksum": digest.hexdigest(),
    }
