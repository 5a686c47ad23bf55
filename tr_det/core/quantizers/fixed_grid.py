"""The quantizer of *Scheduling Weight Transitions for QAT*, Lee et al., ICCV 2025, Eq. 13.

    x_q = round(clip(gamma x / s, alpha, beta)) / gamma

One learnable scale ``s`` sets the clipping range; the output grid is fixed ([-1, 1 - 2^(1-b)] for
signed codes, [0, 1 - 2^-b] for unsigned) and is *not* multiplied by ``s`` again, so a norm layer
or a learnable output scale must follow.

Initial scale, "as in EWGS" (Lee et al., CVPR 2021; the interval's upper end is taken as s):
``3 std(w)`` for signed data and ``3 std(x) / sqrt(1 - 2/pi)`` for unsigned, std unbiased and over
all elements.

Deviations from the paper:
  * sign(0) is +1 (the paper does not say; 0 would not be a level of the binary quantizer);
  * inputs that can be negative use the signed grid and the signed initialisation (in the paper
    ReLUs precede all inputs);
  * where std is zero or undefined (constant tensors, one element) the scale is 3 times the root
    mean square, or 1 for an all-zero tensor.

Rounding is half to even. gamma is a power of two, so gamma x / s, x / (s / gamma) and ONNX'
x / y_scale are the same float, and every x_q is exact in float32, float16 and bfloat16.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tr_det.core.ops import Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.moments import three_deviations
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class FixedGridQuantizer(AffineQuantizer):
    """A learned clipping range on a fixed output grid (Eq. 13).

    Args:
        spec: weights or inputs.
        **options: of `AffineQuantizer`.

    Attributes:
        scale: s, float32, 0-d or (channels,), units of x.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("fixed_grid", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.1, 0.1]))
    >>> quantizer.levels().tolist()
    [-1.0, -0.5, 0.0, 0.5]
    """

    def __init__(self, spec: Spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.scale = self.new_parameter()

    @classmethod
    def needs_scale_after(cls, spec: Spec) -> bool:
        """Return True: the output grid is fixed."""
        return True

    def make_affine(self) -> Affine:
        """Return Eq. 13's grid."""
        low, high = self.spec.low, self.spec.high
        if self.bits == 1 and self.signed:
            return Affine(low, high, unit=1.0, mul=2, add=1, sign=True)
        gamma = 2 ** (self.bits - 1) if self.signed else 1 if self.bits == 1 else 2**self.bits
        return Affine(low, high, divisor=gamma, unit=1.0 / gamma)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the scale to 3 std (signed) or 3 std / sqrt(1 - 2/pi) (unsigned)."""
        scale = three_deviations(self.by_channel(x), self.signed, pool)
        if scale is not None:
            self.scale.copy_(scale.reshape(self.scale.shape))
