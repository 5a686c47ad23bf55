"""Simplifications of the intermediate form that leave every code unchanged, up to float rounding.

What follows an integer layer channel by channel (output scale, bias, batch norm) becomes its one
affine map: the factors are multiplied in float64 and rounded once to float32. `verify` counts the
codes that this changes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tr_det.export.graph import INTEGER_OPS, Graph, Node

_SINGLE_SITES = {"pads": [0, 0, 0, 0], "dilations": [1, 1]}


def fold(graph: Graph) -> Graph:
    """Return a simpler graph of the same function."""
    return _with_float32_affines(_without_strided_points(_with_merged_affines(graph)))


def _with_merged_affines(graph: Graph) -> Graph:
    """Merge an affine into the integer layer before it, if nobody else reads the layer."""
    consumers = graph.consumers()
    merged: dict[str, Node] = {}  # output -> the layer that makes it
    gone: set[str] = set()
    for node in graph.having(*INTEGER_OPS):
        layer = node
        while True:
            after = graph.only_consumer(consumers, layer.output)
            if after is None or not _can_merge(layer, after):
                break
            gone.add(layer.output)
            layer = _merged(layer, after)
        merged[layer.output] = layer
    nodes = [merged.get(node.output, node) for node in graph.nodes if node.output not in gone]
    return replace(graph, nodes=nodes)


def _can_merge(layer: Node, after: Node) -> bool:
    """Return whether an affine is one for each channel of the layer's output."""
    if after.op != "Affine":
        return False
    channels = (-1, 1, 1) if layer.op == "IntegerConv" else (-1,)
    sizes = [() if after[key] is None else np.shape(after[key]) for key in ("scale", "bias")]
    return all(size == () or size[1:] == channels[1:] for size in sizes)


def _merged(layer: Node, after: Node) -> Node:
    scale = 1.0 if after["scale"] is None else after["scale"].astype(np.float64).reshape(-1)
    bias = 0.0 if after["bias"] is None else after["bias"].astype(np.float64).reshape(-1)
    affine = {"scale": layer["scale"] * scale, "bias": layer["bias"] * scale + bias}
    return replace(layer, output=after.output, attributes={**layer.attributes, **affine})


def _without_strided_points(graph: Graph) -> Graph:
    """Let a strided 1 x 1 convolution read every other pixel; OpenVINO runs it in floats otherwise.

    The pixels are left out before they are quantized.
    """
    consumers, made = graph.consumers(), {node.output: node for node in graph.nodes}
    changed: dict[str, list[Node]] = {}
    for node in graph.having("IntegerConv"):
        strides, quantize = node["strides"], made[node.inputs[0]]
        alone = graph.only_consumer(consumers, quantize.output) is node
        kernel = graph.weights[node["layer"]].codes.shape[2:]
        points = kernel == (1, 1) and all(node[k] == v for k, v in _SINGLE_SITES.items())
        if not (points and alone and max(strides) > 1):
            continue
        sampled = f"{quantize.output}.sampled"
        bounds = {"starts": [0, 0], "ends": [2**63 - 1] * 2, "axes": [2, 3], "steps": strides}
        changed[quantize.output] = [
            Node("Slice", quantize.inputs, sampled, bounds),
            replace(quantize, inputs=(sampled,)),
        ]
        attributes = {**node.attributes, "strides": [1, 1]}
        changed[node.output] = [replace(node, attributes=attributes)]
    nodes = [new for node in graph.nodes for new in changed.get(node.output, [node])]
    return replace(graph, nodes=nodes)


def _with_float32_affines(graph: Graph) -> Graph:
    nodes = []
    for node in graph.nodes:
        if node.op in (*INTEGER_OPS, "Affine"):
            numbers = {
                key: None if node[key] is None else np.asarray(node[key], np.float32)
                for key in ("scale", "bias")
            }
            node = replace(node, attributes={**node.attributes, **numbers})
        nodes.append(node)
    return replace(graph, nodes=nodes)
