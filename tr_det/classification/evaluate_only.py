"""Evaluation without training: ``--eval-only``."""

from __future__ import annotations

import logging
import time

from tr_det.classification.build import build_network
from tr_det.classification.calibration import calibrate, is_calibrated
from tr_det.classification.config import LIBRARY, ClassifierConfig
from tr_det.classification.datasets import load_data
from tr_det.classification.evaluation import evaluate_model
from tr_det.classification.folder import last_checkpoint
from tr_det.classification.results import Row, row_of
from tr_det.training.checkpoint import StrictCheckpointer

_log = logging.getLogger(__name__)


def evaluate_only(config: ClassifierConfig, start_weights: bool = False) -> list[Row]:
    """Evaluate the run's last checkpoint, or ``model.weights`` if it has none; return the row.

    Full-precision weights are calibrated first if the config wants them quantized.

    Args:
        config: the run.
        start_weights: evaluate ``model.weights`` though there be a checkpoint.

    Raises:
        ValueError: neither is there.
    """
    start = time.perf_counter()
    trained = "" if start_weights and config.model.weights else last_checkpoint(config)
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
        calibrate(config, model, data)
    row = row_of(
        config,
        evaluate_model(config, model, data),
        optimizer=config.solver.optimizer if trained else "-",
        megabytes=megabytes,
        updates=updates,
        seconds=time.perf_counter() - start,
    )
    return [row]
