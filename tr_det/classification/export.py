"""What an exported classifier's file must say about it, and its accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from tr_det.classification.config.keys import LIBRARY, ClassifierConfig
from tr_det.classification.config.reading import load_config, to_yaml
from tr_det.classification.data.datasets import load_data
from tr_det.classification.data.images import Data
from tr_det.classification.data.loader import evaluation_batches
from tr_det.classification.engine.evaluation import check_classes, evaluate_model
from tr_det.classification.models.build import build_network
from tr_det.core.errors import check
from tr_det.export.metadata import CentreCrop, InputSpec, Metadata
from tr_det.export.networks import Network
from tr_det.export.subject import (
    Subject,
    checkpoint_entry,
    require_checkpoint,
    require_quantized,
    require_scales,
)
from tr_det.runtime.checkpoints import StrictCheckpointer

OUTPUT = "logits"


def classifier_subject(
    config_file: str | Path, pairs: Sequence[str] = (), checkpoint: str = ""
) -> Subject:
    """Return a trained classifier with what its file says about it.

    Args:
        config_file: YAML of the run.
        pairs: ``KEY VALUE`` pairs over it.
        checkpoint: "" takes ``model.weights``.

    Raises:
        ValueError: what is wrong with the config or the checkpoint, or a model that is not
            quantized or has no scales.
    """
    config = load_config_for_cpu(config_file, pairs)
    weights = checkpoint or config.model.weights
    if weights == LIBRARY:
        raise ValueError(f"model.weights={LIBRARY}: has no scales of quantizers; train it first")
    require_checkpoint(weights, "--checkpoint" if checkpoint else "model.weights")
    data = load_data(config.data)
    model = fresh_classifier(config, data)
    require_quantized(model, f"quant.bits={config.quant.bits}")
    StrictCheckpointer(model).load(weights, checkpointables=[])
    require_scales(model, weights)
    example = torch.zeros(2, data.channels, data.image_size, data.image_size)
    return Subject(
        model=model,
        net=model,
        names=(OUTPUT,),
        example=example,
        metadata=replace(classifier_metadata(config, data), checkpoint=checkpoint_entry(weights)),
        images=lambda count: _images(data, count),
        fresh=lambda: (fresh := fresh_classifier(config, data), fresh),
    )


def classifier_metadata(config: ClassifierConfig, data: Data) -> Metadata:
    """Return what a file or a predictor must know of a classifier, but for its checkpoint."""
    return Metadata(
        format="torch",
        task="classification",
        input=input_spec(config, data),
        classes=data.classes,
        config=to_yaml(config),
    )


def load_config_for_cpu(path: str | Path, pairs: Sequence[str]) -> ClassifierConfig:
    """Return the config of a file and ``KEY VALUE`` pairs, on the CPU whatever they say."""
    config = load_config(path, pairs)
    return replace(config, run=replace(config.run, device="cpu"))


def fresh_classifier(config: ClassifierConfig, data: Data) -> nn.Module:
    """Return a classifier without trained weights, in evaluation."""
    model = build_network(config, data, published=False)
    return model.eval()


def input_spec(config: ClassifierConfig, data: Data) -> InputSpec:
    """Return how an image becomes the classifier's input, as the test images do."""
    mean, std = data.normalisation
    return InputSpec(
        channels=data.channels,
        color="L" if data.channels == 1 else "RGB",
        scale=1 / 255,
        mean=tuple(mean),
        std=tuple(std),
        divisor=1,
        resize=CentreCrop(data.shorter_side, data.image_size, config.data.interpolation),
    )


class ExportedClassifier(nn.Module):
    """An exported network in the place of the classifier that it was made from.

    Args:
        network: what was exported.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network
        # Who evaluates a model asks for its device.
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W)."""
        with torch.autocast("cpu", enabled=False):  # the run's precision is not the file's
            return torch.from_numpy(self._network.run({"images": images.numpy()})[OUTPUT])


def evaluate_exported(
    config: ClassifierConfig, data: Data, metadata: Metadata, network: Network, limit: int = 0
) -> dict[str, float]:
    """Return ``accuracy`` and ``top5`` in percent and the ``loss`` over the test images.

    Args:
        config: of the run.
        data: likewise.
        metadata: of the file.
        network: what was exported.
        limit: number of images; 0 for all.

    Raises:
        ValueError: the file was made for other classes, or for other inputs.
    """
    check_classes(config, list(metadata.classes), data.classes, "the exported file")
    own = input_spec(config, data)
    for part in fields(own):
        value, taken = (getattr(spec, part.name) for spec in (own, metadata.input))
        check(f"images' {part.name}", value, value == taken, f"{taken}, which the file takes")
    if limit:
        data = replace(data, test=_first(data, limit))
    return evaluate_model(config, ExportedClassifier(network), data)


def _images(data: Data, count: int) -> Iterator[Tensor]:
    for images, _ in evaluation_batches(_first(data, count), 1):
        yield images


def _first(data: Data, count: int) -> Any:
    test: Any = data.test
    return Subset(test, range(min(count, len(test))))
