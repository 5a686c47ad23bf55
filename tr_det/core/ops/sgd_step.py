"""One SGD update of a quantized weight with its own learning rate, its codes and their changes.

The lines of ``torch.optim.SGD`` with U in the learning rate's place (Eq. 12 of *Scheduling Weight
Transitions for QAT*, ICCV 2025), then Eq. 13. All of it is done block by block, so that weight,
gradient, momentum and codes come from memory and go back there once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tr_det.core.ops.grid import Grid
from tr_det.core.ops.recode import BLOCK, BlockRecoder, blocks


@dataclass(frozen=True)
class SGDOptions:
    """As of ``torch.optim.SGD``."""

    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


@torch.no_grad()
def sgd_step_(
    weight: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    codes: Tensor,
    talr: Tensor,
    scale: Tensor,
    grid: Grid,
    options: SGDOptions,
) -> Tensor:
    """Update weight, momentum and codes in place; return how many codes changed.

    Args:
        weight: float32 or float64 on the host; see `blocks_fit` for this and the others' layout.
        grad: its gradient.
        buffer: the momentum buffer; None with momentum 0. A first update, which makes the buffer,
            is not done here.
        codes: codes of the weight.
        talr: U, 0-d float32.
        scale: 0-d, units of the weight.
        grid: the integer grid.
        options: of SGD.

    Returns:
        0-d integer.
    """
    recode = BlockRecoder(weight, scale, grid, codes)
    scratch = weight.new_empty(min(weight.numel(), BLOCK))
    sign = -1.0 if options.maximize else 1.0
    buffers = blocks(buffer) if buffer is not None else (None,) * len(blocks(weight))
    for w, g, b, c in zip(blocks(weight), blocks(grad), buffers, blocks(codes), strict=True):
        own = scratch[: w.numel()]
        if options.weight_decay:
            g = torch.add(g, w, alpha=sign * options.weight_decay, out=own)
        if options.maximize:
            g = torch.neg(g, out=own)
        if b is not None:
            b.mul_(options.momentum).add_(g, alpha=1.0 - options.dampening)
            g = torch.add(g, b, alpha=options.momentum, out=own) if options.nesterov else b
        w.addcmul_(g, talr, value=-1.0)
        recode(w, c)
    return recode.changed()
