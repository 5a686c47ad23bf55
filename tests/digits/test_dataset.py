"""The embedded dataset: what its users rely on, checked on the files that it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tr_det.digits import dataset as digits
from tr_det.digits.dataset import CLASS_NAMES, DigitScenes, build_digit_scenes
from tr_det.digits.scenes import MAX_IOU, MIN_VISIBLE, Glyphs, Scene, compose_scene

TRAIN, VAL = 30, 300
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DigitScenes:
    """Few training images, and the default validation set."""
    return build_digit_scenes(tmp_path_factory.mktemp("data"), num_train=TRAIN, num_val=VAL)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    glyphs = Glyphs()
    pools = [np.flatnonzero(glyphs.labels == label) for label in range(10)]
    return [compose_scene(np.random.default_rng(i), 128, glyphs, pools) for i in range(60)]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _tiny(root: Path, **changes: int) -> DigitScenes:
    return build_digit_scenes(root, **{"num_train": 3, "num_val": 2, **changes})  # type: ignore[arg-type]


def test_coco_files_are_valid(dataset: DigitScenes) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    for path, images, count in (
        (dataset.train_json, dataset.train_images, TRAIN),
        (dataset.val_json, dataset.val_images, VAL),
    ):
        coco = coco_module.COCO(str(path))
        assert {"info", "licenses"} <= set(coco.dataset)
        categories = coco.loadCats(coco.getCatIds())
        assert [(c["id"], c["name"]) for c in categories] == list(enumerate(CLASS_NAMES, start=1))
        assert sorted(coco.getImgIds()) == list(range(1, count + 1))
        annotations = coco.dataset["annotations"]
        assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
        per_image = np.bincount([a["image_id"] for a in annotations])[1:]
        assert per_image.size == count
        assert per_image.min() >= 1
        assert per_image.max() <= 8
        for annotation in annotations:
            image = coco.imgs[annotation["image_id"]]
            x, y, w, h = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert w > 0
            assert h > 0
            assert x + w <= image["width"]
            assert y + h <= image["height"]
            assert annotation["area"] == w * h
            assert annotation["iscrowd"] == 0
        assert sorted(p.name for p in images.iterdir()) == [
            image["file_name"] for image in coco.dataset["images"]
        ]
        for image in coco.dataset["images"][:10]:
            with Image.open(images / image["file_name"]) as picture:
                assert picture.mode == "RGB"
                assert picture.size == (image["width"], image["height"]) == (128, 128)


def test_val_has_every_class_and_size(dataset: DigitScenes) -> None:
    annotations = json.loads(dataset.val_json.read_text())["annotations"]
    assert np.bincount([a["category_id"] for a in annotations], minlength=11)[1:].min() >= 50
    areas = np.array([a["area"] for a in annotations])
    assert (areas < 32**2).sum() >= 100
    assert ((areas >= 32**2) & (areas < 96**2)).sum() >= 100
    assert (areas >= 96**2).sum() >= 40
    assert min(a["bbox"][3] for a in annotations) >= 12  # 14 px, less what the border cuts off


def test_detections_equal_to_the_truth_score_100(dataset: DigitScenes) -> None:
    """Also shows that no size class is empty: an empty one has AP -1."""
    coco_module = pytest.importorskip("pycocotools.coco")
    eval_module = pytest.importorskip("pycocotools.cocoeval")
    truth = coco_module.COCO(str(dataset.val_json))
    keys = ("image_id", "category_id", "bbox")
    found = [{**{k: a[k] for k in keys}, "score": 1.0} for a in truth.dataset["annotations"]]
    evaluation = eval_module.COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[:6] == pytest.approx(1.0)


def test_sources_are_disjoint_and_labels_true(dataset: DigitScenes) -> None:
    labels = Glyphs().labels
    parts = digits.split_sources(labels)
    assert sorted(parts["train"] + parts["val"]) == list(range(1797))
    assert not set(parts["train"]) & set(parts["val"])
    for part in parts.values():  # stratified
        shares = np.bincount(labels[part], minlength=10) / len(part)
        assert shares.min() > 0.09
        assert shares.max() < 0.11
    for split, path in (("train", dataset.train_json), ("val", dataset.val_json)):
        coco = json.loads(path.read_text())
        assert coco["info"]["source_digits"] == parts[split]
        for annotation in coco["annotations"]:
            assert annotation["source_digit"] in parts[split]
            assert labels[annotation["source_digit"]] == annotation["category_id"] - 1


def test_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = _tiny(tmp_path / "a"), _tiny(tmp_path / "b")
    assert _bytes(first.root) == _bytes(second.root)


def test_scenes_do_not_depend_on_how_many_are_built(tmp_path: Path, dataset: DigitScenes) -> None:
    small = _bytes(_tiny(tmp_path).root)
    large = _bytes(dataset.root)
    images = [name for name in small if name.endswith(".png")]
    assert len(images) == 5
    assert all(small[name] == large[name] for name in images)


def test_another_seed_gives_other_scenes(tmp_path: Path, dataset: DigitScenes) -> None:
    other = _tiny(tmp_path, seed=1)
    for name in ("train/000001.png", "val/000001.png"):
        assert (other.root / name).read_bytes() != (dataset.root / name).read_bytes()
    assert (other.root / "train/000001.png").read_bytes() != (
        other.root / "val/000001.png"
    ).read_bytes()


def test_boxes_are_tight(scenes: list[Scene]) -> None:
    for scene in scenes:
        for ink, box in zip(scene.ink, scene.boxes.astype(int)):
            x, y, w, h = box
            inside = ink[y : y + h, x : x + w]
            assert inside.sum() == ink.sum()
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_truth_stays_meaningful_under_overlap(scenes: list[Scene]) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    overlaps = 0
    for scene in scenes:
        iou = mask.iou(scene.boxes, scene.boxes, [0] * len(scene.boxes))
        others = iou[~np.eye(len(iou), dtype=bool)]
        assert (others <= MAX_IOU + 1e-9).all()
        assert (scene.visible >= MIN_VISIBLE - 1e-5).all()
        overlaps += int((others > 0).sum())
    assert overlaps > 0


def test_ink_stands_out_in_the_final_pixels(scenes: list[Scene]) -> None:
    """Compares the medians inside and around the ink; both polarities occur."""
    steps = []
    for scene in scenes:
        luminance = np.asarray(Image.fromarray(scene.image).convert("L"), dtype=float)
        any_ink = scene.ink.any(axis=0)
        for i, (ink, box) in enumerate(zip(scene.ink, scene.boxes.astype(int))):
            others = np.delete(scene.ink, i, axis=0).any(axis=0)
            near = np.zeros_like(ink)
            x, y, w, h = box
            near[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2] = True
            inside, outside = luminance[ink & ~others], luminance[near & ~any_ink]
            if outside.size >= 20:
                steps.append(np.median(inside) - np.median(outside))
    size = np.abs(steps)
    assert size.min() > 20
    assert np.quantile(size, 0.1) > 45
    assert 0.25 < np.mean(np.array(steps) > 0) < 0.75


def test_second_call_writes_nothing(dataset: DigitScenes) -> None:
    assert dataset.built
    before = {p: p.stat().st_mtime_ns for p in [dataset.root, *dataset.root.rglob("*")]}
    calls: list[tuple[int, int]] = []
    again = build_digit_scenes(
        dataset.root.parent,
        num_train=TRAIN,
        num_val=VAL,
        progress=lambda done, total: calls.append((done, total)),
    )
    after = {p: p.stat().st_mtime_ns for p in [dataset.root, *dataset.root.rglob("*")]}
    assert before == after
    assert not again.built
    assert not calls
    assert again.val_json == dataset.val_json


def test_progress_counts_every_image(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    build_digit_scenes(
        tmp_path, num_train=3, num_val=2, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise error

    with pytest.raises(error):
        build_digit_scenes(tmp_path, num_train=3, num_val=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_rebuild_keeps_the_old_dataset(tmp_path: Path) -> None:
    before = _bytes(_tiny(tmp_path).root)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_digit_scenes(tmp_path, seed=5, num_train=3, num_val=2, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["digit_scenes"]
    assert _bytes(tmp_path / "digit_scenes") == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "train/000002.png").unlink(),
        lambda root: (root / "val/000001.png").write_bytes(b""),
        lambda root: (root / "annotations/instances_val.json").write_text("{"),
        lambda root: (root / "dataset.json").write_text("[]"),
        lambda root: (root / "dataset.json").unlink(),
        lambda root: shutil.rmtree(root / "annotations"),
    ],
)
def test_damaged_folder_is_rebuilt(tmp_path: Path, damage: object) -> None:
    first = _tiny(tmp_path)
    whole = _bytes(first.root)
    damage(first.root)  # type: ignore[operator]
    assert _tiny(tmp_path).built
    assert _bytes(first.root) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["digit_scenes"]


def test_other_parameters_or_version_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tiny(tmp_path)
    bigger = _tiny(tmp_path, num_train=4)
    assert bigger.built
    assert len(list(bigger.train_images.iterdir())) == 4
    monkeypatch.setattr(digits, "DATASET_VERSION", digits.DATASET_VERSION + 1)
    assert _tiny(tmp_path, num_train=4).built


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    dataset = _tiny(tmp_path)
    note = dataset.root / "train" / "notes.txt"
    note.write_text("mine")
    assert not _tiny(tmp_path).built  # beside a complete dataset they do no harm
    with pytest.raises(ValueError, match=r"digit_scenes.*train/notes\.txt"):
        _tiny(tmp_path, seed=3)
    assert note.read_text() == "mine"
    assert not _tiny(tmp_path).built


def test_root_reached_through_links(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digit_scenes").symlink_to(tmp_path / "store" / "scenes")
    assert _tiny(tmp_path / "data").built
    assert _tiny(tmp_path / "data", seed=2).built
    assert (tmp_path / "store" / "scenes" / "dataset.json").is_file()


@pytest.mark.parametrize("stale", [False, True])
def test_two_processes_at_once(tmp_path: Path, stale: bool) -> None:
    if stale:
        _tiny(tmp_path / "both")
    code = (
        "import sys; from tr_det.digits.dataset import build_digit_scenes;"
        "build_digit_scenes(sys.argv[1], num_train=6, num_val=2)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "both")]
    workers = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(2)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    alone = build_digit_scenes(tmp_path / "alone", num_train=6, num_val=2)
    assert _bytes(tmp_path / "both" / "digit_scenes") == _bytes(alone.root)
    assert [p.name for p in (tmp_path / "both").iterdir()] == ["digit_scenes"]


def test_losing_the_race_uses_the_winners_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process publishes while this one still draws."""
    write = digits._write

    def slow_write(folder: Path, *args: object) -> None:
        write(folder, *args)  # type: ignore[arg-type]
        shutil.copytree(folder, tmp_path / "digit_scenes")

    monkeypatch.setattr(digits, "_write", slow_write)
    assert not _tiny(tmp_path).built
    monkeypatch.undo()
    assert not _tiny(tmp_path).built
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_killed_builds_go_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".digit_scenes.tmp-old", tmp_path / ".digit_scenes.tmp-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    _tiny(tmp_path)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 0.5),
        ("num_train", 0),
        ("num_val", "10"),
        ("num_val", True),
        ("image_size", 63),
        ("image_size", 1024),
    ],
)
def test_bad_parameters_are_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: {value!r}; allowed: an integer from \d+ to"):
        build_digit_scenes(tmp_path, **{key: value})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="root: .*is a file"):
            build_digit_scenes(root)
    (tmp_path / "digit_scenes").write_text("")
    with pytest.raises(ValueError, match="digit_scenes is a file"):
        build_digit_scenes(tmp_path)


@pytest.mark.parametrize("size", [64, 512])
def test_other_image_sizes(tmp_path: Path, size: int) -> None:
    dataset = _tiny(tmp_path, image_size=size)
    with Image.open(dataset.train_images / "000001.png") as picture:
        assert picture.size == (size, size)


def test_needs_neither_torch_nor_detectron2() -> None:
    code = (
        "import sys, tr_det.digits.dataset, tr_det.digits.scenes;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'detectron2', 'sklearn')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
