"""Codes of Eq. 13 brought up to date in place, counting those that change.

On the host a compiled kernel does it in one pass. Without a compiler it is done a block at a time,
so that what lies between a weight and its code stays in the cache: fresh memory for a whole layer
would cost more than the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.ops.fixed_grid import fixed_grid_codes
from tr_det.core.ops.fixed_grid_compiled import recode_compiled
from tr_det.core.ops.grid import SCALE_FLOOR, Grid

BLOCK = 131_072
"""Elements of a block: half a megabyte in float32."""


@torch.no_grad()
def fixed_grid_recode_(x: Tensor, scale: Tensor, grid: Grid, codes: Tensor) -> Tensor:
    """Overwrite codes with those of x; return how many changed.

    Args:
        x: any shape, floating point.
        scale: 0-d, units of x.
        grid: the integer grid.
        codes: int8 (signed grids) or uint8, shape of x.

    Returns:
        0-d integer on x's device.
    """
    counted = recode_compiled(x, scale, grid, codes)
    if counted is not None:
        return counted
    if not _can_go_by_blocks(x, codes):
        new = fixed_grid_codes(x, scale, grid)
        changed = torch.count_nonzero(new != codes)
        codes.copy_(new)
        return changed
    step = scale.clamp_min(SCALE_FLOOR) / grid.gamma
    size = min(x.numel(), BLOCK)
    quotients, news = x.new_empty(size), codes.new_empty(size)
    differences = torch.empty(size, dtype=torch.bool)
    counts = []
    for values, old in zip(_blocks(x), _blocks(codes), strict=True):
        count = values.numel()
        new, differs = news[:count], differences[:count]
        if grid.binary:
            torch.lt(values, 0, out=differs)
            new.copy_(differs).mul_(-2).add_(1)
        else:
            quotient = torch.div(values, step, out=quotients[:count])
            new.copy_(quotient.clamp_(grid.alpha, grid.beta).round_())
        torch.ne(new, old, out=differs)
        # A sum of bytes in 32 bits is twice as quick as count_nonzero.
        counts.append(differs.view(torch.int8).sum(dtype=torch.int32))
        old.copy_(new)
    return torch.stack(counts).sum()


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Return the blocks of a tensor's memory, flat."""
    return torch.split(x.as_strided((x.numel(),), (1,)), BLOCK)


def _can_go_by_blocks(x: Tensor, codes: Tensor) -> bool:
    """Return whether both fill their memory on the host without gaps, in the same order."""
    dense: bool = torch.ops.aten.is_non_overlapping_and_dense(x)
    return (
        x.device.type == "cpu"
        and dense
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.float64)  # others are widened first
        and codes.stride() == x.stride()
    )
