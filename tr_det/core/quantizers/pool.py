"""Statistics of calibration, pooled over the processes of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

Pool = Callable[[Tensor, str], Tensor]
"""(tensor, how) -> tensor; how: ``"sum"``, ``"max"`` (elementwise) or ``"sample"``: a 1-d tensor of
elements from all processes."""

SAMPLE = 65_536
"""Largest number of elements from one process."""


def alone(tensor: Tensor, how: str) -> Tensor:
    """Return the tensor, or a sample of it: for weights, which all processes share."""
    return _drawn(tensor) if how == "sample" else tensor


def alone_here() -> bool:
    """Return whether this process has no others beside it."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def over_processes(tensor: Tensor, how: str) -> Tensor:
    """Pool over all processes of ``torch.distributed``, which must call this at the same point."""
    if alone_here():
        return alone(tensor, how)
    if how == "sample":
        own = _drawn(tensor)
        sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=own.device)
        sizes[dist.get_rank()] = len(own)
        dist.all_reduce(sizes)
        padded = own.new_zeros(int(sizes.max()))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)])
    pooled = tensor.clone()
    dist.all_reduce(pooled, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[how])
    return pooled


def _drawn(tensor: Tensor) -> Tensor:
    """Return at most `SAMPLE` elements, evenly spaced."""
    flat = tensor.reshape(-1)
    stride = max(1, -(-len(flat) // SAMPLE))
    while math.gcd(stride, len(flat)) > 1:  # a divisor would take some columns only
        stride += 1
    return flat[::stride]
