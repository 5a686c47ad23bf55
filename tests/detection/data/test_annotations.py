"""Broken annotations: a clear error at the start, or a counted skip; never a crash after hours."""

import logging

import pytest
from detectron2.structures import BoxMode

from tr_det.detection import QuantTrainer
from tr_det.detection.data.annotations import check_boxes, check_scoring, log_empty_boxes


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
@pytest.mark.parametrize("bbox", [None, [1, 2, 3], ["1", "2", "3", "4"], 7], ids=str)
def test_a_box_that_is_not_four_numbers_is_named_before_training(split, bbox, broken, make_config):
    def change(coco, folder):
        coco["annotations"][3]["bbox"] = bbox
        if bbox is None:
            del coco["annotations"][3]["bbox"]

    key = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST"}[split]
    with pytest.raises(ValueError, match=r"bbox of 1 annotations is not four|not a COCO anno") as e:
        QuantTrainer(make_config(key, (broken(split, change),)))
    assert f"broken_{split}" in str(e.value) or f"{split}.json" in str(e.value)


@pytest.mark.parametrize("lacking", ["area", "iscrowd"])
def test_test_annotations_that_cannot_be_scored_are_named_before_training(
    lacking, broken, make_config
):
    def change(coco, folder):
        for note in coco["annotations"][2:4]:
            del note[lacking]

    name = broken("val", change)
    with pytest.raises(ValueError, match=rf"2 of \d+ annotations in .* have no '{lacking}'"):
        QuantTrainer(make_config("DATASETS.TEST", (name,)))


def test_more_classes_than_the_test_set_has_are_refused(make_config):
    with pytest.raises(ValueError, match=r"MODEL\.RETINANET\.NUM_CLASSES=12: must be at most 10"):
        QuantTrainer(make_config("MODEL.RETINANET.NUM_CLASSES", 12))


def test_no_annotations_at_all_are_one_line(broken, make_config):
    def change(coco, folder):
        coco["annotations"] = []

    with pytest.raises(ValueError, match=r"DATASETS .*broken_train.*No valid data"):
        QuantTrainer(make_config("DATASETS.TRAIN", (broken("train", change),)))


def test_boxes_by_their_corners_and_turned_boxes():
    def image(bbox, mode):
        return [{"file_name": "a", "annotations": [{"bbox": bbox, "bbox_mode": mode}]}]

    assert log_empty_boxes(image([10, 10, 5, 20], BoxMode.XYXY_ABS)) == 1
    assert log_empty_boxes(image([10, 10, 5, 20], BoxMode.XYWH_ABS)) == 0
    assert log_empty_boxes(image([float("nan"), 1, 5, 5], BoxMode.XYWH_ABS)) == 1
    check_boxes(image([1, 2, 3, 4, 45], BoxMode.XYWHA_ABS), "any")
    with pytest.raises(ValueError, match="bbox of 1 annotations is not four numbers"):
        check_boxes(image([1, 2, 3, 4, 45], BoxMode.XYWH_ABS), "any")


def test_models_whose_classes_are_not_known_are_not_judged_by_them(make_config):
    cfg = make_config("MODEL.META_ARCHITECTURE", "ProposalNetwork")
    check_scoring(cfg.DATASETS.TEST[0], cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES=80: must be at most 10"):
        check_scoring(cfg.DATASETS.TEST[0], cfg)


def test_an_evaluator_of_ones_own_decides_what_annotations_need(broken, make_config):
    class Own(QuantTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            raise NotImplementedError

    def change(coco, folder):
        for note in coco["annotations"]:
            del note["iscrowd"]

    cfg = make_config("DATASETS.TEST", (broken("val", change),))
    Own(cfg)
    with pytest.raises(ValueError, match="have no 'iscrowd'"):
        QuantTrainer(cfg)
