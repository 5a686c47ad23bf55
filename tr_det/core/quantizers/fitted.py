"""The base of weight quantizers whose levels are fitted to the weights, with proximal maps.

Levels are fitted after every ``period``-th update. With a map of `tr_det.core.prox` this is PARQ's
AProx, equal to its authors' optimizer to the bit: in training, weights are in full precision before
the first update and before the start of the map's schedule, and at their levels after its end. In
evaluation, and without a map, they always are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check, check_among, is_number, is_whole
from tr_det.core.ops import pass_gradient
from tr_det.core.prox import PROX_MAPS
from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.spec import Spec

HARD = "hard"
"""No map: weights are always at their levels."""


class FittedQuantizer(Quantizer):
    """A mixin before `Quantizer` or `AffineQuantizer`; a subclass defines `fit`.

    Args:
        spec: a weight.
        period: updates between two fits, >= 1; 0 keeps those of the calibration.
        prox: the map between latent weights and levels in training, ``"parq"`` or
            ``"binary_relax"``; ``"hard"`` for none.
        start: share of the run after which the map begins, in [0, 1).
        end: share after which it is hard, in (start, 1].
        steepness: of PARQ's schedule, in (0, 100]; below 1 it is nearly a line.
        **options: of the other base class.
    """

    roles = ("weight",)
    adapts = True

    def __init__(
        self,
        spec: Spec,
        *,
        period: int = 1,
        prox: str = HARD,
        start: float = 0.0,
        end: float = 1.0,
        steepness: float = 10.0,
        **options: Any,
    ) -> None:
        check("period", period, is_whole(period) and period >= 0, "an integer, not negative")
        check_among("prox", prox, (HARD, *PROX_MAPS))
        for key, value in (("start", start), ("end", end), ("steepness", steepness)):
            check(key, value, is_number(value), "a number")
        check("end", end, 0 <= start < end <= 1, f"above start, {start}, both in [0, 1]")
        check("steepness", steepness, 0 < steepness <= 100, "in (0, 100]")
        scheduled = (start, end, steepness) != (0, 1, 10)
        allowed = f"one of {sorted(PROX_MAPS)} where start, end or steepness are given"
        check("prox", prox, prox != HARD or not scheduled, allowed)
        check("signed", spec.signed, spec.signed, "True for weights whose levels are fitted")
        super().__init__(spec, **options)
        self.period, self.prox = period, prox
        self.start, self.end, self.steepness = start, end, steepness
        self.soft = prox != HARD
        self._softness: float | None = 0.0  # None: before the start

    def fit(self, x: Tensor) -> None:
        """Fit the levels to rows of weights, (scales, elements), float32, without gradient."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Return the map of each element in training, its level otherwise."""
        if not (self.training and self.soft) or self._softness == 0:
            return super().quantize(x)
        if self._softness is None:
            return x
        with torch.no_grad():
            rows = self.by_channel(x.float())
            nearest = self.by_channel(super().quantize(x.float()))
            levels = self.levels().reshape(-1, self.high - self.low + 1)
            mapped = PROX_MAPS[self.prox].apply(rows, nearest, levels, self._softness)
            mapped = self.from_rows(mapped, x).to(x.dtype)
        return pass_gradient(x, mapped)

    def end_update(self, step: int, total: int, weight: Tensor | None = None) -> None:
        """Fit the levels to the weight, after the first update and every ``period`` more."""
        if weight is not None and self.period > 0 and (step - 1) % self.period == 0:
            self._fit(weight)

    def anneal(self, step: int, total: int) -> None:
        """Set the position in the map's schedule."""
        n, start, end = step - 1, self.start * total, self.end * total
        if not self.soft or n >= end:
            self._softness = 0.0
        elif n < start:
            self._softness = None
        else:
            self._softness = PROX_MAPS[self.prox].softness(n, start, end, self.steepness)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Fit the levels."""
        if x.numel():
            self._fit(x)

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        self.fit(self.by_channel(x.float()))
