"""Quantized layers, the rules that select them, and the conversion of a model."""

from tr_det.core.nn.calibrate import is_calibrated, set_scales
from tr_det.core.nn.config import QuantConfig, QuantRule
from tr_det.core.nn.convert import quantize_model, quantized_layers, register_quant_layer
from tr_det.core.nn.dequantize import dequantize_layers, dequantize_model
from tr_det.core.nn.layers import QuantConv2d, QuantLinear
from tr_det.core.nn.output_scale import OutputScale
from tr_det.core.nn.report import LayerReport, QuantReport
from tr_det.core.nn.shared_weights import quantized_weights_anew, quantized_weights_once

__all__ = [
    "LayerReport",
    "OutputScale",
    "QuantConfig",
    "QuantConv2d",
    "QuantLinear",
    "QuantReport",
    "QuantRule",
    "dequantize_layers",
    "dequantize_model",
    "is_calibrated",
    "quantize_model",
    "quantized_layers",
    "quantized_weights_anew",
    "quantized_weights_once",
    "register_quant_layer",
    "set_scales",
]
