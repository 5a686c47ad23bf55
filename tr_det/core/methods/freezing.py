"""Iterative weight freezing.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022.

After each update, for each weight that is not held yet, with its oscillation frequency f from
`tracker` and a moving average a of its codes c (with the same momentum m):

    where f > threshold: hold the weight at round(a), before this update's code enters a
    a <- m c + (1 - m) a

A held weight keeps its code. Its latent value gets no gradient but is still moved by momentum and
decay. With a learned scale the level follows the scale. A weight is held until the end of the run.
If it jumps to round(a), the tracker sees that at the next update.

With ``threshold_final`` the threshold follows the cosine of `annealing` over the updates t = 1 to T
from t_0 = start T on. Before t_0, f is tracked but no weight is held; a starts at t_0 with the
codes of that update.

Under TR scheduling held weights are left out of both counts of the rate (`Update.rate`).

Deviations from the paper's code:
  * it acts once per update instead of in every forward, and its state is in checkpoints;
  * the codes of update t are compared with the threshold of t; in the paper's code, whose forward t
    comes before the update, with that of t + 1;
  * both thresholds must be above the tracker's momentum, which one oscillation reaches: a weight
    should oscillate several times before it is held for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tr_det.core.codes import Update
from tr_det.core.errors import check, is_number
from tr_det.core.methods.annealing import check_start, cosine
from tr_det.core.methods.base import METHODS, Method, Run
from tr_det.core.methods.tracker import Tracker
from tr_det.core.quantizers import FREE


@METHODS.register
class Freezing(Method):
    """Holds weights that oscillate; attaches a default `tracker` if there is none.

    Args:
        threshold: frequency above which a weight is held, in (0, 1); several times the tracker's
            momentum, by which one oscillation raises f.
        threshold_final: threshold of the last update, in the same range; None: the threshold is
            ``threshold`` for the whole run.
        start: share of the run before weights are held, in [0, 1); with ``threshold_final`` only.
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
            check(key, value, is_number(value) and 0 < value < 1, "in (0, 1)")
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
            allowed = f"above the tracker's momentum, {m}, by which one oscillation raises it"
            check(key, value, value > m, allowed)
        self._tracker = tracker
        self._total, self._first = run.total_steps, math.ceil(self.start * run.total_steps)
        tracker.with_average = self.use_average

    def reads(self, step: int) -> bool:
        """Return True: every update may hold weights."""
        return True

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Hold weights that oscillate, then update the average."""
        t = step + 1
        first, last = self.thresholds.values()
        threshold = cosine(t, self._total, first, last, self.start)
        for name, update in updates.items():
            track = self._tracker.tracks.get(name)
            if track is None or update.quantizer.bits > 7:
                continue
            codes = update.codes
            if t <= self._first and track.average is not None:
                track.average.copy_(codes)  # before t_0 too: the update t_0 may skip this weight
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
