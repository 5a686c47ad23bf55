"""Detectron2's parts of a LazyConfig, once their values are checked as those of YAML configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from tr_det.detection.config.values import check_arguments, check_value

_Made = TypeVar("_Made")


def resnet(**arguments: Any) -> ResNet:
    """Return Detectron2's ResNet."""
    keys = {"freeze_at": "MODEL.BACKBONE.FREEZE_AT", "out_features": "MODEL.RESNETS.OUT_FEATURES"}
    return _made(ResNet, arguments, "model.backbone.bottom_up", keys)


def fpn(**arguments: Any) -> FPN:
    """Return Detectron2's FPN."""
    keys = {"out_channels": "MODEL.FPN.OUT_CHANNELS", "fuse_type": "MODEL.FPN.FUSE_TYPE"}
    return _made(FPN, arguments, "model.backbone", keys)


def head(**arguments: Any) -> RetinaNetHead:
    """Return Detectron2's head of a RetinaNet."""
    keys = {"prior_prob": "MODEL.RETINANET.PRIOR_PROB"}
    return _made(RetinaNetHead, arguments, "model.head", keys)


def anchors(**arguments: Any) -> DefaultAnchorGenerator:
    """Return Detectron2's generator of anchors."""
    names = ("sizes", "aspect_ratios", "offset")
    keys = {name: f"MODEL.ANCHOR_GENERATOR.{name.upper()}" for name in names}
    return _made(DefaultAnchorGenerator, arguments, "model.anchor_generator", keys)


def matcher(**arguments: Any) -> Matcher:
    """Return Detectron2's matcher of anchors and boxes."""
    keys = {name: f"MODEL.RETINANET.IOU_{name.upper()}" for name in ("thresholds", "labels")}
    return _made(Matcher, arguments, "model.anchor_matcher", keys)


def box_transform(**arguments: Any) -> Box2BoxTransform:
    """Return Detectron2's coding of boxes."""
    keys = {"weights": "MODEL.RETINANET.BBOX_REG_WEIGHTS"}
    return _made(Box2BoxTransform, arguments, "model.box2box_transform", keys)


def train_resize(**arguments: Any) -> ResizeShortestEdge:
    """Return Detectron2's resizing of training images."""
    sides, place = arguments["short_edge_length"], "dataloader.train.mapper.augmentations"
    sides = [sides] if isinstance(sides, int) else sides
    check_value("INPUT.MIN_SIZE_TRAIN", sides, f"{place}.short_edge_length")
    keys = {"max_size": "INPUT.MAX_SIZE_TRAIN", "sample_style": "INPUT.MIN_SIZE_TRAIN_SAMPLING"}
    return _made(ResizeShortestEdge, arguments, place, keys)


def eval_resize(**arguments: Any) -> ResizeShortestEdge:
    """Return Detectron2's resizing of images that are evaluated."""
    keys = {"short_edge_length": "INPUT.MIN_SIZE_TEST", "max_size": "INPUT.MAX_SIZE_TEST"}
    return _made(ResizeShortestEdge, arguments, "dataloader.test.mapper.augmentations", keys)


def train_loader(**arguments: Any) -> Any:
    """Return Detectron2's loader of training batches."""
    keys = {"total_batch_size": "SOLVER.IMS_PER_BATCH", "num_workers": "DATALOADER.NUM_WORKERS"}
    return _made(build_detection_train_loader, arguments, "dataloader.train", keys)


def eval_loader(**arguments: Any) -> Any:
    """Return Detectron2's loader of images that are evaluated."""
    keys = {"num_workers": "DATALOADER.NUM_WORKERS"}
    return _made(build_detection_test_loader, arguments, "dataloader.test", keys)


def _made(
    make: Callable[..., _Made], arguments: Mapping[str, Any], place: str, keys: Mapping[str, str]
) -> _Made:
    check_arguments(arguments, keys, f"{place}.")
    return make(**arguments)
