"""The history of a run of the classification trainer, read from the files in its folder.

No network is built: neither its library nor the data nor a GPU is needed, and a run may still be
going on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.config.reading import from_tree
from tr_det.classification.engine.run import CONFIG
from tr_det.core import Quantizer, build_quantizer
from tr_det.core.optim.keys import FACTOR
from tr_det.runtime.checkpoints import FINAL, numbered_checkpoints
from tr_det.runtime.damage import read_checkpoint
from tr_det.runtime.metrics import METRICS, read_records

MOST_LATENTS = 4
"""Checkpoints whose weights are read; histograms of more hide each other."""

_PART = ".weight_quantizer."


@dataclass(frozen=True)
class Curve:
    """A quantity over a run.

    Attributes:
        updates: number of updates made at each record, shape (records,).
        values: shape (records, layers); one column for what layers play no part in.
    """

    updates: Tensor
    values: Tensor

    def mean(self) -> Tensor:
        """Return means over layers, shape (records,)."""
        return self.values.mean(1)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.updates)


@dataclass(frozen=True, kw_only=True)
class History:
    """What a run recorded.

    Attributes:
        config: of the run.
        running: K of each layer; empty without TR scheduling.
        target: R, likewise; it starts when the TR factor is known.
        talr: U, likewise.
        lr: learning rate of parameters that are not quantized.
        step_size: mean change of each layer's levels by one update.
        distance: mean distance of its weights to the nearest transition point, in units of codes.
        accuracy: on the test images, in percent.
        factor: lambda at the last checkpoint; NaN without one, or without TR scheduling.
        latents: normalised latent weights of the middle layer, by number of updates made; empty
            without checkpoints.
        layer: its name.
        transition_points: its quantizer's.
    """

    config: ClassifierConfig
    running: Curve
    target: Curve
    talr: Curve
    lr: Curve
    step_size: Curve
    distance: Curve
    accuracy: Curve
    factor: float
    latents: dict[int, Tensor]
    layer: str
    transition_points: Tensor

    @property
    def final_accuracy(self) -> float:
        """Accuracy at the end, in percent; NaN where it was not measured."""
        return self.accuracy.mean()[-1].item() if len(self.accuracy) else math.nan

    @property
    def first_target(self) -> float:
        """R_0 = lambda sqrt(b)."""
        return self.factor * math.sqrt(self.config.quant.weight_bits)

    def tracking_error(self) -> float:
        """Return mean |K - R| / R_0 over layers and the updates after the first tenth.

        Updates without a target, at which the TR factor was being sought, are left out.
        """
        known = torch.isin(self.running.updates, self.target.updates)
        error = (self.running.values[known] - self.target.values).abs()
        late = self.target.updates > self.running.updates[-1] // 10
        return error[late].mean().item() / self.first_target


def read_history(folder: Path) -> History:
    """Return the history of the run in a folder.

    Raises:
        OSError: the folder, its config or its metrics are not there.
        ValueError: a file is of something else, or no weight was quantized.
    """
    try:
        text = _file(folder, CONFIG).read_text()
        config: ClassifierConfig = from_tree(ClassifierConfig, yaml.safe_load(text))
    except ValueError:
        raise ValueError(f"{folder / CONFIG}: not the config of a classifier's run") from None
    rows = read_records(_file(folder, METRICS))
    step_size = _layers(rows, "step_size")
    if not len(step_size):
        raise ValueError(
            f"{folder / METRICS}: has no effective step sizes (quant.bits={config.quant.bits}); "
            "must be of a run with quantized weights that has logged an update"
        )
    end = folder / f"{FINAL}.pth"
    checkpoints = [*numbered_checkpoints(folder), *([end] if end.is_file() else [])]
    latents, layer, factor = {}, "", math.nan
    for path in _spread(checkpoints):
        update, layer, weights, factor = _read_checkpoint(path, config)
        latents[update] = weights
    return History(
        config=config,
        running=_layers(rows, "running"),
        target=_layers(rows, "target"),
        talr=_layers(rows, "talr"),
        lr=_curve(rows, ["lr"]),
        step_size=step_size,
        distance=_layers(rows, "distance"),
        accuracy=_curve(rows, ["test/accuracy"]),
        factor=factor,
        latents=latents,
        layer=layer,
        transition_points=_quantizer(config, 1).transition_points(),
    )


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        allowed = "must be run.output_dir of tools/train_classifier.py"
        raise FileNotFoundError(f"{folder}: has no {name}; {allowed}")
    return folder / name


def _layers(rows: list[dict[str, Any]], name: str) -> Curve:
    """Return the curve of a quantity of every layer, of the records that have it."""
    keys = {key for row in rows for key in row if key.startswith("tr_layers/")}
    return _curve(rows, sorted(key for key in keys if key.endswith(f"/{name}")))


def _curve(rows: list[dict[str, Any]], keys: list[str]) -> Curve:
    """Return the curve of some scalars, one a column, of the records that have them all."""
    points = [row for row in rows if keys and all(key in row for key in keys)]
    values = torch.tensor([[row[key] for key in keys] for row in points], dtype=torch.float64)
    updates = torch.tensor([row["iteration"] + 1 for row in points])
    return Curve(updates, values.reshape(len(points), max(1, len(keys))))


def _quantizer(config: ClassifierConfig, channels: int) -> Quantizer:
    """Return the quantizer of a weight with that many output channels."""
    quant = config.quant
    return build_quantizer(
        quant.weight_quantizer, quant.weight_bits, True, channels=channels, **quant.weight_options
    )


def _read_checkpoint(path: Path, config: ClassifierConfig) -> tuple[int, str, Tensor, float]:
    """Return a checkpoint's update, its middle layer, that one's normalised latents, and lambda."""
    # Mapped, so that only the one layer is read.
    stored = read_checkpoint(path, mmap=True)
    weights = stored["model"]
    end = f"{_PART}_extra_state"
    names = [key.removesuffix(end) for key in weights if key.endswith(end)]
    layer = names[len(names) // 2]
    weight, prefix = weights[f"{layer}.weight"], f"{layer}{_PART}"
    quantizer = _quantizer(config, len(weight))
    own = {key: value for key, value in weights.items() if key.startswith(prefix)}
    quantizer.load_state_dict({key.removeprefix(prefix): own[key] for key in own})
    groups = [group for group in stored["optimizer"]["param_groups"] if FACTOR in group]
    factor = groups[0][FACTOR] if groups else None  # None while it is being sought
    factor = math.nan if factor is None else factor
    return stored["iteration"], layer, quantizer.normalized(weight).flatten(), factor


def _spread(paths: list[Path]) -> list[Path]:
    """Return the first, the last and some between, at most `MOST_LATENTS`."""
    if len(paths) <= MOST_LATENTS:
        return paths
    step = (len(paths) - 1) / (MOST_LATENTS - 1)
    return [paths[round(place * step)] for place in range(MOST_LATENTS)]
