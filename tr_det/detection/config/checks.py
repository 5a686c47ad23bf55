"""One check of a whole config, at the edge: key, value and what is allowed."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from fvcore.common.registry import Registry

from tr_det.core import ConfigError
from tr_det.core.errors import check, check_among
from tr_det.core.transition.settings import TransitionSettings, arguments_from
from tr_det.detection.config.quantization import quant_config_from
from tr_det.detection.config.timm_input import check_timm, has_timm_backbone
from tr_det.detection.config.values import check_values, value_of
from tr_det.detection.engine.amp import amp_dtype
from tr_det.detection.modeling.resnet import check_resnet
from tr_det.detection.solver.methods import clip_from
from tr_det.detection.solver.optimizers import OPTIMIZER_REGISTRY, config_key, transition_from
from tr_det.runtime.options import methods_from
from tr_det.runtime.run_folder import last_checkpoint

BANDS = {"BGR": 3, "RGB": 3, "YUV-BT.601": 3, "YCbCr": 3, "HSV": 3, "L": 1, "CMYK": 4, "RGBA": 4}
"""Format of an image, as Detectron2 reads it -> its channels."""

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
    check_values(cfg)
    for key, registry in _NAMES:
        check_among(key, value_of(cfg, key), [name for name, _ in registry])
    _check_input(cfg)
    labels, thresholds = cfg.MODEL.RETINANET.IOU_LABELS, cfg.MODEL.RETINANET.IOU_THRESHOLDS
    allowed = f"one more than MODEL.RETINANET.IOU_THRESHOLDS {thresholds}"
    check("MODEL.RETINANET.IOU_LABELS", labels, len(labels) == len(thresholds) + 1, allowed)
    images, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    allowed = f"0, or a number that divides SOLVER.IMS_PER_BATCH {images}"
    fits = not processes or images % processes == 0
    check("SOLVER.REFERENCE_WORLD_SIZE", processes, fits, allowed)
    clip_from(cfg)
    _check_transition(cfg)
    methods_from(cfg.SOLVER.METHODS, "SOLVER.METHODS")
    _check_expected_results(cfg)
    _check_device(cfg)
    if cfg.SOLVER.AMP.ENABLED:
        amp_dtype(cfg)
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        check_resnet(cfg)
    if has_timm_backbone(cfg):
        check_timm(cfg)
    elif any(name in cfg.MODEL.BACKBONE.NAME for name in ("resnet", "mobilenet")):
        allowed = f"'' with MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}; a model of timm needs "
        allowed += "build_retinanet_quant_timm_fpn_backbone"
        check("MODEL.TIMM.NAME", cfg.MODEL.TIMM.NAME, not cfg.MODEL.TIMM.NAME, allowed)
    quant_config_from(cfg)


def check_evaluated(cfg: CfgNode, resume: bool) -> None:
    """Raise ValueError if there is nothing to evaluate but random weights, or not what is asked.

    Args:
        cfg: the config.
        resume: evaluate what the run in ``OUTPUT_DIR`` ended with, not ``MODEL.WEIGHTS``.
    """
    if not resume:
        check("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, bool(cfg.MODEL.WEIGHTS), "given to --eval-only")
    elif not last_checkpoint(cfg.OUTPUT_DIR):
        raise ValueError(
            f"--resume: {cfg.OUTPUT_DIR} has no checkpoint to evaluate; without it, --eval-only "
            "evaluates MODEL.WEIGHTS"
        )


def _check_input(cfg: CfgNode) -> None:
    node, sizes = cfg.INPUT, cfg.INPUT.MIN_SIZE_TRAIN
    ascending = len(sizes) == 2 and sizes[0] <= sizes[1]
    fits = node.MIN_SIZE_TRAIN_SAMPLING == "choice" or ascending
    check("INPUT.MIN_SIZE_TRAIN", sizes, fits, "two, the least first, to sample a range")
    if node.CROP.ENABLED:
        relative, size = node.CROP.TYPE.startswith("relative"), list(node.CROP.SIZE)
        fits = max(size) <= 1 if relative else all(type(side) is int for side in size)
        allowed = "at most 1" if relative else "integers"
        check("INPUT.CROP.SIZE", size, fits, f"{allowed} with INPUT.CROP.TYPE {node.CROP.TYPE}")
    check_among("INPUT.FORMAT", node.FORMAT, BANDS)
    means, spreads = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    for key, values in (("MODEL.PIXEL_MEAN", means), ("MODEL.PIXEL_STD", spreads)):
        fits = len(values) == BANDS[node.FORMAT]
        check(key, values, fits, f"{BANDS[node.FORMAT]} numbers with INPUT.FORMAT {node.FORMAT}")


def _check_transition(cfg: CfgNode) -> None:
    factor, name = cfg.SOLVER.QUANT_WEIGHT_LR_FACTOR, cfg.SOLVER.OPTIMIZER
    scheduled = OPTIMIZER_REGISTRY.get(name).transition
    fits = factor == 1 or not scheduled
    allowed = f"1 with SOLVER.OPTIMIZER={name}, whose TALR is the rate of quantized weights"
    check("SOLVER.QUANT_WEIGHT_LR_FACTOR", factor, fits, allowed)
    replay = cfg.SOLVER.TR.REPLAY
    allowed = f"'' with SOLVER.OPTIMIZER={name}, as one with TR scheduling plays curves back"
    check("SOLVER.TR.REPLAY", replay, scheduled or not replay, allowed)
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
    gpus = torch.cuda.device_count()
    there = device.type != "cuda" or (device.index or 0) < gpus
    allowed = f"'cuda', or 'cuda:N' with N below {gpus}" if gpus else "'cpu', as no GPU is visible"
    check("MODEL.DEVICE", name, there, allowed)
    parts = ("RESNETS", "FPN", *["TIMM"] * has_timm_backbone(cfg))
    for part in parts if device.type == "cpu" and comm.get_world_size() > 1 else ():
        norm = cfg.MODEL[part].NORM
        allowed = "'naiveSyncBN' or 'BN' with several processes on a CPU"
        check(f"MODEL.{part}.NORM", norm, norm != "SyncBN", allowed)
