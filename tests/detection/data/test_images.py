"""Broken image files: a clear error at the start, or a counted skip; never a crash after hours."""

import logging

import pytest
from PIL import Image

from tr_det.detection import QuantTrainer
from tr_det.detection.data.images import SkipUnreadable, check_readable


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


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
    with pytest.raises(ValueError, match=rf"'{name}': 1 of 4 images cannot be used, e\.g\. .*png"):
        QuantTrainer(make_config("DATASETS.TEST", (name,)))


def test_a_test_image_of_another_size_is_named_before_training(broken, make_config):
    def change(coco, folder):
        coco["images"][0]["width"] += 1

    with pytest.raises(ValueError, match=r"1 of 4 images cannot be used.*its record says \d+ x"):
        QuantTrainer(make_config("DATASETS.TEST", (broken("val", change),)))


def test_an_image_that_lies_on_its_side_has_the_size_that_detectron2_turns_it_to(tmp_path):
    path, turned = tmp_path / "turned.jpg", Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 4)).save(path, exif=turned)
    check_readable([{"file_name": str(path), "width": 4, "height": 8}], "any")
    with pytest.raises(ValueError, match="it is 4 x 8, its record says 8 x 4"):
        check_readable([{"file_name": str(path), "width": 8, "height": 4}], "any")


def test_whole_images_are_not_decoded(tmp_path, monkeypatch):
    for name in ("whole.png", "whole.jpg"):
        Image.new("RGB", (8, 4)).save(tmp_path / name)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    names = ("whole.png", "whole.jpg")
    check_readable(
        [{"file_name": str(tmp_path / n), "width": 8, "height": 4} for n in names], "any"
    )


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
    path = tmp_path / "padded.jpg"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes() + b"\x00" * 20)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.bmp")
    check_readable([{"file_name": str(tmp_path / f)} for f in ("padded.jpg", "other.bmp")], "any")
