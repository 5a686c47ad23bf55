"""DSQ: *Differentiable Soft Quantization*, Gong et al., ICCV 2019.

Levels at equal steps from l to u, both learned. With n = 2^b - 1, Delta = (u - l) / n and
t = (x - l) / Delta, interval i = floor(t) has the middle f = t - i - 1/2 = 0:

    Q_S(x) = l + Delta h(t),  h(t) = i + (phi + 1) / 2,  phi = tanh(kappa f) / tanh(kappa / 2)
    kappa = k Delta = log(2 / alpha - 1),  so tanh(kappa / 2) = 1 - alpha

within [l, u], else l or u. The forward takes the sign of phi, that is ``l + Delta round(t)``; the
backward is that of Q_S, also for alpha, which measures how far Q_S is from steps:

    dQ/dx = h'                       (0 outside)
    dQ/du = (h - t h') / n           (1 above, 0 below)
    dQ/dl = 1 - h' - (h - t h') / n  (0 above, 1 below)
    dQ/dalpha = Delta dh/dalpha      (0 outside)

Initial values: alpha 0.2. l and u (ours) are ``-+3 std`` for signed data; for unsigned data 0 and
``3 std / sqrt(1 - 2/pi)``, or ``min + 3 std`` if that is larger. std is unbiased.

Deviations from the paper:
  * the first range (`first_range`) and alpha's first value are ours;
  * alpha is taken from [1e-4, 0.5 - 1e-4] and u - l is at least 1e-8; gradients pass there;
  * in the middle of an interval the code is the even t;
  * nothing but the loss acts on alpha.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check, is_number
from tr_det.core.ops import SCALE_FLOOR, Affine, affine_quantize, applied
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.moments import first_range
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec

ALPHA_MARGIN = 1e-4
"""Least distance of alpha from 0 and from 0.5."""


class _Soft(torch.autograd.Function):
    """The hard value with the gradients of Q_S; saves only x and the parameters for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, alpha: Tensor, hard: Tensor, steps: int
    ) -> Tensor:
        ctx.save_for_backward(x, lower, upper, alpha)
        ctx.steps = steps
        return hard.view_as(hard)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, alpha = ctx.saved_tensors
        n, dtype = ctx.steps, x.dtype
        wide = torch.promote_types(dtype, torch.float32)
        x, grad, low = x.to(wide), grad.to(wide), lower.to(wide)
        delta = (upper.to(wide) - low).clamp_min(SCALE_FLOOR) / n
        a = alpha.to(wide).clamp(ALPHA_MARGIN, 0.5 - ALPHA_MARGIN)
        kappa = torch.log(2 / a - 1)
        t = (x - low) / delta
        below, above = t < 0, t > n
        outside = below | above
        t = t.clamp(0, n)
        f = t - t.floor() - 0.5
        bent = torch.tanh(kappa * f)
        phi = bent / (1 - a)
        shape = (1 - bent * bent) / (2 * (1 - a))  # h' / kappa = dh / (f dkappa)
        slope = torch.where(outside, 0, kappa * shape)
        h = torch.where(outside, t, t.floor() + (phi + 1) / 2)
        of_upper = (h - t * slope) / n  # outside, h / n is 0 or 1 as it must
        of_alpha = phi / (2 * (1 - a)) - f * shape * 2 / (a * (2 - a))
        terms = (
            (1 - slope - of_upper, lower),
            (of_upper, upper),
            (torch.where(outside, 0, delta * of_alpha), alpha),
        )
        parts = [
            (grad * term).sum_to_size(p.shape).to(p.dtype) if want else None
            for (term, p), want in zip(terms, ctx.needs_input_grad[1:4], strict=True)
        ]
        of_x = (grad * slope).to(dtype) if ctx.needs_input_grad[0] else None
        return of_x, *parts, None, None


@QUANTIZERS.register
class DSQ(AffineQuantizer):
    """Hard levels with the gradients of soft ones.

    Args:
        spec: weights or inputs.
        alpha: first value, in (0, 0.5); the smaller, the more Q_S looks like steps.
        **options: of `AffineQuantizer`; the estimator is fixed.

    Attributes:
        lower: l, float32, 0-d or (channels,), units of x.
        upper: u, likewise.
        alpha: likewise, without a unit.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("dsq", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.5, -0.5, 0.5]) * 3**0.5)  # std 1
    >>> [round(level, 4) for level in quantizer.levels().tolist()]
    [-3.0, -1.0, 1.0, 3.0]
    """

    estimators = ("clip",)

    def __init__(self, spec: Spec, *, alpha: float = 0.2, **options: Any) -> None:
        check("alpha", alpha, is_number(alpha) and 0 < alpha < 0.5, "in (0, 0.5)")
        super().__init__(spec, **options)
        self.first_alpha = alpha
        self.lower, self.upper = self.new_parameter(), self.new_parameter()
        self.alpha = self.new_parameter()

    def make_affine(self) -> Affine:
        """Return levels from l to u."""
        low, high = self.spec.low, self.spec.high
        return Affine(low, high, divisor=high - low, add=-low, base=low, offset=True)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return u - l and l."""
        return self.upper - self.lower, self.lower

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element."""
        with torch.no_grad():
            hard = affine_quantize(x, *self.scale_and_shift(), self.affine)
        found = [self.spread(p, x) for p in (self.lower, self.upper, self.alpha)]
        return applied(_Soft, x, *found, hard, self.high - self.low)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the range from the deviation, and alpha."""
        found = first_range(self.by_channel(x), self.signed, pool)
        if found is None:
            return
        lower, upper = found
        lower = lower if self.signed else torch.zeros_like(lower)
        self.lower.copy_(lower.reshape(self.lower.shape))
        self.upper.copy_(upper.reshape(self.upper.shape))
        self.alpha.fill_(self.first_alpha)
