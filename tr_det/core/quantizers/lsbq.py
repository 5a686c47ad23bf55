"""LSBQ: least-squares binary quantization of weights, with levels refitted from the weights.

Greedy form of *Least squares binary quantization of neural networks*, Pouransari, Tu, Tuzel, CVPRW
2020 (after Guo et al., 2017), as used by *PARQ: Piecewise-Affine Regularized Quantization*, Jin et
al., ICML 2025:

    r_0 = w,  v_i = mean|r_{i-1}|,  r_i = r_{i-1} - v_i sgn(r_{i-1}),  i = 1..b,  sgn(0) = +1
    levels = {+-v_1 +- ... +- v_b},  w_q = the nearest level

One bit gives ``mean|w| sgn(w)``, the least-squares optimum. The levels are in units of w, so no
scale need follow. They are not uniform: `grid` is None and a table is all there is.

The gradient passes everywhere (PARQ: the exact gradient at w_q, no mask); the levels have none.

Deviations from the papers:
  * the optimal two-bit and ternary fits are left out;
  * the levels are refitted after an update and hold through the next forward and backward, instead
    of being computed in each;
  * w_q is the nearest level in every forward. The sum of the fit's own signs, which PARQ's code
    takes in the updates that fit, is a farther one for some weights from three bits on;
  * per channel as an option, as in PARQ's code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.ops import pass_gradient
from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


@QUANTIZERS.register
class LSBQ(Quantizer):
    """Levels fitted to the weights.

    Args:
        spec: a weight.
        period: updates between two fits, >= 1; 0 keeps those of the calibration.
        **options: of `Quantizer`; there is nothing that ``learn_scale`` could train.

    Attributes:
        magnitudes: v, float32 buffer of shape (b,) or (channels, b), units of the weight.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("lsbq", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-1.0, -0.5, 0.5, 1.0]))
    >>> quantizer.levels().tolist()
    [-1.0, -0.5, 0.5, 1.0]
    """

    roles = ("weight",)
    adapts = True
    magnitudes: Tensor

    def __init__(self, spec: Spec, *, period: int = 1, **options: Any) -> None:
        super().__init__(spec, **options)
        whole = isinstance(period, int) and not isinstance(period, bool)
        check("period", period, whole and period >= 0, "an integer, not negative")
        check("signed", spec.signed, spec.signed, "True with lsbq")
        self.period = period
        unset = torch.full((*self.per_channel_shape(), self.bits), torch.nan)
        self.register_buffer("magnitudes", unset)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level of each element."""
        return pass_gradient(x, self.values(self.discretise(x)).to(x.dtype))

    @torch.no_grad()
    def discretise(self, x: Tensor) -> Tensor:
        """Return integer codes of x."""
        levels = self._levels()
        midpoints = (levels[:, 1:] + levels[:, :-1]) / 2
        rows = self.by_channel(x.float()).contiguous()
        # From a midpoint on the upper level, as sgn(0) = +1 has it.
        found = torch.searchsorted(midpoints, rows, right=True)
        return self._as(x, found + self.spec.low).to(torch.int8)

    @torch.no_grad()
    def values(self, codes: Tensor) -> Tensor:
        """Return the level of each code."""
        levels = self._levels()
        rows = self.by_channel(codes).long() - self.spec.low
        return self._as(codes, levels.gather(1, rows))

    def centres(self, codes: Tensor) -> Tensor:
        """Return the levels, which are in units of x."""
        return self.values(codes)

    @torch.no_grad()
    def normalized(self, x: Tensor) -> Tensor:
        """Return codes and, in between, the place between their levels; float32."""
        levels = self._levels()
        rows = self.by_channel(x.float()).contiguous()
        below = (torch.searchsorted(levels, rows, right=True) - 1).clamp(0, levels.shape[1] - 2)
        low, high = levels.gather(1, below), levels.gather(1, below + 1)
        part = ((rows - low) / (high - low).clamp_min(1e-30)).clamp(0, 1)
        return self._as(x, below + part + self.spec.low)

    def end_update(self, step: int, total: int, weight: Tensor | None = None) -> None:
        """Fit the levels to the weight, every ``period`` updates."""
        if weight is not None and self.period and step % self.period == 0:
            self._fit(weight)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Fit the levels."""
        if x.numel():
            self._fit(x)

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        rest = self.by_channel(x.float())
        found = []
        for _ in range(self.bits):
            size = rest.abs().mean(1, keepdim=True)
            found.append(size)
            rest = rest - torch.where(rest < 0, -size, size)
        self.magnitudes.copy_(torch.cat(found, 1).reshape(self.magnitudes.shape))

    def _levels(self) -> Tensor:
        """Return all levels, ascending, shape (scales, codes)."""
        levels = self.magnitudes.new_zeros(self.magnitudes.reshape(-1, self.bits).shape[0], 1)
        for size in self.magnitudes.reshape(-1, self.bits).unbind(1):
            levels = torch.cat((levels - size[:, None], levels + size[:, None]), 1)
        return levels.sort().values

    def _as(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return rows by channel in the shape and layout of x."""
        if self.per_channel:
            axis = self.spec.axis
            rows = rows.reshape(x.movedim(axis, 0).shape).movedim(0, axis)
        return torch.empty_like(x, dtype=rows.dtype).copy_(rows.reshape(x.shape))
