"""A whole run: the pretraining it builds on, training, and the rows of the table."""

from __future__ import annotations

import logging
import time

from torch import nn

from tr_det.classification.config.keys import LIBRARY, ClassifierConfig
from tr_det.classification.config.pretraining import pretraining_of
from tr_det.classification.data.datasets import load_data
from tr_det.classification.engine.folder import (
    check_is_free,
    evaluated_checkpoint,
    finished,
    last_checkpoint,
    start_anew,
)
from tr_det.classification.engine.results import Row, row_of, write_results
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.classification.models.build import build_loss, build_network
from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.lock import only_writer
from tr_det.runtime.processes import from_first, rank, wait_for_all

_log = logging.getLogger(__name__)


def run(config: ClassifierConfig, resume: bool = False) -> list[Row]:
    """Train, and return the rows of the table: what the run builds on comes first.

    Args:
        config: the run.
        resume: go on from the last checkpoint of ``run.output_dir``, if there is one.

    Raises:
        ValueError: something in the config that cannot be, or the folder is another run's.
    """
    with only_writer(config.run.output_dir):
        rows = from_first(finished(config)) if resume else []
        if rows:
            _log.info("%s is finished", config.run.output_dir)
        elif resume and not last_checkpoint(config.run.output_dir):
            _log.info("No checkpoint in %s: starting anew", config.run.output_dir)
        return rows or _train(config, resume)


def _train(config: ClassifierConfig, resume: bool) -> list[Row]:
    first = pretraining_of(config)
    resume = resume and from_first(bool(last_checkpoint(config.run.output_dir)))
    if not resume:
        check_is_free(config)
    # All is built before the pretraining is trained, so that mistakes show before that.
    data = load_data(config.data)
    model, megabytes = build_network(config, data, published=not resume)
    trainer = ClassifierTrainer(config, model, data, build_loss(config, data, model))
    if resume:
        trainer.resume()
        _log.info("Going on from iteration %d", trainer.iteration)
    rows = _result_of(first) if first else []
    start = time.perf_counter()
    if not resume:
        _load_start(config, first, model)
        if rank() == 0:
            start_anew(config)
    row = row_of(
        config,
        trainer.train(),
        optimizer=config.solver.optimizer,
        megabytes=megabytes,
        updates=trainer.total,
        seconds=time.perf_counter() - start,
    )
    rows = [*rows, row]
    if rank() == 0:
        write_results(config.run.output_dir, rows)
    wait_for_all()
    return rows


def _result_of(config: ClassifierConfig) -> list[Row]:
    """Return the rows of a run that another one builds on; train it if it is not there."""
    folder = config.run.output_dir
    # One look for all processes: another run may end between two.
    rows: list[Row] = from_first(finished(config))
    if rows:
        return rows
    _log.info("First %s, on which this run builds", folder)
    with only_writer(folder, wait=True):
        # Another run may have trained it while this one waited.
        return from_first(finished(config)) or _train(config, resume=True)


def _load_start(config: ClassifierConfig, first: ClassifierConfig | None, model: nn.Module) -> None:
    """Load the weights that training starts from; the library's are there already."""
    path = config.model.weights if config.model.weights != LIBRARY else ""
    if first is not None:
        path = evaluated_checkpoint(first.run.output_dir)
    if path:
        StrictCheckpointer(model).load(path, checkpointables=[])
