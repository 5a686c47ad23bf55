"""Straight-through estimators: pure functions with hand-written gradients.

Fused implementations live behind these same functions; nothing above this folder needs to know.
"""

from tr_det.core.ops.fixed_grid import fixed_grid_codes, fixed_grid_quantize
from tr_det.core.ops.grid import Grid
from tr_det.core.ops.output_scale import scale_output, tie_scale

__all__ = ["Grid", "fixed_grid_codes", "fixed_grid_quantize", "scale_output", "tie_scale"]
