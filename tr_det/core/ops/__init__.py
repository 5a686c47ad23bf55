"""Straight-through estimators: pure functions with hand-written gradients.

Fused implementations live behind these same functions; nothing above this folder needs to know.
"""

from tr_det.core.ops.fixed_grid import fixed_grid_codes, fixed_grid_quantize
from tr_det.core.ops.grid import Grid
from tr_det.core.ops.output_scale import scale_output, tie_scale
from tr_det.core.ops.recode import blocks_fit, fixed_grid_recode_
from tr_det.core.ops.sgd_step import SGDOptions, sgd_step_

__all__ = [
    "Grid",
    "SGDOptions",
    "blocks_fit",
    "fixed_grid_codes",
    "fixed_grid_quantize",
    "fixed_grid_recode_",
    "scale_output",
    "sgd_step_",
    "tie_scale",
]
