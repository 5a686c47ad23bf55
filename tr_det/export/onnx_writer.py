"""What the ONNX writers share: the file, and operations on floats.

Nodes are written one by one, nothing is traced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tr_det.export.graph import INTEGER_OPS, Graph, Node
from tr_det.export.onnx_parts import OnnxParts, finished

_PASSED_ON = frozenset(
    {
        *("Relu", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool", "Concat", "Flatten"),
        *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
    }
)
"""Operations that are ONNX' own, attributes included."""


class OnnxWriter(OnnxParts):
    """Writes a folded graph; a subclass writes the integer layers.

    Args:
        graph: of `tr_det.export.fold.fold`.
    """

    format = ""

    def integer_layers(self, runtime: str) -> int:
        """Return how many layers a runtime is expected to run in integers."""
        return sum(1 for _ in self.graph.having(*INTEGER_OPS))

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.weights)
        self.graph = graph
        self.codes: dict[str, str] = {}  # output of a Quantize -> name of its integers
        self._check()

    def _check(self) -> None:
        """Raise ValueError for integers that no operation of ONNX takes."""
        for node in self.graph.having("IntegerConv", "IntegerLinear"):
            multiples = self.weights[node["layer"]].multiples
            _check_range(node["layer"], "weights", multiples.min(), multiples.max())
        for node in self.graph.having("Quantize"):
            _check_range(node["layer"], "inputs", *node["grid"].bounds)

    def write(self, metadata: Mapping[str, Any]) -> onnx.ModelProto:
        """Return the model, with the metadata as JSON among its properties."""
        for node in self.graph.nodes:
            self.node(node)
        taken = {name for node in self.nodes for name in node.output}
        taken |= {tensor.name for tensor in self.initializers}
        for name, value in self.graph.outputs.items():
            if name in taken:
                raise ValueError(f"output {name!r}: the file has a value of that name; must differ")
            self.emit("Identity", [value], name)
        inputs = [_info(name, shape) for name, shape in self.graph.inputs.items()]
        outputs = [_info(name, [None] * rank, name) for name, rank in self.graph.ranks.items()]
        body = helper.make_graph(self.nodes, "tr_det", inputs, outputs, self.initializers)
        return finished(body, json.dumps({**metadata, "format": self.format}))

    # ---- one operation ----

    def node(self, node: Node) -> None:
        """Write one node."""
        if node.op in _PASSED_ON:
            self.emit(node.op, list(node.inputs), node.output, **node.attributes)
        else:
            getattr(self, f"write_{_snake(node.op)}")(node)

    def write_quantize(self, node: Node) -> None:
        """Write a quantizer."""
        raise NotImplementedError

    def write_integer_conv(self, node: Node) -> None:
        """Write a convolution of integers."""
        raise NotImplementedError

    def write_integer_linear(self, node: Node) -> None:
        """Write a matrix product of integers."""
        raise NotImplementedError

    def write_dequantize(self, node: Node) -> None:
        """Write the values of multiples."""
        self.dequantize(node.inputs[0], node.output, node["step"])

    def write_conv(self, node: Node) -> None:
        """Write a convolution of floats; integer weights are dequantized."""
        inputs = [node.inputs[0], self._float_weight(node)]
        if node["bias"] is not None:
            inputs.append(self.constant(f"{node.output}.bias", node["bias"]))
        self.emit("Conv", inputs, node.output, **conv_attributes(node))

    def write_linear(self, node: Node) -> None:
        """Write a matrix product of floats."""
        turned = f"{node.output}.turned"
        self.emit("Transpose", [self._float_weight(node)], turned, perm=[1, 0])
        product = f"{node.output}.product"
        self.emit("MatMul", [node.inputs[0], turned], product)
        self.affine(product, node.output, None, node["bias"])

    def _float_weight(self, node: Node) -> str:
        """Return the name of a float layer's weight; one that is quantized is dequantized."""
        if "layer" not in node.attributes:
            return self.constant(f"{node.output}.weight", node["weight"])
        layer = node["layer"]
        x = self.integers(layer, f"{layer}.weight.multiples", np.int8)
        unit = self.weights[layer].unit
        name = f"{layer}.weight"
        if name not in self._written:
            self._written.add(self.dequantize(x, name, unit, (np.int8, 0), axis=0))
        return name

    def write_affine(self, node: Node) -> None:
        """Write a multiplication and an addition, either of which may be missing."""
        self.affine(node.inputs[0], node.output, node["scale"], node["bias"])

    def write_clip(self, node: Node) -> None:
        """Write bounds."""
        bounds = [self.constant(f"{node.output}.{key}", node[key]) for key in ("min", "max")]
        self.emit("Clip", [node.inputs[0], *bounds], node.output)

    def write_p_relu(self, node: Node) -> None:
        """Write a PReLU with a slope for each channel."""
        name = self.constant(f"{node.output}.slope", node["slope"])
        self.emit("PRelu", [node.inputs[0], name], node.output)

    def write_reduce_mean(self, node: Node) -> None:
        """Write a mean over dimensions."""
        axes = self.constant(f"{node.output}.axes", np.array(node["axes"], np.int64))
        self.emit("ReduceMean", [node.inputs[0], axes], node.output, keepdims=node["keepdims"])

    def write_resize(self, node: Node) -> None:
        """Write nearest neighbours by a factor."""
        scales = np.array([1, 1, *node["scales"]], np.float32)
        inputs = [node.inputs[0], "", self.constant(f"{node.output}.scales", scales)]
        self._resize(node, inputs)

    def write_resize_like(self, node: Node) -> None:
        """Write nearest neighbours to the height and width of another value."""
        x, like = node.inputs
        for part, source, start, end in (("own", x, 0, 2), ("other", like, 2, 4)):
            self.emit("Shape", [source], f"{node.output}.{part}", start=start, end=end)
        parts = [f"{node.output}.own", f"{node.output}.other"]
        self.emit("Concat", parts, f"{node.output}.sizes", axis=0)
        self._resize(node, [x, "", "", f"{node.output}.sizes"])

    def _resize(self, node: Node, inputs: list[str]) -> None:
        how = {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        }
        self.emit("Resize", inputs, node.output, **how)

    def write_slice(self, node: Node) -> None:
        """Write a slice with steps."""
        self.emit("Slice", [node.inputs[0], *self.slice_bounds(node)], node.output)

    def slice_bounds(self, node: Node) -> list[str]:
        """Return the names of a slice's constants."""
        return [
            self.constant(f"{node.output}.{key}", np.array(node[key], np.int64))
            for key in ("starts", "ends", "axes", "steps")
        ]

    def write_pad(self, node: Node) -> None:
        """Write a padding with a number."""
        pads = self.constant(f"{node.output}.pads", np.array(node["pads"], np.int64))
        value = self.constant(f"{node.output}.value", node["value"])
        self.emit("Pad", [node.inputs[0], pads, value], node.output)

    def write_reshape(self, node: Node) -> None:
        """Write a new shape."""
        shape = self.constant(f"{node.output}.shape", np.array(node["shape"], np.int64))
        self.emit("Reshape", [node.inputs[0], shape], node.output)

    def write_squeeze(self, node: Node) -> None:
        """Write the removal of dimensions of size 1."""
        axes = self.constant(f"{node.output}.axes", np.array(node["axes"], np.int64))
        self.emit("Squeeze", [node.inputs[0], axes], node.output)

    def write_group_normalization(self, node: Node) -> None:
        """Write a group norm."""
        numbers = [self.constant(f"{node.output}.{key}", node[key]) for key in ("weight", "bias")]
        how = {key: node[key] for key in ("num_groups", "epsilon")}
        self.emit("GroupNormalization", [node.inputs[0], *numbers], node.output, **how)


def conv_attributes(node: Node) -> dict[str, Any]:
    """Return a convolution's attributes as ONNX has them."""
    return {key: node[key] for key in ("strides", "pads", "dilations", "group")}


def along_channels(node: Node, numbers: np.ndarray) -> np.ndarray:
    """Return a layer's numbers, (out,), in a shape that broadcasts to its output."""
    return numbers.reshape([-1, 1, 1] if node.op == "IntegerConv" else [-1])


def _check_range(layer: str, what: str, low: int, high: int) -> None:
    if high - low > 255 or (what == "weights" and not -128 <= low <= high <= 127):
        raise ValueError(
            f"{layer}: its {what} are integers from {low} to {high}, which do not fit into 8 bits "
            "(levels at half steps double them); use 7 bits, or --format packed or torch"
        )


def _info(name: str, shape: Sequence[int | None], prefix: str = "") -> onnx.ValueInfoProto:
    free = [f"{prefix}.{dim}" if dim and prefix else "NCHW"[dim] for dim in range(len(shape))]
    dims = [size or symbol for size, symbol in zip(shape, free, strict=True)]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
