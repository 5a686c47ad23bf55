"""Latent weights in the checkpoints of a run of either side, without its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tr_det.core import ConfigError, Quantizer, build_quantizer
from tr_det.core.methods.attach import KEY as STATE
from tr_det.runtime.damage import read_checkpoint
from tr_det.runtime.run_folder import FINAL, numbered_checkpoints

_PART = ".weight_quantizer."
_IDENTITY = f"{_PART}_extra_state"


class WeightQuantizer(NamedTuple):
    """What a config says of the quantizers of weights."""

    name: str
    bits: int
    options: Mapping[str, Any]

    def build(self, channels: int) -> Quantizer:
        """Return that of a weight with so many output channels."""
        return build_quantizer(self.name, self.bits, True, channels=channels, **self.options)


class StoredWeights:
    """The quantized weights of a checkpoint, which is mapped: a layer is read when asked for.

    Args:
        path: the checkpoint.
        quantizer: of its run's config.

    Attributes:
        updates: that were made before.
        layers: names of the layers with a quantized weight, in the model's order.

    Raises:
        ValueError: not a checkpoint of a run of ours.
    """

    def __init__(self, path: Path, quantizer: WeightQuantizer) -> None:
        stored = read_checkpoint(path, mmap=True)
        try:
            self._tensors: Mapping[str, Tensor] = stored["model"]
            # Detectron2's trainer has the optimizer's state in its own.
            holder = stored["trainer"]["_trainer"] if "trainer" in stored else stored
            optimizer = holder["optimizer"]
            self.updates: int = optimizer[STATE]["step"]
        except (KeyError, TypeError, IndexError):
            raise ValueError(f"{path}: not a checkpoint of a run's training") from None
        names = [key for key in self._tensors if key.endswith(_IDENTITY)]
        self.layers = [name.removesuffix(_IDENTITY) for name in names]
        self._quantizer = quantizer

    def normalized(self, layer: str) -> Tensor:
        """Return a layer's latent weights in units of codes, within their range; flat, float32."""
        weight, state = self._tensors[f"{layer}.weight"], self._state(layer)
        quantizer = self._quantizer_of(layer).build(len(weight))
        quantizer.load_state_dict(state)
        return quantizer.normalized(weight).flatten()

    def transition_points(self, layer: str) -> list[float]:
        """Return where a layer's codes change, in units of codes."""
        points = self._quantizer_of(layer).build(1).transition_points()
        return [float(point) for point in points.flatten()]

    def _state(self, layer: str) -> dict[str, Tensor]:
        prefix = f"{layer}{_PART}"
        keys = [key for key in self._tensors if key.startswith(prefix)]
        return {key.removeprefix(prefix): self._tensors[key] for key in keys}

    def _quantizer_of(self, layer: str) -> WeightQuantizer:
        """Return what a layer has: rules may have given it other bits than the rest."""
        state, usual = self._state(layer), self._quantizer
        for bits in (usual.bits, *range(1, 9)):
            found = usual._replace(bits=bits)
            try:
                quantizer = found.build(1)
            except ConfigError:  # not all take one bit
                continue
            if quantizer.saved_identity(state, "") == quantizer.identity():
                return found
        return usual  # whose loading says what is wrong


def first_and_last_checkpoint(folder: Path) -> list[Path]:
    """Return what is left of them in a run's folder: two paths, one or none."""
    end = folder / f"{FINAL}.pth"
    paths = [*numbered_checkpoints(folder), *([end] if end.is_file() else [])]
    return [*paths[:1], *paths[1:][-1:]]
