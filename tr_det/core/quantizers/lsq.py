"""LSQ: *Learned Step Size Quantization*, Esser et al., ICLR 2020.

    x_int = round(clip(x / s, -Q_N, Q_P)),  x_q = s x_int
    dx_q/dx = 1 within the range, else 0
    dx_q/ds = x_int - x/s within the range, -Q_N below it, Q_P above it

with Q_N = 2^(b-1), Q_P = 2^(b-1) - 1 for signed data, Q_N = 0, Q_P = 2^b - 1 for unsigned. The
gradient of the step size s is multiplied by ``1 / sqrt(N Q_P)``, N being the weights, or the
features of one sample, that share the step. s starts at ``2 mean|x| / sqrt(Q_P)``, for inputs
from the calibration batch, or, for the recipes of Nagel et al., ICML 2022 (``initial="mse"``), at
the scale of least squared error (`best_scale`).

Deviations from the paper:
  * with a step per channel, N counts the weights of one channel;
  * a tensor of zeros gets mean|x| = 1, or max|x| = 1;
  * the squared error of inputs is that of a sample of the calibration batch;
  * the step size has a tenth of the weights' learning rate and no decay (``SCALE_LR_FACTOR 1.0``
    gives the paper's learning rate);
  * one signed bit is refused: Q_P = 0 leaves the levels -s and 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check, check_among
from tr_det.core.ops import Affine, affine_quantize, scale_gradient
from tr_det.core.quantizers.affine import AffineQuantizer
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.range_search import best_scale
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class LSQ(AffineQuantizer):
    """Learned step size.

    Args:
        spec: weights or inputs, not of one signed bit.
        gradient_scale: multiply the step size's gradient by 1 / sqrt(N Q_P).
        initial: first step size: ``"mean"``, the paper's, or ``"mse"``, of least squared error.
        **options: of `AffineQuantizer`.

    Attributes:
        scale: s, float32, 0-d or (channels,), units of x.

    >>> import torch
    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("lsq", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-0.5, 0.5]))  # 2 mean|x| / sqrt(1) = 1
    >>> quantizer(torch.tensor([-5.0, 0.4, 0.6, 5.0])).tolist()
    [-2.0, 0.0, 1.0, 1.0]
    """

    def __init__(
        self, spec: Spec, *, gradient_scale: bool = True, initial: str = "mean", **options: Any
    ) -> None:
        binary = spec.bits == 1 and spec.signed
        check("bits", spec.bits, not binary, "from 2 to 8 for signed data with lsq")
        check("gradient_scale", gradient_scale, isinstance(gradient_scale, bool), "True or False")
        check_among("initial", initial, ("mean", "mse"))
        super().__init__(spec, **options)
        self.gradient_scale, self.initial = gradient_scale, initial
        self.scale = self.new_parameter()

    def make_affine(self) -> Affine:
        """Return levels in multiples of the step size."""
        return Affine(self.spec.low, self.spec.high)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element."""
        scale, _ = self.scale_and_shift()
        if self.gradient_scale and scale.requires_grad:
            factor = 1.0 / math.sqrt(self.features_per_scale(x) * self.high)
            scale = scale_gradient(scale, factor)
        return affine_quantize(x, scale, None, self.affine)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the step size to 2 mean|x| / sqrt(Q_P), or by a search."""
        rows = self.by_channel(x)
        if self.initial == "mse":
            rows = pool(x, "sample")[None] if self.spec.role == "input" else rows
            if rows.numel():
                self.scale.copy_(best_scale(rows, self.low, self.high).reshape(self.scale.shape))
            return
        mean = _mean_magnitude(rows, pool)
        if mean is not None:
            self.scale.copy_((2.0 * mean / math.sqrt(self.spec.high)).reshape(self.scale.shape))


def _mean_magnitude(rows: Tensor, pool: Pool) -> Tensor | None:
    """Return mean |x| of each row over all processes; 1 for a row of zeros, None without elements.

    Args:
        rows: shape (scales, elements).
        pool: sums over processes.

    Returns:
        Shape (scales,), float64.
    """
    wide = rows.double().abs()
    count = wide.new_full((len(wide),), wide.shape[1])
    count, total = pool(torch.stack((count, wide.sum(1))), "sum").unbind()
    if count[0] == 0:
        return None
    mean = total / count
    return torch.where(mean > 0, mean, 1.0)
