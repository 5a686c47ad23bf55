"""Oscillation tracking.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022.

For each weight, with its integer code c_t after update t and the direction d of its last change:

    o_t = 1 if c_t differs from c_{t-1} in the direction opposite to d, else 0
    f_t = m o_t + (1 - m) f_{t-1}

d changes only with the code, however many updates pass in between. Jumps over several levels count
like others. f starts at zero.

Deviations from the paper's code:
  * codes are compared once per update, not in every forward, so evaluations and the calls of a
    shared layer do not count;
  * the state is part of checkpoints.

Memory per tracked weight: 4 bytes for f, 1 for d, 1 for the code before the update, and 4 for the
average of codes where freezing needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tr_det.core.codes import Update
from tr_det.core.errors import check, is_number, is_whole
from tr_det.core.methods.base import METHODS, Method, Run

OSCILLATING = 0.005
"""Frequency above which a weight counts as oscillating in the log; not from the paper."""


class Track:
    """The state of one weight tensor; all tensors have its shape.

    Args:
        codes: before the first update.
        with_average: whether to store an average of the codes.

    Attributes:
        frequency: f, float32.
        direction: d, int8: -1, 1, or 0 before the first change.
        average: moving average of the codes, float32, or None; starts with ``codes`` and is updated
            by the method that needs it.
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
    """Measures how often the code of each weight oscillates.

    Args:
        momentum: m, the share of a new update, in (0, 1]; also for the average of codes.
        max_bits: weights with more bits are not tracked, 1 to 8.

    Attributes:
        tracks: weight name -> state, from its first update on.
    """

    needs = ("weights", "hard weights")

    def __init__(self, *, momentum: float = 0.001, max_bits: int = 4) -> None:
        check("momentum", momentum, is_number(momentum) and 0 < momentum <= 1, "in (0, 1]")
        fits = is_whole(max_bits) and 1 <= max_bits <= 8
        check("max_bits", max_bits, fits, "an integer from 1 to 8")
        self.momentum, self.max_bits = momentum, max_bits
        self.tracks: dict[str, Track] = {}
        self.with_average = False

    def setup(self, run: Run) -> None:
        """Store the weights."""
        self._weights = run.codes.weights()
        few = min(quantizer.bits for _, quantizer in self._weights.values())
        check("max_bits", self.max_bits, few <= self.max_bits, f"at least {few}, the fewest bits")

    def reads(self, step: int) -> bool:
        """Return True: every update is tracked."""
        return True

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Compare the codes with those before the update."""
        for name, update in updates.items():
            if update.quantizer.bits > self.max_bits:
                continue
            assert update.previous is not None
            track = self.tracks.get(name)
            if track is None:
                track = self.tracks[name] = Track(update.previous, self.with_average)
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
        """Return the states."""
        return {name: track.tensors() for name, track in self.tracks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the states."""
        self.tracks = {}
        for name, saved in state.items():
            weight, _ = self._weights[name]
            codes = torch.empty_like(weight, dtype=torch.int8)
            track = self.tracks[name] = Track(codes, "average" in saved)
            for key, tensor in track.tensors().items():
                tensor.copy_(saved[key])
