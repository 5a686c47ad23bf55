"""What the pictures show of a run, whoever wrote it down: an experiment or a trainer's folder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """A quantity over a run.

    Attributes:
        updates: when it was recorded, shape (records,).
        values: shape (records, layers); one column where layers were averaged or play no part.
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
class Course:
    """How a run went.

    Attributes:
        running: K; empty without TR scheduling.
        target: R, likewise; lacking or NaN while the TR factor is being found.
        talr: U, likewise.
        rate: learning rate of parameters that are not quantized.
        step_size: mean change of levels by one update.
        distance: mean distance to the nearest transition point in units of codes.
        accuracy: in percent.
        final_accuracy: of the end; NaN where it was not measured.
        latents: normalised latent weights of the middle layer, by number of updates made.
        layer: its name.
        transition_points: its quantizer's.
        window: how many step sizes, which are noisy, a picture averages.
        averaged: how it says so.
        images: what the accuracy is of.
    """

    running: Curve
    target: Curve
    talr: Curve
    rate: Curve
    step_size: Curve
    distance: Curve
    accuracy: Curve
    final_accuracy: float
    latents: dict[int, Tensor]
    layer: str
    transition_points: Tensor
    window: int
    averaged: str
    images: str
