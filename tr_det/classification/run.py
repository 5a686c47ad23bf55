"""A whole run: the pretraining it builds on, training or evaluation, and the table at the end."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tr_det.classification.config import LIBRARY, ClassifierConfig, check
from tr_det.classification.config_file import load_config, to_yaml
from tr_det.classification.datasets import Data, load_data
from tr_det.classification.loader import train_batches
from tr_det.classification.losses import Distributional
from tr_det.classification.models import build_model, quantize_network
from tr_det.classification.resume import check_same_run, inherited
from tr_det.classification.trainer import FINAL, ClassifierTrainer
from tr_det.core import Quantizer
from tr_det.training.checkpoint import StrictCheckpointer
from tr_det.training.processes import processes, rank, wait_for_all
from tr_det.training.rng import seed_step

CALIBRATION_BATCHES = 16
RESULTS = "results.json"
Row = dict[str, Any]
_log = logging.getLogger(__name__)


def run(config: ClassifierConfig, resume: bool = False, eval_only: bool = False) -> list[Row]:
    """Train, or evaluate, and return the rows of the table: what the run builds on comes first.

    Args:
        config: the run.
        resume: go on from the last checkpoint of ``run.output_dir``, or with ``eval_only``
            evaluate it.
        eval_only: evaluate ``model.weights``, or the run's last checkpoint where there are none;
            a full-precision checkpoint is calibrated first if the config wants it quantized.

    Raises:
        ValueError: something in the config that cannot be.
    """
    rows: list[Row] = []
    first = _pretraining(config)
    if first is not None and not eval_only:
        rows += _result_of(first)
    data = load_data(config.data)
    model, megabytes = _build(config, data)
    if not eval_only and not resume:
        _load_start(config, first, model)
    trainer = ClassifierTrainer(config, model, data, _loss(config, data, model))
    start = time.perf_counter()
    if eval_only:
        _load_for_evaluation(config, trainer, resume)
        result = trainer.evaluate()
    else:
        if resume and trainer.resume():
            _log.info("Going on from iteration %d", trainer.iteration)
        elif resume:
            _load_start(config, first, model)
        if rank() == 0:
            folder = Path(config.run.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(to_yaml(config))
        result = trainer.train()
    row = {
        "model": config.model.name,
        "bits": config.quant.bits.upper(),
        "optimizer": config.solver.optimizer,
        **result,
        "megabytes": megabytes,
        "updates": trainer.total,
        "seconds": time.perf_counter() - start,
        "folder": config.run.output_dir,
    }
    rows.append(row)
    if rank() == 0 and not eval_only:
        (Path(config.run.output_dir) / RESULTS).write_text(json.dumps(rows, indent=1) + "\n")
    wait_for_all()
    return rows


def table(rows: list[Row]) -> str:
    """Return rows as text."""
    head = f"{'model':<20}{'bits':>7}{'optimizer':>11}{'top-1':>8}{'top-5':>8}{'loss':>8}"
    lines = [f"{head}{'weight MB':>11}{'updates':>10}{'seconds':>9}"]
    for row in rows:
        lines.append(
            f"{row['model']:<20}{row['bits']:>7}{row['optimizer']:>11}{row['accuracy']:>8.2f}"
            f"{row['top5']:>8.2f}{row['loss']:>8.3f}{row['megabytes']:>11.3f}"
            f"{row['updates']:>10,}{row['seconds']:>9.0f}"
        )
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _pretraining(config: ClassifierConfig) -> ClassifierConfig | None:
    if not config.model.pretraining:
        return None
    return inherited(config, load_config(config.model.pretraining))


def _result_of(config: ClassifierConfig) -> list[Row]:
    """Return the rows of a run that another one builds on; train it if it is not there."""
    folder = Path(config.run.output_dir)
    if (folder / f"{FINAL}.pth").is_file() and (folder / RESULTS).is_file():
        check_same_run(folder / f"{FINAL}.pth", config)
        rows: list[Row] = json.loads((folder / RESULTS).read_text())
        return rows
    _log.info("First %s, on which this run builds", folder)
    return run(config, resume=True)


def _build(config: ClassifierConfig, data: Data) -> tuple[nn.Module, float]:
    """Return the model on its device, quantized if it is to be, and its storage in MB."""
    torch.manual_seed(config.run.seed)
    model = build_model(
        config.model.name,
        data.num_classes,
        data.channels,
        pretrained=config.model.weights == LIBRARY,
        **config.model.options,
    )
    megabytes = sum(p.numel() for p in model.parameters()) * 4e-6
    if config.quant.enabled:
        report = quantize_network(
            model,
            config.model.name,
            config.quant.weight_bits,
            config.quant.act_bits,
            config.learn_weight_scale,
        )
        megabytes = report.storage_mb()
        _log.info("%s", report.table().splitlines()[-1])
    return model.to(_device(config)), megabytes


def _device(config: ClassifierConfig) -> torch.device:
    if config.run.device != "auto":
        try:
            return torch.device(config.run.device)
        except RuntimeError:
            check("run.device", config.run.device, False, "auto, cpu, cuda or cuda:<number>")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _loss(config: ClassifierConfig, data: Data, model: nn.Module) -> nn.Module | None:
    """Return the distributional loss with its teacher, or None for the trainer's own."""
    solver = config.solver
    if solver.loss != "distributional":
        return None
    from_library = solver.teacher_weights == LIBRARY
    teacher = build_model(solver.teacher, data.num_classes, data.channels, pretrained=from_library)
    if not from_library:
        StrictCheckpointer(teacher).load(solver.teacher_weights, checkpointables=[])
    return Distributional(teacher.to(next(model.parameters()).device))


def _load_start(config: ClassifierConfig, first: ClassifierConfig | None, model: nn.Module) -> None:
    """Load the weights that training starts from; the library's are there already."""
    path = config.model.weights if config.model.weights != LIBRARY else ""
    if first is not None:
        path = str(Path(first.run.output_dir) / f"{FINAL}.pth")
    if path:
        StrictCheckpointer(model).load(path, checkpointables=[])


def _load_for_evaluation(
    config: ClassifierConfig, trainer: ClassifierTrainer, resume: bool
) -> None:
    checkpointer = trainer.checkpointer
    if config.model.weights and not resume:
        if config.model.weights != LIBRARY:
            checkpointer.load(config.model.weights, checkpointables=[])
    elif checkpointer.has_checkpoint():
        checkpointer.load(checkpointer.get_checkpoint_file(), checkpointables=[])
    else:
        raise ValueError(
            f"--eval-only: {config.run.output_dir} has no checkpoint; train first, or name one by "
            "model.weights"
        )
    quantizers = [m for m in trainer.model.modules() if isinstance(m, Quantizer)]
    if not all(quantizer.is_initialized for quantizer in quantizers):
        _calibrate(config, trainer)


@torch.no_grad()
def _calibrate(config: ClassifierConfig, trainer: ClassifierTrainer) -> None:
    """Set scales and batch-norm statistics from a few training batches."""
    _log.info("No scales in the checkpoint: %d training batches set them", CALIBRATION_BATCHES)
    seed_step(config.run.seed, 0, rank())
    batches = train_batches(
        trainer.data.train,
        config.solver.batch_size,
        config.run.seed,
        rank=rank(),
        processes=processes(),
    )
    trainer.model.train()
    trainer.model(next(batches)[0].to(trainer.device))  # sets the scales
    norms = [m for m in trainer.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        # Eq. 13 has no scale after it: what full precision had measured is of another size.
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    for _ in range(CALIBRATION_BATCHES):
        trainer.model(next(batches)[0].to(trainer.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
