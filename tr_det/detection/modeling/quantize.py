"""Quantization of detectors and of their backbones by ``cfg.MODEL.QUANT``."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import nn

import tr_det.detection.modeling.layers  # noqa: F401  registers the quantized Conv2d
from tr_det.core import (
    ConfigError,
    QuantConfig,
    QuantReport,
    quantize_model,
    quantized_layers,
)
from tr_det.detection.config.quantization import quant_config_from, under_quant_key


def build_detector(cfg: CfgNode, build_model: Callable[[CfgNode], nn.Module]) -> nn.Module:
    """Build a detector and quantize it; what the config gets wrong is named by its key.

    Args:
        cfg: the config.
        build_model: Detectron2's.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    try:
        try:
            model = build_model(cfg)
        except (KeyError, AssertionError) as error:  # Detectron2's way to refuse a value
            raise ValueError(f"MODEL: Detectron2 cannot build it: {error}") from error
        quantize_detector(model, cfg)
    except ConfigError as error:
        raise under_quant_key(cfg, error) from None
    if cfg.MODEL.QUANT.ENABLED and not any(quantized_layers(model)):
        raise ValueError(
            f"MODEL.QUANT.ENABLED=True, but no layer of {cfg.MODEL.META_ARCHITECTURE} with "
            f"{cfg.MODEL.BACKBONE.NAME} is quantized"
        )
    return model


def quantize_detector(model: nn.Module, cfg: CfgNode) -> QuantReport | None:
    """Quantize a detector of any architecture in place, if ``cfg.MODEL.QUANT.ENABLED``.

    An architecture that quantizes its own layers (``QuantRetinaNet``) stays as it is. So does a
    quantized backbone under another architecture; as nothing else is quantized there, every rule
    must match one of its layers, but for those that skip a layer of another part.

    Args:
        model: a detector as ``detectron2.modeling.build_model`` makes it.
        cfg: the config; ``MODEL.QUANT.HEAD_INPUT_RELU`` is for ``QuantRetinaNet`` only.

    Returns:
        The report, also ``model.quant_report``; None if nothing was done.

    Raises:
        ValueError: a value of ``cfg.MODEL.QUANT`` that cannot be followed.
    """
    quantized = [name for name, _ in quantized_layers(model)]
    quantizes_itself = getattr(model, "quant_report", None) is not None or any(
        not name.startswith("backbone.") for name in quantized
    )
    if not cfg.MODEL.QUANT.ENABLED or quantizes_itself:
        return None
    config = quant_config_from(cfg)
    if quantized:
        names = [name for name, _ in model.named_modules()]
        rules = []
        for rule in config.rules:
            skips = bool(rule.skip and fnmatch.filter(names, rule.pattern))
            rules.append(replace(rule, optional=rule.optional or skips))
        backbone = model.get_submodule("backbone")
        report = quantize_logged(backbone, replace(config, rules=tuple(rules)), "backbone")
    else:
        report = quantize_logged(model, config)
    model.quant_report = report  # type: ignore[assignment]
    return report


def quantize_backbone(backbone: Backbone, cfg: CfgNode) -> Backbone:
    """Quantize a backbone in place by ``cfg.MODEL.QUANT``, if that is enabled, and return it."""
    if cfg.MODEL.QUANT.ENABLED:
        config = quant_config_from(cfg)
        # Rules may speak of the head as well; whether each of them matches is checked where the
        # whole model is known.
        rules = tuple(replace(rule, optional=True) for rule in config.rules)
        _quantize(backbone, replace(config, rules=rules), "backbone")
    return backbone


def quantize_logged(model: nn.Module, config: QuantConfig, prefix: str = "") -> QuantReport:
    """Quantize a detector in place, log the report and return it.

    Args:
        model: the detector, or a part of it.
        config: bits, quantizers and rules.
        prefix: name of the part.

    Raises:
        ConfigError: as `tr_det.core.quantize_model`.
    """
    report = _quantize(model, config, prefix)
    logging.getLogger(__name__).info("Quantization:\n%s", report.table())
    return report


def _quantize(model: nn.Module, config: QuantConfig, prefix: str) -> QuantReport:
    """Quantize; scales of layers with frozen weights (``MODEL.BACKBONE.FREEZE_AT``) are frozen too.

    Detectron2 freezes stages when it builds them, before they get their scales.
    """
    report = quantize_model(model, config, prefix)
    for _name, layer in quantized_layers(model):
        if not layer.weight.requires_grad:
            layer.requires_grad_(False)
    return report
