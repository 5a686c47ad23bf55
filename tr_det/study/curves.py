"""Curves over a run, from the records of its metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tr_det.core.methods.telemetry import LAYERS
from tr_det.runtime.metrics import Record


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


def curve(rows: Sequence[Record], keys: Sequence[str]) -> Curve:
    """Return the curve of some scalars, one a column, of the records that have them all."""
    points = [row for row in rows if keys and all(key in row for key in keys)]
    values = torch.tensor([[row[key] for key in keys] for row in points], dtype=torch.float64)
    updates = torch.tensor([row["iteration"] + 1 for row in points])
    return Curve(updates, values.reshape(len(points), max(1, len(keys))))


def layer_curve(rows: Sequence[Record], name: str) -> Curve:
    """Return the curve of a quantity of every layer, of the records that have it."""
    return curve(rows, [f"{LAYERS}{layer}/{name}" for layer in layers_of(rows, name)])


def layers_of(rows: Sequence[Record], name: str) -> list[str]:
    """Return the layers with a quantity in some record, sorted: the columns of its curve."""
    end = f"/{name}"
    keys = [key for key in set().union(*rows) if key.startswith(LAYERS) and key.endswith(end)]
    return [key.removeprefix(LAYERS).removesuffix(end) for key in sorted(keys)]
