"""The core: quantizers, quantized layers and TR-scheduled optimizers.

Imports torch and fvcore.common only; knows tensors and modules, no datasets, files or command
lines.
"""

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
    quantize_model,
    quantized_layers,
    quantized_weights_anew,
    quantized_weights_once,
    register_quant_layer,
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
    scale_group,
    tr_param_groups,
)
from tr_det.core.optim.groups import without_transition
from tr_det.core.quantizers import QUANTIZERS, Quantizer, build_quantizer

__all__ = [
    "QUANTIZERS",
    "SGDT",
    "AdagradT",
    "AdamT",
    "AdamWT",
    "AdamaxT",
    "LayerReport",
    "NAdamT",
    "OutputScale",
    "QuantConfig",
    "QuantConv2d",
    "QuantLinear",
    "QuantReport",
    "QuantRule",
    "Quantizer",
    "RMSpropT",
    "TransitionMetrics",
    "TransitionScheduled",
    "build_quantizer",
    "dequantize_layers",
    "dequantize_model",
    "quantize_model",
    "quantized_layers",
    "quantized_weight_groups",
    "quantized_weights_anew",
    "quantized_weights_once",
    "register_quant_layer",
    "scale_group",
    "tr_param_groups",
    "without_transition",
]
