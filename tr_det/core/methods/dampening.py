"""Oscillation dampening.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022. A loss
pulls each weight towards the middle of its code's interval:

    L = lambda(t) sum over layers of A((w_t - clip(w))^2)

w_t is the latent value at the centre of the weight's code (`Quantizer.centres`; a held weight has
the code at which it is held). It is a constant of the loss. clip is to the centres of the smallest
and the largest code. A sums over output channels and takes the mean over the rest of the kernel, or
is a plain sum or mean. lambda follows the cosine of `annealing` from ``weight`` to
``weight_final``; in the paper's recipe it grows. The gradient is

    dL/dw = 2 lambda (w - w_t) / n  within the range, 0 outside it

where n is the number of weights of one output channel, 1 for the sum, that of all weights for the
mean. Scales get no gradient.

Deviations from the paper's code:
  * the gradient is added to the task loss's in closed form, once per update and before clipping; it
    is in no logged loss and is not scaled by a GradScaler;
  * a layer without a gradient in an update is left alone, so frozen layers stay frozen; the paper's
    loss would reach layers that the forward skips;
  * w_t and the range are in units of w also where the levels are not (`fixed_grid`).

As in the paper's code, it acts on all quantized weights, also on those with 8 bits. It needs
temporary tensors of one weight's size and no state in checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.errors import check, check_among, is_number
from tr_det.core.methods.annealing import check_start, cosine
from tr_det.core.methods.base import METHODS, Method, Run
from tr_det.core.quantizers import Quantizer

AGGREGATIONS = ("kernel_mean", "sum", "mean")


@METHODS.register
class Dampening(Method):
    """Pulls latent weights towards the middle of their codes' intervals.

    Args:
        weight: lambda at the start, not negative.
        weight_final: lambda at the end, not negative; None: lambda is ``weight`` throughout.
        start: share of the run before lambda starts to change, in [0, 1).
        aggregation: A: ``"kernel_mean"``, ``"sum"`` or ``"mean"``.

    Attributes:
        strength: lambda of the last update.
    """

    edits_gradients = True
    needs = ("weights", "hard weights")

    def __init__(
        self,
        *,
        weight: float = 0.0,
        weight_final: float | None = 0.1,
        start: float = 0.25,
        aggregation: str = "kernel_mean",
    ) -> None:
        last = weight if weight_final is None else weight_final
        for key, value in (("weight", weight), ("weight_final", last)):
            check(key, value, is_number(value) and value >= 0, "a finite number, not negative")
        check("weight", weight, weight > 0 or last > 0, "positive where weight_final is not")
        check_start(start)
        check_among("aggregation", aggregation, AGGREGATIONS)
        self.first, self.last, self.start = weight, last, start
        self.aggregation = aggregation
        self.strength = 0.0

    def setup(self, run: Run) -> None:
        """Store the weights and the length of the run."""
        self._weights, self._total = run.codes.weights(), run.total_steps

    def reads(self, step: int) -> bool:
        """Set lambda for the update; return False, because codes are not needed."""
        self.strength = cosine(step + 1, self._total, self.first, self.last, self.start)
        return False

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Add the loss's gradient to those of the weights that have one."""
        if self.strength == 0:
            return
        for weight, quantizer in self._weights.values():
            if weight.grad is not None:
                factor = 2.0 * self.strength / self._count(weight, quantizer)
                weight.grad.add_(_distance(weight, quantizer), alpha=factor)

    def _count(self, weight: Tensor, quantizer: Quantizer) -> int:
        """Return n, the number of weights that share a mean."""
        if self.aggregation == "sum":
            return 1
        channels = weight.shape[quantizer.spec.axis] if weight.ndim else 1
        parts = channels if self.aggregation == "kernel_mean" else 1
        return max(weight.numel() // max(parts, 1), 1)

    def scalars(self) -> dict[str, Tensor]:
        """Return lambda."""
        weight, _ = next(iter(self._weights.values()))
        return {"tr/dampening": torch.full((), self.strength, device=weight.device)}


def _distance(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Return w - w_t, 0 outside the range; the weight's shape, at least float32."""
    codes = quantizer.codes(weight)
    ends = [1] * weight.ndim  # the shape of the range's ends: for all weights, or per channel
    if quantizer.per_channel:
        ends[quantizer.spec.axis] = weight.shape[quantizer.spec.axis]
    low = quantizer.centres(codes.new_full(ends, quantizer.low))
    high = quantizer.centres(codes.new_full(ends, quantizer.high))
    distance = weight - quantizer.centres(codes)
    return torch.where((weight >= low) & (weight <= high), distance, 0.0)
