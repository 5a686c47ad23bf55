"""PACT: *Parameterized Clipping Activation for Quantized Neural Networks*, Choi et al., 2018.

    y = clip(x, 0, alpha),  y_q = round(y (2^b - 1) / alpha) alpha / (2^b - 1)
    dy_q/dx = 1 for 0 <= x <= alpha, else 0
    dy_q/dalpha = 1 for x >= alpha, else 0

The clipping level alpha is learned; rounding contributes nothing to its gradient. The paper starts
at alpha = 10 (``initial``) and lets an L2 penalty with the weights' coefficient shrink it
(``decay``).

Deviations from the paper:
  * alpha starts at ``3 std(x) / sqrt(1 - 2/pi)`` of the calibration batch, std unbiased, unless
    ``initial`` is given: short runs have no time to shrink it;
  * there is no penalty unless ``decay`` is given;
  * inputs that can be negative (the paper has none) are clipped to [-alpha, alpha] and have the
    levels alpha k / (2^(b-1) - 1), |k| < 2^(b-1), zero among them. The gradient of alpha is 1 above
    and -1 below the range; alpha starts at ``3 std(x)``. One signed bit is refused: it would have
    the level 0 only;
  * at x = alpha itself the gradient goes to x only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tr_det.core.errors import check, is_number
from tr_det.core.ops import Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.moments import three_deviations
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class PACT(AffineQuantizer):
    """Learned clipping level.

    Args:
        spec: an input, not of one signed bit.
        initial: first alpha, > 0, units of x; None: from the standard deviation.
        decay: weight decay of alpha, >= 0; 0: that of the optimizer's group.
        **options: of `AffineQuantizer`.

    Attributes:
        alpha: float32, 0-d, units of x.

    >>> import torch
    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("pact", bits=2, signed=False, initial=6.0)
    >>> quantizer.calibrate(torch.tensor([0.5, 1.5]))
    >>> quantizer(torch.tensor([0.5, 1.5, 100.0])).tolist()
    [0.0, 2.0, 6.0]
    """

    roles = ("input",)

    def __init__(
        self, spec: Spec, *, initial: float | None = None, decay: float = 0.0, **options: Any
    ) -> None:
        binary = spec.bits == 1 and spec.signed
        check("bits", spec.bits, not binary, "from 2 to 8 for signed data with pact")
        fits = initial is None or (is_number(initial) and initial > 0)
        check("initial", initial, fits, "a positive number or None")
        check("decay", decay, is_number(decay) and decay >= 0, "a number, not negative")
        super().__init__(spec, **options)
        self.initial, self.decay = initial, decay
        self.alpha = self.new_parameter()

    def make_affine(self) -> Affine:
        """Return levels from 0, or -alpha, to alpha."""
        high = self.spec.high
        low = -high if self.signed else 0
        return Affine(low, high, divisor=high, scale_by_clipped=True)

    def scale_and_shift(self) -> tuple[Tensor, None]:
        """Return alpha."""
        return self.alpha, None

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set alpha to its first value."""
        alpha = three_deviations(self.by_channel(x), self.signed, pool)
        if alpha is not None:
            self.alpha.fill_(alpha[0] if self.initial is None else self.initial)

    def param_options(self) -> dict[str, Any]:
        """Return the decay, if there is one."""
        return {"weight_decay": self.decay} if self.decay > 0 else {}
