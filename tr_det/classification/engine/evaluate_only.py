"""Evaluation without training: ``--eval-only``."""

from __future__ import annotations

import logging
import time

from torch import nn

from tr_det.classification.config.keys import LIBRARY, ClassifierConfig
from tr_det.classification.data.datasets import Data, load_data
from tr_det.classification.data.loader import train_batches
from tr_det.classification.engine.evaluation import evaluate_model
from tr_det.classification.engine.folder import evaluated_checkpoint
from tr_det.classification.engine.results import Row, row_of
from tr_det.classification.models.build import build_network
from tr_det.core import is_calibrated
from tr_det.runtime.calibration import calibrate
from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.processes import processes, rank
from tr_det.runtime.rng import seed_step

CALIBRATION_BATCHES = 16
_log = logging.getLogger(__name__)


def evaluate_only(config: ClassifierConfig, start_weights: bool = False) -> list[Row]:
    """Evaluate what the run's last evaluation saw; return the row.

    That is its average where ``solver.methods`` keep one, else its last checkpoint; without
    checkpoints it is ``model.weights``. Full-precision weights are calibrated first if the config
    wants them quantized.

    Args:
        config: the run.
        start_weights: evaluate ``model.weights`` even if there is a checkpoint.

    Raises:
        ValueError: neither is there.
    """
    start = time.perf_counter()
    trained = (
        ""
        if start_weights and config.model.weights
        else evaluated_checkpoint(config.run.output_dir)
    )
    path = trained or config.model.weights
    if not path:
        raise ValueError(
            f"--eval-only: {config.run.output_dir} has no checkpoint; train first, or name one by "
            "model.weights"
        )
    data = load_data(config.data)
    model, megabytes = build_network(config, data, published=not trained)
    updates = 0
    if path == LIBRARY:
        _log.info("Evaluating the published weights of %s", config.model.name)
    else:
        _log.info("Evaluating %s", path)
        updates = StrictCheckpointer(model).load(path, checkpointables=[]).get("iteration", 0)
    if not is_calibrated(model):
        _calibrate(config, model, data)
    row = row_of(
        config,
        evaluate_model(config, model, data),
        optimizer=config.solver.optimizer if trained else "-",
        megabytes=megabytes,
        updates=updates,
        seconds=time.perf_counter() - start,
    )
    return [row]


def _calibrate(config: ClassifierConfig, model: nn.Module, data: Data) -> None:
    _log.info("No scales in these weights: %d training batches set them", CALIBRATION_BATCHES)
    seed_step(config.run.seed, 0, rank())
    batches = train_batches(
        data.train,
        config.solver.batch_size,
        config.run.seed,
        rank=rank(),
        processes=processes(),
    )
    device = next(model.parameters()).device
    calibrate(model, (images.to(device) for images, _ in batches), CALIBRATION_BATCHES)
