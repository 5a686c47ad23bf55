"""What a layer asks of a quantizer, and how a quantizer describes its codes to others."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ROLES = ("weight", "input")


class Spec(NamedTuple):
    """What a layer asks of a quantizer.

    Attributes:
        bits: width, 1 to 8.
        signed: whether codes can be negative.
        role: ``"weight"`` or ``"input"``.
        channels: of the weight, for scales per channel; None where there are none.
        axis: dimension of the weight that has them; 1 for transposed convolutions.
    """

    bits: int
    signed: bool
    role: str
    channels: int | None = None
    axis: int = 0

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest code."""
        return self.low + (1 << self.bits) - 1


class Grid(NamedTuple):
    """Affine levels: value = ``step * (mul * code + add) + offset``.

    Attributes:
        low: smallest code; codes are consecutive integers.
        high: largest code.
        mul: integer factor; 2 for levels at half steps (EWGS, the binary grid).
        add: integer summand.
        step: positive, 0-d, or of shape (channels,).
        offset: likewise, or None for zero.
    """

    low: int
    high: int
    mul: int
    add: int
    step: Tensor
    offset: Tensor | None = None


class Rounding(NamedTuple):
    """Affine rounding: code = ``base + round((x - shift) / step)``, within the grid's bounds.

    Its inverse gives the latent value in the middle of a code's interval.

    Attributes:
        step: positive, 0-d, or of shape (channels,), units of x.
        shift: likewise, or None for zero.
        base: code at x = shift.
        tie: ``"even"``, or ``"sign"`` for the binary grid: the larger code from x = 0 on.
    """

    step: Tensor
    shift: Tensor | None = None
    base: int = 0
    tie: str = "even"
