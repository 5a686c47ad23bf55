"""The full-precision twin of a quantized network: what its speed and size are compared with.

The same graph without quantizers. Integer layers become ordinary ones, with their affine maps in
weights and biases. With levels as close as one likes, the quantized network would compute the same,
where nothing is clipped and where a quantizer has a code for zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tr_det.export.graph import INTEGER_OPS, Graph, InputGrid, Node
from tr_det.export.onnx_writer import OnnxWriter, along_channels, conv_attributes


class Float32Writer(OnnxWriter):
    """Writes the twin.

    Args:
        graph: of `tr_det.export.fold.fold`.
    """

    format = "float32"

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._made = {node.output: node for node in graph.nodes}
        consumers = graph.consumers()
        self._unstrided = {
            node.output for node in graph.nodes if self._is_made_for_integers(node, consumers)
        }
        self._folded = self._layers_of_one_scale()

    def integer_layers(self, runtime: str) -> int:
        """Return 0."""
        return 0

    def _check(self) -> None:
        """Accept integers of any size, as none are written."""

    def node(self, node: Node) -> None:
        """Write one node; quantizers, and what `fold` has put before them, are left out."""
        if node.op != "Quantize" and node.output not in self._unstrided:
            super().node(node)

    def write_integer_conv(self, node: Node) -> None:
        """Write a convolution."""
        quantize = self._made[node.inputs[0]]
        before = self._made.get(quantize.inputs[0])
        if before is None or before.output not in self._unstrided:
            self._write_layer(node, quantize.inputs[0])
            return
        strided = replace(node, attributes={**node.attributes, "strides": before["steps"]})
        self._write_layer(strided, before.inputs[0])

    def write_integer_linear(self, node: Node) -> None:
        """Write a matrix product."""
        self._write_layer(node, self._made[node.inputs[0]].inputs[0])

    def write_dequantize(self, node: Node) -> None:
        """Write what the levels would be with infinitely many of them."""
        quantize = self._made[node.inputs[0]]
        slope, shift = _line(quantize["grid"])
        scale, bias = slope * float(node["step"]), shift * float(node["step"])
        unchanged = np.isclose(scale, 1, rtol=1e-6)
        self.affine(
            quantize.inputs[0],
            node.output,
            None if unchanged else np.float32(scale),
            np.float32(bias) if bias else None,
        )

    def _write_layer(self, node: Node, x: str) -> None:
        weights = self.weights[node["layer"]]
        slope, shift = _line(self._made[node.inputs[0]]["grid"])
        multiples = weights.multiples.astype(np.float64)
        sums = multiples.reshape(len(multiples), -1).sum(1)
        scale, bias = node["scale"] * slope, node["bias"] + node["scale"] * shift * sums
        if node["layer"] in self._folded:
            weight = multiples * scale.reshape([-1] + [1] * (multiples.ndim - 1))
            layer = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
            self._write_float(node, x, node.output, layer)
            return
        product = f"{node.output}.product"
        self._write_float(node, x, product, {"weight": weights.values, "bias": None})
        numbers = (scale / weights.unit, bias)
        scale, bias = (along_channels(node, array).astype(np.float32) for array in numbers)
        self.affine(product, node.output, scale, bias)

    def _write_float(self, node: Node, x: str, output: str, layer: dict[str, Any]) -> None:
        if node.op == "IntegerConv":
            attributes = {**conv_attributes(node), **layer}
            self.write_conv(Node("Conv", (x,), output, attributes))
        else:
            self.write_linear(Node("Linear", (x,), output, layer))

    def write_linear(self, node: Node) -> None:
        """Write a matrix product of floats; its weight is stored as ONNX wants it."""
        weight = self._float_values(node)
        product = node.output if node["bias"] is None else f"{node.output}.product"
        turned = self.constant(f"{node.output}.weight", np.ascontiguousarray(weight.T))
        self.emit("MatMul", [node.inputs[0], turned], product)
        if node["bias"] is not None:
            self.affine(product, node.output, None, node["bias"])

    def _float_weight(self, node: Node) -> str:
        return self.constant(f"{node.output}.weight", self._float_values(node))

    def _float_values(self, node: Node) -> np.ndarray:
        layer = node.attributes.get("layer")
        values: np.ndarray = node["weight"] if layer is None else self.weights[layer].values
        return values

    def _is_made_for_integers(self, node: Node, consumers: dict[str, list[Node]]) -> bool:
        """Return whether `fold` has taken this slice out of a strided 1 x 1 convolution."""
        after = self.graph.only_consumer(consumers, node.output)
        if node.op != "Slice" or after is None or after.op != "Quantize":
            return False
        return node.output == f"{after.output}.sampled"

    def _layers_of_one_scale(self) -> set[str]:
        """Return the layers whose calls all scale alike, so that they still share a weight."""
        scales: dict[str, set[bytes]] = {}
        for node in self.graph.having(*INTEGER_OPS):
            slope, _ = _line(self._made[node.inputs[0]]["grid"])
            scales.setdefault(node["layer"], set()).add((node["scale"] * slope).tobytes())
        return {layer for layer, found in scales.items() if len(found) == 1}


def _line(grid: InputGrid) -> tuple[float, float]:
    """Return slope and shift of the line that the multiples follow as a function of the input."""
    if grid.sign:  # through both levels, at minus and plus a step
        return grid.bounds[1] / float(grid.step), 0.0
    slope = grid.mul / float(grid.step)
    return slope, grid.add + grid.mul * grid.base - slope * float(grid.shift)
