"""Re-estimation of batch norm statistics before every evaluation.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022. When
weights oscillate, running statistics mix those of different networks. Before an evaluation each
batch norm gets the means over n training batches with the present weights,

    mean = (1/n) sum_i mean_i,  variance = (1/n) sum_i variance_i

variance_i is the unbiased variance of batch i alone, not pooled over batches. Only batch norms are
in training mode: dropout is off, and quantizers observe nothing.

The statistics are those of the evaluated model: with `weight_average`, of the average.

Deviations from the paper's code:
  * training continues with its own running statistics; the paper's starts each epoch from the new
    ones;
  * a norm that runs several times in a forward, as in a detector's shared head, gets the mean over
    its calls; the paper's code would use the last call;
  * it is done for every evaluation within `Attached.evaluating`, also before the first update;
  * with ``torch.distributed`` the mean is over the batches of all processes.

Norms that the batches do not reach keep their running statistics. Frozen norms of other classes
(Detectron2's) are left alone. It needs no memory between evaluations and no state in checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.errors import check, is_whole
from tr_det.core.methods.base import METHODS, Method, Run
from tr_det.core.nn.calibrate import undisturbed
from tr_det.core.quantizers.pool import over_processes

BatchNorm = nn.modules.batchnorm._BatchNorm


@METHODS.register
class BNReestimation(Method):
    """Estimates batch norm statistics for evaluations; needs the argument ``batches`` of `attach`.

    The functions of ``batches`` must run the unwrapped model: the forward of
    DistributedDataParallel overwrites statistics. All modules but batch norms are in eval mode; a
    function may change that, e.g. so that a detector computes losses. Modes, buffers, plain numbers
    and torch's random states are restored; other random states are up to the functions.

    Args:
        batches: n, training batches for each process, >= 1; fewer if there are not as many.
    """

    order = 3
    needs = ("batch norms", "batches")

    def __init__(self, *, batches: int = 50) -> None:
        fits = is_whole(batches) and batches >= 1
        check("batches", batches, fits, "an integer, at least 1")
        self.batches = batches

    def setup(self, run: Run) -> None:
        """Store model and data."""
        self._model, self._batches = run.model, run.batches

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Replace the running statistics by new ones."""
        norms = _norms(self._model)
        running = [statistic for norm in norms for statistic in _statistics(norm)]
        kept = [statistic.clone() for statistic in running]
        found = self._estimated(norms)
        with torch.no_grad():
            torch._foreach_copy_(running, found)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(running, kept)

    @torch.no_grad()
    def _estimated(self, norms: list[BatchNorm]) -> list[Tensor]:
        """Return mean and variance of each norm in turn, shape (channels,) each.

        Raises:
            RuntimeError: no batch has reached a norm in any process.
        """
        before = [torch.cat(_statistics(norm)).double() for norm in norms]
        with undisturbed(self._model), _only_in_training(self._model, norms):
            sums = self._sums(norms)
        pooled = over_processes(torch.cat([s.to(sums[0].device) for s in sums]), "sum")
        parts = torch.split(pooled, [len(s) for s in sums])
        if not torch.stack([part[0] for part in parts]).any():
            raise RuntimeError(
                "bn_reestimation: no batch has reached a batch norm; attach(..., batches=...) must "
                "give functions that run the model"
            )
        found: list[Tensor] = []
        for known, part in zip(before, parts, strict=True):
            calls, total = part[:1].to(known.device), part[1:].to(known.device)
            found += torch.where(calls > 0, total / calls, known).chunk(2)
        return found

    def _sums(self, norms: list[BatchNorm]) -> list[Tensor]:
        """Return (calls, sums of means, sums of variances) of each norm, 1-d float64."""
        sums: list[Tensor] = []
        with ExitStack() as stack:
            for norm in norms:
                mean, _ = _statistics(norm)
                total = mean.new_zeros(1 + 2 * len(mean), dtype=torch.float64)
                sums.append(total)
                stack.callback(norm.register_forward_hook(partial(_add_to, total)).remove)
            assert self._batches is not None
            for forward in islice(self._batches(), self.batches):
                forward()
        return sums


def _add_to(total: Tensor, norm: BatchNorm, args: tuple[Any, ...], out: Tensor) -> None:
    """Add a call's statistics, which are the running ones at momentum 1."""
    if out.numel():
        mean, variance = _statistics(norm)
        total += torch.cat((torch.ones_like(mean[:1]), mean, variance))


def _norms(model: nn.Module) -> list[BatchNorm]:
    """Return the batch norms that have running statistics."""
    modules = (module for module in model.modules() if isinstance(module, BatchNorm))
    return [norm for norm in modules if norm.track_running_stats]


def _statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return running mean and variance, shape (channels,) each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


@contextmanager
def _only_in_training(model: nn.Module, norms: list[BatchNorm]) -> Iterator[None]:
    """Put norms in training mode, with momentum 1, and everything else in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        for module, _ in modes:  # by hand: train() and eval() may do more than that
            module.training = False
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
            norm.reset_running_stats()  # NaN would stay
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
