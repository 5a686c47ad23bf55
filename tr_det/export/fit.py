"""Integer layers whose output is quantized next, as one multiplication: ``QLinearConv``.

A runtime's integer convolution computes ``round((K acc + B) * S)`` with integers K and B and one
float32 factor S, the reference (`executor`) ``round((acc * scale + bias - shift) / step)`` in four
roundings. For each channel K, B and S are chosen such that both give the same multiple for every
sum acc that can occur. Both are monotone in acc, so comparing them on the two sides of each
threshold, and at both ends, compares them everywhere.

Thresholds are put into the middle of their gaps between two integers, as far as B and K allow.
Then another order of float operations gives the same codes as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tr_det.export.graph import Graph, InputGrid, Node
from tr_det.export.saturation import largest_safe_weight
from tr_det.export.staircase import Staircase, staircases

LARGEST_BITS = 7
"""Of the codes that are fitted; with 8 bits a sum is rarely far enough from every threshold."""

_NEIGHBOURS = 2
"""Integers B that are tried on each side of the one that suits the slope."""


class Fit(NamedTuple):
    """One layer with the quantizer that follows it.

    Attributes:
        layer: the `IntegerConv`.
        between: ReLU and clipping, in order.
        quantize: the `Quantize` at the end.
        factor: K, int32, (out,).
        bias: B, int32, (out,).
        scale: S, positive float32, (out,).
        bounds: smallest and largest multiple that comes out.
    """

    layer: Node
    between: tuple[Node, ...]
    quantize: Node
    factor: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    bounds: tuple[int, int]

    @property
    def grid(self) -> InputGrid:
        """How ``(K acc + B) * S`` is rounded and clipped."""
        low, high = self.bounds
        bits = self.quantize["grid"].bits
        return InputGrid(bits, low, high, mul=1, add=0, step=np.float32(1))


def fits(graph: Graph) -> dict[str, Fit]:
    """Return the layers of a folded graph that can be fitted, by the output of their quantizer."""
    found = {}
    for stairs in staircases(graph):
        if stairs.quantize["grid"].bits <= LARGEST_BITS:
            fit = _fitted(stairs, graph.weights[stairs.layer["layer"]].multiples)
            if fit is not None:
                found[stairs.quantize.output] = fit
    return found


def _fitted(stairs: Staircase, multiples: np.ndarray) -> Fit | None:
    """Return a layer's fit, None if one of its channels has none, or there is one level only."""
    if not len(stairs.halves):
        return None
    factor, bias, scale = _chosen(stairs, multiples)
    sides = stairs.sides()
    sums = sides * factor[:, None] + bias[:, None]
    if np.abs(sums).max(initial=0) >= 2**31:
        return None
    rounded = np.clip(np.rint(sums.astype(np.float32) * scale[:, None]), *stairs.bounds)
    if not np.array_equal(rounded, stairs.multiples(sides)):
        return None
    factor, bias = (factor * stairs.sign).astype(np.int32), bias.astype(np.int32)
    parts = (stairs.layer, stairs.between, stairs.quantize)
    return Fit(*parts, factor, bias, scale, stairs.bounds)


def _chosen(stairs: Staircase, multiples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return candidates for |K|, B and S: (out,) each.

    With ``r = 1 / S``, level j begins where ``(j - 1/2) r = K acc + B``. That must lie between the
    first sum of the level and the one before it. For K and B given, this leaves an interval of r;
    among some K and B the one is chosen whose thresholds are nearest to the middles of their gaps.
    """
    # Below this slope all sums lie within a quarter of a code.
    slope = np.maximum(stairs.slope, 0.25 / (stairs.high - stairs.low + 1))[:, None]
    halves, before, first = stairs.halves, stairs.before, stairs.first
    # The summand that leaves every threshold in its gap if the slope is kept, in units of acc.
    summand = _middle((halves / slope - first).max(1), (halves / slope - before).min(1))
    best = _Best(len(slope))
    # Products of larger ones could saturate where those of the weights themselves could not.
    most = min(127, largest_safe_weight(stairs.input_bounds))
    for k in range(1, max(1, int(most // max(1, np.abs(multiples).max(initial=1)))) + 1):
        for offset in range(-_NEIGHBOURS, _NEIGHBOURS + 1):
            bias = np.rint(summand * k) + offset
            lower, upper = (k * ends + bias[:, None] for ends in (before, first))
            edges = np.stack((lower / halves, upper / halves))
            r = _middle(edges.min(0).max(1), edges.max(0).min(1))
            margin = np.minimum(halves * r[:, None] - lower, upper - halves * r[:, None]).min(1) / k
            best.offer(np.where(r > 0, margin, -np.inf), k, bias, 1 / np.where(r > 0, r, 1.0))
    return best.factor, best.bias, best.scale.astype(np.float32)


class _Best:
    """The best candidate of each channel so far."""

    def __init__(self, channels: int) -> None:
        self.margin = np.full(channels, -np.inf)
        self.factor, self.bias = np.ones((2, channels), np.int64)
        self.scale = np.ones(channels)

    def offer(self, margin: np.ndarray, factor: int, bias: np.ndarray, scale: np.ndarray) -> None:
        """Take a candidate where its margin is clearly larger."""
        better = (margin > self.margin * 1.1 + 1e-3) | (np.isneginf(self.margin) & (margin > 0))
        better &= np.abs(bias) < 2**31
        for key, new in (("margin", margin), ("bias", bias), ("factor", factor), ("scale", scale)):
            getattr(self, key)[better] = new[better] if isinstance(new, np.ndarray) else new


def _middle(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the middle of each interval; next to the end where there is only one."""
    low = np.where(np.isfinite(low), low, high - 1)
    return (low + np.where(np.isfinite(high), high, low + 1)) / 2
