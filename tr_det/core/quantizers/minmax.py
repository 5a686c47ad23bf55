"""Min-max for weights.

The weights' range (``current_minmax``, symmetric) of *Overcoming Oscillations in Quantization-Aware
Training*, Nagel et al., ICML 2022, after Krishnamoorthi, 2018:

    s = max(|w_min|, w_max) / int_max,  w_q = s clip(round(w / s), -2^{b-1}, 2^{b-1} - 1)

Rounding comes before clamping, so the gradient passes half a step beyond the bounds (estimator
``"round"``); none reaches the range.

Deviations: the range is fitted after an update, not in the next forward, which gives the same
numbers; a percentile may replace the maximum; one bit is refused, as int_max is 0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tr_det.core.errors import check, is_number
from tr_det.core.ops import Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.fitted import FittedQuantizer
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class MinMax(FittedQuantizer, AffineQuantizer):
    """The range of the weights themselves.

    Args:
        spec: a weight of 2 to 8 bits.
        percentile: of |w|, that is the largest level, in (0, 100]; 100 is the maximum.
        **options: of `FittedQuantizer` and `AffineQuantizer`.

    Attributes:
        reach: float32 buffer, 0-d or (channels,), units of w.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("minmax", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.25]))
    >>> quantizer.levels().tolist()
    [-1.0, -0.5, 0.0, 0.5]
    """

    estimator = "round"
    reach: Tensor

    def __init__(self, spec: Spec, *, percentile: float = 100.0, **options: Any) -> None:
        check("bits", spec.bits, spec.bits > 1, "from 2 to 8 with minmax")
        fits = is_number(percentile) and 0 < percentile <= 100
        check("percentile", percentile, fits, "in (0, 100]")
        super().__init__(spec, **options)
        self.percentile = percentile
        self.register_buffer("reach", self.unset())

    def make_affine(self) -> Affine:
        """Return levels in multiples of the step."""
        return Affine(self.spec.low, self.spec.high, divisor=self.spec.high)

    def scale_and_shift(self) -> tuple[Tensor, None]:
        """Return the range."""
        return self.reach, None

    def fit(self, x: Tensor) -> None:
        """Set the range."""
        # The nearest rank: torch.quantile takes at most 2^24 elements.
        rank = max(1, round(self.percentile / 100 * x.shape[1]))
        reach = x.abs().kthvalue(rank, 1).values if rank < x.shape[1] else x.abs().amax(1)
        self.reach.copy_(reach.reshape(self.reach.shape))
