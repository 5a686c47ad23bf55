"""Anchors by Detectron2's own generator and IoU are the oracle."""

import ast
import socket

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from tests.tiny import BASE, ROOT
from tr_det.detection.config.reading import load_config
from tr_det.detection.data.anchors import (
    Anchors,
    InputBoxes,
    anchors_from,
    best_ious,
    boxes_at_input,
    coverage,
    pairs,
    propose,
)

LEVELS = Anchors(
    sizes=((10.0, 14.0), (24.0, 30.0), (60.0, 70.0)),
    ratios=((0.5, 1.0), (0.5, 2.0), (1.0, 3.0)),
    strides=(8, 16, 32),
)


def random_boxes(count, width, height, seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.rand(count, 2, generator=generator) for _ in range(2))
    limits = torch.tensor([width, height])
    edges = torch.cat([torch.minimum(one, other), torch.maximum(one, other)], 1)
    return InputBoxes(edges * limits.repeat(2), limits.expand(count, 2))


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize(("width", "height"), [(100, 75), (33, 128)])
def test_the_best_iou_is_that_of_all_anchors(width, height, offset):
    boxes = random_boxes(300, width, height, seed=width)
    generator = DefaultAnchorGenerator(
        sizes=LEVELS.sizes, aspect_ratios=LEVELS.ratios, strides=LEVELS.strides, offset=offset
    )
    maps = [torch.empty(1, 1, -(-height // s), -(-width // s)) for s in LEVELS.strides]
    expected = pairwise_iou(Boxes(boxes.edges), Boxes.cat(generator(maps))).amax(1)
    levels = Anchors(LEVELS.sizes, LEVELS.ratios, LEVELS.strides, offset)
    torch.testing.assert_close(best_ious(boxes, levels), expected, atol=1e-5, rtol=0)


def test_boxes_that_anchors_miss_are_covered_by_the_proposal():
    """Boxes of 9 to 60 px, three times as tall as wide, for anchors from 32 px on."""
    sizes = tuple(tuple(32 * 2 ** (k + j / 3) for j in range(3)) for k in range(4))
    now = Anchors(sizes, ((0.5, 1.0, 2.0),) * 4, (8, 16, 32, 64))
    side = torch.linspace(9, 60, 400)
    half = torch.stack([side / 3**0.5, side * 3**0.5], 1) / 2
    centre = 80 + 8 * torch.rand(400, 2, generator=torch.Generator().manual_seed(1))
    boxes = InputBoxes(torch.cat([centre - half, centre + half], 1), torch.tensor([[160, 160]]))
    found = propose(boxes, now)
    before, after = (coverage(best_ious(boxes, one)) for one in (now, found))
    assert before.learned < 0.8
    assert after.learned > 0.9
    assert after.not_background > 0.95
    assert [len(level) for level in found.sizes] == [3] * 4
    assert propose(boxes, found) == found


@pytest.mark.parametrize("size", [(300.0, 1.0), (1.0, 300.0)])
def test_anchors_are_proposed_for_boxes_that_are_nearly_lines(size):
    half = torch.tensor([size]) / 2
    boxes = InputBoxes(torch.cat([200 - half, 200 + half], 1), torch.tensor([[400, 400]]))
    found = propose(boxes, LEVELS)
    assert min(min(level) for level in found.ratios) > 0
    assert coverage(best_ious(boxes, found)).median > coverage(best_ious(boxes, LEVELS)).median


def test_a_config_s_anchors_and_the_keys_of_others(make_config):
    now = anchors_from(make_config())
    assert now.strides == (8, 16, 32, 64, 128)
    assert now.sizes[0] == (12.0, 15.1, 19.0)
    assert now.ratios == ((0.8, 1.4, 2.4),) * 5
    again = anchors_from(load_config(BASE, pairs(now)))
    assert again == now


@pytest.mark.parametrize("value", ["[[8], [16]]", "[]", "[[]]", "[[8, 0]]", "'a'"])
def test_anchors_that_no_detector_could_have_are_refused(make_config, value):
    cfg = make_config()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = ast.literal_eval(value)
    with pytest.raises(ValueError, match=r"SIZES=.*: must be a list of numbers above 0, for all 5"):
        anchors_from(cfg)


def test_the_strides_of_a_timm_backbone_need_no_weights(monkeypatch):
    config = "configs/BCCD/retinanet_efficientnet_lite0_fp.yaml"
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a download"))
    cfg = load_config(ROOT / config, ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.TIMM.WEIGHTS == "library"
    assert anchors_from(cfg).strides == (8, 16, 32, 64, 128)


def test_boxes_are_those_of_the_test_size(make_config):
    cfg = make_config("INPUT.MIN_SIZE_TEST", 50, "INPUT.MAX_SIZE_TEST", 90)
    coco = {
        "images": [{"id": 1, "width": 200, "height": 100}, {"id": 2, "width": 30, "height": 50}],
        "annotations": [
            {"image_id": 1, "bbox": [20, 10, 40, 20]},
            {"image_id": 1, "bbox": [20, 10, 0, 20]},
            {"image_id": 2, "bbox": [3, 10, 4, 20], "iscrowd": 1},
            {"image_id": 2, "bbox": [3, 10, 12, 20], "iscrowd": 0},
        ],
    }
    boxes = boxes_at_input(coco, cfg)
    expected = torch.tensor([[9, 4.5, 27, 13.5], [5, 50 / 3, 25, 50]])
    expected[1] = torch.tensor([5, 16.6, 25, 49.8])  # 50 x 83.3, rounded to 50 x 83
    torch.testing.assert_close(boxes.edges, expected)
    assert boxes.sizes.tolist() == [[90, 45], [50, 83]]
