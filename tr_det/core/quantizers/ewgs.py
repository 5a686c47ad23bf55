"""EWGS: *Network Quantization with Element-wise Gradient Scaling*, Lee et al., CVPR 2021.

    x_n = clip((x - l) / (u - l), 0, 1)
    x_d = round((2^b - 1) x_n) / (2^b - 1)
    weights  w_q = 2 (x_d - 1/2),  inputs  a_q = x_d
    g_{x_n} = g_{x_d} (1 + delta sign(g_{x_d}) (x_n - x_d))

The interval's ends l and u are learned. Weights have 2^b levels at equal steps from -1 to 1: half
integers times the step, none of them zero. The output grid is fixed, so a norm or an output scale
must follow. Clipped elements push neither x nor l and u.

Initial interval: ``+-3 std(w)`` for weights, ``min(x)`` and ``3 std(x) / sqrt(1 - 2/pi)`` for
inputs, std unbiased.

Deviations from the paper:
  * delta is a constant (``ewgs_factor``, 1e-3 as in the authors' scripts); the adaptive one, from
    Hutchinson's estimate of the Hessian's trace, is left out;
  * inputs that can be negative (the paper has none) have the weights' form with l = -u, so that
    their zero is the zero of the output, which a convolution pads with;
  * the intervals of weights have a hundredth of the learning rate of other quantizer parameters
    (the authors use a separate Adam for them, at 1e-5 beside 1e-3): a move of l and u shifts all
    weights of a layer, and at the full rate a pre-trained detector diverges under SGD;
  * constant data, which give NaN in the authors' code, get the interval of `deviation`;
  * the first interval of inputs that lie far from zero (by more than 2 std, where the formula's
    may be empty) ends at ``min(x) + 3 std(x)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.ops import Affine
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.moments import first_range
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class EWGS(AffineQuantizer):
    """A learned interval on a fixed output grid.

    Args:
        spec: signed weights, or inputs.
        **options: of `AffineQuantizer`; ``estimator`` is ``"ewgs"`` by default.

    Attributes:
        lower: l, float32, 0-d or (channels,), units of x; None for signed inputs.
        upper: u, likewise.

    >>> import torch
    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("ewgs", bits=1, signed=True)
    >>> quantizer.calibrate(torch.tensor([-1.0, 1.0]))
    >>> quantizer.levels().tolist()
    [-1.0, 1.0]
    """

    estimator = "ewgs"
    lower: Tensor | None

    def __init__(self, spec: Spec, **options: Any) -> None:
        fits = spec.signed or spec.role == "input"
        check("signed", spec.signed, fits, "True for weights with ewgs")
        super().__init__(spec, **options)
        symmetric = spec.signed and spec.role == "input"
        self.register_parameter("lower", None if symmetric else self.new_parameter())
        self.upper = self.new_parameter()

    @classmethod
    def needs_scale_after(cls, spec: Spec) -> bool:
        """Return True: the output grid is fixed."""
        return True

    def make_affine(self) -> Affine:
        """Return levels from -1 to 1 where codes are signed, else from 0 to 1."""
        low, high = self.spec.low, self.spec.high
        steps = high - low
        mul, add = (2, 1) if self.signed else (1, 0)
        return Affine(low, high, divisor=steps, unit=1.0 / steps, mul=mul, add=add, base=low)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return u - l and l."""
        upper: Tensor = self.upper
        for former in self.unused:  # lower: DistributedDataParallel waits for its gradient
            upper = upper + 0.0 * former
        lower = -upper if self.lower is None else self.lower
        return upper - lower, lower

    def param_options(self) -> dict[str, Any]:
        """Return a smaller learning rate for the intervals of weights."""
        return {"lr_factor": 0.01} if self.spec.role == "weight" else {}

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the interval from the deviation, and for inputs the minimum."""
        found = first_range(self.by_channel(x), self.signed, pool)
        if found is None:
            return
        lower, upper = found
        self.upper.copy_(upper.reshape(self.upper.shape))
        if self.lower is not None:
            self.lower.copy_(lower.reshape(self.lower.shape))
