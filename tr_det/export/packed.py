"""A quantized torch model to and from a bit-packed file; `tr_det.export.packed_file` has the form.

Latent weights are not stored. A loaded model gets others with the same codes, so its outputs in
evaluation are the same to the bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tr_det.core import Quantizer, quantized_layers
from tr_det.core.nn.config import FULL_PRECISION
from tr_det.export.bits import pack
from tr_det.export.latents import latents_of
from tr_det.export.packed_compare import agrees, differences
from tr_det.export.packed_file import (
    METADATA_KEY,
    OWN,
    VERSION,
    Arrays,
    PackedModel,
    level_table,
    read_packed,
    safetensors,
)
from tr_det.export.packed_state import (
    PARTS,
    Layer,
    as_array,
    joined,
    latent_keys,
    place_of,
    quantizer_prefixes,
    sharing_a_weight,
    stored_tensors,
)
from tr_det.runtime.files import written_aside

__all__ = ["load_packed", "read_packed", "write_packed"]

_SHOWN = 5
"""Differences in one message."""


def write_packed(model: nn.Module, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a quantized model.

    Args:
        model: with quantized layers, calibrated.
        path: of the file to write or replace.
        metadata: JSON to put beside what the file says itself. Entries of its "layers" are merged
            by name.

    Raises:
        ValueError: no quantized layer, no scale yet, weights that are not finite, or a state that
            is not made of tensors that numpy knows.
    """
    library = safetensors()
    if not any(quantized_layers(model)):
        raise ValueError("the model has no quantized layers: there is nothing to pack")
    tensors, shared, places = stored_tensors(model)
    entries = {entry["name"]: dict(entry) for entry in metadata.get("layers", ())}
    for name, layer in quantized_layers(model):
        entry = entries.setdefault(name, {"name": name})
        for part, child in PARTS.items():
            quantizer, key = getattr(layer, child), joined(name, part)
            entry[f"{part}_bits"] = FULL_PRECISION if quantizer is None else quantizer.bits
            entry[part] = None if quantizer is None else _quantizer_entry(quantizer, key, tensors)
    for group in sharing_a_weight(model):
        for name, layer in group:
            stored = places.get(place_of(layer.weight))
            entries[name]["weight"] |= _codes_entry(layer, name, group[0][0], stored, tensors)
    about = {**metadata, "format": "packed", "version": VERSION, "layers": [*entries.values()]}
    text = json.dumps({**about, "shared": shared}, allow_nan=False, separators=(",", ":"))
    with written_aside(path) as aside:
        aside.write_bytes(library.numpy.save(tensors, metadata={METADATA_KEY: text}))


def load_packed(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a bit-packed file into a model of the same architecture, quantized in the same way.

    In evaluation its outputs are then those of the model that was written, to the bit. A weight
    whose code no number has is held at it (`Quantizer.hold`).

    Args:
        model: with quantized layers; it is changed only if all fits, but for weights that it
            shares and the file does not.
        path: of the file.

    Returns:
        The file's metadata.

    Raises:
        ValueError: a file that cannot be read, or what differs: keys, shapes, dtypes, layers,
            quantizers, their bits, levels or thresholds; codes that no weight of the model has.
    """
    file = read_packed(path)
    _take_signs(model, file)
    problems = list(differences(model, file))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{path}: not of this model: {'; '.join(problems[:_SHOWN])}{more}")
    state: dict[str, Any] = {key: torch.tensor(array) for key, array in file.state.items()}
    filled = _filled_quantizers(model, file, state)
    latents = _latents(model, file, state, filled)
    for prefix, quantizer in quantizer_prefixes(model):
        own = filled[id(quantizer)]
        state[f"{prefix}_extra_state"] = own.get_extra_state()
        if own.held is not None:
            state[f"{prefix}held"] = own.held
    state |= {key: latents[id(layer.weight)] for key, layer in latent_keys(model)}
    model.load_state_dict(state)
    for name, layer in chain.from_iterable(sharing_a_weight(model)):
        assert layer.weight_quantizer is not None
        if not np.array_equal(
            as_array(layer.weight_quantizer.codes(layer.weight)), file.weights[name].codes
        ):
            raise ValueError(
                f"{path}: layer {name!r}: its weight is shared with others than in the file"
            )
    return file.metadata


# ---- what is written of a layer ----


def _quantizer_entry(quantizer: Quantizer, prefix: str, tensors: Arrays) -> dict[str, Any]:
    """Return what the file says of a quantizer; vectors and tables are added to the tensors."""
    try:
        quantizer.require_calibrated()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    state = {key: array for key, array in tensors.items() if key.startswith(f"{prefix}_quantizer.")}

    def number(value: Tensor | None, name: str) -> float | str | None:
        if value is None:
            return None
        array = as_array(value)
        if (array == array.flat[0]).all():
            return float(array.flat[0])
        for key, known in state.items():
            if known.dtype == array.dtype and np.array_equal(known, array):
                return key
        tensors[f"{prefix}{OWN}{name}"] = array
        return f"{prefix}{OWN}{name}"

    entry: dict[str, Any] = {
        "quantizer": quantizer.identity(),
        "bits": quantizer.bits,
        "signed": quantizer.signed,
        "axis": quantizer.spec.axis if quantizer.per_channel else None,
        "low": quantizer.low,
        "high": quantizer.high,
        "levels": f"{prefix}{OWN}levels",
    }
    grid, table = quantizer.grid(), as_array(quantizer.levels())
    if grid is not None and _is_of(grid, table):
        step, offset = number(grid.step, "step"), number(grid.offset, "offset")
        entry["levels"] = {"mul": grid.mul, "add": grid.add, "step": step, "offset": offset}
    else:
        tensors[entry["levels"]] = table
    if quantizer.spec.role == "input":
        found = quantizer.rounding()
        entry["rounding"] = found and {
            "step": number(found.step, "step"),
            "shift": number(found.shift, "shift"),
            "base": found.base,
            "tie": found.tie,
        }
    return entry


def _is_of(grid: Any, table: np.ndarray) -> bool:
    """Return whether a grid gives the levels to the bit."""
    arrays = {
        key: as_array(getattr(grid, key))
        for key in ("step", "offset")
        if getattr(grid, key) is not None
    }
    keys = {key: key if key in arrays else None for key in ("step", "offset")}
    entry = {"low": grid.low, "high": grid.high, "levels": {**grid._asdict(), **keys}}
    return np.array_equal(level_table(entry, arrays), table)


def _codes_entry(
    layer: Layer, name: str, owner: str, latent: str | None, tensors: Arrays
) -> dict[str, Any]:
    """Return what the file says of a weight; its codes are added unless they are the owner's."""
    quantizer, weight = layer.weight_quantizer, layer.weight.detach()
    assert quantizer is not None
    if not weight.isfinite().all():
        raise ValueError(f"layer {name!r}: has weights that are NaN or infinite")
    numbers = as_array(quantizer.codes(weight)).astype(np.int16) - quantizer.low
    packed = pack(numbers, quantizer.bits)
    key, first = (f"{joined(layer_name, 'weight')}{OWN}codes" for layer_name in (name, owner))
    if first in tensors and np.array_equal(tensors[first], packed):
        key = first
    tensors[key] = packed
    dtype = str(weight.dtype).removeprefix("torch.")
    return {"codes": key, "shape": [*weight.shape], "dtype": dtype, "latent": latent}


# ---- what is loaded into a layer ----


def _filled_quantizers(
    model: nn.Module, file: PackedModel, state: Mapping[str, Any]
) -> dict[int, Quantizer]:
    """Return copies with the file's numbers, by the id of the quantizer; they are compared."""
    entries = {entry["name"]: entry for entry in file.metadata["layers"]}
    filled: dict[int, Quantizer] = {}
    for name, layer in quantized_layers(model):
        for part, child in PARTS.items():
            quantizer = getattr(layer, child)
            if quantizer is None:
                continue
            own = _filled(quantizer, f"{joined(name, child)}.", state)
            if not agrees(own, entries[name][part], file.tensors):
                raise ValueError(
                    f"{file.path}: layer {name!r}: the {part} quantizer has other levels or "
                    "thresholds than in the file; its options must be the same"
                )
            filled[id(quantizer)] = own
    return filled


def _take_signs(model: nn.Module, file: PackedModel) -> None:
    """Give input quantizers whose signs are still to be found those of the file."""
    entries = {entry["name"]: entry["input"] for entry in file.metadata["layers"]}
    for name, layer in quantized_layers(model):
        quantizer, saved = layer.input_quantizer, entries.get(name)
        if quantizer is not None and saved is not None and quantizer.sign_is_open:
            quantizer.take_sign_of(saved["quantizer"])


def _latents(
    model: nn.Module,
    file: PackedModel,
    state: Mapping[str, Any],
    filled: Mapping[int, Quantizer],
) -> dict[int, Tensor]:
    """Return latent weights with the file's codes, by the id of the weight; they are compared.

    Quantizers begin to hold weights where that is needed.
    """
    entries = {entry["name"]: entry["weight"] for entry in file.metadata["layers"]}
    found: dict[int, Tensor] = {}
    for group in sharing_a_weight(model):
        weight, stored = group[0][1].weight, entries[group[0][0]]["latent"]
        quantizers = [filled[id(layer.weight_quantizer)] for _, layer in group]
        codes = [torch.tensor(file.weights[name].codes, device=weight.device) for name, _ in group]
        if stored is None:
            latent = latents_of(quantizers, codes, weight.dtype)
        else:
            latent = state[stored].to(weight.device)
        for (name, _), quantizer, wanted in zip(group, quantizers, codes, strict=True):
            wrong = _held_where_wrong(quantizer, latent, wanted)
            if wrong:
                raise ValueError(
                    f"{file.path}: layer {name!r}: {wrong} of its {wanted.numel()} codes are "
                    "those of no weight; the weight quantizer's options must be the same"
                )
        found[id(weight)] = latent
    return found


def _filled(quantizer: Quantizer, prefix: str, state: Mapping[str, Any]) -> Quantizer:
    """Return a copy with the numbers of the state."""
    filled = copy.deepcopy(quantizer)
    own = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    filled.load_state_dict({**own, "_extra_state": quantizer.get_extra_state()})
    return filled


def _held_where_wrong(quantizer: Quantizer, weight: Tensor, codes: Tensor) -> int:
    """Hold weights that have another code, if the width allows; return how many still have."""
    wrong = quantizer.codes(weight) != codes
    if wrong.any() and quantizer.bits < 8:
        quantizer.hold(wrong, codes)
        wrong = quantizer.codes(weight) != codes
    return int(wrong.sum())
