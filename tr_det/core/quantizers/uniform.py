"""Uniform levels fitted to the weights.

The quantizers of *PARQ: Piecewise-Affine Regularized Quantization*, Jin et al., ICML 2025, as in
its authors' code: with q_max = min(b mean|w|, max|w|), or max|w|,

    half     s = q_max / (2^{b-1} - 1/2),  w_q = s (round(clip(w, +-q_max) / s - 1/2) + 1/2)
    narrow   s = q_max / (2^{b-1} - 1),    w_q = s round(clip(w, +-q_max) / s),  2^b - 1 levels
    full     s = q_max / (2^{b-1} - 1/2),  w_q = s clip(round(w / s), -2^{b-1}, 2^{b-1} - 1)

"half" has 2^b levels, none of them zero, and is the paper's; "narrow" has zero; "full" is torchao's
integer grid. The levels are in units of w, so no scale need follow. The gradient passes everywhere.

Deviation from the authors' code: "full" divides by s where theirs multiplies by 1 / s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check, check_among
from tr_det.core.ops import Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.fitted import FittedQuantizer
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class Uniform(FittedQuantizer, AffineQuantizer):
    """Equally spaced levels over the weights' range.

    Args:
        spec: a weight.
        grid: ``"half"``, ``"narrow"`` or ``"full"``; the latter two from 2 bits on.
        reach: q_max: ``"mean"`` or ``"max"``.
        center: subtract the weights' mean first, and add it to the levels.
        **options: of `FittedQuantizer` and `AffineQuantizer`.

    Attributes:
        q_max: float32 buffer, 0-d or (channels,), units of w.
        mean: likewise, or None without ``center``.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("uniform", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-1.5, -0.5, 0.5, 1.5]))  # max|w| < 2 mean|w|
    >>> quantizer.levels().tolist()
    [-1.5, -0.5, 0.5, 1.5]
    """

    estimator = "identity"
    q_max: Tensor
    mean: Tensor | None

    def __init__(
        self,
        spec: Spec,
        *,
        grid: str = "half",
        reach: str = "mean",
        center: bool = False,
        **options: Any,
    ) -> None:
        check_among("grid", grid, ("half", "narrow", "full"))
        check_among("reach", reach, ("mean", "max"))
        check("center", center, isinstance(center, bool), "True or False")
        fits = spec.bits > 1 or grid == "half"
        check("bits", spec.bits, fits, f"from 2 to 8 with the grid {grid!r}")
        self._kind, self._reach, self._center = grid, reach, center
        super().__init__(spec, **options)
        self.register_buffer("q_max", self.unset())
        self.register_buffer("mean", self.unset() if center else None)

    def make_affine(self) -> Affine:
        """Return the grid."""
        low, high = self.spec.low, self.spec.high
        if self._kind == "narrow":
            return Affine(-high, high, divisor=high, offset=self._center)
        half = 0.5 if self._kind == "half" else 0.0
        return Affine(low, high, divisor=high + 0.5, add=half, lead=half, offset=self._center)

    def scale_and_shift(self) -> tuple[Tensor, Tensor | None]:
        """Return q_max and the mean."""
        return self.q_max, self.mean

    def fit(self, x: Tensor) -> None:
        """Set q_max and the mean."""
        if self.mean is not None:
            mean = x.mean(1)
            self.mean.copy_(mean.reshape(self.mean.shape))
            x = x - mean[:, None]
        size = x.abs()
        reach = size.amax(1)
        if self._reach == "mean":
            reach = torch.minimum(self.bits * size.mean(1), reach)
        self.q_max.copy_(reach.reshape(self.q_max.shape))
