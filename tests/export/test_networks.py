"""Published networks, from the model to the proof in every runtime."""

import pytest
import torch

from tr_det.classification.models.registry import build_model, quantize_network
from tr_det.core import QuantConfig, set_scales
from tr_det.export.fold import fold
from tr_det.export.model import WRITERS, Exported, prove
from tr_det.export.trace import trace


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits", "options"),
    [
        ("mobilenet_v2", 4, {}),
        ("efficientnet_lite0", 3, {}),
        ("reactnet18", 1, {"width": 16}),
    ],
)
def test_a_network_computes_the_trained_codes(name, bits, options) -> None:
    if name == "efficientnet_lite0":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    net = build_model(name, 10, **options)
    quantize_network(net, name, QuantConfig(weight_bits=bits, act_bits=bits))
    images = torch.rand(2, 3, 64, 64)
    set_scales(net, lambda: net(images))
    for _ in range(3):
        net(images)
    traced = trace(net.eval(), images)
    for make in WRITERS.values():
        writer = make(fold(traced.graph))
        proof = prove(Exported(traced, writer, writer.write({})), [images.numpy()])
        assert proof.failures() == []
        quantized = proof.backends[1]
        assert quantized.integer_layers >= (quantized.expected_integer_layers or 0)
