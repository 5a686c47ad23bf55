"""Runs of the classification trainer on the embedded digits, for tools/figures.py to draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tr_det.classification.config.reading import load_config, to_yaml
from tr_det.classification.engine.run import run
from tr_det.core.optim.optimizers import OPTIMIZERS
from tr_det.runtime.files import write_text
from tr_det.study.history import History, read_history

CONFIGS = Path(__file__).parents[2] / "configs/classification/digits"
LEARNING_RATES = {"SGD": 0.1, "Adagrad": 1e-2}
"""Base learning rates (Table S8 for SGD); 1e-3 for those not named. Adagrad's is our choice."""


def settings(
    optimizer: str = "SGDT", bits: int = 2, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings of a run: dotted config key -> value.

    Args:
        optimizer: one of the classification config's.
        bits: of weights and activations.
        more: what differs from lambda 0.005 and the rule ``pi``, and other keys.
    """
    plain = OPTIMIZERS[optimizer].plain
    return {
        "solver.optimizer": optimizer,
        "solver.lr": LEARNING_RATES.get(plain, 1e-3),
        "solver.weight_decay": 1e-2 if plain == "AdamW" else 1e-4,  # supplement, S2.4
        "quant.bits": f"W{bits}A{bits}",
        "tr.factor": 5e-3,
        "tr.update": "pi",
        "tr.momentum": -1,
        **(more or {}),
    }


def run_cell(folder: Path, settings: Mapping[str, Any], seed: int, output: Path) -> History:
    """Train if the folder does not have the end of this run yet, and return its history.

    It starts from a full-precision model of the same seed, which all cells of a seed share. Every
    update is recorded. A run that was stopped goes on from its last checkpoint.

    Args:
        folder: of the run.
        settings: dotted config key -> value, on top of ``resnet8_sgd.yaml``.
        seed: of the full-precision model, the order of the images and their augmentation.
        output: folder of the full-precision models.

    Raises:
        ValueError: the folder is of a run with other settings, or a setting is wrong.
    """
    start = output / f"full_precision/seed{seed}"
    keys = {"run.seed": seed, "run.output_dir": start}
    config = load_config(CONFIGS / "resnet8_fp.yaml", as_overrides(keys))
    pretraining = start.with_suffix(".yaml")
    write_text(pretraining, to_yaml(config))
    keys = {"run.seed": seed, "run.output_dir": folder, "model.pretraining": pretraining}
    keys |= {"run.log_period": 1, "run.eval_period": 0, **settings}
    run(load_config(CONFIGS / "resnet8_sgd.yaml", as_overrides(keys)), resume=True)
    return read_history(folder)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return ``KEY VALUE`` pairs.

    >>> as_overrides({"solver.lr": 1e-05, "tr.update": "pi"})
    ['solver.lr', '1e-05', 'tr.update', 'pi']
    """
    return [str(part) for pair in settings.items() for part in pair]
