"""The embedded dataset: its content, and how it is built and found again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from tr_det.digits import dataset as digits
from tr_det.digits.dataset import CLASS_NAMES, DigitScenes, build_digit_scenes
from tr_det.digits.scenes import MAX_IOU, MIN_VISIBLE, Glyphs, Scene, compose_scene

TRAIN, VAL = 30, 300


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DigitScenes:
    """Few training images, and the default validation set."""
    return build_digit_scenes(tmp_path_factory.mktemp("data"), num_train=TRAIN, num_val=VAL)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    glyphs = Glyphs()
    pools = [np.flatnonzero(glyphs.labels == label) for label in range(10)]
    return [compose_scene(np.random.default_rng(i), 128, glyphs, pools) for i in range(60)]


def _tiny(root: Path, **changes: int) -> DigitScenes:
    return build_digit_scenes(root, **{"num_train": 3, "num_val": 2, **changes})  # type: ignore[arg-type]


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_coco_files_are_valid(dataset: DigitScenes) -> None:
    for path, images, count in (
        (dataset.train_json, dataset.train_images, TRAIN),
        (dataset.val_json, dataset.val_images, VAL),
    ):
        coco = COCO(str(path))
        assert {"info", "licenses"} <= set(coco.dataset)
        categories = coco.loadCats(coco.getCatIds())
        assert [(c["id"], c["name"]) for c in categories] == list(enumerate(CLASS_NAMES, start=1))
        assert sorted(coco.getImgIds()) == list(range(1, count + 1))
        annotations = coco.dataset["annotations"]
        assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
        for annotation in annotations:
            image = coco.imgs[annotation["image_id"]]
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= image["width"]
            assert 0 <= y < y + h <= image["height"]
            assert annotation["area"] == w * h
            assert annotation["iscrowd"] == 0
        assert sorted(p.name for p in images.iterdir()) == [
            image["file_name"] for image in coco.dataset["images"]
        ]
        image = coco.dataset["images"][-1]
        assert _pixels(images / image["file_name"]).shape == (image["height"], image["width"], 3)


def test_sources_are_disjoint_and_labels_true(dataset: DigitScenes) -> None:
    labels = Glyphs().labels
    cocos = [json.loads(path.read_text()) for path in (dataset.train_json, dataset.val_json)]
    parts = [coco["info"]["source_digits"] for coco in cocos]
    assert sorted(parts[0] + parts[1]) == list(range(1797))
    for coco, part in zip(cocos, parts, strict=True):
        shares = np.bincount(labels[part], minlength=10) / len(part)
        assert shares.min() > 0.09  # stratified
        assert shares.max() < 0.11
        for annotation in coco["annotations"]:
            assert annotation["source_digit"] in part
            assert labels[annotation["source_digit"]] == annotation["category_id"] - 1


def test_the_scenes_are_those_of_the_published_numbers(tmp_path: Path) -> None:
    """Pixels and annotations, not PNG bytes, which may differ between versions of zlib."""
    digest = hashlib.sha256()
    for path in sorted(_tiny(tmp_path).root.glob("*/*")):
        digest.update(path.read_bytes() if path.suffix == ".json" else _pixels(path).tobytes())
    assert digest.hexdigest() == (
        "5e670235620f4d5bdb5d1bf38f040580c2fad29290f6c52041fd4c3247018a04"
    )


def test_a_scene_depends_on_seed_split_and_number_alone(
    tmp_path: Path, dataset: DigitScenes
) -> None:
    small, other = _tiny(tmp_path / "small").root, _tiny(tmp_path / "other", seed=1).root
    images = sorted(path.relative_to(small) for path in small.glob("*/*.png"))
    assert len(images) == 5
    large = [_pixels(dataset.root / name) for name in images]
    assert all(map(np.array_equal, large, (_pixels(small / name) for name in images)))
    assert not any(map(np.array_equal, large, (_pixels(other / name) for name in images)))
    assert not np.array_equal(large[0], large[3])  # the first of each split


def test_boxes_are_tight(scenes: list[Scene]) -> None:
    for scene in scenes:
        for ink, box in zip(scene.ink, scene.boxes.astype(int)):
            x, y, w, h = box
            inside = ink[y : y + h, x : x + w]
            assert inside.sum() == ink.sum()
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_truth_stays_meaningful_under_overlap(scenes: list[Scene]) -> None:
    overlaps = 0
    for scene in scenes:
        iou = mask.iou(scene.boxes, scene.boxes, [0] * len(scene.boxes))
        others = iou[~np.eye(len(iou), dtype=bool)]
        assert (others <= MAX_IOU + 1e-9).all()
        for i, ink in enumerate(scene.ink):
            hidden = ink & scene.ink[i + 1 :].any(axis=0)
            assert hidden.sum() <= (1 - MIN_VISIBLE + 0.02) * ink.sum()
        overlaps += int((others > 0).sum())
    assert overlaps > 0


def test_the_second_call_writes_nothing(dataset: DigitScenes) -> None:
    before = {p: p.stat().st_mtime_ns for p in [dataset.root, *dataset.root.rglob("*")]}
    calls: list[tuple[int, int]] = []
    again = build_digit_scenes(
        dataset.root.parent,
        num_train=TRAIN,
        num_val=VAL,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert before == {p: p.stat().st_mtime_ns for p in [dataset.root, *dataset.root.rglob("*")]}
    assert not calls
    assert again == dataset


def test_progress_counts_images_and_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_digit_scenes(tmp_path, num_train=3, num_val=2, progress=stop)
    assert calls == [(1, 5), (2, 5)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "train/000002.png").unlink(),
        lambda root: (root / "annotations/instances_val.json").write_text("{"),
        lambda root: (root / "dataset.json").unlink(),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(_tiny(tmp_path).root)
    with pytest.raises(ValueError, match=r"digit_scenes: .*delete the folder"):
        _tiny(tmp_path)


def test_a_folder_of_other_parameters_or_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tiny(tmp_path)
    with pytest.raises(ValueError, match="'num_train': 4"):
        _tiny(tmp_path, num_train=4)
    monkeypatch.setattr(digits, "DATASET_VERSION", digits.DATASET_VERSION + 1)
    with pytest.raises(ValueError, match="digit_scenes: "):
        _tiny(tmp_path)


def test_files_of_others_do_no_harm(tmp_path: Path) -> None:
    (_tiny(tmp_path).root / "train" / "Thumbs.db").write_text("")
    _tiny(tmp_path)


def test_the_slower_of_two_processes_uses_what_the_faster_one_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = digits._write

    def overtaken(folder: Path, *args: object) -> None:
        write(folder, *args)  # type: ignore[arg-type]
        shutil.copytree(folder, tmp_path / "digit_scenes")

    monkeypatch.setattr(digits, "_write", overtaken)
    assert _tiny(tmp_path).train_json.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["digit_scenes"]


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("num_train", 0), ("image_size", 1024)])
def test_bad_parameters_are_named(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{key}={value}: must be an integer from \d+ to \d+"):
        _tiny(tmp_path, **{key: value})
    assert list(tmp_path.iterdir()) == []
