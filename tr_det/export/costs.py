"""What the layers of a network cost: multiply-accumulates and bit operations.

Bit operations (BOPs) are multiply-accumulates times bits of the weight times bits of the input, 32
for what is in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import onnx

from tr_det.core.nn.config import FULL_PRECISION
from tr_det.export.float32 import Float32Writer
from tr_det.export.graph import INTEGER_OPS, Graph, Node

FLOAT_LAYERS = ("Conv", "Linear")

Shapes = dict[str, tuple[int, ...]]


class LayerCost(NamedTuple):
    """A layer, over all of its calls.

    Attributes:
        name: of the layer; a full-precision one goes by its output, once for each call.
        weight_bits: 32 for full precision.
        input_bits: likewise.
        macs: multiply-accumulates.
    """

    name: str
    weight_bits: int
    input_bits: int
    macs: int

    @property
    def bops(self) -> int:
        """Bit operations."""
        return self.macs * self.weight_bits * self.input_bits

    @property
    def full_bops(self) -> int:
        """The same in full precision."""
        return self.macs * FULL_PRECISION**2


def value_shapes(graph: Graph, inputs: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return the shape of every value but those of quantizers.

    Args:
        graph: folded.
        inputs: name -> shape.

    Raises:
        ValueError: inputs that the network cannot take.
    """
    model = Float32Writer(graph).write({})
    for value in model.graph.input:
        sizes = inputs[value.name]
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"inputs {dict(inputs)}: the network cannot take them ({error})") from None
    return {**inputs} | {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }


def layer_costs(graph: Graph, shapes: Shapes) -> list[LayerCost]:
    """Return the cost of each layer, in the network's order.

    Args:
        graph: folded.
        shapes: of `value_shapes`.
    """
    made = {node.output: node for node in graph.nodes}
    costs: dict[str, LayerCost] = {}
    for node in graph.having(*INTEGER_OPS, *FLOAT_LAYERS):
        layer = node.attributes.get("layer")
        weight = node["weight"] if layer is None else graph.weights[layer].codes
        name = node.output if layer is None else layer
        cost = LayerCost(
            name,
            FULL_PRECISION if layer is None else graph.weights[layer].bits,
            _input_bits(node, made),
            math.prod(shapes[node.output]) * math.prod(weight.shape[1:]),
        )
        before = costs.get(name)
        costs[name] = cost if before is None else cost._replace(macs=before.macs + cost.macs)
    return list(costs.values())


def _input_bits(node: Node, made: Mapping[str, Node]) -> int:
    source = made.get(node.inputs[0])
    if source is not None and source.op == "Dequantize":
        source = made[source.inputs[0]]
    return source["grid"].bits if source is not None and source.op == "Quantize" else FULL_PRECISION
