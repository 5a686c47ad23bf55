import json

import numpy as np
import pytest

from tr_det.export.fit import fits
from tr_det.export.graph import Graph, InputGrid, Node, Weights
from tr_det.export.saturation import Cpu, layers_at_risk, this_cpu
from tr_det.export.table import proof_record, proof_table
from tr_det.export.verify import BackendReport, Counts, Proof

CPU = Cpu("a processor", saturates=True)


def make_proof(**layers):
    torch = BackendReport("torch", {name: Counts(100) for name in ("stem", "head")})
    other = {name: layers.get(name, Counts(100)) for name in ("stem", "head")}
    runtime = BackendReport("onnxruntime", other, 2, 2, largest_difference=float("inf"))
    return Proof({"stem": (8, 8), "head": (4, 4)}, [torch, runtime], images=3)


def test_layers_with_wrong_codes_are_listed_and_the_others_on_demand():
    proof = make_proof(head=Counts(100, wrong=7, at_boundary=2))
    text = proof_table(proof, [], CPU)
    (row,) = (line.split() for line in text.splitlines() if line.startswith("head"))
    assert row == ["head", "W4A4", "100", "0", "7", "(2)"]
    assert "\nstem" not in text
    assert "\nstem" in proof_table(proof, [], CPU, all_layers=True)
    assert "FAILS" in text
    assert "FAILS" not in proof_table(make_proof(), [], CPU)


def test_the_record_is_json_with_the_verdict():
    record = proof_record(make_proof(stem=Counts(100, wrong=1)), ["stem"], CPU)
    assert not record["holds"]
    assert record["backends"][1]["layers"]["stem"] == {"codes": 100, "wrong": 1, "at_boundary": 0}
    assert record["saturation"] == {"possible_on_this_cpu": True, "layers": ["stem"]}
    json.dumps({**record, "backends": []}, allow_nan=False)


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
    one = np.ones(4, np.float32)
    grid = InputGrid(input_bits, first, last, mul=1, add=0, step=np.float32(0.1))
    graph = Graph(
        inputs={"images": (None, 3, None, None)},
        outputs={"output": "y"},
        nodes=[
            Node("Quantize", ("images",), "codes", {"grid": grid, "layer": "conv"}),
            Node("IntegerConv", ("codes",), "y", {"layer": "conv", "scale": one, "bias": one}),
        ],
        weights={"conv": Weights(weight_bits, low, 1, 0, codes, one)},
    )
    assert not fits(graph)
    stored = np.arange(first, last + 1) - min(first, 0)
    sums = np.multiply.outer(stored, codes.ravel().astype(int)) * 2  # of two equal products
    assert (np.abs(sums).max() > np.iinfo(np.int16).max) == saturates
    assert layers_at_risk(graph) == (["conv"] if saturates else [])


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
