"""Iterative weight freezing.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022.

After each update, for each weight that is not held yet, with its oscillation frequency f of
`tracker` and a moving average a of its codes (of the same momentum):

    where f > threshold: hold the weight at round(a), a taken before this update's code enters it
    a <- m c + (1 - m) a

A held weight has the level of its code whatever becomes of its latent value, which gets no gradient
but still moves by momentum and decay. With a learned scale the level follows the scale. Holding is
never undone. The jump to round(a), if any, is seen by the tracker at the next update.

Under TR scheduling held weights count neither as changed nor as weights (`Update.rate`).

Deviations from the paper's code:
  * once per update instead of in every forward, and kept in checkpoints, as in `tracker`;
  * the threshold is constant: its annealing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tr_det.core.codes import Update
from tr_det.core.errors import check
from tr_det.core.methods.base import METHODS, Method, Run
from tr_det.core.methods.tracker import Tracker
from tr_det.core.quantizers import FREE


@METHODS.register
class Freezing(Method):
    """Holds weights that oscillate; brings a `tracker` with defaults if none is attached.

    Args:
        threshold: frequency above which a weight is held, in (0, 1); some multiples of the
            tracker's momentum, as one oscillation raises f by that much.
        use_average: hold at the average of the codes; False: at the code after the update.
    """

    order = 1
    changes_codes = True

    def __init__(self, *, threshold: float = 0.02, use_average: bool = True) -> None:
        number = isinstance(threshold, float | int) and 0 < threshold < 1
        check("threshold", threshold, number, "in (0, 1)")
        check("use_average", use_average, isinstance(use_average, bool), "True or False")
        self.threshold, self.use_average = threshold, use_average

    def setup(self, run: Run) -> None:
        """Find the tracker."""
        tracker = run.find("tracker")
        assert isinstance(tracker, Tracker)
        check(
            "threshold",
            self.threshold,
            self.threshold > tracker.momentum,
            f"above the tracker's momentum, {tracker.momentum}, by which one oscillation counts",
        )
        self._tracker, self._weights = tracker, run.codes.weights()
        narrow = any(quantizer.bits < 8 for _, quantizer in self._weights.values())
        allowed = "left out where all weights have 8 bits: no code is left to say that one is free"
        check("methods", "freezing", narrow, allowed)
        tracker.with_average = self.use_average

    def reads(self, step: int) -> bool:
        """Return True: every update may hold weights."""
        return True

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Hold what oscillates, then let the average follow."""
        for name, update in updates.items():
            track = self._tracker.tracks.get(name)
            if track is None or update.quantizer.bits > 7:
                continue
            codes = update.codes
            which = track.frequency > self.threshold
            held = update.quantizer.held
            if held is not None:
                which &= held == FREE
            at = codes if track.average is None else track.average.round()
            update.quantizer.hold(which, at)
            if track.average is not None:
                track.average.lerp_(codes.to(torch.float32), self._tracker.momentum)

    def scalars(self) -> dict[str, Tensor]:
        """Return the share of all quantized weights that are held."""
        weights = list(self._weights.values())
        held = [
            torch.zeros((), dtype=torch.int64, device=weight.device)
            if quantizer.held is None
            else torch.count_nonzero(quantizer.held != FREE)
            for weight, quantizer in weights
        ]
        return {"tr/frozen": torch.stack(held).sum() / sum(weight.numel() for weight, _ in weights)}
