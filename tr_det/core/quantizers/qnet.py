"""Quantization Networks, Yang et al., CVPR 2019: steps are limits of sigmoids.

    Q(x) = alpha (sum_i s_i A(beta x - b_i) - o),  i = 1..n
    training    A(z) = 1 / (1 + exp(-T z)),  T growing
    inference   A(z) = 1 where z >= 0, else 0

alpha, beta and the biases b_i, in ascending order, are learned, by the derivatives of what training
computes. With g = dL/dQ and A' = A (1 - A):

    dL/dx = g alpha beta T sum_i s_i A'_i      dL/dbeta = sum(g alpha T x sum_i s_i A'_i)
    dL/dalpha = sum(g Q / alpha)               dL/db_i = -sum(g alpha T s_i A'_i)

Levels are alpha times integers: -(2^{b-1} - 1) to 2^{b-1} - 1 for signed data, -1 and 1 with one
bit (s_1 = 2), 0 to 2^b - 1 for unsigned data. They are in units of x.

Initial values: beta = 5 p / (4 q), p the largest level, q = max|x|; b_i the midpoints between
neighbouring clusters of beta x, n + 1 of them by k-means.

Deviations from the paper:
  * uniform levels only, s_i = 1; the paper's other sets (powers of two) are left out;
  * T rises linearly with the updates, from ``temperature_start`` to ``temperature_end``; the values
    are ours (docs/methods.md shows what steeper ones gave);
  * alpha starts at the least squared error of the levels, given those thresholds. At the paper's
    1 / beta, numbers in a cluster near zero get levels that are spread out to max|x|, which
    destroys pre-trained features (docs/methods.md);
  * o is half the sum of s_i for signed data, as in the paper, but 0 for unsigned;
  * b_i are midpoints between levels where two clusters are nearer than 1e-3 levels; alpha is at
    least 1e-8 and so is beta when used (gradients pass there); for zeros q is 1, alpha 1 / beta;
  * in evaluation, where the gradient is zero almost everywhere, x gets it as it is within half a
    spacing of the thresholds; the parameters get none.

A sigmoid is computed as (1 + tanh(z T / 2)) / 2: on CPUs torch's sigmoid, unlike its tanh, gives
results that depend on where a number lies in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.errors import check, is_number
from tr_det.core.ops import (
    SCALE_FLOOR,
    Affine,
    affine_values,
    applied,
    at_least,
    is_torchscript,
    pass_gradient,
)
from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.kmeans import cluster_centres
from tr_det.core.quantizers.pool import Pool
from tr_det.core.quantizers.registry import QUANTIZERS
from tr_det.core.quantizers.spec import Grid, Spec

NEAREST = 1e-3
"""Least distance of two clusters, in levels."""


class _Sigmoids(torch.autograd.Function):
    """Q in training; saves x and the parameters, and recomputes the sigmoids in backward.

    alpha, beta and each of the biases broadcast to x; factor is s_i / 2, middle the mean level.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        beta: Tensor,
        biases: Tensor,
        temperature: Tensor,
        factor: float,
        middle: float,
    ) -> Tensor:
        ctx.save_for_backward(x, alpha, beta, biases, temperature)
        ctx.factor, ctx.middle = factor, middle
        wide = torch.promote_types(x.dtype, torch.float32)
        scaled, total = x.to(wide) * beta.to(wide), torch.zeros_like(x, dtype=wide)
        for bias in biases.unbind():
            total += torch.tanh((scaled - bias.to(wide)) * (temperature / 2))
        return ((total * factor + middle) * alpha.to(wide)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, beta, biases, temperature = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        grad, long, by = grad.to(wide), x.to(wide), beta.to(wide)
        scaled, total, slopes = long * by, torch.zeros_like(long), torch.zeros_like(long)
        inner = grad * (alpha.to(wide) * temperature * (ctx.factor / 2))  # 4 A' = 1 - tanh^2
        of_biases = []
        for bias in biases.unbind():
            bent = torch.tanh((scaled - bias.to(wide)) * (temperature / 2))
            slope = 1 - bent * bent
            total, slopes = total + bent, slopes + slope
            of_biases.append(-(inner * slope).sum_to_size(bias.shape))
        inner = inner * slopes
        return (
            (inner * by).to(x.dtype),
            (grad * (total * ctx.factor + ctx.middle)).sum_to_size(alpha.shape).to(alpha.dtype),
            (inner * long).sum_to_size(beta.shape).to(beta.dtype),
            torch.stack(of_biases).to(biases.dtype),
            None,
            None,
            None,
        )


@QUANTIZERS.register
class QuantizationNetwork(Quantizer):
    """A sum of sigmoids in training, of steps in evaluation.

    Args:
        spec: weights or inputs.
        temperature_start: T at the start of a run, > 0.
        temperature_end: T at its end, not below the start's.
        **options: of `Quantizer`.

    Attributes:
        alpha: float32, 0-d or (channels,), units of x.
        beta: likewise, levels per unit of x.
        biases: b_i in any order, float32, (n,) or (channels, n), levels.
        temperature: T, 0-d float32, per level; set by `anneal`, not in checkpoints.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("qnet", bits=2, signed=True).eval()
    >>> quantizer.calibrate(torch.tensor([-1.25, -0.25, 0.0, 0.25, 1.25]))
    >>> quantizer(torch.tensor([-9.0, -0.6, 0.6, 0.7])).tolist()  # thresholds at -0.625, 0.625
    [-1.25, 0.0, 0.0, 1.25]
    """

    adapts = True
    soft = True

    def __init__(
        self,
        spec: Spec,
        *,
        temperature_start: float = 1.0,
        temperature_end: float = 20.0,
        **options: Any,
    ) -> None:
        first, last = temperature_start, temperature_end
        for key, value in (("temperature_start", first), ("temperature_end", last)):
            check(key, value, is_number(value) and value > 0, "a positive number")
        check("temperature_end", last, last >= first, f"at least temperature_start, {first}")
        super().__init__(spec, **options)
        self.temperature_start, self.temperature_end = first, last
        low, high, axis = spec.low, spec.high, spec.axis if self.per_channel else None
        if spec.signed and spec.bits == 1:
            self.affine = Affine(low, high, mul=2, add=1, axis=axis)
        else:
            self.affine = Affine(-high if spec.signed else 0, high, axis=axis)
        self.low, self.high = self.affine.low, self.affine.high
        self.alpha, self.beta = self.new_parameter(), self.new_parameter()
        self.biases = nn.Parameter(self.unset(self.high - self.low), self.learn_scale)
        self._now = float(first)  # for the meta device, where the tensor holds no number
        self.temperature = torch.tensor(self._now, dtype=torch.float32)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the soft value of each element in training, its level otherwise."""
        if not self.training:
            return self._stepped(x)
        biases = self.biases.sort(-1).values.movedim(-1, 0)
        return applied(
            _Sigmoids,
            x,
            self.spread(at_least(self.alpha, SCALE_FLOOR), x),
            self.spread(at_least(self.beta, SCALE_FLOOR), x),
            torch.stack([self.spread(bias, x) for bias in biases.unbind()]),
            self.temperature,
            self.affine.mul / 2,
            self.affine.mul * (self.low + self.high) / 2 + self.affine.add,
        )

    def _stepped(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hard = self.values(self.discretise(x)).to(x.dtype)
            if not x.requires_grad or is_torchscript():
                return hard
            beta, edges = self.beta.clamp_min(SCALE_FLOOR), self._edges()
            ends = (edges[:, :2].mean(1).view_as(beta), edges[:, -2:].mean(1).view_as(beta))
            first, last = (self.spread(end / beta, x).to(x.dtype) for end in ends)
        return pass_gradient(x.clamp(first, last), hard)

    @torch.no_grad()
    def discretise(self, x: Tensor) -> Tensor:
        """Return integer codes of x: from a threshold on the upper one."""
        passed = torch.searchsorted(self._edges()[:, 1:-1].contiguous(), self._rows(x), right=True)
        return self.from_rows(passed + self.low, x).to(self.code_dtype)

    def values(self, codes: Tensor) -> Tensor:
        """Return the level of each code."""
        return affine_values(codes, at_least(self.alpha, SCALE_FLOOR), None, self.affine)

    def grid(self) -> Grid:
        """Return the levels; thresholds are not affine in the code."""
        step = self.alpha.detach().clamp_min(SCALE_FLOOR)
        return Grid(self.low, self.high, self.affine.mul, int(self.affine.add), step)

    @torch.no_grad()
    def normalized(self, x: Tensor) -> Tensor:
        """Return codes and, in between, the place between two thresholds."""
        edges, rows = self._edges(), self._rows(x)
        passed = torch.searchsorted(edges[:, 1:-1].contiguous(), rows, right=True)
        below, above = edges.gather(1, passed), edges.gather(1, passed + 1)
        part = ((rows - below) / (above - below).clamp_min(1e-30)).clamp(0, 1)
        units = (passed + part + (self.low - 0.5)).clamp(self.low, self.high)
        return self.from_rows(units, x)

    @torch.no_grad()
    def centres(self, codes: Tensor) -> Tensor:
        """Return the middle between thresholds; half a spacing beyond the last ones."""
        edges, places = self._edges(), self.by_channel(codes).long() - self.low
        middles = (edges.gather(1, places) + edges.gather(1, places + 1)) / 2
        return self.from_rows(middles / self.beta.clamp_min(SCALE_FLOOR).view(-1, 1), codes)

    def gain(self) -> Tensor:
        """Return alpha beta."""
        return (self.alpha.clamp_min(SCALE_FLOOR) * self.beta.clamp_min(SCALE_FLOOR)).detach()

    def anneal(self, step: int, total: int) -> None:
        """Set the temperature."""
        share = min(step / max(total, 1), 1.0)
        self._now = self.temperature_start + share * (self.temperature_end - self.temperature_start)
        self.temperature.fill_(self._now)

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set beta from the largest magnitude, biases from clusters, alpha by least squares."""
        rows = self.by_channel(x.float())
        largest = rows.abs().amax(1) if x.numel() else rows.new_full((len(rows),), -torch.inf)
        largest = pool(largest, "max").double()
        sample = rows if self.per_channel else pool(x.float().reshape(-1), "sample")[None]
        if not sample.numel():
            return
        level = max(self.affine.mul * self.high + self.affine.add, 1)
        beta = 5 * level / (4 * torch.where(largest > 0, largest, 1.0)).clamp_min(SCALE_FLOOR)
        scaled = sample.double() * beta[:, None]
        centres = cluster_centres(scaled, self.high - self.low + 1)
        codes = torch.arange(self.low, self.high, device=x.device) + 0.5
        apart = (centres.diff(dim=1) > NEAREST).all(1, keepdim=True)
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        biases = torch.where(apart, middles, self.affine.mul * codes + self.affine.add)
        passed = torch.searchsorted(biases, scaled, right=True)
        levels = self.affine.mul * (passed + self.low) + self.affine.add
        alpha = (sample * levels).sum(1) / levels.square().sum(1).clamp_min(1)
        self.alpha.copy_(torch.where(alpha > 0, alpha, 1 / beta).view(self.alpha.shape))
        self.beta.copy_(beta.view(self.beta.shape))
        self.biases.copy_(biases.view(self.biases.shape))

    @torch.no_grad()
    def _edges(self) -> Tensor:
        """Return thresholds of beta x, ascending, one more at both ends; (scales, n + 2)."""
        inner = self.biases.view(-1, self.high - self.low).sort(1).values
        first, last = inner[:, :1], inner[:, -1:]
        count = inner.shape[1] - 1
        spacing = (last - first) / count if count else torch.full_like(first, self.affine.mul)
        return torch.cat((first - spacing, inner, last + spacing), 1)

    def _rows(self, x: Tensor) -> Tensor:
        """Return beta x as (scales, elements), float32."""
        beta = self.beta.clamp_min(SCALE_FLOOR).view(-1, 1)
        return (self.by_channel(x.float()) * beta).contiguous()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)
        self.temperature = torch.tensor(self._now, dtype=torch.float32, device=self.alpha.device)
        return applied
