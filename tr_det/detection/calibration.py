"""From full-precision weights to a quantized model that can be evaluated."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from tr_det.core import OutputScale, Quantizer
from tr_det.detection.norms import average_statistics
from tr_det.detection.resume import kept_normalizer


def is_calibrated(model: nn.Module) -> bool:
    """Return whether every quantizer and output scale of the model has its scale."""
    return all(
        module.is_initialized
        for module in model.modules()
        if isinstance(module, Quantizer | OutputScale)
    )


@torch.no_grad()
def calibrate(model: nn.Module, data_loader: Iterable[Any], num_batches: int) -> None:
    """Set the scales that are still unset, and re-estimate batch-norm statistics.

    The scales come from one forward of the first batch in training mode, layer by layer on inputs
    that are quantized already (EWGS). The fixed output grid changes the scale of what enters each
    norm, so the running statistics of the full-precision model do not fit; fvcore's precise BN
    measures them again.

    Args:
        model: a detector in Detectron2's interface; its mode and loss normalizer are restored.
        data_loader: training batches.
        num_batches: batches used for BN, >= 1.

    Raises:
        ValueError: if num_batches is less than 1.
    """
    if num_batches < 1:
        raise ValueError(f"MODEL.QUANT.CALIBRATION_BATCHES={num_batches}: must be at least 1")
    with _in_training(model):
        batches = iter(data_loader)
        first = next(batches)
        model(first)
        _update_norms(model, itertools.chain([first], batches), num_batches)
    logging.getLogger(__name__).info(
        "Calibrated scales and batch norm on %d training batches", num_batches
    )


def update_norms(model: nn.Module, data_loader: Iterable[Any], num_batches: int) -> None:
    """Measure the statistics of all batch norms anew (fvcore's precise BN).

    Args:
        model: a detector in Detectron2's interface; its mode and loss normalizer are restored.
        data_loader: training batches.
        num_batches: how many to use, >= 1.
    """
    with _in_training(model):
        _update_norms(model, iter(data_loader), num_batches)


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    with EventStorage(), kept_normalizer(model):
        yield
    model.train(was_training)


def _update_norms(model: nn.Module, batches: Iterator[Any], num_batches: int) -> None:
    if get_bn_modules(model):
        update_bn_stats(model, batches, num_batches)
        average_statistics(model)
