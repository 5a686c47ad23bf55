"""Builds the embedded detection dataset: digit scenes in ordinary COCO format.

``build_digit_scenes(root)`` writes, on first use,

    root/digit_scenes/annotations/instances_train.json   instances_val.json
    root/digit_scenes/train/000001.png ...               val/000001.png ...
    root/digit_scenes/dataset.json                       parameters and checksums

and returns at once when a complete folder with the same parameters is there. The scenes (see
``scenes.py``) are drawn from scikit-learn's 1797 real handwritten digits; the source digits of
train and val are disjoint. Scene i of a split depends on nothing but the seed, the split, i and the
image size, so asking for more images later keeps the earlier ones.
"""

from __future__ import annotations

import errno
import hashlib
import json
import operator
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .scenes import Glyphs, Scene, compose_scene

DATASET_VERSION = 1  # raise it with every change that alters a scene or an annotation
CLASS_NAMES = tuple("0123456789")
SPLITS = ("train", "val")
VAL_SOURCE_SHARE = 0.2  # of each class's source digits

_NAME = "digit_scenes"
_MANIFEST = "dataset.json"
_OURS = re.compile(r"dataset\.json|annotations/instances_(train|val)\.json|(train|val)/\d{6}\.png")
_SPLIT_SEED = 1797  # fixed: a source digit never changes sides, whatever the user's seed
_STALE_SECONDS = 24 * 3600  # age at which a killed build's leftovers are removed
_LIMITS = {
    "seed": (0, 2**63 - 1),
    "num_train": (1, 999_999),
    "num_val": (1, 999_999),
    "image_size": (64, 512),
}


@dataclass(frozen=True)
class DigitScenes:
    """Where the dataset lies.

    Attributes:
        root: the folder ``<root>/digit_scenes``.
        train_json: COCO annotations of the training images; ``val_json`` likewise.
        train_images: folder of the training images; ``val_images`` likewise.
        built: whether this call wrote the dataset (False: it was there already).
    """

    root: Path
    train_json: Path
    val_json: Path
    train_images: Path
    val_images: Path
    built: bool


def split_sources(labels: np.ndarray) -> dict[str, list[int]]:
    """Splits the source digits by a fixed permutation, class by class.

    Args:
        labels: (N,) class of each source digit.

    Returns:
        Sorted source indices of "train" and "val"; every index is in exactly one of them.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for label in range(len(CLASS_NAMES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(len(members) * VAL_SOURCE_SHARE)
        parts["val"] += members[:cut].tolist()
        parts["train"] += members[cut:].tolist()
    return {split: sorted(members) for split, members in parts.items()}


def build_digit_scenes(
    root: str | os.PathLike[str],
    seed: int = 0,
    num_train: int = 2000,
    num_val: int = 300,
    image_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> DigitScenes:
    """Builds the dataset under ``root``, or finds it there.

    The folder appears in one rename, so it is either complete or absent; processes that build at
    the same time end up with the same one. A folder that is damaged, or has other parameters, is
    replaced.

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
        ValueError: a parameter is out of range, or the folder has to be replaced but holds files
            that this function did not write.
    """
    values = {"seed": seed, "num_train": num_train, "num_val": num_val, "image_size": image_size}
    parameters = {key: _checked(key, value) for key, value in values.items()}
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"root: {os.fspath(root)!r} is a file; allowed: a folder") from None
    # Resolved, because a rename onto a symbolic link would fail.
    final = (Path(root) / _NAME).resolve()
    if _is_complete(final, parameters):
        return _paths(Path(root) / _NAME, built=False)
    _refuse_foreign_files(final)  # before the work, not after it
    _remove_leftovers(final.parent)
    # Not mkdtemp, whose mode 0700 would hide the data from other users.
    draft = final.parent / f".{_NAME}.tmp-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        _write(draft, parameters, progress)
        built = _publish(draft, final, parameters)
    finally:  # also on Ctrl-C; after a successful rename there is nothing left to remove
        shutil.rmtree(draft, ignore_errors=True)
    return _paths(Path(root) / _NAME, built=built)


def _checked(key: str, value: Any) -> int:
    low, high = _LIMITS[key]
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{key}: {value!r}; allowed: an integer from {low} to {high}")
    return number


def _paths(folder: Path, built: bool) -> DigitScenes:
    return DigitScenes(
        root=folder,
        train_json=folder / "annotations" / "instances_train.json",
        val_json=folder / "annotations" / "instances_val.json",
        train_images=folder / "train",
        val_images=folder / "val",
        built=built,
    )


def _write(
    folder: Path, parameters: dict[str, int], progress: Callable[[int, int], None] | None
) -> None:
    """Writes the whole dataset into an empty folder, the manifest last."""
    glyphs = Glyphs()
    sources = split_sources(glyphs.labels)
    total = parameters["num_train"] + parameters["num_val"]
    done = 0
    (folder / "annotations").mkdir()
    for number, split in enumerate(SPLITS):
        (folder / split).mkdir()
        members = np.array(sources[split])
        pools = [members[glyphs.labels[members] == label] for label in range(len(CLASS_NAMES))]
        coco = _coco_header(split, sources[split], parameters)
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
    manifest = {
        "name": _NAME,
        "version": DATASET_VERSION,
        "parameters": parameters,
        "checksum": _checksum(folder),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


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
    """Appends one image and its annotations; ids count from 1 within the file."""
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


def _files(folder: Path) -> list[str]:
    """Returns every file below the folder (and every link), as sorted relative POSIX paths."""
    found = []
    for path, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        found += [(Path(path) / name).relative_to(folder).as_posix() for name in names + links]
    return sorted(found)


def _checksum(folder: Path) -> str:
    """Hashes the annotations' bytes, and every image's name and size.

    Reading 2,300 images on each start would cost more than the damage that it could find: missing,
    additional and truncated images show in names and sizes.
    """
    digest = hashlib.sha256()
    for name in _files(folder):
        if name == _MANIFEST or not _OURS.fullmatch(name):
            continue
        path = folder / name
        digest.update(f"{name} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_complete(folder: Path, parameters: dict[str, int]) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        wanted = {"name": _NAME, "version": DATASET_VERSION, "parameters": parameters}
        if any(manifest.get(key) != value for key, value in wanted.items()):
            return False
        return bool(manifest.get("checksum") == _checksum(folder))
    except (OSError, ValueError, AttributeError):
        return False


def _refuse_foreign_files(folder: Path) -> None:
    """Raises ValueError unless the folder is absent or holds only what a build writes."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; allowed: a folder written by build_digit_scenes")
    foreign = [name for name in _files(folder) if not _OURS.fullmatch(name)]
    if foreign:
        raise ValueError(
            f"{folder} has to be rebuilt but holds files that are not part of the dataset "
            f"({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}); "
            "move them away, or choose another root"
        )


def _publish(draft: Path, final: Path, parameters: dict[str, int]) -> bool:
    """Renames the finished draft to its final path.

    Returns:
        False when another process published the same dataset first; the draft is then not used.
    """
    for _ in range(20):
        try:
            draft.rename(final)
            return True
        except OSError as error:
            # What rename says when the target is a folder with something in it.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _is_complete(final, parameters):
            return False
        _refuse_foreign_files(final)
        # Moved aside by a rename as well, so that nobody meets a half-deleted folder. Should
        # another process publish between the check above and this line, its folder is replaced.
        aside = Path(tempfile.mkdtemp(prefix=f".{_NAME}.old-", dir=final.parent))
        try:
            final.rename(aside / _NAME)
        except FileNotFoundError:
            pass  # another process was quicker
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{final}: other processes keep writing this folder with other parameters")


def _remove_leftovers(parent: Path) -> None:
    """Removes drafts of builds that were killed long ago; younger ones may still be at work."""
    for kind in ("tmp", "old"):
        for path in parent.glob(f".{_NAME}.{kind}-*"):
            try:
                old = time.time() - path.stat().st_mtime > _STALE_SECONDS
            except OSError:
                continue
            if old:
                shutil.rmtree(path, ignore_errors=True)
