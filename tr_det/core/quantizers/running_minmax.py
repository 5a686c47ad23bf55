"""Running min-max for inputs.

The activation range (``running_minmax``, symmetric) of *Overcoming Oscillations in
Quantization-Aware Training*, Nagel et al., ICML 2022, after Krishnamoorthi, 2018:

    x_int = clip(round(x / s), int_min, int_max),  x_q = s x_int
    s = max(|x_min|, x_max) / int_max,  x_min = min(., 0),  x_max = max(., 1e-8)
    range <- 0.9 range + 0.1 (minimum and maximum of the batch), after each update

The range is a statistic without gradient. Rounding comes before clamping, so the gradient passes
half a step beyond the bounds (estimator ``"round"``).

Deviations from the reference:
  * there is one observation per update, not per forward: all forwards since the last update (calls
    of a shared layer, gradient accumulation) in all processes are one batch, and the range changes
    with the update only, so that a recomputed forward gives the same numbers;
  * evaluation does not change the range;
  * the layer decides whether the grid is signed, not the first batch;
  * one signed bit is refused, as int_max is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check, is_number
from tr_det.core.ops import Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec

SMALLEST = 1e-8


@QUANTIZERS.register
class RunningMinMax(AffineQuantizer):
    """A range that follows the data.

    Args:
        spec: an input, not of one signed bit.
        momentum: weight of a new observation, in (0, 1].
        **options: of `AffineQuantizer`; ``estimator`` is ``"round"`` by default.

    Attributes:
        range: (-minimum, maximum), float32 buffer of shape (2,), units of x.
    """

    roles = ("input",)
    adapts = True
    estimator = "round"
    range: Tensor
    seen: Tensor

    def __init__(self, spec: Spec, *, momentum: float = 0.1, **options: Any) -> None:
        binary = spec.bits == 1 and spec.signed
        check("bits", spec.bits, not binary, "from 2 to 8 for signed data with running_minmax")
        check("momentum", momentum, is_number(momentum) and 0 < momentum <= 1, "in (0, 1]")
        super().__init__(spec, **options)
        self.momentum = momentum
        self.register_buffer("range", torch.full((2,), torch.nan))
        # Always a tensor: processes pool it even where no data reached the layer.
        self.seen = torch.full_like(self.range, -torch.inf)

    def make_affine(self) -> Affine:
        """Return levels in multiples of the step."""
        return Affine(self.spec.low, self.spec.high)

    def scale_and_shift(self) -> tuple[Tensor, None]:
        """Return the step."""
        reach = self.range.amax() if self.signed else self.range[1]
        return reach.clamp_min(SMALLEST) / self.spec.high, None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Extend the range seen since the last update."""
        if x.numel():
            low, high = x.detach().aminmax()
            self.seen = torch.maximum(self.seen, torch.stack((-low, high)).to(self.seen.dtype))

    @torch.no_grad()
    def end_update(self, step: int, total: int, weight: Tensor | None = None) -> None:
        """Move the range towards what was seen, unless that is nothing or has overflowed."""
        seen = torch.where(self.seen.isfinite(), self.seen, self.range)
        self.range.lerp_(seen, self.momentum)
        self.seen.fill_(-torch.inf)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the range to the data's."""
        empty = x.new_full((2,), -torch.inf, dtype=torch.float32)
        own = torch.stack((-x.min(), x.max())).float() if x.numel() else empty
        pooled = pool(own, "max")
        if torch.isfinite(pooled).all():
            self.range.copy_(pooled)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)
        self.seen = torch.full_like(self.range, -torch.inf)  # where the range is now
        return applied
