"""Broken COCO data: a clear error at the start, or a counted skip; never a crash after hours."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tr_det.detection import QuantTrainer
from tr_det.detection.images import SkipUnreadable, check_readable


@pytest.fixture
def broken(tiny, scenes, tmp_path):
    """Return ``broken(split, change)``: registers a copy that ``change(coco, folder)`` breaks."""

    def make(split, change):
        metadata = MetadataCatalog.get({"train": tiny.TRAIN, "val": tiny.VAL}[split])
        DatasetCatalog.get(metadata.name)
        folder = tmp_path / split
        shutil.copytree(metadata.image_root, folder)
        coco = json.loads(Path(metadata.json_file).read_text())
        change(coco, folder)
        (tmp_path / f"{split}.json").write_text(json.dumps(coco))
        name = f"broken_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, str(tmp_path / f"{split}.json"), str(folder))
        return name

    return make


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_boxes_without_area_are_counted_and_left_out(broken, make_config, caplog):
    def change(coco, folder):
        image = coco["annotations"][0]["image_id"]
        for note in coco["annotations"]:
            if note["image_id"] == image:
                note["bbox"][2] = 0

    name = broken("train", change)
    cfg = make_config("DATASETS.TRAIN", (name,), "SOLVER.MAX_ITER", 6)
    with caplog.at_level(logging.WARNING):
        trainer = QuantTrainer(cfg)
    assert "boxes in 1 images have no area; they are left out of training" in caplog.text
    trainer.train()
    assert trainer.iter == 6


def test_an_unknown_category_is_named_with_its_file(broken, make_config):
    def change(coco, folder):
        coco["annotations"][0]["category_id"] = 999

    name = broken("train", change)
    with pytest.raises(ValueError, match=r"train\.json: not a COCO annotation file \(.*999"):
        QuantTrainer(make_config("DATASETS.TRAIN", (name,)))


def test_more_categories_than_classes_are_refused(make_config):
    with pytest.raises(ValueError, match=r"MODEL\.RETINANET\.NUM_CLASSES=3: must be at least 10"):
        QuantTrainer(make_config("MODEL.RETINANET.NUM_CLASSES", 3))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_image_file_is_named_before_training(split, broken, make_config):
    def change(coco, folder):
        (folder / coco["images"][1]["file_name"]).unlink()

    name = broken(split, change)
    key = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST"}[split]
    with pytest.raises(
        ValueError, match=rf"'{name}'.*: 1 of \d+ image files do not exist, e\.g\. /"
    ):
        QuantTrainer(make_config(key, (name,)))


def test_a_truncated_test_image_is_named_before_training(broken, make_config):
    name = broken("val", lambda coco, folder: cut(folder / coco["images"][2]["file_name"]))
    with pytest.raises(ValueError, match=rf"'{name}': 1 of 4 images cannot be read, e\.g\. .*png"):
        QuantTrainer(make_config("DATASETS.TEST", (name,)))


def test_a_truncated_training_image_is_skipped_and_counted(broken, make_config, caplog):
    def change(coco, folder):
        for image in coco["images"][:6]:
            cut(folder / image["file_name"])

    name = broken("train", change)
    trainer = QuantTrainer(make_config("DATASETS.TRAIN", (name,), "SOLVER.MAX_ITER", 6))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.iter == 6
    assert "Skipping a training image that cannot be read (2 so far in this process)" in caplog.text


def test_images_without_exception_broken_stop_the_run(broken, make_config):
    def change(coco, folder):
        for image in coco["images"]:
            cut(folder / image["file_name"])

    loader = QuantTrainer.build_train_loader(
        make_config("DATASETS.TRAIN", (broken("train", change),))
    )
    with pytest.raises(RuntimeError, match="no sample of 100 images in a row"):
        next(iter(loader))


def test_other_errors_of_a_mapper_are_not_swallowed():
    def mapper(image):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        SkipUnreadable(mapper)({})


def test_odd_endings_are_no_error_if_the_image_can_be_read(tmp_path):
    from PIL import Image

    path = tmp_path / "padded.jpg"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes() + b"\x00" * 20)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.bmp")
    check_readable([{"file_name": str(tmp_path / f)} for f in ("padded.jpg", "other.bmp")], "any")
