"""``integer``: integer operations of ONNX, for ONNX Runtime.

Where a quantizer follows a convolution directly, both are one ``QLinearConv`` (see `fit`).
All other layers are ``ConvInteger`` or ``MatMulInteger`` and the affine map in floats. Types are
those for which ONNX Runtime has quick kernels:

    QLinearConv    uint8 inputs and outputs, int8 weights
    ConvInteger    int8 inputs, uint8 weights with one zero point; uint8 inputs of many bits

so a quantizer gives what the layer behind it reads. Of int8 and uint8 x86 without VNNI adds two
products in 16 bits (see `saturation`), of two uint8 in 32.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tr_det.export.fit import Fit, fits
from tr_det.export.graph import Graph, Node
from tr_det.export.onnx_writer import OnnxWriter, along_channels, conv_attributes
from tr_det.export.saturation import LARGEST_SUM

_WEIGHT_ZERO = 128
_LARGEST_INT8 = LARGEST_SUM // (2 * 255)
"""Of inputs; with larger ones two products with weights as they are stored could saturate."""


class IntegerWriter(OnnxWriter):
    """Writes ``integer``."""

    format = "integer"

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._fits = fits(graph)
        self._by_layer = {fit.layer.output: fit for fit in self._fits.values()}
        self._within = {
            node.output for fit in self._fits.values() for node in (fit.layer, *fit.between)
        }
        self._readers = graph.consumers()

    def node(self, node: Node) -> None:
        """Write one node; what is fitted is written with its quantizer."""
        if node.output not in self._within:
            super().node(node)

    def write_quantize(self, node: Node) -> None:
        """Write a quantizer, alone or with the layer before it."""
        self.codes[node.output] = node.output
        (reader,) = self._readers[node.output]  # a quantizer is one layer's
        reads_bytes = reader.output in self._by_layer
        fit = self._fits.get(node.output)
        if fit is None:
            dtype = np.uint8 if reads_bytes or not _fits_int8(node["grid"].bounds) else np.int8
            zero = _zero(node["grid"].bounds, dtype)
            self.types[node.output] = (dtype, zero)
            self.quantize(node, node.output, dtype, zero)
            return
        zero = _zero(fit.bounds, np.uint8)
        if reads_bytes or not _fits_int8(fit.bounds):
            self.types[node.output] = (np.uint8, zero)
            self._write_fitted(fit, node.output, zero)
        else:  # the same number in both types
            self.types[node.output] = (np.int8, zero)
            self._write_fitted(fit, f"{node.output}.unsigned", zero)
            self.emit("Cast", [f"{node.output}.unsigned"], node.output, to=TensorProto.INT8)

    def _write_fitted(self, fit: Fit, output: str, zero: int) -> None:
        node, one = fit.layer, self.constant("one", np.float32(1))
        own_zero = self.types[node.inputs[0]][1]
        weight = f"{node.output}.weight"
        inputs = [
            node.inputs[0],
            one,
            self.constant(f"uint8_{own_zero}", np.uint8(own_zero)),
            self.integers(node["layer"], weight, np.int8, factor=fit.factor),
            self.constant(f"{node.output}.scale", fit.scale),
            self.constant("int8_0", np.int8(0)),
            one,
            self.constant(f"uint8_{zero}", np.uint8(zero)),
            self.constant(f"{node.output}.bias", fit.bias),
        ]
        low, high = (bound + zero for bound in fit.bounds)
        whole = (low, high) == (0, 255)
        name = output if whole else f"{output}.wide"
        self.emit("QLinearConv", inputs, name, **conv_attributes(node))
        if not whole:
            self.clip_integers(name, output, (low, high), np.uint8)

    def write_integer_conv(self, node: Node) -> None:
        """Write a convolution whose output is a float."""
        acc, inputs = f"{node.output}.acc", self._operands(node)
        self.emit("ConvInteger", inputs, acc, **conv_attributes(node))
        self._write_affine_of(acc, node)

    def write_integer_linear(self, node: Node) -> None:
        """Write a matrix product."""
        x, weight, *zeros = self._operands(node)
        turned, acc = f"{node.output}.turned", f"{node.output}.acc"
        self.emit("Transpose", [weight], turned, perm=[1, 0])
        self.emit("MatMulInteger", [x, turned, *zeros], acc)
        self._write_affine_of(acc, node)

    def _write_affine_of(self, acc: str, node: Node) -> None:
        scaled, axis = f"{node.output}.scaled", 1 if node.op == "IntegerConv" else -1
        # One pass in place of a cast and a product, with the same rounding.
        self.dequantize(acc, scaled, node["scale"], (np.int32, 0), axis=axis)
        self.affine(scaled, node.output, None, along_channels(node, node["bias"]))

    def _operands(self, node: Node) -> list[str]:
        """Return inputs, weights and both zero points."""
        x = node.inputs[0]
        dtype, zero = self.types[x]
        weight = f"{node['layer']}.weight.unsigned"
        return [
            x,
            self.integers(node["layer"], weight, np.uint8, _WEIGHT_ZERO),
            self.constant(f"{np.dtype(dtype).name}_{zero}", np.array(zero, dtype)),
            self.constant(f"uint8_{_WEIGHT_ZERO}", np.uint8(_WEIGHT_ZERO)),
        ]


def _fits_int8(bounds: tuple[int, int]) -> bool:
    """Return whether inputs may be stored as int8: no two products with weights saturate."""
    return max(map(abs, bounds)) <= _LARGEST_INT8


def _zero(bounds: tuple[int, int], dtype: type) -> int:
    """Return a zero point for which the type holds the multiples; 0 where that will do."""
    limits = np.iinfo(dtype)
    low, high = min(bounds[0], 0), bounds[1]
    if limits.min <= low and high <= limits.max:
        return 0
    return int(limits.min - low) if low < limits.min else int(limits.max - high)
