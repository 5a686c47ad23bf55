"""One check of a whole config, at the edge: key, value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch import nn

from tr_det.core import ConfigError, QuantRule, quantized_layers
from tr_det.core.errors import check, check_among
from tr_det.core.transition.settings import TransitionSettings, arguments_from
from tr_det.detection.config.keys import FIRST_AND_LAST
from tr_det.detection.config.quantization import parse_rule, quant_config_from
from tr_det.detection.engine.amp import amp_dtype
from tr_det.detection.modeling.resnet import check_resnet
from tr_det.detection.solver.clipping import clip_from
from tr_det.detection.solver.optimizers import OPTIMIZER_REGISTRY, config_key, transition_from
from tr_det.runtime.options import methods_from

Rule = tuple[str, Callable[[Any], bool], str]

_NUMBERS: tuple[Rule, ...] = (
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
)

_NAMES: tuple[tuple[str, Registry], ...] = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
    ("SOLVER.OPTIMIZER", OPTIMIZER_REGISTRY),
)


def check_config(cfg: CfgNode) -> None:
    """Check what would be reported late, poorly or never.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    for key, holds, allowed in _NUMBERS:
        check(key, value_of(cfg, key), holds(value_of(cfg, key)), allowed)
    for key, registry in _NAMES:
        check_among(key, value_of(cfg, key), [name for name, _ in registry])
    clip_from(cfg)
    augmented = cfg.TEST.AUG.ENABLED
    allowed = "False; test-time augmentation is not supported"
    check("TEST.AUG.ENABLED", augmented, not augmented, allowed)
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


def _check_transition(cfg: CfgNode) -> None:
    arguments = arguments_from(transition_from(cfg))
    settings = {key.removeprefix("tr_"): value for key, value in arguments.items()}
    try:
        TransitionSettings(total_steps=cfg.SOLVER.MAX_ITER, **settings)
    except ConfigError as error:
        raise error.renamed(config_key(error.key)) from None


def check_rules(cfg: CfgNode, model: nn.Module) -> None:
    """Check that every glob of ``MODEL.QUANT.SKIP`` and ``RULES`` speaks of a layer of the model.

    Under a detector of Detectron2's own only the backbone is quantized, so rules with bits must
    match there; that a layer of its head is skipped is true all the same.

    Raises:
        ConfigError: naming the key and the glob.
    """
    everywhere = [name for name, module in model.named_modules() if _has_weight(module)]
    quantized = {name for name, _ in quantized_layers(model)}
    if any(not name.startswith("backbone.") for name in quantized):
        reachable = everywhere
    else:
        reachable = [name for name in everywhere if name.startswith("backbone.")]
    for key, rule, names in _rules(cfg, everywhere, reachable):
        if not any(rule.matches(name) for name in names):
            some = ", ".join(names[:3])
            raise ConfigError(
                f"MODEL.QUANT.{key}",
                rule.pattern,
                f"a glob that matches a layer; layers are {some}, ... ({len(names)} in all)",
            )


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _rules(
    cfg: CfgNode, everywhere: list[str], reachable: list[str]
) -> Iterator[tuple[str, Any, list[str]]]:
    # The default speaks of several architectures at once.
    default = tuple(cfg.MODEL.QUANT.SKIP) == FIRST_AND_LAST
    for pattern in () if default else cfg.MODEL.QUANT.SKIP:
        yield "SKIP", QuantRule(pattern=pattern), everywhere
    for text in cfg.MODEL.QUANT.RULES:
        yield "RULES", parse_rule(text), reachable


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear)


def _check_expected_results(cfg: CfgNode) -> None:
    """Check what Detectron2 looks up when all is trained."""
    tasks = ["bbox", *["segm"] * cfg.MODEL.MASK_ON, *["keypoints"] * cfg.MODEL.KEYPOINT_ON]
    known = any(part in cfg.MODEL.META_ARCHITECTURE for part in ("Retina", "FCOS", "RCNN"))
    for entry in cfg.TEST.EXPECTED_RESULTS:
        if not (
            isinstance(entry, list | tuple)
            and len(entry) == 4
            and (entry[0] in tasks or not known)
            and all(isinstance(number, int | float) for number in entry[2:])
        ):
            raise ValueError(
                f"TEST.EXPECTED_RESULTS={cfg.TEST.EXPECTED_RESULTS!r}: must be a list of [task, "
                "metric, value, tolerance], e.g. ['bbox', 'AP', 38.5, 0.2]"
                + (f", with a task of {tasks}" if known else "")
            )


def _check_device(cfg: CfgNode) -> None:
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE={name!r}: must be 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE={name!r}: no GPU is visible; add MODEL.DEVICE cpu")
    for part in ("RESNETS", "FPN") if device.type == "cpu" and comm.get_world_size() > 1 else ():
        if cfg.MODEL[part].NORM == "SyncBN":
            raise ValueError(
                f"MODEL.{part}.NORM='SyncBN': must be 'naiveSyncBN' or 'BN' with several processes "
                "on a CPU"
            )
