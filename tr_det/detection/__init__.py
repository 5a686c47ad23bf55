"""Detectron2 side: the only package that imports detectron2.

Importing it registers the quantized backbones, the ``QuantRetinaNet`` architecture and the
embedded datasets; Detectron2's ``build_model`` then follows ``MODEL.QUANT``, and its checkpointer
refuses to load a quantized checkpoint into a model that is not.
"""

from tr_det.detection.checkpoint.checkpointer import QuantCheckpointer
from tr_det.detection.checkpoint.label import label_checkpoints
from tr_det.detection.config.keys import add_tr_det_config
from tr_det.detection.config.quantization import quant_config_from
from tr_det.detection.data.datasets import register_digit_scenes
from tr_det.detection.engine.calibration import calibrate
from tr_det.detection.engine.trainer import QuantTrainer
from tr_det.detection.modeling.build import follow_quant_keys
from tr_det.detection.modeling.layers import QuantConv2dNorm
from tr_det.detection.modeling.mobilenet import (
    MobileNetV2,
    build_quant_mobilenetv2_backbone,
    build_retinanet_quant_mobilenetv2_fpn_backbone,
)
from tr_det.detection.modeling.quantize import quantize_detector
from tr_det.detection.modeling.resnet import (
    build_quant_resnet_backbone,
    build_retinanet_quant_resnet_fpn_backbone,
)
from tr_det.detection.modeling.retinanet import QuantRetinaNet
from tr_det.detection.modeling.timm_backbone import (
    TimmBackbone,
    build_quant_timm_backbone,
    build_retinanet_quant_timm_fpn_backbone,
)
from tr_det.detection.solver.optimizers import OPTIMIZER_REGISTRY, build_optimizer

register_digit_scenes()
follow_quant_keys()
label_checkpoints()

__all__ = [
    "OPTIMIZER_REGISTRY",
    "MobileNetV2",
    "QuantCheckpointer",
    "QuantConv2dNorm",
    "QuantRetinaNet",
    "QuantTrainer",
    "TimmBackbone",
    "add_tr_det_config",
    "build_optimizer",
    "build_quant_mobilenetv2_backbone",
    "build_quant_resnet_backbone",
    "build_quant_timm_backbone",
    "build_retinanet_quant_resnet_fpn_backbone",
    "build_retinanet_quant_mobilenetv2_fpn_backbone",
    "build_retinanet_quant_timm_fpn_backbone",
    "calibrate",
    "quant_config_from",
    "quantize_detector",
    "register_digit_scenes",
]
