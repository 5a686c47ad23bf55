"""Broken image files: a clear error at the start, or a counted skip; never a crash after hours."""

import logging

import pytest
from PIL import Image

from tr_det.detection import QuantTrainer
from tr_det.detection.data.images import SkipUnreadable, check_readable


def cut(number):
    """Return a function that cuts off the end of that many image files."""

    def change(coco, folder):
        for image in coco["images"][:number]:
            path = folder / image["file_name"]
            path.write_bytes(path.read_bytes()[:-40])

    return change


def remove(coco, folder):
    (folder / coco["images"][1]["file_name"]).unlink()


def widen(coco, folder):
    coco["images"][0]["width"] += 1


@pytest.mark.parametrize(
    ("key", "split", "change", "message"),
    [
        ("DATASETS.TRAIN", "train", remove, r"1 of \d+ image files do not exist, e\.g\. /"),
        ("DATASETS.TEST", "val", remove, r"1 of \d+ image files do not exist, e\.g\. /"),
        ("DATASETS.TEST", "val", cut(1), r"1 of 4 images cannot be used, e\.g\. .*png"),
        ("DATASETS.TEST", "val", widen, r"1 of 4 images cannot be used.*its record says \d+ x"),
    ],
)
def test_what_is_broken_is_named_before_training(key, split, change, message, broken, make_config):
    name = broken(split, change)
    with pytest.raises(ValueError, match=rf"'{name}'.*: {message}"):
        QuantTrainer(make_config(key, (name,)))


def test_an_image_that_lies_on_its_side_has_the_size_that_detectron2_turns_it_to(tmp_path):
    path, turned = tmp_path / "turned.jpg", Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 4)).save(path, exif=turned)
    check_readable([{"file_name": str(path), "width": 4, "height": 8}], "any")
    with pytest.raises(ValueError, match="it is 4 x 8, its record says 8 x 4"):
        check_readable([{"file_name": str(path), "width": 8, "height": 4}], "any")


def test_whole_images_are_not_decoded(tmp_path, monkeypatch):
    names = ("whole.png", "whole.jpg")
    for name in names:
        Image.new("RGB", (8, 4)).save(tmp_path / name)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    check_readable(
        [{"file_name": str(tmp_path / n), "width": 8, "height": 4} for n in names], "any"
    )


def test_odd_file_endings_are_no_error_if_the_image_can_be_read(tmp_path):
    path = tmp_path / "padded.jpg"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes() + b"\x00" * 20)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.bmp")
    check_readable([{"file_name": str(tmp_path / f)} for f in ("padded.jpg", "other.bmp")], "any")


def test_a_truncated_training_image_is_skipped_and_counted(broken, make_config, caplog):
    name = broken("train", cut(6))
    cfg = make_config("DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 6)
    trainer = QuantTrainer(cfg)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.iter == 6
    assert "Skipping a training image that cannot be read (2 so far in this process)" in caplog.text


def test_a_run_whose_images_are_all_broken_stops(broken, make_config):
    cfg = make_config("DATASETS.TRAIN", (broken("train", cut(None)),))
    with pytest.raises(ValueError, match="no sample could be made of 100 images"):
        next(iter(QuantTrainer.build_train_loader(cfg)))


def test_other_errors_of_a_mapper_are_not_swallowed():
    with pytest.raises(KeyError, match="a bug"):
        SkipUnreadable({}.__getitem__)("a bug")
