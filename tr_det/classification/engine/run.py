"""A whole run and its output folder: pretraining, training, results; evaluation alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from tr_det.classification.config.keys import LIBRARY, ClassifierConfig
from tr_det.classification.config.pretraining import pretraining_of
from tr_det.classification.config.reading import from_tree, to_tree, to_yaml
from tr_det.classification.data.datasets import load_data
from tr_det.classification.data.images import Data
from tr_det.classification.data.loader import check_batch_size, train_batches
from tr_det.classification.engine.evaluation import check_classes, evaluate_model
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.classification.models.build import build_loss, build_network
from tr_det.core import is_calibrated
from tr_det.core.nn.storage import storage_mb
from tr_det.runtime.calibration import batch_size_named, calibrate
from tr_det.runtime.checkpoints import StrictCheckpointer, check_start
from tr_det.runtime.configs import parse
from tr_det.runtime.damage import is_whole, read_checkpoint
from tr_det.runtime.files import write_text
from tr_det.runtime.metrics import METRICS, read_records
from tr_det.runtime.processes import (
    from_first,
    only_writer,
    processes,
    rank,
    restarted,
    wait_for_all,
)
from tr_det.runtime.results import RESULTS, Results, make_results, read_results, write_results
from tr_det.runtime.rng import seed_step
from tr_det.runtime.run_folder import (
    CONFIG,
    FINAL,
    LAST,
    evaluated_checkpoint,
    last_checkpoint,
    set_aside,
)
from tr_det.runtime.signals import held

CALIBRATION_BATCHES = 16
FREE = (
    "data.root",
    "data.download",
    "data.workers",
    "run.output_dir",
    "run.device",
    "run.log_period",
    "run.eval_period",
    "run.checkpoint_period",
    "run.keep_checkpoints",
)
"""Keys that may differ when a run is resumed."""
PATHS = ("model.pretraining", "solver.teacher_weights")
"""Keys that name files, which may have moved: only whether they are set is compared."""
_log = logging.getLogger(__name__)


def run(config: ClassifierConfig, resume: bool = False, wait: bool = False) -> Results:
    """Train, and return the results, which the folder has as well.

    The run that ``model.pretraining`` names is trained first, if its folder does not have its end.

    Args:
        config: the run.
        resume: go on from the last checkpoint of ``run.output_dir``, if there is one.
        wait: for another run that writes there, instead of refusing.

    Raises:
        ValueError: something in the config that cannot be, or the folder is another run's.
    """
    folder = config.run.output_dir
    with only_writer(folder, "run.output_dir", wait=wait):
        _check_same_run(config)
        goes_on = restarted() or resume
        found = (_finished(folder), last_checkpoint(folder)) if goes_on else ({}, "")
        results, checkpoint = from_first(found)
        if results:
            _log.info("%s is finished", folder)
            return results
        if goes_on and not checkpoint:
            _log.warning("No checkpoint in %s to resume: starting from the beginning", folder)
        # All is built before the pretraining is trained, so that mistakes show before that.
        first, weights = pretraining_of(config), config.model.weights
        starts = not (checkpoint or first or weights == LIBRARY)
        check_start("model.weights", weights if starts else "")
        data = load_data(config.data)
        model = build_network(config, data, published=not checkpoint)
        loss = build_loss(config, data, model)
        trainer = ClassifierTrainer(config, model, data, loss)
        if checkpoint:
            trainer.resume(checkpoint)
        elif first:
            _train_once(first)
        start = evaluated_checkpoint(first.run.output_dir) if first else weights
        if not checkpoint:
            if start not in ("", LIBRARY):
                StrictCheckpointer(model).load(start, checkpointables=[])
            if rank() == 0:
                others = (METRICS, RESULTS, CONFIG, "events.out.tfevents.*")
                set_aside(folder, *others, otherwise="" if goes_on else METRICS)
                write_text(Path(folder) / CONFIG, to_yaml(config))
        began = time.perf_counter()
        with held(), batch_size_named("solver.batch_size", config.solver.batch_size):
            metrics = trainer.train()
        seconds = time.perf_counter() - began
        measured = {"metrics": metrics, "updates": trainer.total, "seconds": seconds}
        results = _results(config, model, start, measured)
        if rank() == 0:
            write_results(results)
        wait_for_all()
        return results


def evaluate_only(
    config: ClassifierConfig, start_weights: bool = False, resume: bool = False
) -> Results:
    """Evaluate what the run's last evaluation saw; return the results.

    That is its average where ``solver.methods`` keep one, else its last checkpoint; without
    checkpoints it is ``model.weights``. Full-precision weights are calibrated first if the config
    wants them quantized.

    Args:
        config: the run.
        start_weights: evaluate ``model.weights`` even if there is a checkpoint.
        resume: evaluate a checkpoint of the run or nothing.

    Raises:
        ValueError: neither is there.
    """
    began = time.perf_counter()
    folder, weights = config.run.output_dir, config.model.weights
    trained = "" if start_weights and weights else evaluated_checkpoint(folder)
    path = trained or ("" if resume else weights)
    if not path:
        raise ValueError(
            f"--eval-only: {folder} has no checkpoint; train first, or name one by model.weights"
        )
    data = load_data(config.data)
    model = build_network(config, data, published=not trained)
    updates = 0
    if path == LIBRARY:
        _log.info("Evaluating the published weights of %s", config.model.name)
    else:
        _log.info("Evaluating %s", path)
        stored = StrictCheckpointer(model).load(path, checkpointables=[])
        check_classes(config, stored.get("classes", list(data.classes)), data.classes, path)
        updates = stored.get("iteration", 0) if trained else 0
    if not is_calibrated(model):
        with batch_size_named("solver.batch_size", config.solver.batch_size):
            _calibrate(config, model, data)
    metrics = evaluate_model(config, model, data)
    seconds = time.perf_counter() - began
    measured = {"metrics": metrics, "updates": updates, "seconds": seconds}
    results = _results(config, model, weights, measured)
    results["paths"]["checkpoint"] = path
    return results


def _finished(folder: str) -> Results:
    """Return the results of a run if its folder has its end, else {}."""
    return read_results(folder) if is_whole(Path(folder) / f"{FINAL}.pth") else {}


def _train_once(config: ClassifierConfig) -> None:
    """Train a run that another one builds on, if it is not finished."""
    # One answer for all processes: another run may end in between.
    _check_same_run(config)
    if not from_first(bool(_finished(config.run.output_dir))):
        _log.info("First %s, on which this run builds", config.run.output_dir)
        run(config, resume=True, wait=True)


def _results(
    config: ClassifierConfig, model: nn.Module, start: str, measured: dict[str, Any]
) -> Results:
    folder, seed = config.run.output_dir, config.run.seed
    own, full = storage_mb(model)
    cost = {"storage_mb": own, "storage_mb_at_32_bits": full}
    paths = {"folder": folder, "checkpoint": evaluated_checkpoint(folder), "start": start}
    records = read_records(Path(folder) / METRICS) if measured["updates"] else []
    device = next(model.parameters()).device
    return make_results(
        records, device, config=to_tree(config), seed=seed, cost=cost, paths=paths, **measured
    )


def _calibrate(config: ClassifierConfig, model: nn.Module, data: Data) -> None:
    _log.info("No scales in these weights: %d training batches set them", CALIBRATION_BATCHES)
    size, seed = config.solver.batch_size, config.run.seed
    check_batch_size(size, len(data.train), processes())  # type: ignore[arg-type]
    seed_step(seed, 0, rank())
    batches = train_batches(data.train, size, seed, rank=rank(), processes=processes())
    device = next(model.parameters()).device
    calibrate(model, (images.to(device) for images, _ in batches), CALIBRATION_BATCHES)


def _written(folder: Path) -> Iterator[Path]:
    for pattern in ("model_*.pth", LAST, RESULTS):
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _check_same_run(config: ClassifierConfig) -> None:
    """Raise ValueError, naming a key, if the folder has files of a run of another config."""
    folder = Path(config.run.output_dir)
    if not any(_written(folder)):
        return
    try:
        # It may lack the keys that came later.
        tree = parse(_written_config(folder))
        written = dict(_leaves(to_tree(from_tree(ClassifierConfig, tree))))
    except ValueError:
        raise ValueError(
            f"{folder}: not of a run of tools/train_classifier.py; must be another run.output_dir"
        ) from None
    for key, value in _leaves(to_tree(config)):
        same = bool(written[key]) == bool(value) if key in PATHS else written[key] == value
        if key not in FREE and not same:
            raise ValueError(
                f"{key}={value!r}: {folder} is of a run with {written[key]!r}; must be the same, "
                "or take another run.output_dir or move that one away"
            )


def _written_config(folder: Path) -> str:
    """Return the config in a run's folder, or that of its last checkpoint; "" if there is none."""
    if (folder / CONFIG).is_file():
        return (folder / CONFIG).read_text()
    checkpoint = last_checkpoint(folder)
    stored = read_checkpoint(checkpoint) if checkpoint else {}
    return str(stored.get("config", ""))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        # Options are the network's or a quantizer's own: compared as a whole.
        if isinstance(value, dict) and not key.endswith("options"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
