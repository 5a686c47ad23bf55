"""The bit-packed file: a safetensors file whose quantized weights are integers of their own width.

Tensors are the model's state, under its keys. In place of the weight of a quantized layer there are
its packed codes (`tr_det.export.bits`) and, where the state does not have them already, the numbers
that make levels of them. All else is JSON under the key "tr_det" of the file's metadata:

    layers    one entry per quantized layer
        name
        weight_bits, input_bits     32 for full precision
        weight    null, or
            codes       key of the packed codes; layers that share a weight may share them
            shape, dtype, latent    of the weight; the key of its floats where others need those
            quantizer   its name and codes
            bits, signed, axis      axis of the scales; null for one scale per tensor
            low, high   of the codes
            levels      as below
        input     null, or quantizer, bits, signed, axis, low, high, levels and
            rounding    null, or {step, shift, base, tie}: code = base + round((x - shift) / step)
    shared    key -> the key under which the same tensor is stored

``levels`` is ``{mul, add, step, offset}`` for ``step * (mul * code + add) + offset``, or the key of
a table of shape (codes,) or (channels, codes). A step, shift or offset is a number, null for none,
or the key of a vector with one number per channel.

Reading needs neither torch nor the core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tr_det.export.bits import unpack
from tr_det.export.metadata import METADATA_KEY, VERSION

OWN = ":"
"""In the keys of tensors that are not the model's state."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class PackedWeight:
    """The weight of a quantized layer.

    Attributes:
        codes: int8 or uint8, in the weight's shape.
        levels: float32, (codes,) or (channels, codes), ascending from the smallest code.
        low: smallest code.
        axis: dimension of the channels; None for one scale per tensor.
    """

    codes: np.ndarray
    levels: np.ndarray
    low: int
    axis: int | None

    def values(self) -> np.ndarray:
        """Return the quantized weight, float32."""
        places = self.codes.astype(np.int16) - self.low
        if self.axis is None:
            return self.levels[places]
        rows = np.moveaxis(places, self.axis, 0)
        found = np.take_along_axis(self.levels, rows.reshape(len(rows), -1), 1)
        return np.ascontiguousarray(np.moveaxis(found.reshape(rows.shape), 0, self.axis))


@dataclass(frozen=True)
class PackedModel:
    """What is in a file.

    Attributes:
        path: of the file.
        metadata: the JSON.
        tensors: as they are stored.
        weights: by layer; layers whose weight is in full precision are left out.
        state: all other tensors of the model, under their keys; shared ones under each key.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: Arrays
    weights: dict[str, PackedWeight]
    state: Arrays


def read_packed(path: str | Path) -> PackedModel:
    """Read a bit-packed file.

    Raises:
        ValueError: no such file, one that is damaged, or one of another kind or version.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    try:
        weights = {
            entry["name"]: _weight(entry["weight"], tensors)
            for entry in metadata["layers"]
            if entry["weight"] is not None
        }
        state = {key: array for key, array in tensors.items() if OWN not in key}
        state |= {key: tensors[stored] for key, stored in metadata["shared"].items()}
    except KeyError as error:
        raise ValueError(f"{path}: damaged: {error.args[0]!r} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:  # values of another type
        raise ValueError(f"{path}: damaged: {error}") from None
    return PackedModel(path, metadata, tensors, weights, state)


def level_table(entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the levels of a weight or input: float32, (codes,) or (channels, codes)."""
    levels = entry["levels"]
    if isinstance(levels, str):
        return tensors[levels]
    codes = np.arange(entry["low"], entry["high"] + 1) * levels["mul"] + levels["add"]
    step, offset = (number_of(levels[key], tensors) for key in ("step", "offset"))
    assert step is not None
    found = codes.astype(np.float32) * step[..., None]
    return found if offset is None else found + offset[..., None]


def number_of(value: float | str | None, tensors: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return a number of the JSON, float32: 0-d, or (channels,) where it is a tensor's key."""
    if value is None:
        return None
    return tensors[value] if isinstance(value, str) else np.asarray(value, np.float32)


def _weight(entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    shape, low = entry["shape"], entry["low"]
    numbers = unpack(tensors[entry["codes"]], entry["bits"], int(np.prod(shape)))
    if numbers.size and numbers.max() > entry["high"] - low:
        raise ValueError(f"{entry['codes']} has codes above {entry['high']}")
    codes = (numbers.astype(np.int16) + low).astype(np.int8 if entry["signed"] else np.uint8)
    table = level_table(entry, tensors)
    axis = entry["axis"]
    if axis is not None and table.ndim == 1:  # equal numbers are stored once
        table = np.broadcast_to(table, (shape[axis], len(table)))
    return PackedWeight(codes.reshape(shape), table, low, axis)


def safetensors() -> Any:
    """Return the library that reads and writes the files.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError:
        raise ValueError(
            "bit-packed files need safetensors, which is not installed; pip install safetensors"
        ) from None
    return safetensors


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    library = safetensors()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with library.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
            tensors = {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except library.SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file, or a damaged one: {error}") from None
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: metadata: is not JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: metadata: must be an object; got {type(metadata).__name__}")
    kind = (metadata.get("format"), metadata.get("version"))
    if kind != ("packed", VERSION):
        raise ValueError(
            f"{path}: format {kind[0]!r}, version {kind[1]!r}: must be 'packed', {VERSION}"
        )
    return metadata, tensors
