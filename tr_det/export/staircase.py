"""A layer's codes as a function of its integer sums, where a quantizer follows it directly.

Each code begins at some sum, and affine maps are monotone: a map that gives the same codes on both
sides of every threshold, and at both ends, gives the same codes for every sum that can occur.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tr_det.export.executor import affine, evaluate, reachable
from tr_det.export.graph import Graph, Node


class Staircase:
    """What the reference makes of a layer's sums; one row for each channel.

    Channels with a negative scale are looked at with the opposite sums, so that codes ascend.

    Args:
        graph: folded.
        layer: an `IntegerConv`.
        between: ReLU and clipping behind it.
        quantize: the `Quantize` at the end, of a plain grid.
        bounds: smallest and largest multiple of the layer's input.

    Attributes:
        input_bounds: as given.
        sign: by which sums are multiplied, (out,).
        low: smallest sum that can occur, int64, (out,).
        high: largest sum, likewise.
        bounds: smallest and largest multiple that comes out.
        halves: multiples less one half, at which they begin; (levels,).
        slope: multiples for each unit of the sum, float64, (out,).
        first: first sum of each level, infinite where it is not reached; (out, levels).
        before: last sum before each level, -infinite where there is none; (out, levels).
    """

    def __init__(
        self,
        graph: Graph,
        layer: Node,
        between: tuple[Node, ...],
        quantize: Node,
        bounds: tuple[int, int],
    ) -> None:
        self.layer, self.between, self.quantize = layer, between, quantize
        self.input_bounds = bounds
        self._graph = graph
        self.sign = np.where(layer["scale"] < 0, -1, 1)
        low, high = reachable(graph.weights[layer["layer"]], bounds)
        self.low = np.where(self.sign < 0, -high, low)
        self.high = np.where(self.sign < 0, -low, high)
        ends = self._quantized(np.array([-np.inf, np.inf], np.float32)).astype(int)
        self.bounds: tuple[int, int] = (int(ends[0]), int(ends[1]))
        self.slope = np.abs(layer["scale"].astype(np.float64)) / np.float64(quantize["grid"].step)
        levels = np.arange(self.bounds[0] + 1, self.bounds[1] + 1)
        self.halves = levels - 0.5
        self._crossed = self._first_at(levels)
        low, high = self.low[:, None], self.high[:, None]
        reached, starts_below = self._crossed <= high, self._crossed > low
        self.first = np.where(reached, np.maximum(self._crossed, low), np.inf)
        self.before = np.where(starts_below, np.minimum(self._crossed - 1, high), -np.inf)

    def multiples(self, acc: np.ndarray) -> np.ndarray:
        """Return the reference's multiples of sums, (out, any)."""
        return self.through(acc, self.layer["scale"], self.layer["bias"])

    def through(self, acc: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Return the multiples of sums with other numbers, float32, (out,)."""
        signed = acc * self.sign[:, None]
        return self._quantized(affine(signed, scale[:, None], bias[:, None]))

    def sides(self) -> np.ndarray:
        """Return the sums on both sides of each threshold, and the ends; int64, (out, any)."""
        low, high = self.low[:, None], self.high[:, None]
        sides = np.concatenate([self._crossed - 1, self._crossed, low, high], axis=1)
        return np.clip(sides, low, high)

    def _quantized(self, x: np.ndarray) -> np.ndarray:
        for node in self.between:
            x = evaluate(self._graph, node, [x])
        found: np.ndarray = self.quantize["grid"].multiples(x)
        return found

    def _first_at(self, levels: np.ndarray) -> np.ndarray:
        """Return the smallest sum with at least each level, high + 1 where there is none."""
        below = np.repeat(self.low[:, None] - 1, len(levels), axis=1)
        above = np.repeat(self.high[:, None] + 1, len(levels), axis=1)
        while (above - below > 1).any():
            middle = (below + above) // 2
            reached = self.multiples(middle) >= levels
            below, above = np.where(reached, below, middle), np.where(reached, middle, above)
        return above


def staircases(graph: Graph) -> Iterator[Staircase]:
    """Yield the convolutions of a folded graph whose output only a plain quantizer reads."""
    consumers, made = graph.consumers(), {node.output: node for node in graph.nodes}
    for layer in graph.having("IntegerConv"):
        between: list[Node] = []
        after = graph.only_consumer(consumers, layer.output)
        while after is not None and after.op in ("Relu", "Clip"):
            between.append(after)
            after = graph.only_consumer(consumers, after.output)
        if after is not None and after.op == "Quantize" and after["grid"].is_plain:
            own = made[layer.inputs[0]]["grid"]
            yield Staircase(graph, layer, tuple(between), after, own.bounds)
