"""What files take, and what the quantized weights take in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import onnx

from tr_det.export.graph import INTEGER_OPS, Graph
from tr_det.export.packed_file import OWN, read_packed

_FLOAT_BYTES = 4


class WeightSize(NamedTuple):
    """The quantized weights of some bits, in one file.

    Attributes:
        codes: bytes of the codes alone.
        whole: bytes of codes and of what makes values of them: scales, multipliers, offsets.
    """

    codes: int = 0
    whole: int = 0

    def __add__(self, other: tuple[int, ...]) -> WeightSize:  # type: ignore[override]
        """Return the sum of both."""
        return WeightSize(self.codes + other[0], self.whole + other[1])


def float_sizes(graph: Graph) -> dict[int, int]:
    """Return bits -> bytes of the weights of those bits in full precision."""
    sizes: dict[int, int] = {}
    for weights in graph.weights.values():
        sizes[weights.bits] = sizes.get(weights.bits, 0) + _FLOAT_BYTES * weights.codes.size
    return dict(sorted(sizes.items()))


def onnx_sizes(graph: Graph, model: onnx.ModelProto) -> dict[int, WeightSize]:
    """Return bits -> size of the weights in an ONNX file."""
    stored = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    extra: dict[str, list[str]] = {}
    for node in graph.having(*INTEGER_OPS):
        numbers = [f"{node.output}.weight", f"{node.output}.scale", f"{node.output}.mul"]
        extra.setdefault(node["layer"], [f"{node['layer']}.weight"]).extend(numbers)
    sizes: dict[int, WeightSize] = {}
    for layer, weights in graph.weights.items():
        codes = f"{layer}.weight.packed"
        own = _within(stored, extra.get(layer, [f"{layer}.weight"]))
        size = WeightSize(stored.get(codes, 0), sum(own.values()))
        sizes[weights.bits] = sizes.get(weights.bits, WeightSize()) + size
    return sizes


def packed_sizes(path: Path) -> dict[int, WeightSize]:
    """Return bits -> size of the weights in a bit-packed file."""
    packed = read_packed(path)
    stored = {key: array.nbytes for key, array in packed.tensors.items()}
    sizes: dict[int, WeightSize] = {}
    counted: set[str] = set()
    for entry in packed.metadata["layers"]:
        if entry["weight"] is None or entry["weight"]["codes"] in counted:
            continue
        codes = entry["weight"]["codes"]
        counted.add(codes)
        name = entry["name"]
        own = _within(stored, [f"{name}.weight_quantizer", f"{name}.weight{OWN}"])
        size = WeightSize(stored[codes], sum((own | {codes: stored[codes]}).values()))
        sizes[entry["weight_bits"]] = sizes.get(entry["weight_bits"], WeightSize()) + size
    return sizes


def _within(stored: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return those that have one of the names, or begin with it and a separator."""
    starts = tuple(name if name.endswith(OWN) else f"{name}." for name in names)
    exact = set(names)
    return {key: size for key, size in stored.items() if key in exact or key.startswith(starts)}
