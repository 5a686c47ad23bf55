"""The quantized part of a network: its integer layers, and what leads from one to the next.

Left out are the full-precision layers at both ends, a stem with its pooling for instance, and those
in between.
"""

from __future__ import annotations

from tr_det.export.costs import FLOAT_LAYERS, Shapes
from tr_det.export.graph import INTEGER_OPS, Graph, Node

_ENDS = frozenset({"Quantize", *FLOAT_LAYERS, *INTEGER_OPS})


def quantized_part(graph: Graph, shapes: Shapes) -> Graph | None:
    """Return the quantized part as a network of its own, None if nothing runs in integers.

    Its inputs are what the full-precision layers before it give, under the names that they have in
    the whole network.

    Args:
        graph: folded.
        shapes: of `tr_det.export.costs.value_shapes`.
    """
    made = {node.output: node for node in graph.nodes}
    ends = set(graph.inputs) | {_end(graph, node) for node in graph.having(*FLOAT_LAYERS)}
    kept: set[str] = set()
    inputs: dict[str, None] = {}
    left = [node.output for node in graph.having(*INTEGER_OPS)]
    while left:
        value = left.pop()
        if value in ends:
            inputs[value] = None
        elif value not in kept:
            kept.add(value)
            left += made[value].inputs
    nodes = [node for node in graph.nodes if node.output in kept]
    if not nodes:
        return None
    outside = {x for node in graph.nodes if node.output not in kept for x in node.inputs}
    outside |= set(graph.outputs.values())
    given = [node.output for node in nodes if node.output in outside]
    layers = {node["layer"] for node in nodes if node.op in INTEGER_OPS}
    return Graph(
        inputs={name: (None, shapes[name][1], *[None] * len(shapes[name][2:])) for name in inputs},
        outputs={f"{value}.given": value for value in given},
        nodes=nodes,
        weights={layer: graph.weights[layer] for layer in graph.weights if layer in layers},
        ranks={f"{value}.given": len(shapes[value]) for value in given},
    )


def _end(graph: Graph, layer: Node) -> str:
    """Return what a full-precision layer gives after operations on its output alone."""
    consumers, value = graph.consumers(), layer.output
    while True:
        after = graph.only_consumer(consumers, value)
        if after is None or len(after.inputs) > 1 or after.op in _ENDS:
            return value
        value = after.output
