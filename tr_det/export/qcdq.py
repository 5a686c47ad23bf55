"""``qcdq``: QuantizeLinear, Clip, DequantizeLinear around ordinary operations; portable.

A runtime that knows the pattern runs the convolution between them in integers: OpenVINO everywhere,
ONNX Runtime where a quantizer follows directly. Scales around an integer layer are 1, so that its
sums are whole numbers in floats as well; the affine map follows. Where a quantizer follows, the
affine map is part of the weight's scale and the bias (`tr_det.export.fit`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from tr_det.export.fit import Fit, fits
from tr_det.export.graph import Graph, InputGrid, Node
from tr_det.export.onnx_writer import OnnxWriter, along_channels, conv_attributes
from tr_det.export.steady import steadied


class QcdqWriter(OnnxWriter):
    """Writes ``qcdq``."""

    format = "qcdq"

    def integer_layers(self, runtime: str) -> int:
        """Return how many layers a runtime is expected to run in integers, at least."""
        return len(self._fits) if runtime == "onnxruntime" else super().integer_layers(runtime)

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._fits = fits(graph)
        self._by_layer = {fit.layer.output: fit for fit in self._fits.values()}
        self._steadied = steadied(graph)
        self._calls: dict[str, int] = {}  # how often each layer has been written
        self._within = {part.output for fit in self._fits.values() for part in fit.between}

    def write_quantize(self, node: Node) -> None:
        """Write a quantizer, and its multiples as floats."""
        fit = self._fits.get(node.output)
        if fit is not None:
            node = replace(node, attributes={**node.attributes, "grid": fit.grid})
        elif not node["grid"].sign:
            node = self._in_steps(node)
        zero = -min(0, node["grid"].bounds[0])
        integers = f"{node.output}.integers"
        # OpenVINO adds the zero point before it rounds, and the sum has fewer bits behind the
        # point than the quotient: next to a threshold, that would change codes.
        self.quantize(node, integers, np.uint8, zero, rounds_in_float=bool(zero) and fit is None)
        self.codes[node.output] = integers
        self.types[integers] = (np.uint8, zero)
        self.dequantize(integers, node.output, np.float32(1))

    def _in_steps(self, node: Node) -> Node:
        """Write ``(x - shift) / step``; return the quantizer of that.

        OpenVINO multiplies by 1 / step where the model divides, which moves a threshold by up to
        2e-7 of itself. If it knew the step when it loads the file, it would join the product with
        others and move thresholds further: so the divisor is multiplied by a 1 that is made of the
        number of images.
        """
        grid, (x,), units = node["grid"], node.inputs, f"{node.output}.units"
        if grid.shift:
            shift = self.constant(f"{units}.shift", _shift_beside_tie(grid))
            self.emit("Sub", [x, shift], f"{units}.shifted")
            x = f"{units}.shifted"
        step = self.constant(f"{units}.step", grid.step)
        self.emit("Mul", [step, self._one()], f"{units}.divisor")
        self.emit("Div", [x, f"{units}.divisor"], units)
        grid = replace(grid, step=np.float32(1), shift=np.float32(0))
        return replace(node, inputs=(units,), attributes={**node.attributes, "grid": grid})

    def _one(self) -> str:
        """Write 1, as a float that is computed for each batch."""
        name = "one"
        if name not in self._written:
            self._written.add(name)
            self.emit("Shape", [next(iter(self.graph.inputs))], f"{name}.images", start=0, end=1)
            most = self.constant(f"{name}.most", np.array([1], np.int64))
            self.emit("Min", [f"{name}.images", most], f"{name}.integer")
            self.emit("Cast", [f"{name}.integer"], name, to=TensorProto.FLOAT)
        return name

    def write_dequantize(self, node: Node) -> None:
        """Write multiples times their step."""
        self.affine(node.inputs[0], node.output, node["step"], None)

    def write_integer_conv(self, node: Node) -> None:
        """Write a convolution of multiples."""
        fit = self._by_layer.get(node.output)
        if fit is not None:
            self._write_fitted(node, fit)
            return
        weight, factor = self._weight_of_call(node)
        acc = f"{node.output}.acc"
        self.emit("Conv", [node.inputs[0], weight], acc, **conv_attributes(node))
        self._write_affine(acc, node, factor)

    def _write_affine(self, acc: str, node: Node, factor: np.float32) -> None:
        """Write the affine map.

        ONNX Runtime would multiply constant weights by a constant scale, which rounds: so the scale
        is that of integers 1. OpenVINO mistakes a scale without summand for a dequantization that
        it may move through a resizing: so zeros become the smallest numbers that are not.
        """
        scale, bias = self._steadied.get(node.output, (node["scale"], node["bias"]))
        scale, bias = (along_channels(node, numbers) for numbers in (scale, bias))
        bias = np.where(bias == 0, np.finfo(np.float32).tiny, bias).astype(np.float32)
        ones = self.constant(f"{node.output}.ones", np.ones(scale.shape, np.int8))
        numbers = scale.reshape(-1) * factor
        factors = self.dequantize(ones, f"{node.output}.factor", numbers, (np.int8, 0), axis=0)
        self.emit("Mul", [acc, factors], f"{node.output}.scaled")
        self.affine(f"{node.output}.scaled", node.output, None, bias)

    def _write_fitted(self, node: Node, fit: Fit) -> None:
        weight, bias = f"{node.output}.weight", f"{node.output}.bias"
        x = self.integers(node["layer"], f"{weight}.multiples", np.int8, factor=fit.factor)
        self.dequantize(x, weight, fit.scale, (np.int8, 0), axis=0)
        integers = self.constant(f"{bias}.integers", fit.bias)
        self.dequantize(integers, bias, fit.scale, (np.int32, 0), axis=0)
        self.emit("Conv", [node.inputs[0], weight, bias], node.output, **conv_attributes(node))

    def node(self, node: Node) -> None:
        """Write one node; what lies between a fitted layer and its quantizer is part of the fit."""
        if node.output in self._within:
            self.emit("Identity", list(node.inputs), node.output)
        else:
            super().node(node)

    def write_integer_linear(self, node: Node) -> None:
        """Write a matrix product of multiples."""
        weight, factor = self._weight_of_call(node)
        turned, acc = f"{node.output}.turned", f"{node.output}.acc"
        self.emit("Transpose", [weight], turned, perm=[1, 0])
        self.emit("MatMul", [node.inputs[0], turned], acc)
        self._write_affine(acc, node, factor)

    def _weight_of_call(self, node: Node) -> tuple[str, np.float32]:
        """Write a layer's multiples over a factor as floats; return their name and the factor.

        The calls of a shared layer differ by powers of two, which change no bit of a sum: OpenVINO
        would run them in floats if their weights were equal and their affine maps were not.
        """
        layer = node["layer"]
        call = self._calls[layer] = self._calls.get(layer, -1) + 1
        factor = np.float32(2.0**call)
        x = self.integers(layer, f"{layer}.weight.multiples", np.int8)
        weight = f"{node.output}.weight"
        ndim = self.weights[layer].codes.ndim
        scales = np.full((len(node["scale"]), *[1] * (ndim - 1)), 1 / factor, np.float32)
        # Not a DequantizeLinear, which ONNX Runtime would compute anew for each image.
        self.emit("Cast", [x], f"{weight}.wide", to=TensorProto.FLOAT)
        self.affine(f"{weight}.wide", weight, scales, None)
        return weight, factor


def _shift_beside_tie(grid: InputGrid) -> np.float32:
    """Return a grid's shift; where 0 lies on a threshold, as at half steps, one beside it.

    Zeros are frequent (ReLU, clipping), and OpenVINO's product may put all of them on the other
    side. With this shift they are on the reference's side in every runtime; instead, numbers nearer
    to 0 than the millionth part of the shift may get the code of 0.
    """
    units = -grid.shift / grid.step
    beyond = units - np.rint(units)
    if abs(beyond) < 0.5 - abs(units) * 2.0**-20:
        return grid.shift
    return np.float32(grid.shift + np.sign(beyond) * abs(grid.shift) * 2.0**-21)
