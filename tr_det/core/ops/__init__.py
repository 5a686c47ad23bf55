"""Straight-through estimators: pure functions with hand-written gradients.

Fused implementations live behind these same functions; nothing above this folder needs to know.
"""

from tr_det.core.ops.fixed_grid import fixed_grid_codes, fixed_grid_quantize
from tr_det.core.ops.grid import Grid
from tr_det.core.ops.output_scale import scale_output, tie_scale
from tr_det.core.ops.recode import fixed_grid_recode_
from tr_det.core.ops.step import LayerStep, SGDOptions

__all__ = [
    "Grid",
    "LayerStep",
    "SGDOptions",
    "fixed_grid_codes",
    "fixed_grid_quantize",
    "fixed_grid_recode_",
    "scale_output",
    "tie_scale",
]
