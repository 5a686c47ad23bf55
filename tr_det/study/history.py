"""The history of a run of the classification trainer, read from the files in its folder.

No network is built: neither its library nor the data nor a GPU is needed, and a run may still be
going on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.config.reading import from_tree
from tr_det.classification.engine.run import CONFIG
from tr_det.runtime.configs import parse
from tr_det.runtime.metrics import METRICS, read_records
from tr_det.study.curves import Curve, curve, layer_curve
from tr_det.study.latents import StoredWeights, WeightQuantizer, training_checkpoints

MOST_LATENTS = 4
"""Checkpoints whose weights are read; histograms of more hide each other."""


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
        config: ClassifierConfig = from_tree(ClassifierConfig, parse(text))
    except ValueError:
        raise ValueError(f"{folder / CONFIG}: not the config of a classifier's run") from None
    rows = read_records(_file(folder, METRICS))
    step_size = layer_curve(rows, "step_size")
    if not len(step_size):
        raise ValueError(
            f"{folder / METRICS}: has no effective step sizes (quant.bits={config.quant.bits}); "
            "must be of a run with quantized weights that has logged an update"
        )
    quant = config.quant
    quantizer = WeightQuantizer(quant.weight_quantizer, quant.weight_bits, quant.weight_options)
    latents, layer, factor = {}, "", math.nan
    for path in training_checkpoints(folder, MOST_LATENTS):
        stored = StoredWeights(path, quantizer)
        layer, factor = stored.layers[len(stored.layers) // 2], stored.factor
        latents[stored.updates] = stored.normalized(layer)
    return History(
        config=config,
        running=layer_curve(rows, "running"),
        target=layer_curve(rows, "target"),
        talr=layer_curve(rows, "talr"),
        lr=curve(rows, ["lr"]),
        step_size=step_size,
        distance=layer_curve(rows, "distance"),
        accuracy=curve(rows, ["test/accuracy"]),
        factor=factor,
        latents=latents,
        layer=layer,
        transition_points=quantizer.build(1).transition_points(),
    )


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        allowed = "must be run.output_dir of tools/train_classifier.py"
        raise FileNotFoundError(f"{folder}: has no {name}; {allowed}")
    return folder / name
