"""The core: quantizers, quantized layers and TR-scheduled optimizers.

Imports torch and fvcore.common only; knows tensors and modules, no datasets, files or command
lines.
"""

from tr_det.core.codes import CodeBook, Update
from tr_det.core.errors import ConfigError
from tr_det.core.methods import METHODS, Attached, Method, Run, attach, build_method
from tr_det.core.nn import (
    LayerReport,
    OutputScale,
    QuantConfig,
    QuantConv2d,
    QuantLinear,
    QuantReport,
    QuantRule,
    dequantize_layers,
    dequantize_model,
    is_calibrated,
    quantize_model,
    quantized_layers,
    quantized_weights_anew,
    quantized_weights_once,
    register_quant_layer,
    set_scales,
)
from tr_det.core.optim import (
    SGDT,
    AdagradT,
    AdamaxT,
    AdamT,
    AdamWT,
    NAdamT,
    RMSpropT,
    TransitionMetrics,
    TransitionScheduled,
    quantized_weight_groups,
    quantizer_groups,
    tr_param_groups,
)
from tr_det.core.optim.groups import without_transition
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
