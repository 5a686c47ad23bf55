"""Published networks, from the model to the proof in every runtime."""

import pytest
import torch

from tr_det.classification.models.registry import build_model, quantize_network
from tr_det.core import QuantConfig, set_scales
from tr_det.export.metadata import InputSpec, Metadata
from tr_det.export.model import export_onnx, prove

PLAIN = InputSpec(3, "RGB", 1.0, (0.0,) * 3, (1.0,) * 3, 1, None)


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
    for kind in ("qcdq", "integer"):
        metadata = Metadata(kind, "features", PLAIN)
        exported = export_onnx(net.eval(), images, metadata, kind)
        proof = prove(exported, [images.numpy()])
        assert proof.failures() == []
        quantized = proof.backends[1]
        assert quantized.integer_layers >= (quantized.expected_integer_layers or 0)
