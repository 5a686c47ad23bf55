"""The intermediate form of an exported network: a list of operations on named values; numpy only.

`tr_det.export.trace` makes it from a torch model, `fold` simplifies it, `executor` defines what it
computes, and `qcdq` and `integer` write it. Operations without integers have the names and
attributes of ONNX (opset 21). Those of its own:

    Quantize       float -> multiples, by an `InputGrid`
    Dequantize     multiples times ``step`` -> float
    IntegerConv    multiples -> float: ``acc * scale + bias`` with the integer sum acc of products
    IntegerLinear  likewise for a matrix product over the last dimension
    Linear         the same in float32
    Affine         ``x * scale + bias``, arrays that broadcast to x; None for one that is missing
    ResizeLike     nearest neighbours, to the height and width of the second input

A *multiple* is ``mul * code + add``, an integer that is proportional to the value. So a zero that a
convolution pads with is the multiple 0, also where no code stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

INPUT = "images"
"""Name of a network's input in every file."""

INTEGER_OPS = ("IntegerConv", "IntegerLinear")


@dataclass(frozen=True)
class InputGrid:
    """How float values become multiples.

    ``code = base + round((x - shift) / step)``, half to even, clipped to the bounds; with ``sign``
    the code is ``low`` for x < 0, else ``high``.

    Attributes:
        bits: of the codes, 1 to 8.
        low: smallest code.
        high: largest code.
        mul: integer factor of a multiple.
        add: integer summand of a multiple.
        step: positive float32.
        shift: float32; 0.0 for none.
        base: code at x = shift.
        sign: one bit without rounding.
    """

    bits: int
    low: int
    high: int
    mul: int
    add: int
    step: np.float32
    shift: np.float32 = np.float32(0)
    base: int = 0
    sign: bool = False

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest multiple."""
        return self.mul * self.low + self.add, self.mul * self.high + self.add

    @property
    def is_plain(self) -> bool:
        """Whether a multiple is a rounded quotient plus an integer."""
        return self.mul == 1 and not self.sign

    def multiples(self, x: np.ndarray) -> np.ndarray:
        """Return the multiples of x, any shape, float32 -> float32 integers."""
        if self.sign:
            below, above = map(np.float32, self.bounds)
            return np.where(x < 0, below, above)
        codes = self.codes_before_rounding(x)
        np.rint(codes, out=codes)
        return codes * np.float32(self.mul) + np.float32(self.mul * self.base + self.add)

    def codes_before_rounding(self, x: np.ndarray) -> np.ndarray:
        """Return ``(x - shift) / step`` within the bounds, float32."""
        units = (x - self.shift if self.shift else x) / self.step
        return np.clip(units, self.low - self.base, self.high - self.base)


@dataclass(frozen=True)
class Weights:
    """The integers of a layer's weight.

    Attributes:
        bits: of the codes, 1 to 8.
        low: smallest code.
        mul: integer factor of a multiple.
        add: integer summand of a multiple.
        codes: int16, (out, in / groups, height, width) or (out, in).
        unit: value of the multiple 1, float64, (out,).
    """

    bits: int
    low: int
    mul: int
    add: int
    codes: np.ndarray
    unit: np.ndarray

    @property
    def multiples(self) -> np.ndarray:
        """``mul * code + add``, int16, shape of the codes."""
        return self.codes * np.int16(self.mul) + np.int16(self.add)

    @property
    def values(self) -> np.ndarray:
        """What the multiples stand for, float32."""
        unit = self.unit.reshape(-1, *[1] * (self.codes.ndim - 1))
        return (self.multiples * unit).astype(np.float32)


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: its name.
        inputs: names of values.
        output: name of its value.
        attributes: numbers, lists, arrays, an `InputGrid` (``grid``), or the layer's name
            (``layer``), by which `Graph.weights` has its integers.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        """Return an attribute."""
        return self.attributes[key]


@dataclass
class Graph:
    """A network.

    Attributes:
        inputs: name -> shape, None for what may vary.
        outputs: name -> value.
        nodes: in an order in which they can be executed.
        weights: by layer.
        ranks: number of dimensions of each output.
    """

    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, str]
    nodes: list[Node]
    weights: dict[str, Weights]
    ranks: dict[str, int] = field(default_factory=dict)

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def only_consumer(self, consumers: Mapping[str, list[Node]], value: str) -> Node | None:
        """Return the one node that reads a value, None if others or the outputs read it too."""
        readers = consumers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.outputs.values() else None

    def having(self, *ops: str) -> Iterator[Node]:
        """Yield the nodes of these operations, in order."""
        return (node for node in self.nodes if node.op in ops)
