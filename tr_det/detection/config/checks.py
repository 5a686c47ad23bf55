"""One check of a whole config, at the edge: key, value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from fvcore.common.registry import Registry

from tr_det.core import ConfigError
from tr_det.core.errors import check, check_among
from tr_det.core.transition.settings import TransitionSettings, arguments_from
from tr_det.detection.config.quantization import quant_config_from
from tr_det.detection.engine.amp import amp_dtype
from tr_det.detection.modeling.resnet import check_resnet
from tr_det.detection.solver.methods import clip_from
from tr_det.detection.solver.optimizers import OPTIMIZER_REGISTRY, config_key, transition_from
from tr_det.runtime.options import methods_from

_NUMBERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("SOLVER.MAX_ITER", lambda v: v >= 1, "at least 1"),
    ("SOLVER.IMS_PER_BATCH", lambda v: v >= 1, "at least 1"),
    ("SOLVER.CHECKPOINT_PERIOD", lambda v: v >= 1, "at least 1"),
    ("SOLVER.BASE_LR", lambda v: v > 0, "positive"),
    ("SOLVER.MOMENTUM", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("SOLVER.WEIGHT_DECAY", lambda v: v >= 0, "not negative"),
    (
        "SOLVER.BETAS",
        lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v),
        "two numbers in [0, 1)",
    ),
    ("SOLVER.SCALE_LR_FACTOR", lambda v: v >= 0, "not negative"),
    ("SOLVER.TR.LOG_PERIOD", lambda v: v >= 1, "at least 1"),
    ("MODEL.QUANT.CALIBRATION_BATCHES", lambda v: v >= 1, "at least 1"),
    ("DATALOADER.NUM_WORKERS", lambda v: v >= 0, "not negative"),
    ("TEST.AUG.ENABLED", lambda v: not v, "False; test-time augmentation is not supported"),
)

_NAMES: tuple[tuple[str, Registry], ...] = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
    ("SOLVER.OPTIMIZER", OPTIMIZER_REGISTRY),
)


def check_config(cfg: CfgNode) -> None:
    """Check what would be reported late, poorly or never.

    Whether the globs of ``MODEL.QUANT.SKIP`` and ``RULES`` match is known with the model
    (`tr_det.detection.modeling.quantize.build_detector`).

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    for key, holds, allowed in _NUMBERS:
        check(key, value_of(cfg, key), holds(value_of(cfg, key)), allowed)
    for key, registry in _NAMES:
        check_among(key, value_of(cfg, key), [name for name, _ in registry])
    clip_from(cfg)
    _check_transition(cfg)
    methods_from(cfg.SOLVER.METHODS, "SOLVER.METHODS")
    _check_expected_results(cfg)
    _check_device(cfg)
    if cfg.SOLVER.AMP.ENABLED:
        amp_dtype(cfg)
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        check_resnet(cfg)
    if cfg.MODEL.QUANT.ENABLED:
        quant_config_from(cfg)


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key, or None if there is none."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CfgNode) else None
    return node


def _check_transition(cfg: CfgNode) -> None:
    arguments = arguments_from(transition_from(cfg))
    settings = {key.removeprefix("tr_"): value for key, value in arguments.items()}
    try:
        TransitionSettings(total_steps=cfg.SOLVER.MAX_ITER, **settings)
    except ConfigError as error:
        raise error.renamed(config_key(error.key)) from None


def _check_expected_results(cfg: CfgNode) -> None:
    """Check what Detectron2 looks up when all is trained."""
    tasks = ["bbox", *["segm"] * cfg.MODEL.MASK_ON, *["keypoints"] * cfg.MODEL.KEYPOINT_ON]
    known = any(part in cfg.MODEL.META_ARCHITECTURE for part in ("Retina", "FCOS", "RCNN"))
    expected = cfg.TEST.EXPECTED_RESULTS
    holds = all(
        isinstance(entry, list | tuple)
        and len(entry) == 4
        and (entry[0] in tasks or not known)
        and all(isinstance(number, int | float) for number in entry[2:])
        for entry in expected
    )
    allowed = "a list of [task, metric, value, tolerance], e.g. ['bbox', 'AP', 38.5, 0.2]"
    allowed += f", with a task of {tasks}" if known else ""
    check("TEST.EXPECTED_RESULTS", expected, holds, allowed)


def _check_device(cfg: CfgNode) -> None:
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("MODEL.DEVICE", name, "'cpu', 'cuda' or 'cuda:N'") from None
    visible = device.type != "cuda" or torch.cuda.is_available()
    check("MODEL.DEVICE", name, visible, "'cpu', as no GPU is visible")
    for part in ("RESNETS", "FPN") if device.type == "cpu" and comm.get_world_size() > 1 else ():
        norm = cfg.MODEL[part].NORM
        allowed = "'naiveSyncBN' or 'BN' with several processes on a CPU"
        check(f"MODEL.{part}.NORM", norm, norm != "SyncBN", allowed)
