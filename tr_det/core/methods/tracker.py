"""Oscillation tracking.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022.

For each weight, with its integer code c_t after update t, and the last move's direction d:

    o_t = 1 if c_t differs from c_{t-1} in the direction opposite to d, else 0
    f_t = m o_t + (1 - m) f_{t-1}

d changes only when the code moves, so any number of quiet updates may lie between. Jumps of more
than one level count like others. f starts at zero.

Deviations from the paper's code:
  * codes are compared once per update, not in every forward: evaluation and the calls of a shared
    layer are no updates;
  * the state is part of checkpoints.

Memory per tracked weight: 4 bytes for f, 1 for d, 1 for the codes before the update, and 4 for the
average of codes where a method asks for it (freezing).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tr_det.core.codes import Update
from tr_det.core.errors import check
from tr_det.core.methods.base import METHODS, Method, Run

OSCILLATING = 0.005
"""Frequency above which a weight counts as oscillating in the log; ours."""


class Track:
    """What is known of one weight tensor, in its shape.

    Args:
        codes: before the first update that is tracked.
        with_average: keep an average of the codes as well.

    Attributes:
        frequency: f, float32.
        direction: d, int8: -1, 1, or 0 before the first move.
        average: moving average of the codes, float32, or None; it starts with the first ones and
            is brought up to date by whom it is for.
    """

    def __init__(self, codes: Tensor, with_average: bool) -> None:
        self.frequency = torch.zeros_like(codes, dtype=torch.float32)
        self.direction = torch.zeros_like(codes, dtype=torch.int8)
        self.average = codes.to(torch.float32) if with_average else None

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name."""
        named = {"frequency": self.frequency, "direction": self.direction, "average": self.average}
        return {key: value for key, value in named.items() if value is not None}


@METHODS.register
class Tracker(Method):
    """How often each weight's code moves to and fro.

    Args:
        momentum: m, weight of a new update, in (0, 1]; also of the average of codes.
        max_bits: weights with more bits are not tracked, 1 to 8.

    Attributes:
        tracks: by name of the weight, from its first update on.
    """

    needs = ("weights", "hard weights")

    def __init__(self, *, momentum: float = 0.001, max_bits: int = 4) -> None:
        number = isinstance(momentum, float | int) and 0 < momentum <= 1
        check("momentum", momentum, number, "in (0, 1]")
        whole = isinstance(max_bits, int) and not isinstance(max_bits, bool)
        check("max_bits", max_bits, whole and 1 <= max_bits <= 8, "an integer from 1 to 8")
        self.momentum, self.max_bits = momentum, max_bits
        self.tracks: dict[str, Track] = {}
        self.with_average = False

    def setup(self, run: Run) -> None:
        """Get to know the weights."""
        self._weights = run.codes.weights()
        few = min(quantizer.bits for _, quantizer in self._weights.values())
        check("max_bits", self.max_bits, few <= self.max_bits, f"at least {few}, the fewest bits")

    def reads(self, step: int) -> bool:
        """Return True: every update is tracked."""
        return True

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Compare the codes with those before."""
        for name, update in updates.items():
            if update.quantizer.bits > self.max_bits:
                continue
            track = self.tracks.get(name)
            if track is None:
                assert update.previous is not None
                track = self.tracks[name] = Track(update.previous, self.with_average)
            self._see(track, update)

    def _see(self, track: Track, update: Update) -> None:
        assert update.previous is not None
        direction = torch.sign(update.codes - update.previous.to(torch.int16)).to(torch.int8)
        oscillated = direction * track.direction < 0
        track.frequency.lerp_(oscillated.to(torch.float32), self.momentum)
        track.direction.copy_(torch.where(direction != 0, direction, track.direction))

    def scalars(self) -> dict[str, Tensor]:
        """Return the share of tracked weights that oscillate, and the mean frequency."""
        if not self.tracks:
            return {}
        frequencies = [track.frequency for track in self.tracks.values()]
        count = sum(f.numel() for f in frequencies)
        often = torch.stack([torch.count_nonzero(f > OSCILLATING) for f in frequencies]).sum()
        total = torch.stack([f.sum() for f in frequencies]).sum()
        return {"tr/oscillating": often / count, "tr/frequency": total / count}

    def state_dict(self) -> dict[str, Any]:
        """Return the tracks."""
        return {name: track.tensors() for name, track in self.tracks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the tracks."""
        self.tracks = {}
        for name, saved in state.items():
            weight, _ = self._weights[name]
            codes = torch.empty_like(weight, dtype=torch.int8)
            track = self.tracks[name] = Track(codes, "average" in saved)
            for key, tensor in track.tensors().items():
                tensor.copy_(saved[key])
