"""Quantized ResNet backbones for Detectron2's ``BACKBONE_REGISTRY``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem

from tr_det.core.errors import check
from tr_det.detection.modeling.quantize import quantize_backbone

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
DEPTHS = (18, 34, 50, 101, 152)
"""What Detectron2 builds."""


@BACKBONE_REGISTRY.register()
def build_quant_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build a ResNet from ``cfg.MODEL.RESNETS``, quantized by ``cfg.MODEL.QUANT``.

    The same as Detectron2's ``build_resnet_backbone``; besides, ResNet-18 and -34 may be of any
    width (``RES2_OUT_CHANNELS`` and ``STEM_OUT_CHANNELS``).
    """
    return quantize_backbone(_build_resnet(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_retinanet_quant_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build ResNet + FPN with levels p3 to p7 for RetinaNet, quantized by ``cfg.MODEL.QUANT``."""
    return quantize_backbone(build_fpn(cfg, _build_resnet(cfg, input_shape)), cfg)


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Return an FPN with levels p3 to p7 over a backbone with a feature res5."""
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(bottom_up.output_shape()["res5"].channels, out_channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def check_resnet(cfg: CfgNode) -> None:
    """Check the keys of ``MODEL.RESNETS`` that only some depths can follow.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    node = cfg.MODEL.RESNETS
    check("MODEL.RESNETS.DEPTH", node.DEPTH, node.DEPTH in DEPTHS, f"one of {list(DEPTHS)}")
    if node.DEPTH not in BLOCKS_PER_STAGE:
        return
    allowed = {"RES5_DILATION": 1, "NUM_GROUPS": 1, "DEFORM_ON_PER_STAGE": [False] * 4}
    for key, value in allowed.items():
        own = list(node[key]) if isinstance(node[key], tuple) else node[key]
        check(f"MODEL.RESNETS.{key}", own, own == value, f"{value} for ResNet-{node.DEPTH}")


def _build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    check_resnet(cfg)
    node = cfg.MODEL.RESNETS
    if node.DEPTH not in BLOCKS_PER_STAGE or node.RES2_OUT_CHANNELS == 64:
        return build_resnet_backbone(cfg, input_shape)
    # Detectron2 builds ResNet-18 and -34 at 64 channels only.
    stem = BasicStem(
        in_channels=input_shape.channels, out_channels=node.STEM_OUT_CHANNELS, norm=node.NORM
    )
    stages = []
    in_channels, out_channels = node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[node.DEPTH]):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks,
                stride_per_block=[1 if index == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=node.NORM,
            )
        )
        in_channels, out_channels = out_channels, out_channels * 2
    return ResNet(
        stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
