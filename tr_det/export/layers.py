"""Quantized layers as nodes of the intermediate form, through ``grid()`` and ``rounding()``."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from tr_det.core import QuantConv2d, QuantLinear
from tr_det.core.quantizers import Quantizer
from tr_det.export.graph import InputGrid, Node, Weights

Layer = QuantConv2d | QuantLinear


def weights_of(layer: Layer, name: str) -> Weights | None:
    """Return the integers of a layer's weight, None where it is in full precision.

    Raises:
        ValueError: levels that are not integer multiples of a step, or no scale yet.
    """
    quantizer = layer.weight_quantizer
    if quantizer is None:
        return None
    _require_calibrated(quantizer, name)
    grid = quantizer.grid()
    kind = _kind(quantizer)
    if grid is None:
        raise ValueError(
            f"{name}: the levels of {kind} weights are not equally spaced; only "
            "--format packed and torch can hold them"
        )
    if grid.offset is not None and _numbers(grid.offset).any():
        raise ValueError(
            f"{name}: the levels of {kind} weights have an offset, so no integer stands for "
            "zero; only --format packed and torch can hold them"
        )
    _require_finite(name, grid.step)
    unit = np.broadcast_to(_numbers(grid.step).reshape(-1), (layer.weight.shape[0],))
    codes = quantizer.codes(layer.weight).cpu().numpy().astype(np.int16)
    return Weights(quantizer.bits, grid.low, grid.mul, grid.add, codes, unit)


def input_grid_of(quantizer: Quantizer, name: str) -> tuple[InputGrid, float]:
    """Return how a layer's input is quantized, and the value of the multiple 1.

    Raises:
        ValueError: thresholds or levels that are not equally spaced, an offset, or no scale yet.
    """
    _require_calibrated(quantizer, name)
    grid, rounding, kind = quantizer.grid(), quantizer.rounding(), _kind(quantizer)
    if grid is None or rounding is None:
        raise ValueError(
            f"{name}: the thresholds of {kind} inputs are not equally spaced; only "
            "--format packed and torch can hold them"
        )
    offset = 0.0 if grid.offset is None else float(grid.offset.detach())
    if offset:
        raise ValueError(
            f"{name}: the levels of {kind} inputs have the offset {offset:.4g}, so no "
            "integer stands for the zero of the padding; only --format packed and torch can hold "
            "them"
        )
    _require_finite(name, rounding.step, grid.step)
    shift = 0.0 if rounding.shift is None else float(rounding.shift.detach())
    found = InputGrid(
        bits=quantizer.bits,
        low=grid.low,
        high=grid.high,
        mul=grid.mul,
        add=grid.add,
        step=np.float32(float(rounding.step)),
        shift=np.float32(shift),
        base=rounding.base,
        sign=rounding.tie == "sign",
    )
    return found, float(grid.step)


def layer_nodes(
    layer: Layer, name: str, x: str, output: str, weights: Weights | None
) -> list[Node]:
    """Return the nodes of one call of a quantized layer.

    Args:
        layer: in evaluation.
        name: full dotted name.
        x: value that the layer reads.
        output: value that it makes; also the prefix of values in between.
        weights: of `weights_of`.
    """
    is_conv = isinstance(layer, nn.Conv2d)
    attributes = _conv_attributes(layer, name) if is_conv else {}
    bias = None if layer.bias is None else _numbers(layer.bias)
    _require_finite(name, layer.weight, layer.bias)
    factor = 1.0
    if layer.output_scale is not None:
        layer.output_scale.require_calibrated()
        _require_finite(name, layer.output_scale.scale)
        factor = float(layer.output_scale.scale.detach())
    nodes, unit, grid = [], 1.0, None
    if layer.input_quantizer is not None:
        grid, unit = input_grid_of(layer.input_quantizer, name)
        nodes.append(Node("Quantize", (x,), f"{output}.codes", {"grid": grid, "layer": name}))
        x = f"{output}.codes"
    if grid is not None and weights is not None:
        channels = len(weights.unit)
        affine = {
            "scale": weights.unit * (unit * factor),
            "bias": np.zeros(channels) if bias is None else bias,
        }
        op = "IntegerConv" if is_conv else "IntegerLinear"
        return [*nodes, Node(op, (x,), output, {**attributes, **affine, "layer": name})]
    if grid is not None:
        nodes.append(Node("Dequantize", (x,), f"{output}.values", {"step": np.float32(unit)}))
        x = f"{output}.values"
    own: dict[str, Any] = {"layer": name}
    if weights is None:
        own = {"weight": _numbers(layer.weight).astype(np.float32)}
    op = "Conv" if is_conv else "Linear"
    if layer.output_scale is None:
        own["bias"] = None if bias is None else bias.astype(np.float32)
        return [*nodes, Node(op, (x,), output, {**attributes, **own})]
    if bias is not None:
        bias = bias.reshape([-1, 1, 1] if is_conv else [-1])
    scaled = {"scale": np.float64(factor), "bias": bias}
    nodes.append(Node(op, (x,), f"{output}.unscaled", {**attributes, **own, "bias": None}))
    return [*nodes, Node("Affine", (f"{output}.unscaled",), output, scaled)]


def _conv_attributes(layer: Any, name: str) -> dict[str, Any]:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(
            f"{name}: padding {layer.padding!r} with mode {layer.padding_mode!r} cannot be "
            "exported; only numbers with zeros"
        )
    return {
        "strides": list(layer.stride),
        "pads": [*layer.padding, *layer.padding],
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }


def _require_calibrated(quantizer: Quantizer, name: str) -> None:
    if not quantizer.is_calibrated:
        raise ValueError(f"{name}: has no scale yet; export a trained or calibrated model")


def _require_finite(name: str, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and not tensor.detach().isfinite().all():
            raise ValueError(f"{name}: its weight, bias or scales hold numbers that are not finite")


def _kind(quantizer: Quantizer) -> str:
    return type(quantizer).__module__.rpartition(".")[2]


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
