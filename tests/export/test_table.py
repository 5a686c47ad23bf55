import json

import numpy as np
import pytest

from tr_det.export.fit import fits
from tr_det.export.graph import Graph, InputGrid, Node, Weights
from tr_det.export.saturation import Cpu, layers_at_risk, this_cpu
from tr_det.export.table import proof_record, proof_table
from tr_det.export.verify import BackendReport, Counts, Proof

CONV = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
CPU = Cpu("a processor", saturates=True)


def make_proof(**layers):
    torch = BackendReport("torch", {name: Counts(100) for name in ("stem", "head")})
    other = {name: layers.get(name, Counts(100)) for name in ("stem", "head")}
    runtime = BackendReport("onnxruntime", other, 2, 2, largest_difference=float("inf"))
    return Proof({"stem": (8, 8), "head": (4, 4)}, [torch, runtime], images=3)


def test_layers_with_wrong_codes_are_listed_and_the_others_on_demand():
    proof = make_proof(head=Counts(100, wrong=7, at_boundary=2))
    text = proof_table(proof, {}, "", CPU)
    (row,) = (line.split() for line in text.splitlines() if line.startswith("head"))
    assert row == ["head", "W4A4", "100", "0", "7", "(2)"]
    assert "\nstem" not in text
    assert "\nstem" in proof_table(proof, {}, "", CPU, all_layers=True)
    assert "FAILS" in text
    assert "FAILS" not in proof_table(make_proof(), {}, "", CPU)


def test_the_record_is_json_with_the_verdict():
    risks = {"stem": 7}
    record = proof_record(make_proof(stem=Counts(100, wrong=1)), risks, "KEY 7", CPU)
    assert not record["holds"]
    assert record["backends"][1]["layers"]["stem"] == {"codes": 100, "wrong": 1, "at_boundary": 0}
    saturation = {"possible_on_this_cpu": True, "layers": ["stem"], "safe_if_trained_with": "KEY 7"}
    assert record["saturation"] == saturation
    json.dumps({**record, "backends": []}, allow_nan=False)


def one_layer(grid, *after):
    """Return a graph of one convolution, without its weights."""
    scale = np.full(4, 1 / 777, np.float32)
    bias = np.random.default_rng(0).uniform(-1, 1, 4).astype(np.float32)
    layer = {"layer": "conv", "scale": scale, "bias": bias}
    nodes = [
        Node("Quantize", ("images",), "codes", {"grid": grid, "layer": "conv"}),
        Node("IntegerConv", ("codes",), "y", {**layer, **CONV}),
    ]
    for place, next_grid in enumerate(after):
        nodes.append(Node("Quantize", ("y",), f"z{place}", {"grid": next_grid, "layer": "next"}))
    return Graph({"images": (None, 3, None, None)}, {"output": nodes[-1].output}, nodes, {})


@pytest.mark.parametrize("input_bits", [8, 7])
def test_a_fit_multiplies_weights_no_further_than_is_safe(input_bits):
    codes = np.random.default_rng(0).integers(-8, 8, (4, 3, 3, 3), dtype=np.int16)
    step = np.float32(0.1)
    wide = InputGrid(input_bits, 0, 2**input_bits - 1, 1, 0, step)
    graph = one_layer(wide, InputGrid(4, 0, 15, 1, 0, step))
    graph.weights["conv"] = Weights(4, -8, 1, 0, codes, np.ones(4))
    (fit,) = fits(graph).values()
    largest = np.abs(codes).max() * fit.factor.max()
    assert 2 * largest * (2**input_bits - 1) < 2**15
    assert layers_at_risk(graph) == {}


def test_levels_at_half_steps_need_six_bits():
    graph = one_layer(InputGrid(8, 0, 255, 1, 0, np.float32(0.1)))
    for bits in (7, 6):
        codes = np.full((4, 3, 3, 3), 2 ** (bits - 1) - 1, np.int16)
        graph.weights["conv"] = Weights(bits, -(2 ** (bits - 1)), 2, 1, codes, np.ones(4))
        expected = {"conv": 6} if bits == 7 else {}
        assert layers_at_risk(graph) == expected


@pytest.mark.parametrize(
    ("weight_bits", "input_bits", "signed", "saturates"),
    [(8, 8, False, True), (7, 8, False, False), (8, 7, False, False), (8, 8, True, True)],
)
def test_products_saturate_exactly_where_a_pair_exceeds_16_bits(
    weight_bits, input_bits, signed, saturates
):
    random = np.random.default_rng(0)
    low, high = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1
    codes = random.integers(low, high, (4, 3, 3, 3), endpoint=True, dtype=np.int16)
    codes[0] = high
    first = -(2 ** (input_bits - 1)) if signed else 0
    last = first + 2**input_bits - 1
    graph = one_layer(InputGrid(input_bits, first, last, 1, 0, np.float32(0.1)))
    graph.weights["conv"] = Weights(weight_bits, low, 1, 0, codes, np.ones(4))
    assert not fits(graph)
    stored = np.arange(first, last + 1) - min(first, 0)
    sums = np.multiply.outer(stored, codes.ravel().astype(int)) * 2  # of two equal products
    assert (np.abs(sums).max() > np.iinfo(np.int16).max) == saturates
    assert layers_at_risk(graph) == ({"conv": 7} if saturates else {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: sse avx2\n", Cpu("A", True)),
        ("model name\t: B\nflags\t\t: avx2 avx512_vnni\n", Cpu("B", False)),
        ("model name\t: C\nFeatures\t: asimd\n", Cpu("C", None)),
    ],
)
def test_what_the_system_says_of_the_processor(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert this_cpu(tmp_path / "cpuinfo") == expected


def test_an_unknown_processor_is_no_error(tmp_path):
    assert this_cpu(tmp_path / "nothing").saturates is None
