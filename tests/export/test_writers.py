import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import random_case
from torch import nn

from tr_det.core import QuantConfig, quantize_model, set_scales
from tr_det.export.fold import fold
from tr_det.export.metadata import InputSpec, Metadata
from tr_det.export.model import WRITERS, Exported, export_onnx, prove
from tr_det.export.runtimes import METADATA_KEY, open_runtime
from tr_det.export.trace import trace

PLAIN = InputSpec(3, "RGB", 1.0, (0.0,) * 3, (1.0,) * 3, 1, None)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.slow
def test_random_networks_give_the_trained_codes(seed) -> None:
    """In the reference and in ONNX Runtime, optimised or not: bits 1 to 8, all kinds of layers."""
    net, images = random_case(seed)
    traced = trace(net, images)
    graph = fold(traced.graph)
    for kind, make in WRITERS.items():
        writer = make(graph)
        exported = Exported(traced, writer, writer.write({}))
        proof = prove(exported, [images.numpy()], ("onnxruntime",))
        assert proof.failures() == [], kind
        assert all(backend.total.codes for backend in proof.backends)


@pytest.mark.parametrize("seed", [3, 8])
def test_openvino_gives_the_trained_codes(seed) -> None:
    net, images = random_case(seed)
    exported = export_onnx(net, images, Metadata("qcdq", "features", PLAIN), "qcdq")
    proof = prove(exported, [images.numpy()], ("openvino",))
    assert proof.failures() == []


def big_layer(bits: int, quantizer: str = "fixed_grid") -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 512, 3, bias=False))
    config = QuantConfig(weight_bits=bits, weight_quantizer=quantizer, output_scale="always")
    quantize_model(net, config)
    set_scales(net, lambda: net(torch.rand(2, 3, 8, 8)))
    return net.eval()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_weights_take_their_bits(bits, kind) -> None:
    graph = fold(trace(big_layer(bits), torch.rand(2, 3, 8, 8)).graph)
    model = WRITERS[kind](graph).write({})
    packed = {t.name: t for t in model.graph.initializer}["2.weight.packed"]
    weights = graph.weights["2"].codes.size
    assert len(packed.raw_data) == bits * weights // 8
    # Everything else: scales, the tables that unpack, names.
    assert model.ByteSize() - len(packed.raw_data) < 40_000


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_shapes_are_dynamic_and_the_metadata_is_in_the_file(kind, tmp_path) -> None:
    net = big_layer(3)
    exported = export_onnx(net, torch.rand(2, 3, 8, 8), Metadata(kind, "features", PLAIN), kind)
    exported.save(tmp_path / "model.onnx")
    runtime = open_runtime(tmp_path / "model.onnx")
    assert runtime.metadata["format"] == kind
    properties = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(properties[METADATA_KEY])["task"] == "features"
    for shape in ((1, 3, 9, 14), (4, 3, 20, 6)):
        images = torch.rand(shape)
        found = runtime.run({"images": images.numpy()})["output"]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), net(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "said"), [("2", "4: "), ("4", "float results differ")], ids=["within", "the last one"]
)
def test_a_wrong_weight_is_found(layer, said) -> None:
    net, images = big_layer(4), torch.rand(2, 3, 8, 8)
    net = nn.Sequential(*net, nn.ReLU(), nn.Conv2d(512, 4, 1))
    quantize_model(net, QuantConfig(output_scale="always"))
    set_scales(net, lambda: net(images))
    exported = export_onnx(net.eval(), images, Metadata("integer", "features", PLAIN), "integer")
    packed = {t.name: t for t in exported.model.graph.initializer}[f"{layer}.weight.packed"]
    content = bytearray(packed.raw_data)
    content[-1] ^= 64
    packed.raw_data = bytes(content)
    failures = prove(exported, [images.numpy()], ("onnxruntime",)).failures()
    assert failures
    assert all(line.startswith("onnxruntime") and said in line for line in failures)


def test_a_layer_shared_by_levels_is_stored_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3, 1, 1)

        def forward(self, x):
            return self.conv(x), self.conv(nn.functional.max_pool2d(x, 2))

    torch.manual_seed(0)
    net, images = Shared(), torch.rand(2, 3, 8, 8)
    quantize_model(net, QuantConfig(output_scale="always"))
    set_scales(net, lambda: net(images))
    for kind in WRITERS:
        exported = export_onnx(net.eval(), images, Metadata(kind, "features", PLAIN), kind)
        stored = [t.name for t in exported.model.graph.initializer if "packed" in t.name]
        assert stored == ["conv.weight.packed"]
        proof = prove(exported, [images.numpy().astype(np.float32)], ())
        assert proof.failures() == []
