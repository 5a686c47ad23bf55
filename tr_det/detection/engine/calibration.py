"""From full-precision weights to a quantized detector that can be evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.utils.events import EventStorage
from torch import nn

from tr_det.core.errors import check
from tr_det.detection.engine.resume import kept_normalizer
from tr_det.runtime import calibration


def calibrate(model: nn.Module, data_loader: Iterable[Any], num_batches: int) -> None:
    """Set the scales that are still unset, and re-estimate batch-norm statistics.

    Args:
        model: a detector in Detectron2's interface; its mode and loss normalizer are restored.
        data_loader: training batches.
        num_batches: how many batch norm is measured on, >= 1; the first one sets the scales.

    Raises:
        ConfigError: num_batches is less than 1.
    """
    check("MODEL.QUANT.CALIBRATION_BATCHES", num_batches, num_batches >= 1, "at least 1")
    with _outside_training(model):
        calibration.calibrate(model, data_loader, num_batches)


def update_norms(model: nn.Module, data_loader: Iterable[Any], num_batches: int) -> None:
    """Measure the statistics of all batch norms anew; arguments as for `calibrate`."""
    with _outside_training(model):
        calibration.update_norms(model, data_loader, num_batches)


@contextmanager
def _outside_training(model: nn.Module) -> Iterator[None]:
    """Keep the forwards out of the log and out of the loss normalizer."""
    with EventStorage(), kept_normalizer(model):
        yield
