"""Straight-through estimators: functions with hand-written gradients, fused where possible."""

from tr_det.core.ops.affine import affine_codes, affine_quantize, affine_recode_, affine_values
from tr_det.core.ops.affine_compiled import fingerprint
from tr_det.core.ops.affine_grid import SCALE_FLOOR, Affine, Estimator
from tr_det.core.ops.affine_step import FREE, LayerStep, SGDOptions
from tr_det.core.ops.backends import applied, is_torchscript
from tr_det.core.ops.gradients import at_least, pass_gradient, scale_gradient
from tr_det.core.ops.output_scale import scale_output, tie_scale

__all__ = [
    "SCALE_FLOOR",
    "FREE",
    "Affine",
    "Estimator",
    "LayerStep",
    "SGDOptions",
    "affine_codes",
    "affine_quantize",
    "affine_recode_",
    "affine_values",
    "applied",
    "at_least",
    "fingerprint",
    "is_torchscript",
    "pass_gradient",
    "scale_gradient",
    "scale_output",
    "tie_scale",
]
