"""The core: quantizers, quantized layers and TR-scheduled optimizers.

Imports torch and fvcore.common only; knows tensors and modules, no datasets, files or command
lines.
"""

from tr_det.core.codes import CodeBook, Update
from tr_det.core.errors import ConfigError
from tr_det.core.methods import METHODS, Attached, Method, Run, attach, build_method
from tr_det.core.nn.calibrate import is_calibrated, set_scales
from tr_det.core.nn.config import QuantConfig, QuantRule
from tr_det.core.nn.convert import quantize_model, quantized_layers, register_quant_layer
from tr_det.core.nn.dequantize import dequantize_layers, dequantize_model
from tr_det.core.nn.layers import QuantConv2d, QuantLinear
from tr_det.core.nn.output_scale import OutputScale
from tr_det.core.nn.report import LayerReport, QuantReport
from tr_det.core.nn.shared_weights import quantized_weights_anew, quantized_weights_once
from tr_det.core.optim.controllers import TransitionMetrics
from tr_det.core.optim.groups import (
    quantized_weight_groups,
    quantizer_groups,
    tr_param_groups,
    without_transition,
)
from tr_det.core.optim.optimizers import SGDT, AdagradT, AdamaxT, AdamT, AdamWT, NAdamT, RMSpropT
from tr_det.core.optim.scheduled import TransitionScheduled
from tr_det.core.quantizers import QUANTIZERS, Quantizer, build_quantizer

__all__ = [
    "METHODS",
    "QUANTIZERS",
    "SGDT",
    "AdagradT",
    "AdamT",
    "AdamWT",
    "AdamaxT",
    "Attached",
    "CodeBook",
    "ConfigError",
    "LayerReport",
    "Method",
    "NAdamT",
    "OutputScale",
    "QuantConfig",
    "QuantConv2d",
    "QuantLinear",
    "QuantReport",
    "QuantRule",
    "Quantizer",
    "RMSpropT",
    "Run",
    "TransitionMetrics",
    "TransitionScheduled",
    "Update",
    "attach",
    "build_method",
    "build_quantizer",
    "dequantize_layers",
    "dequantize_model",
    "is_calibrated",
    "quantize_model",
    "quantized_layers",
    "quantized_weight_groups",
    "quantized_weights_anew",
    "quantized_weights_once",
    "quantizer_groups",
    "register_quant_layer",
    "set_scales",
    "tr_param_groups",
    "without_transition",
]
