import numpy as np
import pytest
import torch
from random_nets import random_case

from tr_det.export.executor import affine, evaluate, reachable
from tr_det.export.fit import fits
from tr_det.export.fold import fold
from tr_det.export.graph import Graph, InputGrid, Node, Weights
from tr_det.export.staircase import staircases
from tr_det.export.steady import steadied
from tr_det.export.trace import trace


def assert_equal_for_every_sum(graph: Graph, fit) -> None:
    """Compare one multiplication with the reference, for all sums that can occur."""
    made = {node.output: node for node in graph.nodes}
    weights = graph.weights[fit.layer["layer"]]
    bounds = made[fit.layer.inputs[0]]["grid"].bounds
    assert np.abs(weights.multiples.reshape(len(fit.factor), -1).T * fit.factor).max() <= 127
    for channel, (low, high) in enumerate(zip(*reachable(weights, bounds), strict=True)):
        acc = np.arange(low, high + 1)
        x = affine(acc, fit.layer["scale"][channel], fit.layer["bias"][channel])
        for node in fit.between:
            x = evaluate(graph, node, [x])
        expected = fit.quantize["grid"].multiples(x)
        sums = (acc * fit.factor[channel] + fit.bias[channel]).astype(np.int32)
        scaled = sums.astype(np.float32) * fit.scale[channel]
        assert np.array_equal(np.clip(np.rint(scaled), *fit.bounds), expected)


@pytest.mark.parametrize("seed", [3, 8, 13, 22, 25, 26, 29, 32])  # those with such layers
def test_fitted_layers_give_the_references_codes(seed) -> None:
    net, images = random_case(seed)
    graph = fold(trace(net, images).graph)
    found = fits(graph).values()
    assert found
    for fit in found:
        assert_equal_for_every_sum(graph, fit)


def two_layers(scale, bias, relu=True, bits=4) -> Graph:
    rng = np.random.default_rng(0)
    channels = len(scale)
    codes = rng.integers(-8, 8, (channels, 6, 3, 3)).astype(np.int16)
    weights = Weights(4, -8, 1, 0, codes, np.ones(channels))
    conv = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1, "layer": "conv"}
    numbers = {"scale": np.float32(scale), "bias": np.float32(bias)}
    own = InputGrid(4, 0, 15, 1, 0, np.float32(0.3))
    after = InputGrid(bits, 0, 2**bits - 1, 1, 0, np.float32(0.37))
    nodes = [
        Node("Quantize", ("images",), "q", {"grid": own, "layer": "conv"}),
        Node("IntegerConv", ("q",), "y", {**conv, **numbers}),
        *([Node("Relu", ("y",), "r")] if relu else []),
        Node("Quantize", ("r" if relu else "y",), "out", {"grid": after, "layer": "next"}),
    ]
    return Graph({"images": (None, 6, None, None)}, {"o": "out"}, nodes, {"conv": weights})


def test_negative_zero_and_extreme_scales_are_fitted() -> None:
    graph = two_layers([0.01, -0.013, 0.0, 1e-9, -2.0, 0.5], [1.0, 0.2, 2.0, 0.6, 3.0, -1e4])
    (fit,) = fits(graph).values()
    assert_equal_for_every_sum(graph, fit)


def test_eight_bit_codes_and_outputs_read_elsewhere_are_not_fitted() -> None:
    assert not fits(two_layers([0.01], [0.0], bits=8))
    graph = two_layers([0.01], [0.0])
    graph.outputs["raw"] = "y"
    assert not fits(graph)
    assert fits(two_layers([0.01], [0.0], relu=False))


def test_thresholds_stay_away_from_the_sums() -> None:
    """Another order of float operations moves a threshold by 1e-6 of a code or so."""
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    graph = two_layers(rng.normal(0, 0.02, 64), rng.normal(0, 1, 64))
    (fit,) = fits(graph).values()
    weights = graph.weights["conv"]
    low, high = reachable(weights, (0, 15))
    for channel in range(64):
        acc = np.arange(low[channel], high[channel] + 1)
        exact = (acc * fit.factor[channel] + fit.bias[channel]) * np.float64(fit.scale[channel])
        inside = exact[(exact > 0) & (exact < 15)]
        distance = np.abs(inside - np.floor(inside) - 0.5)
        assert distance.min(initial=1.0) > 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_steadied_maps_give_the_same_codes_with_more_room(bits) -> None:
    rng = np.random.default_rng(1)
    graph = two_layers(rng.normal(0, 0.05, 16), rng.normal(0, 1, 16), bits=bits)
    (stairs,) = staircases(graph)
    ((scale, bias),) = steadied(graph).values()
    reference = graph.nodes[1]
    rooms = []
    for channel, (low, high) in enumerate(zip(*reachable(graph.weights["conv"], (0, 15)))):
        acc = np.arange(low, high + 1)
        grid, codes, nearest = stairs.quantize["grid"], [], []
        for a, b in ((reference["scale"], reference["bias"]), (scale, bias)):
            x = affine(acc, a[channel], b[channel])
            codes.append(grid.multiples(x))
            exact = (acc * np.float64(a[channel]) + b[channel]) / np.float64(grid.step)
            inside = exact[(exact > 0) & (exact < grid.high)]
            nearest.append(np.abs(inside - np.floor(inside) - 0.5).min(initial=1.0))
        assert np.array_equal(*codes)
        rooms.append(nearest)
    before, after = np.array(rooms).T
    assert (after >= before * 0.99).all()
    assert np.median(after) > 1.5 * np.median(before)
