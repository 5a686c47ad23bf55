"""MobileNetV2 (Sandler et al., CVPR 2018) as a backbone of Detectron2; torchvision's definition."""

from __future__ import annotations

from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2

from tr_det.detection.modeling.quantize import quantize_backbone
from tr_det.detection.modeling.resnet import build_fpn

LAST_BLOCKS = {"res2": 3, "res3": 6, "res4": 13, "res5": 18}
"""Feature -> index of the last block at its stride. They have the names of a ResNet's features of
the same stride (4, 8, 16, 32), so that an FPN and its config serve both."""


class MobileNetV2(Backbone):
    """MobileNetV2 without its classifier; parameters have torchvision's names (``features.*``).

    res2, res3 and res4 are outputs of linear bottlenecks, which can be negative; res5 follows a
    ReLU6.

    Args:
        width: multiplier of all channels.
        norm: as for Detectron2's ``get_norm``.
        out_features: of ``res2`` to ``res5``.
        in_channels: of the image; 3.

    Raises:
        ValueError: an unknown feature, or another number of channels.
    """

    def __init__(
        self,
        width: float = 1.0,
        norm: str = "BN",
        out_features: tuple[str, ...] = ("res3", "res4", "res5"),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        unknown = sorted(set(out_features) - set(LAST_BLOCKS))
        if unknown or in_channels != 3:
            raise ValueError(
                f"MobileNetV2: out_features={list(out_features)}, in_channels={in_channels}: must "
                f"be of {list(LAST_BLOCKS)}, and 3"
            )
        whole = TorchvisionMobileNetV2(width_mult=width, norm_layer=partial(get_norm, norm))
        self.features = whole.features
        self._out_features = list(out_features)
        self._out_feature_channels = {
            name: _last_conv(self.features[index]).out_channels
            for name, index in LAST_BLOCKS.items()
        }
        self._out_feature_strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of an image batch (N, 3, H, W)."""
        wanted = {LAST_BLOCKS[name]: name for name in self._out_features}
        outputs = {}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in wanted:
                outputs[wanted[index]] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_quant_mobilenetv2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build MobileNetV2 from ``cfg.MODEL.MOBILENETV2``, quantized by ``cfg.MODEL.QUANT``."""
    return quantize_backbone(_build(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_retinanet_quant_mobilenetv2_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> Backbone:
    """Build MobileNetV2 + FPN with levels p3 to p7 for RetinaNet, quantized likewise."""
    return quantize_backbone(build_fpn(cfg, _build(cfg, input_shape)), cfg)


def _build(cfg: CfgNode, input_shape: ShapeSpec) -> MobileNetV2:
    node = cfg.MODEL.MOBILENETV2
    return MobileNetV2(node.WIDTH, node.NORM, tuple(node.OUT_FEATURES), input_shape.channels)


def _last_conv(block: nn.Module) -> nn.Conv2d:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)][-1]
