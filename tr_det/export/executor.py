"""The reference: what an exported network computes, in NumPy, independent of every runtime.

Between a quantizer and the next one everything is determined to the bit, in this order:

    multiples   of the input, by its `InputGrid`: float32 subtraction and division, half to even
    acc         the sum of products of multiples, an integer (int32)
    float32     of acc, rounded to nearest, even
    times scale, rounded to float32
    plus bias,   rounded to float32

So are additions, ReLU, clipping, maximum pooling, nearest neighbours and what moves values. The
order of a float sum is not: `INEXACT` operations give other last bits on every machine. A caller
who compares codes goes on with their values as another machine has computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tr_det.export.graph import Graph, Node, Weights

Arrays = dict[str, np.ndarray]
Watch = Callable[[Node, list[np.ndarray], np.ndarray], np.ndarray]
_EXACT_IN_FLOAT32 = 2**24
_INT32 = 2**31


def execute(
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    watch: Watch | None = None,
) -> Arrays:
    """Return the outputs of a folded graph by name.

    Args:
        graph: of `tr_det.export.fold.fold`.
        inputs: float32, by name.
        watch: called for each node with the node, its arguments and its value; returns the value to
            go on with.
    """
    values: Arrays = dict(inputs)
    left = {name: len(nodes) for name, nodes in graph.consumers().items()}
    wanted = set(graph.outputs.values())
    for node in graph.nodes:
        arguments = [values[name] for name in node.inputs]
        value = evaluate(graph, node, arguments)
        values[node.output] = value if watch is None else watch(node, arguments, value)
        for name in node.inputs:
            left[name] -= 1
            if not left[name] and name not in wanted:
                values.pop(name, None)
    return {name: values[value] for name, value in graph.outputs.items()}


def evaluate(graph: Graph, node: Node, arguments: list[np.ndarray]) -> np.ndarray:
    """Return the value of one node, float32; multiples are integers in float32."""
    if node.op in ("IntegerConv", "IntegerLinear"):
        acc = accumulate(node, graph.weights[node["layer"]], arguments[0])
        shape = [-1, 1, 1] if node.op == "IntegerConv" else [-1]
        return affine(acc, node["scale"].reshape(shape), node["bias"].reshape(shape))
    if node.op in ("Conv", "Linear"):
        return _float_layer(graph, node, arguments[0])
    return _FUNCTIONS[node.op](node, *arguments)


def affine(acc: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return ``float32(acc) * scale + bias``, each step rounded to float32."""
    scaled: np.ndarray = acc.astype(np.float32) * scale
    return scaled + bias


def accumulate(node: Node, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Return the integer sums of products, int64.

    Raises:
        OverflowError: a sum that int32 cannot hold.
    """
    multiples = weights.multiples
    largest = int(np.abs(x).max(initial=0)) * int(_sums(np.abs(multiples)).max(initial=0))
    if largest >= _INT32:
        raise OverflowError(f"{node['layer']}: sums up to {largest} do not fit into 32 bits")
    # Floats hold such integers exactly, in any order of the sum, and BLAS adds them quickly.
    dtype = np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64
    return _product(node, multiples.astype(dtype), x.astype(dtype)).astype(np.int64)


def reachable(weights: Weights, bounds: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest sum of each channel for inputs within bounds, int64."""
    low, high = min(bounds[0], 0), max(bounds[1], 0)  # 0: padding
    m = weights.multiples.astype(np.int64)
    return _sums(np.minimum(m * low, m * high)), _sums(np.maximum(m * low, m * high))


def _sums(numbers: np.ndarray) -> np.ndarray:
    sums: np.ndarray = numbers.reshape(len(numbers), -1).sum(1, dtype=np.int64)
    return sums


def _product(node: Node, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    if node.op.endswith("Linear"):
        return np.matmul(x, weight.T)
    return convolve(x, weight, node["strides"], node["pads"], node["dilations"], node["group"])


def convolve(
    x: np.ndarray, weight: np.ndarray, strides: Any, pads: Any, dilations: Any, groups: int
) -> np.ndarray:
    """Return the convolution of (N, C, H, W), as a matrix product for each site of the kernel."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, channels, height, width = x.shape
    out_channels, _, *kernel = weight.shape
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    rows, columns = (
        (size - span) // stride + 1
        for size, span, stride in zip((height, width), spans, strides, strict=True)
    )
    total = np.zeros((n, groups, out_channels // groups, rows * columns), x.dtype)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilations[0], j * dilations[1]
            part = x[
                :,
                :,
                top : top + (rows - 1) * strides[0] + 1 : strides[0],
                left : left + (columns - 1) * strides[1] + 1 : strides[1],
            ]
            part = part.reshape(n, groups, channels // groups, rows * columns)
            site = weight[:, :, i, j].reshape(groups, out_channels // groups, -1)
            total += np.matmul(site, part)
    return total.reshape(n, out_channels, rows, columns)


def _float_layer(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray:
    named = node.attributes.get("layer")
    weight = graph.weights[named].values if named else node["weight"]
    out = _product(node, weight, x)
    if node["bias"] is None:
        return out
    return out + node["bias"].reshape([-1, 1, 1] if node.op == "Conv" else [-1])


def _affine(node: Node, x: np.ndarray) -> np.ndarray:
    for key, function in (("scale", np.multiply), ("bias", np.add)):
        if node[key] is not None:
            x = function(x, node[key])
    return x


def _windows(node: Node, x: np.ndarray, fill: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the windows of a pooling, (N, C, rows, columns, height, width)."""
    pads, kernel, strides = node["pads"], node["kernel_shape"], node["strides"]
    dilations = node.attributes.get("dilations", [1, 1])
    extra, sizes = [], []
    for dim in range(2):
        span = (kernel[dim] - 1) * dilations[dim] + 1
        length = x.shape[2 + dim] + pads[dim] + pads[2 + dim]
        steps = (length - span) / strides[dim]
        count = int(np.ceil(steps) if node["ceil_mode"] else np.floor(steps)) + 1
        if (count - 1) * strides[dim] >= x.shape[2 + dim] + pads[dim]:
            count -= 1  # no window begins in the padding
        sizes.append(count)
        extra.append(max(0, (count - 1) * strides[dim] + span - length))
    around = ((0, 0), (0, 0), *((pads[d], pads[2 + d] + extra[d]) for d in range(2)))
    padded = np.pad(x, around, constant_values=fill)
    found = np.stack(
        [
            np.stack(
                [
                    padded[
                        :,
                        :,
                        i * dilations[0] : i * dilations[0]
                        + (sizes[0] - 1) * strides[0]
                        + 1 : strides[0],
                        j * dilations[1] : j * dilations[1]
                        + (sizes[1] - 1) * strides[1]
                        + 1 : strides[1],
                    ]
                    for j in range(kernel[1])
                ]
            )
            for i in range(kernel[0])
        ]
    )
    return found, (sizes[0], sizes[1])


def _max_pool(node: Node, x: np.ndarray) -> np.ndarray:
    windows, _ = _windows(node, x, -np.inf)
    found: np.ndarray = windows.max((0, 1))
    return found


def _average_pool(node: Node, x: np.ndarray) -> np.ndarray:
    windows, _ = _windows(node, x, 0.0)
    ones = np.ones((1, 1, *x.shape[2:]), np.float32)
    if node["count_include_pad"]:
        top, left, bottom, right = node["pads"]
        ones = np.pad(ones, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1)
        counted = Node(node.op, (), "", {**node.attributes, "pads": [0, 0, 0, 0]})
        counts, _ = _windows(counted, ones, 0.0)
    else:
        counts, _ = _windows(node, ones, 0.0)
    return (windows.sum((0, 1)) / counts.sum((0, 1))).astype(np.float32)


def _resize(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    i, j = (np.arange(size) * x.shape[dim] // size for dim, size in ((2, rows), (3, columns)))
    return x[:, :, i][:, :, :, j]


def _resize_by(node: Node, x: np.ndarray) -> np.ndarray:
    rows, columns = (int(size * f) for size, f in zip(x.shape[2:], node["scales"], strict=True))
    return _resize(x, rows, columns)


def _slice(node: Node, x: np.ndarray) -> np.ndarray:
    where = [slice(None)] * x.ndim
    bounds = zip(node["axes"], node["starts"], node["ends"], node["steps"], strict=True)
    for axis, start, end, step in bounds:
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _pad(node: Node, x: np.ndarray) -> np.ndarray:
    pairs = zip(node["pads"][: x.ndim], node["pads"][x.ndim :], strict=True)
    return np.pad(x, tuple(pairs), constant_values=node["value"])


def _reshape(node: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape([size or x.shape[dim] for dim, size in enumerate(node["shape"])])


def _group_norm(node: Node, x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), node["num_groups"], -1).astype(np.float64)
    rows = rows - rows.mean(2, keepdims=True)
    rows = rows / np.sqrt(rows.var(2, keepdims=True) + node["epsilon"])
    shape = [1, -1] + [1] * (x.ndim - 2)
    out = rows.reshape(x.shape) * node["weight"].reshape(shape) + node["bias"].reshape(shape)
    return out.astype(np.float32)


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x * np.float32(1 / 6) + np.float32(0.5), 0, 1)


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "Quantize": lambda node, x: node["grid"].multiples(x),
    "Dequantize": lambda node, x: x * node["step"],
    "Affine": _affine,
    "Relu": lambda node, x: np.maximum(x, np.float32(0)),
    "Clip": lambda node, x: np.clip(x, node["min"], node["max"]),
    "PRelu": lambda node, x: np.where(x < 0, x * node["slope"], x),
    "Add": lambda node, x, y: x + y,
    "Sub": lambda node, x, y: x - y,
    "Mul": lambda node, x, y: x * y,
    "Div": lambda node, x, y: x / y,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "ReduceMean": lambda node, x: x.mean(tuple(node["axes"]), keepdims=bool(node["keepdims"])),
    "Resize": lambda node, x: _resize_by(node, x),
    "ResizeLike": lambda node, x, like: _resize(x, *like.shape[2:]),
    "Concat": lambda node, *xs: np.concatenate(xs, node["axis"]),
    "Slice": _slice,
    "Pad": _pad,
    "Flatten": lambda node, x: x.reshape(len(x), -1),
    "Reshape": _reshape,
    "Squeeze": lambda node, x: x.squeeze(tuple(node["axes"])),
    "Sigmoid": lambda node, x: 1 / (1 + np.exp(-x)),
    "Tanh": lambda node, x: np.tanh(x),
    "HardSigmoid": lambda node, x: _hard_sigmoid(x),
    "HardSwish": lambda node, x: x * _hard_sigmoid(x),
    "GroupNormalization": _group_norm,
}

INEXACT = frozenset(
    {
        *("Conv", "Linear", "AveragePool", "ReduceMean", "GroupNormalization", "Div"),
        *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
    }
)
"""Operations whose last bits depend on the machine."""
