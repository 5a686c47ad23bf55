"""Parts of an ONNX graph: constants, affine maps, quantizers, packed weights; the model around it.

Weights are stored as bit planes (`bits`) and unpacked by a few operations that runtimes compute
once, when they load the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tr_det.export.bits import pack
from tr_det.export.graph import InputGrid, Node, Weights
from tr_det.export.metadata import METADATA_KEY

OPSET = 21
IR_VERSION = 10


def finished(graph: onnx.GraphProto, metadata: str) -> onnx.ModelProto:
    """Return a checked model of a graph, with the metadata, JSON, among its properties."""
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tr_det",
    )
    helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.checker.check_model(model)
    return model


class OnnxParts:
    """Collects nodes and constants.

    Args:
        weights: by layer.

    Attributes:
        nodes: so far, in order.
        initializers: likewise; equal ones are stored once.
        types: of integers by name: dtype and zero point.
    """

    def __init__(self, weights: Mapping[str, Weights]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.types: dict[str, tuple[type, int]] = {}
        self._constants: dict[bytes, str] = {}  # content -> name
        self._written: set[str] = set()

    def emit(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node of ONNX."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer and return its name, or that of an equal one."""
        tensor = numpy_helper.from_array(np.asarray(value), "")
        content = tensor.SerializeToString()
        if content not in self._constants:
            tensor.name = self._constants[content] = name
            self.initializers.append(tensor)
        return self._constants[content]

    def affine(
        self, x: str, output: str, scale: np.ndarray | None, bias: np.ndarray | None
    ) -> None:
        """Write ``x * scale + bias``."""
        steps = [(op, n) for op, n in (("Mul", scale), ("Add", bias)) if n is not None]
        for i, (op, numbers) in enumerate(steps):
            name = output if i == len(steps) - 1 else f"{output}.scaled"
            self.emit(op, [x, self.constant(f"{output}.{op.lower()}", numbers)], name)
            x = name
        if not steps:
            self.emit("Identity", [x], output)

    def quantize(
        self, node: Node, output: str, dtype: type, zero: int, rounds_in_float: bool = False
    ) -> None:
        """Write float -> multiples plus a zero point, as integers.

        Args:
            node: a `Quantize`.
            output: name of the integers.
            dtype: int8 or uint8.
            zero: the zero point.
            rounds_in_float: whether only whole floats are to be cast; always where the multiples
                are not rounded quotients.
        """
        grid, x = node["grid"], node.inputs[0]
        if rounds_in_float or not grid.is_plain:
            x = self._multiples_in_float(grid, x, output)
            self._to_integers(x, output, np.float32(1), dtype, zero, grid)
            return
        if grid.shift:
            self.emit("Sub", [x, self.constant(f"{output}.shift", grid.shift)], f"{output}.shifted")
            x = f"{output}.shifted"
        self._to_integers(x, output, grid.step, dtype, zero, grid, grid.base + grid.add)

    def _to_integers(
        self,
        x: str,
        output: str,
        step: np.float32,
        dtype: type,
        zero: int,
        grid: InputGrid,
        added: int = 0,
    ) -> None:
        """Write rounding and clipping; ``added`` is the multiple at x = 0."""
        numbers = [
            self.constant(f"{output}.step", np.float32(step)),
            self.constant(f"{output}.zero", np.array(zero + added, dtype)),
        ]
        bounds = [bound + zero for bound in grid.bounds]
        limits = np.iinfo(dtype)
        if bounds == [limits.min, limits.max]:
            self.emit("QuantizeLinear", [x, *numbers], output)
            return
        self.emit("QuantizeLinear", [x, *numbers], f"{output}.wide")
        self.clip_integers(f"{output}.wide", output, bounds, dtype)

    def clip_integers(self, x: str, output: str, bounds: Sequence[int], dtype: type) -> None:
        """Write bounds of integers."""
        low, high = (
            self.constant(f"{output}.{key}", np.array(bound, dtype))
            for key, bound in zip(("low", "high"), bounds, strict=True)
        )
        self.emit("Clip", [x, low, high], output)

    def _multiples_in_float(self, grid: InputGrid, x: str, output: str) -> str:
        """Write float -> multiples as whole floats."""
        part = f"{output}.multiple"
        if grid.sign:
            zero = self.constant("zero", np.float32(0))
            below, above = (
                self.constant(f"{output}.{key}", np.float32(bound))
                for key, bound in zip(("below", "above"), grid.bounds, strict=True)
            )
            self.emit("Less", [x, zero], f"{output}.negative")
            self.emit("Where", [f"{output}.negative", below, above], part)
            return part
        added = np.float32(grid.mul * grid.base + grid.add)
        steps = [
            *([("Sub", [grid.shift])] if grid.shift else []),
            *([("Div", [grid.step])] if grid.step != 1 else []),
            ("Round", []),
            ("Clip", [np.float32(bound - grid.base) for bound in (grid.low, grid.high)]),
            *([("Mul", [np.float32(grid.mul)])] if grid.mul != 1 else []),
            *([("Add", [added])] if added else []),
        ]
        for i, (op, numbers) in enumerate(steps):
            name = part if i == len(steps) - 1 else f"{part}.{op.lower()}"
            constants = [
                self.constant(f"{part}.{op.lower()}.{j}", n) for j, n in enumerate(numbers)
            ]
            self.emit(op, [x, *constants], name)
            x = name
        return part

    def dequantize(
        self,
        x: str,
        output: str,
        scale: Any,
        zero: tuple[type, int] | None = None,
        axis: int | None = None,
    ) -> str:
        """Write integers times a scale."""
        dtype, point = zero or self.types[x]
        scale = np.asarray(scale, np.float32)
        points = np.full(scale.shape, point, dtype)
        numbers = [
            self.constant(f"{output}.scale", scale),
            self.constant(f"{output}.zero", points),
        ]
        how = {} if axis is None else {"axis": axis}
        self.emit("DequantizeLinear", [x, *numbers], output, **how)
        return output

    def integers(
        self, layer: str, name: str, dtype: type, zero: int = 0, factor: np.ndarray | None = None
    ) -> str:
        """Write a layer's multiples, times a factor for each channel, plus a zero point.

        Returns:
            The name of a tensor in the weight's shape.
        """
        if name in self._written:
            return name
        weights = self.weights[layer]
        shape, count = weights.codes.shape, weights.codes.size
        codes = self._unpacked_codes(layer, count)
        mul = np.full(shape[0], weights.mul, np.int32)
        mul = mul if factor is None else mul * factor
        add = (mul // weights.mul) * (weights.mul * weights.low + weights.add) + zero
        steps: list[tuple[str, Any]] = [
            ("Reshape", np.array([shape[0], -1], np.int64)),
            ("Mul", mul.reshape(-1, 1).astype(np.int32)),
            ("Add", add.reshape(-1, 1).astype(np.int32)),
            ("Reshape", np.array(shape, np.int64)),
        ]
        x = codes
        for i, (op, number) in enumerate(steps):
            self.emit(op, [x, self.constant(f"{name}.operand{i}", number)], f"{name}.step{i}")
            x = f"{name}.step{i}"
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.emit("Cast", [x], name, to=to)
        self._written.add(name)
        return name

    def _unpacked_codes(self, layer: str, count: int) -> str:
        """Write the unpacking of bit planes; return the name of the codes from 0 on, int32."""
        name = f"{layer}.weight.codes"
        if name in self._written:
            return name
        weights = self.weights[layer]
        planes = pack(weights.codes - weights.low, weights.bits)
        packed = self.constant(f"{layer}.weight.packed", planes)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        table = self.constant("bits_of_a_byte", bits.astype(np.int32))
        values = (1 << np.arange(weights.bits)).astype(np.int32).reshape(-1, 1)
        # A table, as OpenVINO does not compute shifts when it loads a file.
        self.emit("Cast", [packed], f"{name}.bytes", to=TensorProto.INT32)
        self.emit("Gather", [table, f"{name}.bytes"], f"{name}.bits")
        rows = self.constant(f"bit_rows_{weights.bits}", np.array([weights.bits, -1], np.int64))
        self.emit("Reshape", [f"{name}.bits", rows], f"{name}.planes")
        factors = self.constant(f"bit_values_{weights.bits}", values)
        self.emit("Mul", [f"{name}.planes", factors], f"{name}.parts")
        axis = self.constant("first_axis", np.array([0], np.int64))
        summed = f"{name}.padded" if count % 8 else name
        self.emit("ReduceSum", [f"{name}.parts", axis], summed, keepdims=0)
        if count % 8:
            start = self.constant("from_first", np.array([0], np.int64))
            end = self.constant(f"{name}.count", np.array([count], np.int64))
            self.emit("Slice", [summed, start, end, axis], name)
        self._written.add(name)
        return name
