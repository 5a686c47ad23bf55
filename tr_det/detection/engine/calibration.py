"""Calibration and batch-norm statistics: forwards in training mode outside of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage
from torch import nn

from tr_det.core.errors import check
from tr_det.runtime import calibration
from tr_det.runtime.calibration import average_statistics

NORMALIZER = "loss_normalizer"
"""A moving average of the number of foreground anchors: a plain attribute of RetinaNet and FCOS."""


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
    calibration.calibrate(model, data_loader, num_batches, partial(outside_training, model))


def update_norms(model: nn.Module, data_loader: Iterable[Any], num_batches: int) -> None:
    """Re-estimate the statistics of all batch norms; arguments as for `calibrate`."""
    calibration.update_norms(model, data_loader, num_batches, partial(outside_training, model))


class RepeatablePreciseBN(hooks.PreciseBN):
    """Detectron2's hook, on the same batches each time, without a trace in the loss normalizer.

    Detectron2's goes on in its data stream, which a resumed run could not do, each of its forwards
    moves RetinaNet's loss normalizer, and each process keeps what it has measured.
    """

    def update_stats(self) -> None:
        """Measure the statistics of all batch norms."""
        self._data_iter = None
        with outside_training(self._model):
            super().update_stats()
        average_statistics(self._model)


@contextmanager
def outside_training(model: nn.Module) -> Iterator[None]:
    """Keep forwards in training mode out of the log, and restore the detector's loss normalizer."""
    attributes = bare_model(model).__dict__
    before = {key: attributes[key] for key in (NORMALIZER,) if key in attributes}
    try:
        with EventStorage():
            yield
    finally:
        attributes.pop(NORMALIZER, None)
        attributes.update(before)


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
