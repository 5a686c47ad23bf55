"""DoReFa-Net: *Training Low Bitwidth CNNs with Low Bitwidth Gradients*, Zhou et al., 2016.

With ``quantize_b(r) = round((2^b - 1) r) / (2^b - 1)`` for r in [0, 1]:

    inputs   x_q = quantize_b(clip(x, 0, 1))
    weights  w_q = 2 quantize_b(tanh(w) / (2 M) + 1/2) - 1,  M = max|tanh(w)|
    one bit  w_q = E sgn(w),  E = mean|w|

Rounding and sgn pass the gradient, clip passes it from 0 to 1: dw_q/dw = (1 - tanh(w)^2) / M, and 1
with one bit. Weights have 2^b levels at equal steps from -1 to 1, none of them zero. That grid is
fixed, so a norm or an output scale must follow; with one bit levels are in units of w. Inputs have
no parameter.

Deviations from the paper:
  * M and E are refitted after each update, not computed in each forward; the gradient through M,
    which only the largest weight has, is left out (none goes through E in the paper);
  * gradients are not quantized;
  * sgn(0) is +1, and w = 0 gets one of the two inner levels (a tie);
  * where all weights are below 1e-8, M = 1;
  * inputs that can be negative (the paper has none) are clipped to [-1, 1] and have the levels
    k / (2^(b-1) - 1), |k| < 2^(b-1). One signed bit is refused: it would have the level 0 only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.ops import SCALE_FLOOR, Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class DoReFa(AffineQuantizer):
    """Weights through tanh, inputs as they are.

    Args:
        spec: signed weights, or inputs (not of one signed bit).
        **options: of `AffineQuantizer`; ``estimator`` is ``"identity"`` by default for weights.
            There is nothing that ``learn_scale`` could train.

    Attributes:
        reach: float32 buffer, 0-d or (channels,): M; with one bit E, in units of w; 1 for inputs.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("dorefa", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.1, 0.25]))
    >>> [round(level, 3) for level in quantizer.eval()(torch.tensor([-0.5, 0.1, 0.25])).tolist()]
    [-1.0, 0.333, 0.333]
    """

    reach: Tensor

    def __init__(self, spec: Spec, **options: Any) -> None:
        is_weight = spec.role == "weight"
        binary = spec.bits == 1 and spec.signed and not is_weight
        check("bits", spec.bits, not binary, "from 2 to 8 for signed inputs with dorefa")
        check("signed", spec.signed, spec.signed or not is_weight, "True for weights with dorefa")
        if is_weight:
            options["estimator"] = options.get("estimator") or "identity"
        super().__init__(spec, **options)
        self.adapts = is_weight
        self.is_linear = not self.needs_scale_after(spec)
        self.register_buffer("reach", self.unset())

    @classmethod
    def needs_scale_after(cls, spec: Spec) -> bool:
        """Return whether the output grid is fixed, and not that of x: weights, 2 bits or more."""
        return spec.role == "weight" and spec.bits > 1

    def make_affine(self) -> Affine:
        """Return the grid; for weights from 2 bits on that of their tanh."""
        low, high = self.spec.low, self.spec.high
        if self.spec.role == "input":
            return Affine(-high if self.signed else 0, high, divisor=high)
        if self.bits == 1:
            return Affine(low, high, mul=2, add=1, sign=True)
        steps = high - low
        return Affine(low, high, divisor=steps, unit=1.0 / steps, mul=2, add=1, base=low)

    def scale_and_shift(self) -> tuple[Tensor, Tensor | None]:
        """Return the length and the lower end of the range."""
        return (self.reach, None) if self.is_linear else (2.0 * self.reach, -self.reach)

    def transformed(self, x: Tensor) -> Tensor:
        """Return tanh(x), in float32 for half precision, for weights of 2 bits or more; else x."""
        if self.is_linear:
            return x
        return torch.tanh(x if x.dtype == torch.float64 else x.float())

    @torch.no_grad()
    def centres(self, codes: Tensor) -> Tensor:
        """Return the middle of each code's interval, that of tanh(x) from 2 bits on."""
        bound = 1.0 - 2.0**-24  # the largest float32 with a finite atanh
        middle = super().centres(codes)
        return middle if self.is_linear else torch.atanh(middle.clamp(-bound, bound))

    def end_update(self, step: int, total: int, weight: Tensor | None = None) -> None:
        """Fit M or E to the weight."""
        if weight is not None and self.adapts:
            self._fit(weight)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Fit M or E; inputs get 1."""
        if self.adapts:
            if x.numel():
                self._fit(x)
        elif pool(torch.tensor(x.numel(), device=x.device), "sum") > 0:
            self.reach.fill_(1.0)

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        rows = self.transformed(self.by_channel(x).float()).abs()
        largest = rows.amax(1)
        size = rows.mean(1) if self.is_linear else torch.where(largest > SCALE_FLOOR, largest, 1.0)
        self.reach.copy_(size.reshape(self.reach.shape))
