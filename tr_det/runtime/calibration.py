"""Calibration: scales and batch-norm statistics from a few batches, the same in all processes.

The scales come from one forward in training mode, layer by layer on inputs that are quantized
already (EWGS, Lee et al., CVPR 2021). What enters a norm behind a fixed output grid is of another
size than in full precision, so the running statistics are measured again (fvcore's precise BN).

Which estimator: the moments of all batches pooled, each batch weighed by its elements, with the
population variance; on the same batches whose first one set the scales. The alternative, the plain
mean of the batches' variances, leaves out the spread of the batches' means, which is most of the
variance where batches are small or alike, as a detector's are.

Where several processes train, each gathers running statistics from its share of the data, and only
the first one's are saved. So an evaluation in which each process takes a part of the images must
not use each one's own.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tr_det.core import set_scales
from tr_det.core.errors import ConfigError, check
from tr_det.runtime.processes import processes, take_from_first

Around = Callable[[], AbstractContextManager[Any]]


def calibrate(
    model: nn.Module, batches: Iterable[Any], num_batches: int, around: Around = nullcontext
) -> None:
    """Set the scales that are unset, and measure the statistics of all batch norms.

    Args:
        model: left in the mode it was in. Under torchrun every process calls this on its own share
            of the data; all end with the same numbers.
        batches: what ``model(batch)`` takes, on its device; at least ``num_batches`` of them.
        num_batches: how many the statistics are of, >= 1; the first one sets the scales.
        around: a context for the forwards, e.g. to keep their numbers out of a log.

    Raises:
        ConfigError: ``num_batches`` is less than 1.
        ValueError: data that cannot set a scale (see `tr_det.core.set_scales`).
    """
    check("num_batches", num_batches, num_batches >= 1, "at least 1")
    with _in_training(model, around):
        stream = iter(batches)
        first = next(stream)
        set_scales(model, lambda: model(first))
        _measure_norms(model, itertools.chain([first], stream), num_batches)
    logging.getLogger(__name__).info("Scales and batch norms are of %d batches", num_batches)


def update_norms(
    model: nn.Module, batches: Iterable[Any], num_batches: int, around: Around = nullcontext
) -> None:
    """Measure the statistics of all batch norms; arguments as for `calibrate`."""
    with _in_training(model, around):
        _measure_norms(model, batches, num_batches)


@contextmanager
def _in_training(model: nn.Module, around: Around) -> Iterator[None]:
    was_training = model.training
    model.train()
    with around():
        yield
    model.train(was_training)


def _measure_norms(model: nn.Module, batches: Iterable[Any], num_batches: int) -> None:
    # fvcore.nn takes long to import, and warns of torch.jit.
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

    if get_bn_modules(model):
        update_bn_stats(model, batches, num_batches)
        average_statistics(model)


@contextmanager
def batch_size_named(key: str, value: int) -> Iterator[None]:
    """Raise ConfigError, with the key of the batch size, where batch norm has a single value.

    Its variance would be zero, so torch refuses it, at the first layer whose output is one pixel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        allowed = "larger (or the images), as batch norm needs two values of a channel"
        if processes() > 1:
            allowed += f" in each of the {processes()} processes"
        raise ConfigError(key, value, allowed) from None


def share_statistics(model: nn.Module) -> None:
    """Give every process the first one's, which are those of the checkpoint."""
    take_from_first(itertools.chain.from_iterable(_statistics(model)))


def average_statistics(model: nn.Module) -> None:
    """Give every process the statistics of all data; each has measured an equal share of them."""
    if processes() > 1:
        for mean, variance in _statistics(model):
            own = mean.clone()
            dist.all_reduce(mean)
            mean /= processes()
            variance += (own - mean).square()
            dist.all_reduce(variance)
            variance /= processes()


def _statistics(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield running mean and variance of each batch norm that has them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            mean, variance = module.running_mean, module.running_var
            if mean is not None and variance is not None:
                yield mean, variance
