"""What each value of a config may be: one table for YAML configs, also in Detectron2's own tools.

The arguments that a LazyConfig gives to RetinaNet, to the other parts and to the optimizer are
checked by it too.

What depends on other keys, on the machine or on what is registered is checked in
`tr_det.detection.config.checks`; ``MODEL.QUANT``, ``SOLVER.TR`` and ``METHODS`` by the core.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from tr_det.core.errors import check


class Range(NamedTuple):
    """What a value may be: a test, and words after "must be"."""

    holds: Callable[[Any], bool]
    allowed: str


def _one_of(*names: str) -> Range:
    return Range(lambda v: v in names, f"one of {sorted(names)}")


def _integer(low: int, high: int | None = None) -> Range:
    words = f"at least {low}" if high is None else f"from {low} to {high}"
    most = math.inf if high is None else high
    return Range(lambda v: type(v) is int and low <= v <= most, words)


def _list(one: Range, count: int | None = None) -> Range:
    words = "a list" if count is None else {2: "two numbers", 4: "four numbers"}[count]
    return Range(
        lambda v: len(v) == (count or max(len(v), 1)) and all(map(one.holds, v)),
        f"{words}, each {one.allowed}",
    )


POSITIVE = Range(lambda v: 0 < v < math.inf, "positive")
NOT_NEGATIVE = Range(lambda v: 0 <= v < math.inf, "not negative")
SHARE = Range(lambda v: 0 <= v <= 1, "in [0, 1]")
BELOW_1 = Range(lambda v: 0 <= v < 1, "in [0, 1)")
FINITE = Range(math.isfinite, "finite")
SIZE, COUNT = _integer(1), _integer(0)
NAMES = Range(
    lambda v: isinstance(v, list | tuple) and all(isinstance(one, str) for one in v),
    "a list of names",
)
_POSITIVES = _list(POSITIVE)
ANCHORS = Range(  # of all levels alike, or a list for each
    lambda v: _POSITIVES.holds(v) if type(v[0]) in (int, float) else all(map(_POSITIVES.holds, v)),
    "a list of positive numbers, or of such lists",
)

VALUES: dict[str, Range] = {
    "DATASETS.TRAIN": NAMES,
    "DATASETS.TEST": NAMES,
    "MODEL.PIXEL_MEAN": _list(FINITE),
    "MODEL.PIXEL_STD": _list(POSITIVE),
    "MODEL.BACKBONE.FREEZE_AT": _integer(0, 5),
    "MODEL.RESNETS.OUT_FEATURES": _list(_one_of("stem", "res2", "res3", "res4", "res5")),
    "MODEL.RESNETS.NUM_GROUPS": SIZE,
    "MODEL.RESNETS.WIDTH_PER_GROUP": SIZE,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": SIZE,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": SIZE,
    "MODEL.RESNETS.RES5_DILATION": _integer(1, 2),
    "MODEL.MOBILENETV2.WIDTH": POSITIVE,
    "MODEL.TIMM.NORM": _one_of("BN", "SyncBN", "FrozenBN"),
    "MODEL.TIMM.OUT_FEATURES": _list(_one_of("res2", "res3", "res4", "res5")),
    "MODEL.TIMM.NORMALIZATION": _one_of("weights", "config"),
    "MODEL.MOBILENETV2.OUT_FEATURES": NAMES,
    "MODEL.FPN.IN_FEATURES": NAMES,
    "MODEL.FPN.OUT_CHANNELS": SIZE,
    "MODEL.FPN.FUSE_TYPE": _one_of("sum", "avg"),
    "MODEL.ANCHOR_GENERATOR.SIZES": ANCHORS,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ANCHORS,
    "MODEL.ANCHOR_GENERATOR.OFFSET": BELOW_1,
    "MODEL.RETINANET.NUM_CLASSES": SIZE,
    "MODEL.RETINANET.IN_FEATURES": NAMES,
    "MODEL.RETINANET.NUM_CONVS": SIZE,  # Detectron2 takes the width of the last one
    "MODEL.RETINANET.IOU_THRESHOLDS": Range(
        lambda v: all(0 < one <= 1 for one in v) and list(v) == sorted(v) != [],
        "numbers in (0, 1] in ascending order",
    ),
    "MODEL.RETINANET.IOU_LABELS": _list(Range(lambda v: v in (-1, 0, 1), "0, -1 or 1")),
    "MODEL.RETINANET.PRIOR_PROB": Range(lambda v: 0 < v < 1, "in (0, 1)"),
    "MODEL.RETINANET.SCORE_THRESH_TEST": BELOW_1,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": SIZE,
    "MODEL.RETINANET.NMS_THRESH_TEST": SHARE,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _list(POSITIVE, 4),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _one_of("smooth_l1", "giou", "diou", "ciou"),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": NOT_NEGATIVE,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": Range(
        lambda v: 0 <= v <= 1 or v == -1, "in [0, 1], or -1 for no weighting"
    ),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": NOT_NEGATIVE,
    "MODEL.RPN.IN_FEATURES": NAMES,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": SIZE,
    "MODEL.RPN.POSITIVE_FRACTION": SHARE,
    "MODEL.RPN.SMOOTH_L1_BETA": NOT_NEGATIVE,
    "MODEL.RPN.NMS_THRESH": SHARE,
    "MODEL.ROI_HEADS.IN_FEATURES": NAMES,
    "MODEL.ROI_HEADS.NUM_CLASSES": SIZE,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": SIZE,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": BELOW_1,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": SHARE,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": NOT_NEGATIVE,
    "MODEL.QUANT.CALIBRATION_BATCHES": SIZE,
    "INPUT.MIN_SIZE_TRAIN": _list(Range(SIZE.holds, "an integer, at least 1")),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": SIZE,
    "INPUT.MIN_SIZE_TEST": COUNT,  # 0: Detectron2 does not resize
    "INPUT.MAX_SIZE_TEST": SIZE,
    "INPUT.RANDOM_FLIP": _one_of("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": _one_of("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": _list(POSITIVE, 2),
    "DATALOADER.NUM_WORKERS": _integer(0, 128),  # each holds a hundred megabytes or more
    "DATALOADER.REPEAT_THRESHOLD": SHARE,
    "SOLVER.MAX_ITER": SIZE,
    "SOLVER.TR.REPLAY_AS": _one_of("curve", "cosine"),
    "SOLVER.IMS_PER_BATCH": SIZE,
    "SOLVER.CHECKPOINT_PERIOD": SIZE,
    "SOLVER.KEEP_CHECKPOINTS": COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": COUNT,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.BIAS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.SCALE_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.QUANT_WEIGHT_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.MOMENTUM": BELOW_1,
    "SOLVER.BETAS": _list(BELOW_1, 2),
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": Range(lambda v: v is None or 0 <= v < math.inf, "not negative"),
    "SOLVER.WEIGHT_DECAY_BIAS": Range(
        # Not made a float where it is read, as None is one of its values.
        lambda v: v is None or 0 <= v <= sys.float_info.max,
        "not negative",
    ),
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.STEPS": Range(
        lambda v: all(map(COUNT.holds, v)) and list(v) == sorted(v), "integers in ascending order"
    ),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": COUNT,
    "SOLVER.WARMUP_METHOD": _one_of("constant", "linear"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Range(lambda v: v > 0, "positive"),
    "SOLVER.TR.LOG_PERIOD": SIZE,
    "TEST.DETECTIONS_PER_IMAGE": SIZE,
    "TEST.EVAL_PERIOD": COUNT,
    "TEST.PRECISE_BN.NUM_ITER": SIZE,
    "TEST.AUG.ENABLED": Range(lambda v: not v, "False; test-time augmentation is not supported"),
    "OUTPUT_DIR": Range(lambda v: v.strip() != "", "the name of a folder"),
    "SEED": Range(lambda v: type(v) is int and v < 2**31, "below 2**31; negative draws one"),
    "VIS_PERIOD": COUNT,
}

ARGUMENTS = {
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "num_classes": "MODEL.RETINANET.NUM_CLASSES",
    "focal_loss_alpha": "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
    "focal_loss_gamma": "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
    "smooth_l1_beta": "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "box_reg_loss_type": "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
    "test_score_thresh": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "test_topk_candidates": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "test_nms_thresh": "MODEL.RETINANET.NMS_THRESH_TEST",
    "max_detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
}
"""RetinaNet's arguments, which LazyConfigs give, -> the keys of a YAML config."""


def check_value(key: str, value: Any, name: str = "") -> None:
    """Raise ConfigError, under the name or else the key, unless a key may have the value."""
    holds, allowed = VALUES[key]
    try:
        fits = holds(value)
    except (TypeError, IndexError):  # None, or a list for a number
        fits = False
    check(name or key, value, fits, allowed)


def check_values(cfg: CfgNode) -> None:
    """Raise ConfigError for a value of a config that cannot be meant."""
    for key in VALUES:
        check_value(key, value_of(cfg, key))


def check_arguments(
    arguments: Mapping[str, Any], keys: Mapping[str, str] = ARGUMENTS, prefix: str = ""
) -> None:
    """Raise ConfigError for a value among arguments that cannot be meant.

    Args:
        arguments: by name; of those without a key nothing is checked.
        keys: name -> key of a YAML config.
        prefix: of names in the error.
    """
    for name, key in keys.items():
        if name in arguments:
            check_value(key, arguments[name], f"{prefix}{name}")


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key, or None if there is none."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CfgNode) else None
    return node
