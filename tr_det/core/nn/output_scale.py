"""The learnable scale on a quantized layer's output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tr_det.core.nn.shared_weights import computed_once
from tr_det.core.ops import scale_output, tie_scale
from tr_det.core.ops.backends import is_traced
from tr_det.core.quantizers import Calibrated
from tr_det.core.quantizers.pool import Pool, alone


class OutputScale(Calibrated):
    """Learnable scalar on a layer's output, for layers that are not followed by a trainable norm.

    From EWGS (Lee et al., CVPR 2021). Its first value is ``mean|f(x, w)| / mean|f(x_q, w_q)|``,
    where f is the layer without its bias.

    Deviations from EWGS: the bias is added after scaling, so that a pre-trained bias keeps its
    meaning; the scale itself is used instead of its absolute value, whose gradient vanishes at
    zero.

    Attributes:
        scale: 0-d float32 parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), torch.nan))

    @torch.no_grad()
    def calibrate(self, full: Tensor, quantized: Tensor, pool: Pool = alone) -> None:
        """Set the scale from a layer's full-precision and quantized outputs, without bias.

        Args:
            full: output in full precision, any shape; an empty one changes nothing.
            quantized: output with quantized input and weight, the same shape.
            pool: combines sums over processes.
        """
        sums = torch.stack(
            (
                full.abs().sum(dtype=torch.float64),
                quantized.abs().sum(dtype=torch.float64),
                full.new_tensor(full.numel(), dtype=torch.float64),
            )
        )
        full_sum, quantized_sum, count = pool(sums, "sum").unbind()
        if count > 0:
            ratio = full_sum / quantized_sum
            self.scale.copy_(torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0))

    def forward(self, y: Tensor) -> Tensor:
        """Scale y, any shape."""
        return y * self.scale

    def applied_to(self, function: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
        """Return ``function(weight) * scale``, for a linear function whose output is a new tensor.

        Args:
            function: weight -> output, any shape.
            weight: a layer's quantized weight.
        """
        if is_traced():
            out: Tensor = self(function(weight))
            return out
        tied = computed_once(
            self, lambda: [weight, self.scale], lambda: tie_scale(weight, self.scale)
        )
        return scale_output(function(tied), self.scale)
