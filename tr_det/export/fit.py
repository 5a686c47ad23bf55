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

from tr_det.export.executor import affine, evaluate, reachable
from tr_det.export.graph import Graph, InputGrid, Node

LARGEST_BITS = 7
"""Of the codes that are fitted; with 8 bits a sum is rarely far enough from every threshold."""

_NEIGHBOURS = 2
"""Integers B that are tried on each side of the one that suits the slope."""


class Fit(NamedTuple):
    """One layer with the quantizer that follows it.

    Attributes:
        layer: the `IntegerConv` or `IntegerLinear`.
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
    consumers, made = graph.consumers(), {node.output: node for node in graph.nodes}
    found = {}
    for layer in graph.having("IntegerConv"):
        between: list[Node] = []
        after = graph.only_consumer(consumers, layer.output)
        while after is not None and after.op in ("Relu", "Clip"):
            between.append(after)
            after = graph.only_consumer(consumers, after.output)
        if after is None or after.op != "Quantize":
            continue
        grid, own = after["grid"], made[layer.inputs[0]]["grid"]
        if not (grid.is_plain and grid.bits <= LARGEST_BITS):
            continue
        fit = _fitted(graph, layer, tuple(between), after, own.bounds)
        if fit is not None:
            found[after.output] = fit
    return found


def _fitted(
    graph: Graph,
    layer: Node,
    between: tuple[Node, ...],
    quantize: Node,
    bounds: tuple[int, int],
) -> Fit | None:
    """Return a layer's fit, None if one of its channels has none."""
    weights, grid = graph.weights[layer["layer"]], quantize["grid"]

    def quantized(x: np.ndarray) -> np.ndarray:
        for node in between:
            x = evaluate(graph, node, [x])
        found: np.ndarray = grid.multiples(x)
        return found

    sign = np.where(layer["scale"] < 0, -1, 1)
    low, high = reachable(weights, bounds)
    low, high = np.where(sign < 0, -high, low), np.where(sign < 0, -low, high)

    def multiples(acc: np.ndarray) -> np.ndarray:
        """Return the multiples of the reference; acc (out, any), ascending as they are."""
        signed = acc * sign[:, None]
        return quantized(affine(signed, layer["scale"][:, None], layer["bias"][:, None]))

    first, last = quantized(np.array([-np.inf, np.inf], np.float32)).astype(int).tolist()
    levels = np.arange(first + 1, last + 1)
    crossed = _first_at(multiples, levels, low, high)  # (out, levels)
    slope = np.abs(layer["scale"].astype(np.float64)) / np.float64(grid.step)
    factor, bias, scale = _chosen(levels, crossed, low, high, slope, weights.multiples)
    # On both sides of each threshold that a sum can cross, and at the ends.
    sides = np.concatenate([crossed - 1, crossed, low[:, None], high[:, None]], axis=1)
    sides = np.clip(sides, low[:, None], high[:, None])
    sums = sides * factor[:, None] + bias[:, None]
    if np.abs(sums).max(initial=0) >= 2**31:
        return None
    rounded = np.clip(np.rint(sums.astype(np.float32) * scale[:, None]), first, last)
    if not np.array_equal(rounded, multiples(sides)):
        return None
    factor, bias = (factor * sign).astype(np.int32), bias.astype(np.int32)
    return Fit(layer, between, quantize, factor, bias, scale, (first, last))


def _first_at(
    function: object, levels: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return the smallest sum with at least each level, high + 1 where there is none; int64."""
    below = np.repeat(low[:, None] - 1, len(levels), axis=1)
    above = np.repeat(high[:, None] + 1, len(levels), axis=1)
    while (above - below > 1).any():
        middle = (below + above) // 2
        reached = function(middle) >= levels  # type: ignore[operator]
        below, above = np.where(reached, below, middle), np.where(reached, middle, above)
    return above


def _chosen(
    levels: np.ndarray,
    crossed: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    slope: np.ndarray,
    multiples: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return candidates for |K|, B and S: (out,) each.

    With ``r = 1 / S``, level j begins where ``(j - 1/2) r = K acc + B``. That must lie between the
    first sum of the level and the one before it. For K and B given, this leaves an interval of r;
    among some K and B the one is chosen whose thresholds are nearest to the middles of their gaps.
    """
    low, high = low[:, None], high[:, None]
    # Below this slope all sums lie within a quarter of a code.
    slope = np.maximum(slope[:, None], 0.25 / (high - low + 1))
    halves = levels - 0.5
    before = np.where(crossed > low, np.minimum(crossed - 1, high), -np.inf)
    first = np.where(crossed <= high, np.maximum(crossed, low), np.inf)
    # The summand that leaves every threshold in its gap if the slope is kept, in units of acc.
    summand = _middle((halves / slope - first).max(1), (halves / slope - before).min(1))
    best = _Best(len(crossed))
    for k in range(1, int(127 // max(1, np.abs(multiples).max(initial=1))) + 1):
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
