"""The description of an affine grid that all implementations share."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

SCALE_FLOOR = 1e-8
"""Lower bound of a scale where it divides."""

Estimator = Literal["clip", "round", "ewgs", "identity"]


@dataclass(frozen=True)
class Affine:
    """An affine grid: codes are consecutive integers, values are equally spaced.

    With tensors ``scale`` and ``shift`` (0-d, or one number per channel), ``s = max(scale,
    SCALE_FLOOR)`` and ``step = s / divisor``:

        u = (x - shift) / step,  t = u - lead
        code = base + round(clip(t, low - base, high - base))      (half to even)
        value = unit * (mul * code + add)                          (+ shift, with offset)

    Attributes:
        low: smallest code.
        high: largest code, ``high - low <= 255``.
        divisor: the step is ``scale / divisor``.
        unit: the value of ``mul * code + add = 1`` on a fixed output grid; None for the step:
            values are then in units of x.
        mul: with ``add``, maps codes to multiples of the unit.
        add: see ``mul``.
        lead: 0.5 where levels lie half a step above the multiples of the step, as on a grid
            without zero (with ``add=0.5``).
        base: the code at u = lead.
        sign: one bit without rounding: the code is ``low`` where x < 0, else ``high``.
        axis: dimension of x along which scale and shift vary; None: one of each per tensor.
        estimator: where the gradient passes: "clip" where t is within the bounds, "round" where
            round(t) is, "identity" everywhere; "ewgs" is "clip" times ``1 + delta sign(g) (clip(t)
            - round(t))`` (Lee et al., CVPR 2021). At the bounds it passes.
        scale_by_clipped: whether dL/dscale omits the contribution of rounding (PACT).
        delta: of "ewgs", in units of codes.
        offset: whether the shift is added to the value, as asymmetric grids do.

    >>> signed = Affine(-8, 7, divisor=8, unit=1 / 8)  # Eq. 13 of the paper with 4 bits
    >>> signed.bounds, signed.code_dtype
    ((-8, 7), torch.int8)
    >>> ewgs = Affine(-8, 7, divisor=15, unit=1 / 15, mul=2, add=1, base=-8)
    >>> ewgs.bounds, [ewgs.mul * code + ewgs.add for code in (ewgs.low, ewgs.high)]
    ((0, 15), [-15, 15])
    """

    low: int
    high: int
    divisor: float = 1.0
    unit: float | None = None
    mul: int = 1
    add: float = 0
    lead: float = 0.0
    base: int = 0
    sign: bool = False
    axis: int | None = None
    estimator: Estimator = "clip"
    scale_by_clipped: bool = False
    delta: float = 0.0
    offset: bool = False

    @property
    def code_dtype(self) -> torch.dtype:
        """Smallest torch dtype that holds every code."""
        return torch.uint8 if self.low >= 0 else torch.int8

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest t that is not clipped."""
        return (-1, 1) if self.sign else (self.low - self.base, self.high - self.base)

    @property
    def slope(self) -> int:
        """Multiples of the unit per step of x, where the gradient passes."""
        return 1 if self.sign else self.mul

    @property
    def spread(self) -> float:
        """The divisor of dL/dx besides s where the output grid is fixed."""
        assert self.unit is not None
        return 1.0 / (self.divisor * self.unit * self.slope)

    @cached_property
    def window(self) -> tuple[float, float]:
        """Smallest and largest t, in float32, whose gradient passes."""
        low, high = self.bounds
        if self.estimator == "identity":
            return -math.inf, math.inf
        if self.estimator != "round":
            return low, high
        # Half to even: the tie beyond an even bound is rounded to it, beyond an odd one away.
        ties = torch.tensor([low - 0.5, high + 0.5])
        inner = torch.nextafter(ties, torch.zeros(2))
        even = torch.tensor([low % 2 == 0, high % 2 == 0])
        first, last = torch.where(even, ties, inner).tolist()
        return first, last

    @cached_property
    def packed(self) -> bytes:
        """The constants of `affine.c`, in its order; bytes, so that copies stay valid."""
        fixed = self.unit is not None
        plus = self.mul * self.base + self.add
        return struct.pack(
            "14f8i",
            *self.bounds,
            *self.window,
            self.divisor,
            self.lead,
            self.unit if self.unit is not None else 1.0,
            self.spread if fixed else 1.0,
            self.slope,
            self.mul,
            plus or -0.0,  # x + -0.0 is x, also for -0.0
            self.mul * self.low + self.add,
            self.mul * self.high + self.add,
            self.delta,
            self.base,
            self.low,
            self.high,
            fixed,
            self.sign,
            self.estimator == "ewgs",
            self.scale_by_clipped,
            self.offset,
        )
