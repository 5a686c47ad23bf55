"""Broken annotations: a clear error at the start, or a counted skip; never a crash after hours."""

import logging

import pytest
from detectron2.structures import BoxMode

from tr_det.detection import QuantTrainer
from tr_det.detection.data.annotations import check_boxes, check_scoring, log_empty_boxes

KEYS = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST"}


def without(key):
    """Return a function that removes a key from two annotations."""
    return lambda coco, folder: [note.pop(key) for note in coco["annotations"][2:4]]


def with_first(key, value):
    """Return a function that changes a key of the first annotation."""
    return lambda coco, folder: coco["annotations"][0].update({key: value})


NOT_A_BOX = r"broken_{split}.*bbox of [12] annotations is|{split}\.json: not a COCO annotation"


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", with_first("category_id", 999), r"train\.json: not a COCO .*file \(.*999"),
        ("train", lambda coco, _: coco["annotations"].clear(), "broken_train.*No valid data"),
        *((split, without("bbox"), NOT_A_BOX.format(split=split)) for split in KEYS),
        *(
            (split, with_first("bbox", bbox), NOT_A_BOX.format(split=split))
            for split in KEYS
            for bbox in ([1, 2, 3], ["1", "2", "3", "4"], 7)
        ),
        ("val", without("area"), r"2 of \d+ annotations in .* have no 'area'"),
        ("val", without("iscrowd"), r"2 of \d+ annotations in .* have no 'iscrowd'"),
    ],
)
def test_what_is_broken_is_named_before_training(split, change, message, broken, make_config):
    with pytest.raises(ValueError, match=message):
        QuantTrainer(make_config(KEYS[split], (broken(split, change),)))


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
    assert log_empty_boxes(image([float("nan"), 1, 5, 5], BoxMode.XYWH_ABS)) == 1
    check_boxes(image([1, 2, 3, 4, 45], BoxMode.XYWHA_ABS), "any")
    with pytest.raises(ValueError, match="bbox of 1 annotations is not four numbers"):
        check_boxes(image([1, 2, 3, 4, 45], BoxMode.XYWH_ABS), "any")


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
