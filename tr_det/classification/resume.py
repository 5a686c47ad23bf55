"""Whether a checkpoint or a finished run belongs to a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tr_det.classification.config import ClassifierConfig
from tr_det.classification.config_file import to_yaml

FREE = (
    "data.root",
    "data.download",
    "data.workers",
    "run.output_dir",
    "run.device",
    "run.log_period",
    "run.eval_period",
    "run.checkpoint_period",
    "model.pretraining",
    "solver.teacher_weights",
)
"""Keys that change no number, or only where files lie."""


def fingerprint(config: ClassifierConfig) -> str:
    """Return the config as text for checkpoints."""
    return to_yaml(config)


def check_same_run(path: str | Path, config: ClassifierConfig) -> None:
    """Raise ValueError if the checkpoint was written by a run of another config, naming a key."""
    try:
        text = torch.load(path, map_location="cpu", weights_only=True).get("config")
    except (RuntimeError, EOFError, ValueError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"{path}: not a checkpoint of tools/train_classifier.py")
    theirs, ours = (
        dict(_leaves(yaml.safe_load(text))),
        dict(_leaves(yaml.safe_load(to_yaml(config)))),
    )
    for key, value in ours.items():
        if key not in FREE and theirs.get(key) != value:
            raise ValueError(
                f"{key}={value!r}: {path} is of a run with {theirs.get(key)!r}; must be the same "
                "to go on, or take another run.output_dir"
            )


def inherited(config: ClassifierConfig, pretraining: ClassifierConfig) -> ClassifierConfig:
    """Return the pretraining's config with the data's place and the device of the run it is for."""
    data = {key: getattr(config.data, key) for key in ("root", "download", "workers")}
    return dataclasses.replace(
        pretraining,
        data=dataclasses.replace(pretraining.data, **data),
        run=dataclasses.replace(pretraining.run, device=config.run.device),
    )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        # Options are the network's own: compared as a whole.
        if isinstance(value, dict) and key != "options":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
