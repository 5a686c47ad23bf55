"""Whether a model and a bit-packed file belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from tr_det.core import Quantizer, quantized_layers
from tr_det.export.packed_file import Arrays, PackedModel, level_table, number_of
from tr_det.export.packed_state import PARTS, as_array, plain_state


def differences(model: nn.Module, file: PackedModel) -> Iterator[str]:
    """Yield how the model differs from the file, as far as it shows without loading."""
    layers = dict(quantized_layers(model))
    entries = {entry["name"]: entry for entry in file.metadata["layers"]}
    for name in sorted(layers.keys() | entries.keys()):
        if name not in entries or name not in layers:
            yield f"layer {name!r} is quantized {'here' if name in layers else 'there'} only"
            continue
        for part, child in PARTS.items():
            theirs, quantizer = entries[name][part], getattr(layers[name], child)
            pair = _kind_in_file(theirs), _kind(quantizer)
            if pair[0] != pair[1]:
                yield f"layer {name!r}: its {part} has {pair[0]}, here {pair[1]}"
        theirs, weight = entries[name]["weight"], layers[name].weight
        if theirs is not None:
            forms = _form(theirs["shape"], theirs["dtype"]), _form(weight.shape, weight.dtype)
            if forms[0] != forms[1]:
                yield f"layer {name!r}: its weight is {forms[0]}, here {forms[1]}"
    expected, found = plain_state(model), file.state
    for key in sorted(expected.keys() | found.keys()):
        if key not in found or key not in expected:
            yield f"{key} is {'missing' if key in expected else 'unknown'}"
            continue
        own, other = expected[key], torch.tensor(found[key])
        if (own.shape, own.dtype) != (other.shape, other.dtype):
            yield f"{key} is {_form(other.shape, other.dtype)}, here {_form(own.shape, own.dtype)}"


def agrees(quantizer: Quantizer, entry: Mapping[str, Any], tensors: Arrays) -> bool:
    """Return whether levels and thresholds are those of the file, to the bit."""
    table = as_array(quantizer.levels())
    stored = np.broadcast_to(level_table(entry, tensors), table.shape)
    if not np.array_equal(stored, table):
        return False
    theirs = entry.get("rounding")
    rounding = quantizer.rounding() if quantizer.spec.role == "input" else None
    if theirs is None or rounding is None:
        return theirs is rounding
    if (theirs["base"], theirs["tie"]) != (rounding.base, rounding.tie):
        return False
    for key in ("step", "shift"):
        own, other = getattr(rounding, key), number_of(theirs[key], tensors)
        if (own is None) != (other is None) or (
            own is not None and not (as_array(own) == other).all()
        ):
            return False
    return True


def _form(shape: Any, dtype: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _kind(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return "no quantizer"
    return _kind_in_file(
        {
            "quantizer": quantizer.identity(),
            "bits": quantizer.bits,
            "axis": quantizer.spec.axis if quantizer.per_channel else None,
        }
    )


def _kind_in_file(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "no quantizer"
    scales = "" if entry["axis"] is None else f", scales along dimension {entry['axis']}"
    return f"{entry['quantizer']} in {entry['bits']} bits{scales}"
