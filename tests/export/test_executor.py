import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tr_det.export.executor import accumulate, affine, evaluate, execute, reachable
from tr_det.export.graph import Graph, InputGrid, Node, Weights

EMPTY = Graph({}, {}, [], {})


def make_weights(codes, **kwargs) -> Weights:
    known = {"bits": 8, "low": -128, "mul": 1, "add": 0}
    return Weights(**{**known, **kwargs}, codes=codes.astype(np.int16), unit=np.ones(len(codes)))


@given(
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_sums_equal_a_convolution_in_float64(kernel, stride, padding, dilation, groups, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (8, 4 // groups, kernel, kernel))
    x = rng.integers(-255, 256, (2, 4, 7, 9))
    node = Node(
        "IntegerConv",
        ("x",),
        "y",
        {
            "strides": [stride] * 2,
            "pads": [padding] * 4,
            "dilations": [dilation] * 2,
            "group": groups,
            "layer": "conv",
        },
    )
    found = accumulate(node, make_weights(codes, mul=2, add=1), x.astype(np.float32))
    expected = F.conv2d(
        torch.tensor(x).double(),
        torch.tensor(2 * codes + 1).double(),
        None,
        stride,
        padding,
        dilation,
        groups,
    )
    assert found.dtype == np.int64
    assert np.array_equal(found, expected.numpy())
    low, high = reachable(make_weights(codes, mul=2, add=1), (-255, 255))
    assert (found <= high[:, None, None]).all()
    assert (found >= low[:, None, None]).all()


def test_sums_beyond_float32_are_exact_and_beyond_int32_are_refused() -> None:
    node = Node("IntegerLinear", ("x",), "y", {"layer": "fc"})
    weights = make_weights(np.full((1, 3000), 127))
    x = np.full((1, 3000), 255, np.float32)
    x[0, 0] = 254
    assert accumulate(node, weights, x).item() == 127 * (255 * 3000 - 1)
    wide = make_weights(np.full((1, 70_000), 127))
    with pytest.raises(OverflowError, match="fc"):
        accumulate(node, wide, np.full((1, 70_000), 255, np.float32))


def test_the_affine_map_rounds_twice() -> None:
    acc, scale, bias = np.array([3]), np.float32(0.1), np.float32(1e8)
    product = np.float32(np.float64(3) * np.float64(scale))
    assert affine(acc, scale, bias) == np.float32(np.float64(product) + np.float64(bias))


POOLINGS = [
    ((3, 2, 1), {"ceil_mode": False}),
    ((2, 2, 0), {"ceil_mode": True}),
    ((3, 2, 1), {"ceil_mode": True}),
    ((2, 1, 1), {"ceil_mode": False}),
]


@pytest.mark.parametrize(("numbers", "how"), POOLINGS)
@pytest.mark.parametrize("kind", ["max", "average", "average without padding"])
def test_poolings_equal_torchs(numbers, how, kind) -> None:
    kernel, stride, padding = numbers
    x = torch.randn(2, 3, 7, 10)
    attributes = {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [padding] * 4,
        "ceil_mode": int(how["ceil_mode"]),
    }
    if kind == "max":
        expected = F.max_pool2d(x, kernel, stride, padding, **how)
        node = Node("MaxPool", ("x",), "y", {**attributes, "dilations": [1, 1]})
    else:
        counts = kind == "average"
        expected = F.avg_pool2d(x, kernel, stride, padding, count_include_pad=counts, **how)
        attributes["count_include_pad"] = int(counts)
        node = Node("AveragePool", ("x",), "y", attributes)
    found = evaluate(EMPTY, node, [x.numpy()])
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize(
    ("node", "function"),
    [
        (
            {"op": "Resize", "attributes": {"scales": [2.0, 3.0]}},
            lambda x: F.interpolate(x, scale_factor=(2.0, 3.0)),
        ),
        (
            {
                "op": "GroupNormalization",
                "attributes": {
                    "num_groups": 2,
                    "epsilon": 1e-5,
                    "weight": np.float32([1, 2, 3, 4]),
                    "bias": np.float32([0, 1, 0, -1]),
                },
            },
            lambda x: F.group_norm(
                x, 2, torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 1, 0, -1])
            ),
        ),
        ({"op": "HardSwish"}, F.hardswish),
        (
            {
                "op": "PRelu",
                "attributes": {"slope": np.float32([[[0.1]], [[0.2]], [[0.3]], [[-1]]])},
            },
            lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, -1])),
        ),
        (
            {"op": "Pad", "attributes": {"pads": [0, 1, 0, 2, 0, 0, 1, 0], "value": 0.5}},
            lambda x: F.pad(x, (2, 0, 0, 1, 1, 0), value=0.5),
        ),
    ],
    ids=lambda value: value["op"] if isinstance(value, dict) else "",
)
def test_other_operations_equal_torchs(node, function) -> None:
    x = torch.randn(2, 4, 5, 6)
    made = Node(node["op"], ("x",), "y", node.get("attributes", {}))
    torch.testing.assert_close(torch.from_numpy(evaluate(EMPTY, made, [x.numpy()])), function(x))


def test_one_goes_on_with_what_a_watcher_returns() -> None:
    grid = InputGrid(2, 0, 3, mul=1, add=0, step=np.float32(0.5))
    nodes = [
        Node("Relu", ("images",), "a"),
        Node("Quantize", ("a",), "b", {"grid": grid, "layer": "x"}),
        Node("Dequantize", ("b",), "c", {"step": np.float32(10)}),
    ]
    graph = Graph({"images": (None,)}, {"out": "c"}, nodes, {})
    seen = []

    def watch(node, arguments, value):
        seen.append((node.output, arguments[0].tolist(), value.tolist()))
        return value + 1

    x = np.float32([-1, 0.25, 0.75, 9])
    assert execute(graph, {"images": x})["out"].tolist() == [0, 0, 20, 30]  # half to even
    assert execute(graph, {"images": x[:1]}, watch)["out"].tolist() == [31]
    assert seen == [("a", [-1], [0]), ("b", [1], [2]), ("c", [3], [30])]
