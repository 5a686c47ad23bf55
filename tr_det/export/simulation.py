"""The quantized torch model as it is, recorded by ``torch.export``: floats on the grids' levels.

It runs wherever torch does, without this package, and gives the numbers of the model in evaluation.
Nothing in it is computed in integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core import quantized_layers
from tr_det.export.metadata import METADATA_KEY, VERSION
from tr_det.export.recording import record
from tr_det.runtime.files import written_aside


def write_simulation(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    metadata: Mapping[str, Any],
    dynamic: Sequence[int] = (0, 2, 3),
) -> None:
    """Record a model in evaluation and write it.

    Args:
        model: takes one tensor; calibrated.
        example: an input; its dynamic dimensions are at least 2. If none of the feature maps has a
            side of 1 (RetinaNet: images from 256 px), later images must not lead to one either.
        path: of the file to write or replace, ending in .pt2.
        metadata: JSON to put beside what the file says itself.
        dynamic: dimensions of the input whose size may differ later. Those that the model itself
            makes constant stay so.

    Raises:
        ValueError: a model in training mode, without quantized layers or scales, or one that
            cannot be recorded; an example that is too small.
    """
    for _, layer in quantized_layers(model):
        for part in layer.parts():
            try:
                part.require_calibrated()
            except RuntimeError as error:
                raise ValueError(str(error)) from None
    program = record(model, example, dynamic)
    text = json.dumps({**metadata, "format": "torch", "version": VERSION}, allow_nan=False)
    with written_aside(path) as aside:
        torch.export.save(program, aside, extra_files={METADATA_KEY: text})


def read_simulation(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the recorded model, which is called like the one that was written, and the metadata.

    Raises:
        ValueError: no such file, or one of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    extra = {METADATA_KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise ValueError(f"{path}: no file of torch.export, or a damaged one: {error}") from None
    metadata = json.loads(extra[METADATA_KEY] or "{}")
    kind = (metadata.get("format"), metadata.get("version"))
    if kind != ("torch", VERSION):
        raise ValueError(f"{path}: format {kind[0]!r}, version {kind[1]!r}: must be 'torch', 1")
    return program.module(), metadata
