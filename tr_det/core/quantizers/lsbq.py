"""LSBQ: least-squares binary quantization of weights, with levels refitted from the weights.

Greedy form of *Least squares binary quantization of neural networks*, Pouransari, Tu, Tuzel, CVPRW
2020 (after Guo et al., 2017), as used by *PARQ: Piecewise-Affine Regularized Quantization*, Jin et
al., ICML 2025:

    r_0 = w,  v_i = mean|r_{i-1}|,  r_i = r_{i-1} - v_i sgn(r_{i-1}),  i = 1..b,  sgn(0) = +1
    levels = {+-v_1 +- ... +- v_b},  w_q = the nearest level

One bit gives ``mean|w| sgn(w)``, the least-squares optimum. For two bits the optimum is an option:
v_1 - v_2 and v_1 + v_2 are then the means of the |w| below and above v_1. The levels are in units
of w, so no scale need follow. They are not uniform: `grid` is None.

The gradient passes everywhere (PARQ: the exact gradient at w_q, no mask); the levels have none.

Deviations from the papers:
  * the levels are refitted after updates, not computed in each forward;
  * w_q is the nearest level. PARQ's code takes the sum of the fit's own signs right after a fit,
    which for some weights is a farther level from three bits on; that is an option where levels
    are fitted after every update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.ops import pass_gradient
from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.fitted import FittedQuantizer
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Spec


class _Levels(Quantizer):
    """Levels that are sums of magnitudes with either sign; the base of `LSBQ`."""

    magnitudes: Tensor
    own_signs: bool

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element."""
        if self.training and self.own_signs:
            with torch.no_grad():
                signed = self.from_rows(self._by_signs(self.by_channel(x.float())), x)
            return pass_gradient(x, signed.to(x.dtype))
        return pass_gradient(x, self.values(self.discretise(x)).to(x.dtype))

    @torch.no_grad()
    def discretise(self, x: Tensor) -> Tensor:
        """Return integer codes of x."""
        levels = self._levels()
        midpoints = (levels[:, 1:] + levels[:, :-1]) / 2
        rows = self.by_channel(x.float())
        if self.own_signs:
            rows = self._by_signs(rows)
        # At a midpoint the upper level, as sgn(0) = +1.
        found = torch.searchsorted(midpoints, rows.contiguous(), right=True)
        return self.from_rows(found + self.low, x).to(torch.int8)

    @torch.no_grad()
    def values(self, codes: Tensor) -> Tensor:
        """Return the level of each code."""
        rows = self.by_channel(codes).long() - self.low
        return self.from_rows(self._levels().gather(1, rows), codes)

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
        return self.from_rows(below + part + self.low, x)

    def _by_signs(self, rows: Tensor) -> Tensor:
        """Return the sum of the fit's own signs."""
        rest = rows
        for size in self.magnitudes.reshape(-1, self.bits).unbind(1):
            rest = rest - torch.where(rest < 0, -size[:, None], size[:, None])
        return rows - rest

    def _levels(self) -> Tensor:
        """Return all levels, ascending, shape (scales, codes)."""
        levels = self.magnitudes.new_zeros(self.magnitudes.reshape(-1, self.bits).shape[0], 1)
        for size in self.magnitudes.reshape(-1, self.bits).unbind(1):
            levels = torch.cat((levels - size[:, None], levels + size[:, None]), 1)
        return levels.sort().values


@QUANTIZERS.register
class LSBQ(FittedQuantizer, _Levels):
    """Levels fitted to the weights.

    Args:
        spec: a weight.
        optimal: the least-squares optimum instead of the greedy fit; 1 or 2 bits.
        own_signs: each weight has the sum of the fit's signs, not the nearest level: PARQ's code to
            the bit. Codes then need not ascend with the weights; ``period`` must be 1.
        **options: of `FittedQuantizer` and `Quantizer`; ``learn_scale`` has no effect.

    Attributes:
        magnitudes: v, float32 buffer of shape (b,) or (channels, b), units of the weight.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("lsbq", bits=2, signed=True)
    >>> quantizer.calibrate(torch.tensor([-1.0, -0.5, 0.5, 1.0]))
    >>> quantizer.levels().tolist()
    [-1.0, -0.5, 0.5, 1.0]
    """

    def __init__(
        self, spec: Spec, *, optimal: bool = False, own_signs: bool = False, **options: Any
    ) -> None:
        for key, value in (("optimal", optimal), ("own_signs", own_signs)):
            check(key, value, isinstance(value, bool), "True or False")
        check("optimal", optimal, not optimal or spec.bits <= 2, "False from 3 bits on")
        super().__init__(spec, **options)
        fits = not own_signs or self.period == 1
        check("own_signs", own_signs, fits, "False unless period is 1: they are those of a fit")
        self.optimal, self.own_signs = optimal, own_signs
        self.register_buffer("magnitudes", self.unset(self.bits))

    def fit(self, x: Tensor) -> None:
        """Set the magnitudes."""
        found = _optimal_two(x) if self.optimal and self.bits == 2 else self._greedy(x)
        self.magnitudes.copy_(found.reshape(self.magnitudes.shape))

    def _greedy(self, rest: Tensor) -> Tensor:
        found = []
        for _ in range(self.bits):
            size = rest.abs().mean(1, keepdim=True)
            found.append(size)
            rest = rest - torch.where(rest < 0, -size, size)
        return torch.cat(found, 1)


def _optimal_two(x: Tensor) -> Tensor:
    """Return v_1 and v_2 of each row: the best split of the sorted |w| into two means."""
    ordered = x.abs().double().sort(1).values
    count = ordered.shape[1]
    if count == 1:
        return torch.cat((ordered, torch.zeros_like(ordered)), 1).float()
    below = ordered.cumsum(1)
    above, below = below[:, -1:] - below[:, :-1], below[:, :-1]
    sizes = torch.arange(1, count, device=x.device)
    explained = below.square() / sizes + above.square() / (count - sizes)
    best = explained.argmax(1, keepdim=True)
    low = below.gather(1, best) / (best + 1)
    high = above.gather(1, best) / (count - best - 1)
    return torch.cat(((high + low) / 2, (high - low) / 2), 1).float()
