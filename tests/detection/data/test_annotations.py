"""Broken annotations: a clear error at the start, or a counted skip; never a crash after hours."""

import logging

import pytest
from detectron2.structures import BoxMode

from tr_det.detection import QuantTrainer
from tr_det.detection.data.annotations import (
    check_boxes,
    check_scoring,
    log_cut_boxes,
    log_empty_boxes,
)
from tr_det.detection.data.coco_file import PARTS

KEYS = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST"}


def without(key):
    """Return a function that removes a key from two annotations."""
    return lambda coco, folder: [note.pop(key) for note in coco["annotations"][2:4]]


def with_first(key, value):
    """Return a function that changes a key of the first annotation."""
    return lambda coco, folder: coco["annotations"][0].update({key: value})


def with_first_image(key, value):
    """Return a function that changes a key of the first image."""
    return lambda coco, folder: coco["images"][0].update({key: value})


def doubled(part):
    """Return a function that lists the first entry of a part twice."""
    return lambda coco, folder: coco[part].append(dict(coco[part][0]))


def without_part(part):
    """Return a function that removes a part of the file."""
    return lambda coco, folder: coco.pop(part)


NAN, INF = float("nan"), float("inf")
ID = r"\.json: annotation with id \d+ has"
BOX = rf"{ID} bbox=.*; must be "
BOTH = [
    (with_first("category_id", 999), rf"{ID} category_id=999; must be .* one of the categories"),
    (with_first("category_id", 1.0), rf"{ID} category_id=1\.0"),
    (with_first("image_id", 999), rf"{ID} image_id=999; must be .* one of the images"),
    (with_first("iscrowd", "x"), rf"{ID} iscrowd='x'; must be 0 or 1"),
    (with_first("id", "7"), r"\.json: annotation with id '7' has id='7'; must be"),
    (with_first("bbox", [1, 2, 3]), BOX + "four finite numbers"),
    (with_first("bbox", ["1", "2", "3", "4"]), BOX + "four"),
    (with_first("bbox", 7), BOX + "four"),
    (with_first("bbox", [1, NAN, 3, 4]), BOX + "four finite"),
    (with_first("bbox", [1, 2, INF, 4]), BOX + "four finite"),
    (with_first("bbox", [1, 2, 10**400, 4]), BOX + "four finite"),
    (with_first("bbox", [9, 9, -3, 4]), BOX + ".*not negative"),
    (with_first("bbox", [70, 9, 3, 4]), BOX + ".*in the image of 64 x 64 pixels"),
    (without("bbox"), rf"{ID} bbox=None; .* \(one of 2 faults\)"),
    (with_first_image("id", "1"), r"\.json: image with id '1' has id='1'; must be an integer"),
    (with_first_image("file_name", "http://a/b.png"), r"image .* file_name='http://a/b\.png'"),
    (with_first_image("width", None), "image .* width=None; must be a positive integer"),
    (with_first_image("height", 10**400), "image .* height=10{75} ...; must be a positive integer"),
    (doubled("images"), "image with id .*, and unique"),
    (doubled("annotations"), "annotation with id .* unique"),
    (doubled("categories"), "category with id .* unique"),
    *((without_part(part), rf"not a COCO .*'{part}' must be a list") for part in PARTS[:2]),
    *((lambda coco, _, part=part: coco[part].clear(), rf"'{part}' must be") for part in PARTS),
]
SCORED = [
    (without("area"), rf"{ID} area=None; must be a number"),
    (with_first("area", None), rf"{ID} area=None; must be a number"),
    (with_first("area", NAN), rf"{ID} area=nan; must be a number"),
    (without("iscrowd"), rf"{ID} iscrowd=None; must be 0 or 1"),
    (with_first("id", 0), r"annotation with id 0 has id=0; must be a positive integer"),
    (with_first("bbox", [9, 9, 0, 4]), BOX + ".*positive"),
    (with_first("bbox", [60, 9, 9, 4]), BOX + ".*in the image of 64 x 64 pixels"),
]
"""What matters to the scores only."""


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        *((split, change, message) for split in KEYS for change, message in BOTH),
        *(("val", change, message) for change, message in SCORED),
    ],
)
def test_what_is_broken_is_named_before_training(split, change, message, broken, make_config):
    cfg = make_config(KEYS[split], (broken(split, change),))
    names = ["broken_val"] if split == "val" else []
    build = QuantTrainer.build_test_loader if names else QuantTrainer.build_train_loader
    with pytest.raises(ValueError, match=message):
        build(cfg, *names)


def test_a_test_set_without_annotations_is_for_evaluation_alone(broken, make_config, caplog):
    cfg = make_config(KEYS["val"], (broken("val", without_part("annotations")),))
    QuantTrainer.build_test_loader(cfg, "broken_val")
    assert "detections are written, not scored" in caplog.text
    with pytest.raises(ValueError, match="not a COCO .*'annotations' must be a list"):
        QuantTrainer(cfg)


@pytest.mark.parametrize("split", KEYS)
def test_a_trainer_looks_at_both_sets_first(split, broken, make_config, monkeypatch):
    monkeypatch.setattr(QuantTrainer, "build_lr_scheduler", lambda *_: pytest.fail("too late"))
    name = broken(split, with_first("iscrowd", "x"))
    with pytest.raises(ValueError, match="iscrowd='x'"):
        QuantTrainer(make_config(KEYS[split], (name,)))


@pytest.mark.parametrize(("change", "_message"), SCORED)
def test_what_matters_to_the_scores_only_may_be_in_a_training_set(
    change, _message, broken, make_config
):
    QuantTrainer.build_train_loader(make_config("DATASETS.TRAIN", (broken("train", change),)))


@pytest.mark.parametrize(
    ("classes", "allowed"),
    [(3, "at least 10, as .*TRAIN"), (12, "at most 10, .* categories of DATASETS.TEST")],
)
def test_a_model_must_have_the_datasets_classes(make_config, classes, allowed):
    with pytest.raises(ValueError, match=rf"RETINANET\.NUM_CLASSES={classes}: must be {allowed}"):
        QuantTrainer(make_config("MODEL.RETINANET.NUM_CLASSES", classes))


def test_boxes_without_area_are_counted_and_left_out(broken, make_config, caplog):
    def change(coco, folder):
        image = coco["annotations"][0]["image_id"]
        for note in coco["annotations"]:
            if note["image_id"] == image:
                note["bbox"][2] = 0

    name = broken("train", change)
    cfg = make_config("DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 6)
    with caplog.at_level(logging.WARNING):
        trainer = QuantTrainer(cfg)
    assert "boxes in 1 images have no area; they are left out of training" in caplog.text
    trainer.train()
    assert trainer.iter == 6


def test_boxes_given_by_corners_and_rotated_boxes():
    def image(bbox, mode):
        return [{"file_name": "a", "annotations": [{"bbox": bbox, "bbox_mode": mode}]}]

    assert log_empty_boxes(image([10, 10, 5, 20], BoxMode.XYXY_ABS)) == 1
    assert log_empty_boxes(image([10, 10, 5, 20], BoxMode.XYWH_ABS)) == 0
    for box, mode, beyond in (
        ([10, 10, 22, 5], BoxMode.XYWH_ABS, 1),
        ([10, 10, 21, 5], BoxMode.XYWH_ABS, 0),
        ([10, -2, 22, 5], BoxMode.XYXY_ABS, 1),
        ([10, 10, 22, 5], BoxMode.XYXY_ABS, 0),
    ):
        assert log_cut_boxes([{**image(box, mode)[0], "width": 30, "height": 30}]) == beyond
    check_boxes(image([1, 2, 3, 4, 45], BoxMode.XYWHA_ABS), "any")
    for box in ([1, 2, 3, 4, 45], [NAN, 1, 5, 5]):
        with pytest.raises(ValueError, match="bbox of 1 annotations is not four finite numbers"):
            check_boxes(image(box, BoxMode.XYWH_ABS), "any")


def test_the_number_of_classes_is_checked_only_where_it_is_known(make_config):
    cfg = make_config("MODEL.META_ARCHITECTURE", "ProposalNetwork")
    check_scoring(cfg.DATASETS.TEST[0], cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES=80: must be at most 10"):
        check_scoring(cfg.DATASETS.TEST[0], cfg)


def test_a_custom_evaluator_decides_what_annotations_need(broken, make_config):
    class Own(QuantTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            raise NotImplementedError

    Own(make_config("DATASETS.TEST", (broken("val", without("iscrowd")),)))
