"""QIL: *Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss*.

Jung et al., CVPR 2019. A transformer maps an interval of |w|, with centre c and half length d, to
[0, 1]; what lies below it is pruned to 0, what lies above is clipped:

    w^ = 0                                    |w| < c - d
         sgn(w)                               |w| > c + d
         (alpha |w| + beta)^gamma sgn(w)      else,  alpha = 1 / (2 d), beta = 1/2 - c / (2 d)
    w_q = round(q w^) / q,  q = 2^{b-1} - 1
    inputs without sign: x^ likewise with gamma = 1, q = 2^b - 1

c, d and (weights only) gamma are learned: by the transformer's own derivatives, straight through
the rounding. Outputs lie in [-1, 1], so a norm or an output scale must follow.

Initial values (the paper gives no numbers): the interval [0, 3 std], or [0, 3 std / sqrt(1 -
2/pi)] for unsigned inputs, that is c = d = half of it; gamma 1. std is unbiased.

Deviations from the paper:
  * the initial values;
  * signed inputs have the weights' transformer with gamma = 1 (the paper has no such inputs);
  * d is at least 1e-8 when it divides, gamma at least 1e-2; their gradients pass there;
  * at the interval's lower end the derivative of the power is infinite for gamma < 1: it is taken
    at ``alpha |w| + beta >= 1e-3``;
  * where c < d nothing is pruned and w^ jumps at w = 0, whose own code is 0; codes that no w has
    have a centre next to 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.ops import Affine, at_least, pass_gradient
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.moments import three_deviations
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec

SMALLEST_D = 1e-8
SMALLEST_GAMMA = 1e-2
SMALLEST_BASE = 1e-3


@QUANTIZERS.register
class QIL(AffineQuantizer):
    """A learned interval of magnitudes.

    Args:
        spec: inputs, or signed weights; signed codes from 2 bits on.
        learn_gamma: whether weights have a gamma; else it is 1.
        **options: of `AffineQuantizer`; the estimator is fixed.

    Attributes:
        center: c, float32, 0-d or (channels,), units of x.
        half_length: d, likewise.
        gamma: likewise, without a unit; None for inputs and without ``learn_gamma``.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("qil", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.5, -0.5, 0.5]) * 3**0.5)  # std 1: up to 3
    >>> quantizer(torch.tensor([-9.0, -1.4, 1.6])).tolist()
    [-1.0, 0.0, 1.0]
    """

    estimators = ("clip",)

    def __init__(self, spec: Spec, *, learn_gamma: bool = True, **options: Any) -> None:
        check("learn_gamma", learn_gamma, isinstance(learn_gamma, bool), "True or False")
        fits = spec.signed or spec.role != "weight"
        check("signed", spec.signed, fits, "True for weights with qil")
        fits = spec.bits != 1 or not spec.signed
        check("bits", spec.bits, fits, "from 2 to 8 for signed data with qil")
        super().__init__(spec, **options)
        self.is_linear = not spec.signed
        self.center, self.half_length = self.new_parameter(), self.new_parameter()
        has_gamma = learn_gamma and spec.role == "weight"
        self.gamma = self.new_parameter() if has_gamma else None

    @classmethod
    def needs_scale_after(cls, spec: Spec) -> bool:
        """Return True: the output grid is fixed."""
        return True

    def make_affine(self) -> Affine:
        """Return levels from -1 or 0 to 1."""
        q = self.spec.high
        return Affine(-q if self.signed else 0, q, divisor=q, unit=1.0 / q)

    def scale_and_shift(self) -> tuple[Tensor, Tensor | None]:
        """Return the interval's length and lower end or, where codes are affine in x^, 1."""
        if not self.is_linear:
            return torch.ones_like(self.center).detach(), None
        d = at_least(self.half_length, SMALLEST_D)
        return 2 * d, self.center - d

    def transformed(self, x: Tensor) -> Tensor:
        """Return x^, or x itself where codes are affine in it."""
        return x if self.is_linear else self._transformed(x, 0.0)

    def _transformed(self, x: Tensor, smallest: float) -> Tensor:
        """Return x^; for its gradients, bases of powers are at least ``smallest``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        c = self.spread(self.center, x).to(wide)
        d = self.spread(at_least(self.half_length, SMALLEST_D), x).to(wide)
        # Where x^ is 1, size is bounded: huge numbers would give gradients of 0 times inf.
        size = torch.minimum(x.abs().to(wide), (c + 3 * d).detach())
        base = ((size - (c - d)) / (2 * d)).clamp(0, 1)
        if self.gamma is not None:
            gamma = self.spread(at_least(self.gamma, SMALLEST_GAMMA), x).to(wide)
            base = torch.where(base > 0, at_least(base, smallest).pow(gamma), base)
        return base * torch.sign(x.to(wide))

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element."""
        if self.is_linear:
            return super().quantize(x)
        values = self.values(self.discretise(x)).to(x.dtype)
        return pass_gradient(self._transformed(x, SMALLEST_BASE).to(x.dtype), values)

    @torch.no_grad()
    def centres(self, codes: Tensor) -> Tensor:
        """Return what the transformer maps to each level, as far as there is such a thing."""
        if self.is_linear:
            return super().centres(codes)
        base = codes.float().abs() / self.high
        if self.gamma is not None:
            base = base.pow(1 / self.spread(self.gamma.clamp_min(SMALLEST_GAMMA), codes))
        d = self.half_length.clamp_min(SMALLEST_D)
        size = self.spread(self.center - d, codes) + self.spread(2 * d, codes) * base
        # Where c < d, the smallest code but 0 may begin below its level's inverse: next to 0.
        return torch.sign(codes.float()) * torch.maximum(size, self.spread(1e-6 * d, codes))

    def gain(self) -> Tensor:
        """Return the slope of the transformer with gamma = 1."""
        return 1 / (2 * self.half_length.detach().clamp_min(SMALLEST_D))

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the interval from the deviation, and gamma."""
        reach = three_deviations(self.by_channel(x), self.signed, pool)
        if reach is None:
            return
        half = (reach / 2).clamp_min(SMALLEST_D)
        self.center.copy_(half.reshape(self.center.shape))
        self.half_length.copy_(self.center)
        if self.gamma is not None:
            self.gamma.fill_(1.0)
