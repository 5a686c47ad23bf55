"""Quantization of any detector of Detectron2, by ``cfg.MODEL.QUANT``."""

from __future__ import annotations

import logging
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from tr_det.core import QuantReport, QuantRule, quantize_model, quantized_layers
from tr_det.detection.config.quantization import quant_config_from
from tr_det.detection.modeling import layers as _  # noqa: F401  registers the quantized Conv2d

FPN_READERS = (
    "proposal_generator.rpn_head.conv",
    "proposal_generator.rpn_head.conv.conv0",
    "roi_heads.box_head*.fc1",
    "roi_heads.box_head*.conv1",
    "roi_heads.mask_head.mask_fcn1",
    "roi_heads.keypoint_head.conv_fcn1",
    "head.cls_subnet.0",
    "head.bbox_subnet.0",
)
"""Layers that read FPN levels with no ReLU between. After a C4 backbone's ReLU, or behind another
layer, the signed grid costs them a bit, no more."""


def quantize_detector(model: nn.Module, cfg: CfgNode) -> QuantReport | None:
    """Quantize a detector of any architecture in place, if ``cfg.MODEL.QUANT.ENABLED``.

    A model that has quantized layers already (``QuantRetinaNet``, or a quantized backbone under an
    architecture of Detectron2's own) stays as it is.

    Args:
        model: a detector as ``detectron2.modeling.build_model`` makes it.
        cfg: the config; ``MODEL.QUANT.HEAD_INPUT_RELU`` is for ``QuantRetinaNet`` only.

    Returns:
        The report, also ``model.quant_report``; None if nothing was done.

    Raises:
        ValueError: a value of ``cfg.MODEL.QUANT`` that cannot be followed.
    """
    if not cfg.MODEL.QUANT.ENABLED or any(quantized_layers(model)):
        return None
    config = quant_config_from(cfg)
    rules = (*_signed_inputs(model), *config.rules)  # the user's come last and win
    report = quantize_model(model, replace(config, rules=rules))
    model.quant_report = report  # type: ignore[assignment]
    logging.getLogger(__name__).info("Quantization:\n%s", report.table())
    return report


def _signed_inputs(model: nn.Module) -> list[QuantRule]:
    """Return rules for the layers whose inputs can be negative."""
    patterns = list(FPN_READERS)
    for name, module in model.named_modules():
        # p6 reads a ReLU's output, the backbone's, or an FPN level.
        if isinstance(module, LastLevelP6P7) and module.in_feature.startswith("p"):
            patterns.append(f"{name}.p6")
    return [QuantRule(pattern=pattern, signed_input=True, optional=True) for pattern in patterns]
