"""Iterative weight freezing.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022.

After each update, for each weight that is not held yet, with its oscillation frequency f of
`tracker` and a moving average a of its codes (of the same momentum):

    where f > threshold: hold the weight at round(a), a taken before this update's code enters it
    a <- m c + (1 - m) a

A held weight has the level of its code whatever becomes of its latent value, which gets no gradient
but still moves by momentum and decay. With a learned scale the level follows the scale. Holding is
never undone. The jump to round(a), if any, is seen by the tracker at the next update.

With ``threshold_final`` the threshold follows the cosine of `annealing` over the updates t = 1 to T
from t_0 = start T on. Before t_0 no weight is held, while f is tracked; a starts at t_0 with the
codes of that update.

Under TR scheduling held weights count neither as changed nor as weights (`Update.rate`).

Deviations from the paper's code:
  * once per update instead of in every forward, and kept in checkpoints, as in `tracker`;
  * update t's codes meet the threshold of t; in the paper's code, whose forward t comes before the
    update, that of t + 1;
  * a threshold that one oscillation passes, the tracker's momentum, is refused, at both ends: what
    is held for good should have moved to and fro several times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tr_det.core.codes import Update
from tr_det.core.errors import check
from tr_det.core.methods.annealing import check_start, cosine
from tr_det.core.methods.base import METHODS, Method, Run
from tr_det.core.methods.tracker import Tracker
from tr_det.core.quantizers import FREE


@METHODS.register
class Freezing(Method):
    """Holds weights that oscillate; brings a `tracker` with defaults if none is attached.

    Args:
        threshold: frequency above which a weight is held, in (0, 1); some multiples of the
            tracker's momentum, as one oscillation raises f by that much.
        threshold_final: that of the last update, likewise; None: it is ``threshold`` from the first
            update on.
        start: share of the run before weights are held, in [0, 1), with ``threshold_final``.
        use_average: hold at the average of the codes; False: at the code after the update.
    """

    needs = ("weights", "spare codes", "hard weights")
    order = 1
    changes_codes = True

    def __init__(
        self,
        *,
        threshold: float = 0.02,
        threshold_final: float | None = None,
        start: float = 0.25,
        use_average: bool = True,
    ) -> None:
        last = threshold if threshold_final is None else threshold_final
        self.thresholds = {"threshold": threshold, "threshold_final": last}
        for key, value in self.thresholds.items():
            number = isinstance(value, float | int) and 0 < value < 1
            check(key, value, number, "in (0, 1)")
        check_start(start)
        check("use_average", use_average, isinstance(use_average, bool), "True or False")
        self.start = start if threshold_final is not None else 0.0
        self.use_average = use_average

    def setup(self, run: Run) -> None:
        """Find the tracker."""
        tracker = run.find("tracker")
        assert isinstance(tracker, Tracker)
        m = tracker.momentum
        for key, value in self.thresholds.items():
            allowed = f"above the tracker's momentum, {m}, by which one oscillation counts"
            check(key, value, value > m, allowed)
        self._tracker = tracker
        self._total, self._first = run.total_steps, math.ceil(self.start * run.total_steps)
        tracker.with_average = self.use_average

    def reads(self, step: int) -> bool:
        """Return True: every update may hold weights."""
        return True

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Hold what oscillates, then let the average follow."""
        t = step + 1
        first, last = self.thresholds.values()
        threshold = cosine(t, self._total, first, last, self.start)
        for name, update in updates.items():
            track = self._tracker.tracks.get(name)
            if track is None or update.quantizer.bits > 7:
                continue
            codes = update.codes
            if t <= self._first and track.average is not None:
                track.average.copy_(codes)  # each time: there may be no update of it at t_0 itself
            if t < self._first:
                continue
            which = track.frequency > threshold
            held = update.quantizer.held
            if held is not None:
                which &= held == FREE
            at = codes if track.average is None else track.average.round()
            update.quantizer.hold(which, at)
            if track.average is not None:
                track.average.lerp_(codes.to(torch.float32), self._tracker.momentum)
