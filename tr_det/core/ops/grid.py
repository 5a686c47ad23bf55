"""The integer grid of Eq. 13 of *Scheduling Weight Transitions for QAT* (ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALE_FLOOR = 1e-8
"""Smallest scale that is divided by."""


@dataclass(frozen=True)
class Grid:
    """Integer grid of Eq. 13: codes ``alpha..beta``, real levels ``code / gamma``.

    Attributes:
        alpha: smallest code.
        beta: largest code.
        gamma: divisor from code to level, a power of two.
        binary: True for codes {-1, +1}, taken by sign instead of by rounding.
    """

    alpha: int
    beta: int
    gamma: int
    binary: bool = False

    @classmethod
    def of(cls, bits: int, signed: bool) -> Grid:
        """Return the paper's grid for a bit-width.

        Args:
            bits: width in bits, 1 to 8.
            signed: True for weights (and inputs that can be negative), False for non-negative
                inputs.

        Raises:
            ValueError: if bits is not an integer in 1..8.
        """
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError(f"bits={bits!r}: must be an integer from 1 to 8")
        if bits == 1:
            return cls(-1, 1, 1, binary=True) if signed else cls(0, 1, 1)
        if signed:
            half = 2 ** (bits - 1)
            return cls(-half, half - 1, half)
        return cls(0, 2**bits - 1, 2**bits)

    def codes(self) -> list[int]:
        """Return all codes, ascending."""
        return [-1, 1] if self.binary else list(range(self.alpha, self.beta + 1))

    @property
    def code_dtype(self) -> torch.dtype:
        """Smallest torch dtype that holds every code."""
        return torch.uint8 if self.alpha == 0 else torch.int8
