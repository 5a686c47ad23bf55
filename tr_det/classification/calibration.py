"""Scales and batch-norm statistics for a quantized model that was not trained as one."""

from __future__ import annotations

import logging

import torch
from torch import nn

from tr_det.classification.config import ClassifierConfig
from tr_det.classification.datasets import Data
from tr_det.classification.loader import train_batches
from tr_det.core import Quantizer
from tr_det.training.processes import processes, rank
from tr_det.training.rng import seed_step

BATCHES = 16
_log = logging.getLogger(__name__)


def is_calibrated(model: nn.Module) -> bool:
    """Return whether all scales have been set."""
    return all(m.is_initialized for m in model.modules() if isinstance(m, Quantizer))


@torch.no_grad()
def calibrate(config: ClassifierConfig, model: nn.Module, data: Data) -> None:
    """Set scales and batch-norm statistics from a few training batches."""
    _log.info("No scales in these weights: %d training batches set them", BATCHES)
    seed_step(config.run.seed, 0, rank())
    batches = train_batches(
        data.train,
        config.solver.batch_size,
        config.run.seed,
        rank=rank(),
        processes=processes(),
    )
    device = next(model.parameters()).device
    model.train()
    model(next(batches)[0].to(device))  # sets the scales
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        # Eq. 13 has no scale after it: what full precision had measured is of another size.
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    for _ in range(BATCHES):
        model(next(batches)[0].to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
