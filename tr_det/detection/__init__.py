"""Detectron2 side: the only package that imports detectron2.

Importing it registers the quantized backbones, the ``QuantRetinaNet`` architecture and the
embedded datasets.
"""

from tr_det.detection.backbone import (
    build_quant_resnet_backbone,
    build_retinanet_quant_resnet_fpn_backbone,
)
from tr_det.detection.calibration import calibrate
from tr_det.detection.checkpoint import QuantCheckpointer
from tr_det.detection.config import add_tr_det_config, quant_config_from
from tr_det.detection.data import register_digit_scenes
from tr_det.detection.layers import QuantConv2dNorm
from tr_det.detection.mobilenet import (
    MobileNetV2,
    build_quant_mobilenetv2_backbone,
    build_retinanet_quant_mobilenetv2_fpn_backbone,
)
from tr_det.detection.quantize import quantize_detector
from tr_det.detection.retinanet import QuantRetinaNet
from tr_det.detection.solver import OPTIMIZER_REGISTRY, build_optimizer
from tr_det.detection.trainer import QuantTrainer

register_digit_scenes()

__all__ = [
    "OPTIMIZER_REGISTRY",
    "MobileNetV2",
    "QuantCheckpointer",
    "QuantConv2dNorm",
    "QuantRetinaNet",
    "QuantTrainer",
    "add_tr_det_config",
    "build_optimizer",
    "build_quant_mobilenetv2_backbone",
    "build_quant_resnet_backbone",
    "build_retinanet_quant_resnet_fpn_backbone",
    "build_retinanet_quant_mobilenetv2_fpn_backbone",
    "calibrate",
    "quant_config_from",
    "quantize_detector",
    "register_digit_scenes",
]
