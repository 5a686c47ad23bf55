"""Costs against a count by hand and the detector's own; the cut; what a report says."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, QuantRule, quantize_model, set_scales
from tr_det.export.costs import layer_costs, value_shapes
from tr_det.export.executor import execute
from tr_det.export.fold import fold
from tr_det.export.latency import compare, in_turns, written
from tr_det.export.metadata import InputSpec, Metadata
from tr_det.export.part import quantized_part
from tr_det.export.report import make_report, part_inputs, write_report
from tr_det.export.subject import Subject
from tr_det.export.trace import trace

PLAIN = InputSpec(3, "RGB", 1.0, (0.0,) * 3, (1.0,) * 3, 1, None)


def make_net(*rules):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, 2, 1, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    skipped = (QuantRule(pattern="0", skip=True), QuantRule(pattern="9", skip=True), *rules)
    quantize_model(
        net, QuantConfig(weight_bits=4, act_bits=3, output_scale="always", rules=skipped)
    )
    set_scales(net, lambda: net(torch.rand(2, 3, 16, 16)))
    return net.eval()


@pytest.fixture(scope="module")
def subject():
    net = make_net(QuantRule(pattern="5", weight_bits=2))
    example = torch.rand(2, 3, 16, 16)
    metadata = Metadata("qcdq", "features", PLAIN, checkpoint={"file": "model_final.pth"})
    return Subject(net, net, (), example, metadata, lambda count: iter(()), lambda: (net, net))


@pytest.fixture(scope="module")
def graph(subject):
    return fold(trace(subject.net, subject.example).graph)


def test_costs_by_hand(graph) -> None:
    shapes = value_shapes(graph, {"images": (1, 3, 16, 24)})
    costs = layer_costs(graph, shapes)
    assert [tuple(cost[1:]) for cost in costs] == [
        (32, 32, 16 * 24 * 8 * 27),
        (4, 3, 4 * 6 * 16 * 2 * 9),  # a quarter of the channels each
        (2, 3, 4 * 6 * 32 * 16),
        (32, 32, 320),
    ]
    assert [cost.bops for cost in costs[1:3]] == [4 * 6 * 16 * 18 * 12, 4 * 6 * 512 * 6]


def test_costs_of_a_detector_are_those_that_its_run_logs(make_config) -> None:
    from detectron2.modeling import build_model

    from tr_det.detection.export import DetectorNet
    from tr_det.detection.modeling.cost import measure_cost

    model = build_model(make_config()).eval()
    net, images = DetectorNet(model), torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        set_scales(net.train(), lambda: net(images))
    graph = fold(trace(net.eval(), images, net.output_names).graph)
    costs = layer_costs(graph, value_shapes(graph, {"images": (1, 3, 128, 256)}))
    expected = measure_cost(model, (128, 256))
    assert sum(cost.macs for cost in costs) == expected.macs
    assert sum(cost.bops for cost in costs) == expected.bops
    assert sum(cost.full_bops for cost in costs) == expected.full_bops


def test_the_quantized_part_computes_what_it_does_within_the_network(graph) -> None:
    shapes = value_shapes(graph, {"images": (1, 3, 16, 16)})
    part = quantized_part(graph, shapes)
    assert {node.op for node in part.nodes} == {"Quantize", "IntegerConv", "Relu"}
    (entry,), (given,) = part.inputs, part.outputs.values()
    assert shapes[entry] == (1, 8, 8, 8)  # behind stem and pooling
    graph = fold(graph)
    graph.outputs = {"entry": entry, "given": given}
    images = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    expected = execute(graph, {"images": images})
    found = execute(part, {entry: expected["entry"]})
    np.testing.assert_array_equal(found[f"{given}.given"], expected["given"])
    models, refused = written(part, {})
    assert not refused
    assert part_inputs(part, shapes)[entry].shape == (1, 8, 8, 8)
    timings = compare(models, part_inputs(part, shapes), ("onnxruntime", "openvino"), rounds=1)
    ran = {(timing.runtime, timing.form) for timing in timings}
    assert ran == {
        *(("onnxruntime", form) for form in ("float32", "qcdq", "integer")),
        *(("openvino", form) for form in ("float32", "qcdq")),
    }


def test_nothing_quantized_has_no_part(graph) -> None:
    plain = fold(graph)
    plain.nodes = plain.nodes[:3]
    plain.outputs, plain.weights = {"output": plain.nodes[-1].output}, {}
    assert quantized_part(plain, {}) is None


def test_contestants_take_turns() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = in_turns(calls, rounds=3)
    turns = "".join(name for i, name in enumerate(order) if i == 0 or order[i - 1] != name)
    assert turns == "ab" * 6  # the first is measured before, two warm up
    assert [len(seconds) for seconds in samples.values()] == [3, 3]


def test_a_report(subject, graph, tmp_path) -> None:
    image = np.zeros((1, 3, 16, 16), np.float32)
    report = make_report(subject, image, graph, rounds=2)
    as_json, as_text = write_report(report, tmp_path / "model")
    stored, text = json.loads(as_json.read_text()), as_text.read_text()
    assert stored["files"].keys() == {"float32", "qcdq", "integer", "packed"}
    assert stored["not_written"] == {}
    weights = {row["bits"]: row for row in stored["weights"]}
    assert {bits: row["float32_bytes"] for bits, row in weights.items()} == {2: 2048, 4: 1152}
    for bits, row in weights.items():
        for form in ("qcdq", "integer", "packed"):
            assert row[form]["codes"] * 32 == row["float32_bytes"] * bits
            assert row[form]["codes"] < row[form]["whole"] < row["float32_bytes"]
    timed = {(row["what"], row["runtime"], row["format"]) for row in stored["latency"]}
    assert len(timed) == len(stored["latency"]) == 10
    for row in stored["latency"]:
        assert len(row["samples_ms"]) == 2
        assert row["ms"] > 0
        assert row["format"] != "float32" or row["over_float32"] == 1
    assert stored["bops"] == sum(layer["bops"] for layer in stored["layers"])
    assert "model_final.pth" in text
    assert stored["cpu"] in text


def test_formats_that_cannot_hold_it_are_named_and_the_rest_is_reported(subject) -> None:
    config = QuantConfig(weight_bits=8, weight_quantizer="dorefa", output_scale="always")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    quantize_model(net, config)
    set_scales(net, lambda: net(subject.example))
    own = subject._replace(model=net.eval(), net=net)
    report = make_report(own, np.ones((1, 3, 16, 16), np.float32), runtimes=["openvino"], rounds=1)
    assert report["not_written"].keys() == {"qcdq", "integer"}
    assert report["files"].keys() == {"float32", "packed"}
