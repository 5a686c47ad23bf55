"""LSQ+: *Improving Low-Bit Quantization Through Learnable Offsets and Better Initialization*.

Bhalgat et al., CVPR Workshops 2020. LSQ (Esser et al., ICLR 2020) with a learned offset for inputs:

    x_int = round(clip((x - beta) / s, n, p)),  x_q = s x_int + beta
    dx_q/dx = 1 within the range, else 0
    dx_q/ds = x_int - (x - beta) / s within the range, n below it, p above it
    dx_q/dbeta = 0 within the range, else 1

with n = 0, p = 2^b - 1 for unsigned codes, n = -2^(b-1), p = 2^(b-1) - 1 for signed ones. Weights
have signed codes and no offset: beta = 0.

Initial values: ``s = max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1)`` for weights; for inputs s and
beta of least squared error on the calibration batch.

Deviations from the paper:
  * the least squared error of inputs is searched for among ranges (`best_range`), on a sample, not
    found by gradient descent over a few batches;
  * the gradients of s and beta are multiplied by LSQ's ``1 / sqrt(N p)``, N being the weights, or
    the features of one sample, that share them; p counts as 1 where it is 0 (one signed bit);
  * inputs that can be negative have signed codes (the paper's are unsigned). With beta, the levels
    are the same; the initial values of inputs do not depend on it;
  * sigma is unbiased; that of a constant is its size, of zeros 1/3 (`deviation`);
  * one-bit weights are refused: p = 0 leaves the levels -s and 0. So are unsigned weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.errors import check
from tr_det.core.ops import Affine, affine_quantize, scale_gradient
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.moments import deviation
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.range_search import best_range
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class LSQPlus(AffineQuantizer):
    """Learned step size and, for inputs, learned offset.

    Args:
        spec: inputs, or signed weights of 2 bits or more.
        gradient_scale: multiply the parameters' gradients by 1 / sqrt(N p).
        **options: of `AffineQuantizer`.

    Attributes:
        scale: s, float32, 0-d or (channels,), units of x.
        offset: beta, likewise; None for weights.

    >>> import torch
    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("lsq_plus", bits=2, signed=True, role="input")
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.0, 0.5, 1.0]))
    >>> quantizer.levels().tolist()
    [-0.5, 0.0, 0.5, 1.0]
    """

    offset: nn.Parameter | None

    def __init__(self, spec: Spec, *, gradient_scale: bool = True, **options: Any) -> None:
        is_input = spec.role == "input"
        fits = is_input or spec.bits != 1
        check("bits", spec.bits, fits, "from 2 to 8 for weights with lsq_plus")
        check("signed", spec.signed, is_input or spec.signed, "True for weights with lsq_plus")
        check("gradient_scale", gradient_scale, isinstance(gradient_scale, bool), "True or False")
        super().__init__(spec, **options)
        self.gradient_scale = gradient_scale
        self.scale = self.new_parameter()
        self.register_parameter("offset", self.new_parameter() if is_input else None)

    def make_affine(self) -> Affine:
        """Return levels in multiples of the step size, for inputs with an offset."""
        return Affine(self.spec.low, self.spec.high, offset=self.spec.role == "input")

    def scale_and_shift(self) -> tuple[Tensor, Tensor | None]:
        """Return s and beta."""
        return self.scale, self.offset

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element."""
        scale, offset = self.scale_and_shift()
        if self.gradient_scale and scale.requires_grad:
            factor = 1.0 / math.sqrt(self.features_per_scale(x) * max(self.high, 1))
            scale = scale_gradient(scale, factor)
            offset = None if offset is None else scale_gradient(offset, factor)
        return affine_quantize(x, scale, offset, self.affine)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the step size, from mean and deviation or with the offset by a search."""
        if self.offset is not None:
            sample = pool(x, "sample")
            if len(sample):
                step, offset = best_range(sample, self.low, self.high)
                self.scale.copy_(step.reshape(self.scale.shape))
                self.offset.copy_(offset.reshape(self.offset.shape))
            return
        rows = self.by_channel(x)
        sigma = deviation(rows, pool)
        if sigma is not None:
            mu = rows.double().mean(1)
            reach = torch.maximum((mu - 3.0 * sigma).abs(), (mu + 3.0 * sigma).abs())
            self.scale.copy_((reach / 2 ** (self.bits - 1)).reshape(self.scale.shape))
