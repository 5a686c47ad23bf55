"""Axes of charts: from numbers to pixels, and the ticks between."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1, 2, 2.5, 5, 10)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DECADES = 2.0
"""A logarithmic axis of fewer decades is labelled between its powers of ten, too."""


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        low: number at the start.
        high: number at the end; above ``low``.
        start: pixel of ``low``.
        end: pixel of ``high``.
        log: whether it is logarithmic; ``low`` is above 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a number; what is outside goes to the edge."""
        low, high = self._bent(self.low), self._bent(self.high)
        value = low if self.log and value <= 0 else self._bent(value)
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """Return pixels and labels, about so many."""
        values = self._powers(about) if self.log else self._even(about)
        if self.log and math.log10(self.high / self.low) >= _DECADES:
            labels = [_power(value) for value in values]
        else:
            labels = _labels(values)
        return [(self(value), label) for value, label in zip(values, labels, strict=True)]

    def _bent(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _even(self, about: int) -> list[float]:
        rough = (self.high - self.low) / about
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * step for step in _STEPS if unit * step >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]

    def _powers(self, about: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, round((last - first) / about))
        between = (1, 2, 5) if math.log10(self.high / self.low) < _DECADES else (1,)
        values = [10.0**e * part for e in range(first, last + 1, every) for part in between]
        return [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]


def fitted(
    values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False
) -> Scale:
    """Return the axis that shows some finite numbers, with a little room around them.

    Args:
        values: to show; a logarithmic axis takes those above 0.
        start: first pixel.
        end: last pixel.
        log: logarithmic.
        zero: begin at 0.
    """
    shown = [value for value in values if value > 0 or not log]
    if log:
        low, high = (min(shown), max(shown)) if shown else (0.1, 1.0)
        if high / low < 2:
            low, high = low / 1.5, high * 1.5
        return Scale(low / 1.1, high * 1.1, start, end, log=True)
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if high == low:
        room = abs(high) * 0.1 or 1.0
        return Scale(low if zero and low == 0 else low - room, high + room, start, end)
    room = 0.05 * (high - low)
    return Scale(low if zero and low == 0 else low - room, high + room, start, end)


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, as people write it.

    >>> [number(x) for x in (0, 12, 0.0123456, 1234567, 0.0000123, -2.5)]
    ['0', '12', '0.0123', '1,230,000', '1.23×10⁻⁵', '-2.5']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 14:
        mantissa = f"{value / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}"
    rounded = round(value, digits - 1 - exponent)
    text = f"{rounded:,.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def size(megabytes: float) -> str:
    """Return a size of 10^6 bytes in a unit that suits it."""
    return f"{number(megabytes)} MB" if megabytes >= 0.1 else f"{number(1e3 * megabytes)} kB"


def _power(value: float) -> str:
    return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPT)}"


def _labels(values: list[float]) -> list[str]:
    """Return labels of one form: as many decimals as the finest needs, or a power of ten."""
    largest = max((abs(value) for value in values), default=0.0)
    if 0 < largest < 1e-3:
        exponent = math.floor(math.log10(largest) + 1e-9)
        power = f"×10{str(exponent).translate(_SUPERSCRIPT)}"
        parts = [f"{value / 10.0**exponent:.3g}" for value in values]
        return ["0" if part in ("0", "-0") else f"{part}{power}" for part in parts]
    if largest >= 1e6:
        return ["0" if value == 0 else f"{value / 1e6:.4g} M" for value in values]
    places = [len(f"{value:.10g}".partition(".")[2]) for value in values]
    return [f"{value:,.{max(places)}f}" for value in values]
