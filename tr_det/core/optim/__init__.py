"""TR-scheduled optimizers and the parameter groups they need."""

from tr_det.core.optim.controllers import TransitionMetrics
from tr_det.core.optim.groups import quantized_weight_groups, quantizer_groups, tr_param_groups
from tr_det.core.optim.optimizers import SGDT, AdagradT, AdamaxT, AdamT, AdamWT, NAdamT, RMSpropT
from tr_det.core.optim.scheduled import TransitionScheduled

__all__ = [
    "SGDT",
    "AdagradT",
    "AdamT",
    "AdamWT",
    "AdamaxT",
    "NAdamT",
    "RMSpropT",
    "TransitionMetrics",
    "TransitionScheduled",
    "quantized_weight_groups",
    "quantizer_groups",
    "tr_param_groups",
]
