"""RetinaNet with a quantized backbone, FPN and head."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from torch import Tensor, nn

from tr_det.core import QuantConfig, QuantReport, quantized_weights_once
from tr_det.detection.config.quantization import quant_config_from
from tr_det.detection.config.values import check_arguments
from tr_det.detection.modeling.quantize import quantize_logged


class ReLUInputHead(RetinaNetHead):
    """Detectron2's head with a ReLU on its inputs.

    Each conv of the subnets is followed by a ReLU already; with this one every convolution of the
    head has non-negative inputs, as in the paper.
    """

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Apply to FPN levels, each (N, C, H, W)."""
        return super().forward([F.relu(feature) for feature in features])


@META_ARCH_REGISTRY.register()
class QuantRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, quantized by ``cfg.MODEL.QUANT``.

    Args:
        quant: how to quantize, or None for full precision.
        head_input_relu: put a ReLU on the head's inputs.
        **kwargs: as for ``RetinaNet``.

    Attributes:
        quant_report: what was quantized, or None.
    """

    @configurable
    def __init__(
        self, *, quant: QuantConfig | None = None, head_input_relu: bool = True, **kwargs: Any
    ) -> None:
        check_arguments(kwargs)
        super().__init__(**kwargs)
        if head_input_relu:
            # from_config of the base class makes the head itself; the subclass adds no state.
            self.head.__class__ = ReLUInputHead
        self.quant_report: QuantReport | None = None
        if quant is not None:
            self.quant_report = quantize_logged(self, quant)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return losses in training, detections otherwise; as ``RetinaNet``."""
        with quantized_weights_once():  # the head runs once per pyramid level
            return super().forward(batched_inputs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the constructor's arguments from a config."""
        # First, so that a bad value is reported before anything is built from it.
        quant = quant_config_from(cfg) if cfg.MODEL.QUANT.ENABLED else None
        parts = _parts_with_group_norm if cfg.MODEL.RETINANET.NORM == "GN" else super().from_config
        return {
            **parts(cfg),
            "quant": quant,
            "head_input_relu": cfg.MODEL.QUANT.HEAD_INPUT_RELU,
        }


def _parts_with_group_norm(cfg: CfgNode) -> dict[str, Any]:
    """Return RetinaNet's arguments with group norm in the head.

    Detectron2 makes a norm of one channel to see its kind, which torch refuses for 32 groups.
    """
    without = cfg.clone()
    without.defrost()
    without.MODEL.RETINANET.NORM = ""
    parts = RetinaNet.from_config(without)
    shapes = parts["backbone"].output_shape()
    head = RetinaNetHead.from_config(without, [shapes[name] for name in parts["head_in_features"]])
    parts["head"] = RetinaNetHead(**{**head, "norm": _group_norm})
    return parts


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)
