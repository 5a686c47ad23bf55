"""The course of a run of tools/train_classifier.py, from what it has left in its folder.

No network is built: neither its library nor the data nor a GPU is needed, and a run may still be
going on.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tr_det.classification.config.file import from_tree
from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.engine.folder import CONFIG, FINAL
from tr_det.core import Quantizer, build_quantizer
from tr_det.runtime.checkpoints import numbered_checkpoints
from tr_det.runtime.metrics import NAME as METRICS
from tr_det.runtime.metrics import read_records
from tr_det.study.course import Course, Curve

PICTURED = 4
"""Checkpoints whose weights are read; histograms of more hide each other."""

_PART = ".weight_quantizer."
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    pickle.PickleError,
)
"""What torch raises for files that are cut or something else, and what strange contents give."""


def read_run(folder: Path) -> tuple[ClassifierConfig, Course]:
    """Return a run's config and its course; without checkpoints, latents are left out.

    Raises:
        OSError: the folder, its config or its metrics are not there.
        ValueError: a file is of something else, or no weight was quantized.
    """
    config = _config(folder)
    metrics = _file(folder, METRICS)
    try:
        rows = [row for row in read_records(metrics) if isinstance(row, dict)]
    except UnicodeDecodeError:
        raise ValueError(f"{metrics}: not readable") from None
    step_size = _curve(rows, "tr/step_size")
    if not len(step_size):
        raise ValueError(
            f"{metrics}: has no effective step sizes (quant.bits={config.quant.bits}); must be of "
            "a run with quantized weights that has logged an update"
        )
    accuracy = _curve(rows, "test/accuracy")
    latents: dict[int, Tensor] = {}
    layer = ""
    for path in _spread(_checkpoints(folder)):
        update, layer, weights = _middle_weights(path, config)
        latents[update] = weights
    return config, Course(
        running=_curve(rows, "tr/running"),
        target=_curve(rows, "tr/target"),
        talr=_curve(rows, "tr/talr"),
        rate=_curve(rows, "lr"),
        step_size=step_size,
        distance=_curve(rows, "tr/distance"),
        accuracy=accuracy,
        final_accuracy=accuracy.mean()[-1].item() if len(accuracy) else math.nan,
        latents=latents,
        layer=layer,
        transition_points=_quantizer(config, 1).transition_points(),
        # Records are run.log_period apart: few of them must not all be averaged.
        window=min(20, max(1, len(step_size) // 20)),
        averaged="≤20 values",
        images="test images",
    )


def _config(folder: Path) -> ClassifierConfig:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    path = _file(folder, CONFIG)
    try:
        config: ClassifierConfig = from_tree(ClassifierConfig, yaml.safe_load(path.read_text()))
    except (ValueError, yaml.YAMLError):
        raise ValueError(f"{path}: not the config of a run of tools/train_classifier.py") from None
    return config


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: has no {name}; must be run.output_dir of tools/train_classifier.py"
        )
    return path


def _curve(rows: list[dict[str, Any]], key: str) -> Curve:
    """Return what the records say of a scalar; those that lack it have no place in the curve."""
    points = [(row["iteration"] + 1, float(row[key])) for row in rows if key in row]
    updates, values = zip(*points, strict=True) if points else ((), ())
    return Curve(torch.tensor(updates), torch.tensor(values, dtype=torch.float64).unsqueeze(1))


def _quantizer(config: ClassifierConfig, channels: int) -> Quantizer:
    """Return the quantizer of a weight with that many output channels."""
    quant = config.quant
    return build_quantizer(
        quant.weight_quantizer, quant.weight_bits, True, channels=channels, **quant.weight_options
    )


def _middle_weights(path: Path, config: ClassifierConfig) -> tuple[int, str, Tensor]:
    """Return a checkpoint's update, its middle layer and that layer's normalised latent weights."""
    try:
        # Mapped, so that only the one layer is read.
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = stored["model"]
        end = f"{_PART}_extra_state"
        names = [key.removesuffix(end) for key in weights if key.endswith(end)]
        layer = names[len(names) // 2]
        weight, prefix = weights[f"{layer}.weight"], f"{layer}{_PART}"
        quantizer = _quantizer(config, len(weight))
        own = {key: value for key, value in weights.items() if key.startswith(prefix)}
        quantizer.load_state_dict({key.removeprefix(prefix): own[key] for key in own})
        latents = quantizer.normalized(weight).flatten()
        return stored["iteration"], layer, latents
    except _UNREADABLE:
        raise ValueError(f"{path}: cannot be read as a checkpoint of this run") from None


def _checkpoints(folder: Path) -> list[Path]:
    """Return the run's whole checkpoints, oldest first."""
    return [*numbered_checkpoints(folder), *folder.glob(f"{FINAL}.pth")]


def _spread(paths: list[Path]) -> list[Path]:
    """Return the first, the last and some between, at most `PICTURED`."""
    if len(paths) <= PICTURED:
        return paths
    step = (len(paths) - 1) / (PICTURED - 1)
    return [paths[round(place * step)] for place in range(PICTURED)]
