"""Frozen batch norms, rewritten with the statistics of their inputs.

Detectors of Detectron2's model zoo were trained with frozen batch norms, whose running statistics
were folded into weight and bias and read 0 and 1. Loaded into trained batch norms (BN, SyncBN),
such a model computes the same in evaluation and something else altogether in training, where each
norm subtracts the batch's mean and divides by its deviation.

With mean m and variance v of a norm's input, measured on training images,

    y = a x + b = (a sqrt(v + eps)) (x - m) / sqrt(v + eps) + (b + a m),

so weight a sqrt(v + eps), bias b + a m and statistics m and v are the same function, and training
with ordinary batch norms can start from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from tr_det.core.errors import check


@torch.no_grad()
def unfold_norms(model: nn.Module, data_loader: Iterable[Any], num_batches: int) -> int:
    """Rewrite the frozen batch norms of a detector in place; what it computes stays the same.

    Args:
        model: in full precision, in Detectron2's interface; left in evaluation mode.
        data_loader: training batches.
        num_batches: how many to measure on, >= 1.

    Returns:
        Number of norms.

    Raises:
        ValueError: if num_batches is less than 1.
    """
    check("num_batches", num_batches, num_batches >= 1, "at least 1")
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    moments = {norm: _Moments() for norm in norms}
    handles = [norm.register_forward_pre_hook(moments[norm].add) for norm in norms]
    model.eval()
    try:
        for batch in itertools.islice(data_loader, num_batches):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    seen = [norm for norm in norms if moments[norm].count]
    for norm in seen:
        _rewrite(norm, *moments[norm].mean_and_variance())
    return len(seen)


def folded_norms(state: dict[str, Any]) -> list[str]:
    """Return the trained batch norms of a state dict whose statistics are 0 and 1."""
    found = []
    for key, variance in state.items():
        norm, _, last = key.rpartition(".")
        if last != "running_var":
            continue
        weight, mean, variance = (
            torch.as_tensor(state.get(f"{norm}.{name}", ()), dtype=torch.float32)
            for name in ("weight", "running_mean", "running_var")
        )
        # Detectron2 writes 1 - eps; a weight of 1 throughout is a norm that was never trained.
        folded = (variance - 1).abs().le(1e-4).all() and not mean.any()
        if folded and weight.numel() and weight.ne(1).any():
            found.append(norm)
    return found


def _rewrite(norm: FrozenBatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - slope * norm.running_mean.double()
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + slope * mean)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


class _Moments:
    """Sums over all values of a channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].double()
        self.count += x.numel() // x.shape[1]
        self.total = self.total + x.sum((0, 2, 3))
        self.squares = self.squares + x.square().sum((0, 2, 3))

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.total / self.count)
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)
