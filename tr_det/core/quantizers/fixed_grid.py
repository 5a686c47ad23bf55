"""The quantizer of *Scheduling Weight Transitions for QAT*, Lee et al., ICCV 2025, Eq. 13.

One learnable scale ``s`` per tensor sets the clipping range; the output grid is fixed ([-1, 1 -
2^(1-b)] for signed codes, [0, 1 - 2^-b] for unsigned) and is *not* multiplied by ``s`` again, so a
norm layer or a learnable output scale must follow. Gradients: `tr_det.core.ops.fixed_grid`.

Initial scale, "as in EWGS" (Lee et al., CVPR 2021; the interval's upper end is taken as s):
``3 std(w)`` for signed data and ``3 std(x) / sqrt(1 - 2/pi)`` for unsigned, std unbiased and over
all elements.

Deviations from the paper:
  * inputs that can be negative use the signed grid and the signed initialisation (the paper has
    none of them: it puts ReLUs where they would occur);
  * where std is zero or undefined (constant tensors, one element) the scale is 3 times the root
    mean square, or 1 for an all-zero tensor, instead of zero or NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tr_det.core.ops import fixed_grid_codes, fixed_grid_quantize, fixed_grid_recode_
from tr_det.core.ops.grid import SCALE_FLOOR
from tr_det.core.quantizers.base import Quantizer, register_quantizer

HALF_NORMAL_STD = math.sqrt(1.0 - 2.0 / math.pi)
"""Standard deviation of |z| for a standard normal z: 0.6028."""


@register_quantizer("fixed_grid")
class FixedGridQuantizer(Quantizer):
    """Eq. 13: ``x_q = round(clip(gamma x / s, alpha, beta)) / gamma``.

    Args:
        bits: width in bits, 1 to 8.
        signed: True for weights and inputs that can be negative.
        learn_scale: whether ``scale`` gets gradients; must be False for weights under TR
            scheduling.

    >>> from tr_det.core import build_quantizer
    >>> build_quantizer("fixed_grid", bits=2, signed=True).levels().tolist()
    [-1.0, -0.5, 0.0, 0.5]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize x (any shape); gradients to x and, if trained, to the scale."""
        self.require_scale(x)
        return fixed_grid_quantize(x, self.scale, self.grid)

    def codes(self, x: Tensor) -> Tensor:
        """Return integer codes of x: same shape, int8 (signed) or uint8; no side effect."""
        return fixed_grid_codes(x, self.scale, self.grid)

    def recode_(self, x: Tensor, codes: Tensor) -> Tensor:
        """Overwrite codes with those of x; return how many changed."""
        return fixed_grid_recode_(x, self.scale, self.grid, codes)

    def levels(self) -> Tensor:
        """Return the real value of every code, ascending."""
        return (
            torch.tensor(self.grid.codes(), dtype=torch.float32, device=self.scale.device)
            / self.grid.gamma
        )

    def gain(self) -> Tensor:
        """Return 1 / scale: the output grid is fixed."""
        return 1.0 / self.scale.detach()

    @torch.no_grad()
    def normalized(self, x: Tensor) -> Tensor:
        """Return ``clip(gamma x / s, alpha, beta)``, float32."""
        units = x.float() / (self.scale.clamp_min(SCALE_FLOOR) / self.grid.gamma)
        return units.clamp(self.grid.alpha, self.grid.beta)

    def transition_points(self) -> Tensor:
        """Return the midpoints between codes."""
        codes = torch.tensor(self.grid.codes(), dtype=torch.float32, device=self.scale.device)
        return (codes[1:] + codes[:-1]) / 2

    def initial_scale(self, count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
        """Return 3 std (signed) or 3 std / sqrt(1 - 2/pi) (unsigned) from pooled moments."""
        variance = (squares - total.square() / count) / (count - 1)
        std = variance.clamp_min(0).sqrt()
        # Cancellation leaves about 1e-16 of the mean square where all elements are equal.
        degenerate = ~(variance > 1e-14 * squares / count)
        rms = (squares / count).sqrt()
        std = torch.where(degenerate, torch.where(rms > 0, rms, 1.0 / 3.0), std)
        return 3.0 * std if self.signed else 3.0 * std / HALF_NORMAL_STD
