"""Ternary weights, {-v, 0, v}, fitted to the weights.

*Ternary Weight Networks*, Li and Liu, 2016; the fits of *PARQ*, Jin et al., ICML 2025, and of
*Least squares binary quantization*, Pouransari, Tu, Tuzel, CVPRW 2020:

    mean      v = 1.1 mean|w|
    max       v = max|w| / 1.5
    optimal   v = mean of the k largest |w|, k minimising |w - w_q|^2

w_q is the nearest level, so the threshold is v / 2; at the optimum that is the least-squares one.
v is in units of w, so no scale need follow. The gradient passes everywhere.

Deviations: TWN's threshold of 0.7 mean|w| is left out for the optimum that it approximates. Codes
are -1 to 1 and take two bits.
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
class Ternary(FittedQuantizer, AffineQuantizer):
    """Three levels.

    Args:
        spec: a weight of 2 bits.
        fitted_by: ``"mean"``, ``"max"`` or ``"optimal"``.
        **options: of `FittedQuantizer` and `AffineQuantizer`.

    Attributes:
        size: v, float32 buffer, 0-d or (channels,), units of w.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("ternary", bits=2, signed=True, fitted_by="optimal")
    >>> quantizer.calibrate(torch.tensor([-1.0, 0.0, 0.1, 1.0]))
    >>> quantizer.levels().tolist()
    [-1.0, 0.0, 1.0]
    """

    estimator = "identity"
    size: Tensor

    def __init__(self, spec: Spec, *, fitted_by: str = "mean", **options: Any) -> None:
        check("bits", spec.bits, spec.bits == 2, "2 with ternary")
        check_among("fitted_by", fitted_by, ("mean", "max", "optimal"))
        super().__init__(spec, **options)
        self.fitted_by = fitted_by
        self.register_buffer("size", self.unset())

    def make_affine(self) -> Affine:
        """Return three levels."""
        return Affine(-1, 1)

    def scale_and_shift(self) -> tuple[Tensor, None]:
        """Return v."""
        return self.size, None

    def fit(self, x: Tensor) -> None:
        """Set v."""
        magnitudes = x.abs()
        if self.fitted_by == "mean":
            size = 1.1 * magnitudes.mean(1)
        elif self.fitted_by == "max":
            size = magnitudes.amax(1) / 1.5
        else:
            totals = magnitudes.double().sort(1, descending=True).values.cumsum(1)
            counts = torch.arange(1, x.shape[1] + 1, device=x.device)
            # |w - w_q|^2 = |w|^2 - (sum of the k largest)^2 / k
            best = (totals.square() / counts).argmax(1, keepdim=True)
            size = (totals.gather(1, best) / (best + 1)).float().squeeze(1)
        self.size.copy_(size.reshape(self.size.shape))
