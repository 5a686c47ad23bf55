import re

import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, QuantRule, quantize_model, set_scales
from tr_det.export.executor import execute
from tr_det.export.fold import fold
from tr_det.export.integer import IntegerWriter
from tr_det.export.trace import trace


class Pyramid(nn.Module):
    """Shapes that are asked for, a layer that two levels share, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.further = nn.Conv2d(8, 8, 3, 2, 1)
        self.shared = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        fine = torch.relu(self.down(x))
        coarse = torch.relu(self.further(fine))
        up = nn.functional.interpolate(self.shared(coarse), size=fine.shape[-2:])
        return {"sum": self.shared(fine) + up, "flat": coarse.view(coarse.size(0), -1).mean(1)}


def quantized(net, images, **config):
    quantize_model(net, QuantConfig(output_scale="always", **config))
    set_scales(net, lambda: net(images))
    return net.eval()


def test_shapes_may_differ_from_the_example() -> None:
    torch.manual_seed(0)
    net = quantized(Pyramid(), torch.rand(2, 3, 16, 16))
    graph = fold(trace(net, torch.rand(2, 3, 16, 16)).graph)
    assert list(graph.outputs) == ["sum", "flat"]
    assert sorted(graph.weights) == ["down", "further", "shared"]
    for shape in ((1, 3, 13, 22), (5, 3, 32, 8)):
        images = torch.rand(shape)
        found = execute(graph, {"images": images.numpy()})
        with torch.no_grad():
            expected = net(images)
        for name, value in expected.items():
            torch.testing.assert_close(torch.from_numpy(found[name]), value)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.cumsum(self.conv(x), 2)


ONE_CONV = nn.Sequential(nn.Conv2d(3, 4, 3))


def one_conv(**config):
    return quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(2, 3, 8, 8), **config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: quantized(Unknown(), torch.rand(2, 3, 8, 8)), "aten.cumsum.default"),
        (lambda: one_conv(act_quantizer="lsq_plus", signed_input=True), "0: .*lsq_plus.*offset"),
        (lambda: one_conv(weight_quantizer="lsbq", weight_bits=2), "0: .*lsbq.*equally"),
        (lambda: one_conv(act_quantizer="qnet", act_bits=2), "0: .*thresholds of qnet"),
        (
            lambda: one_conv(weight_quantizer="uniform", weight_options={"center": True}),
            "0: .*uniform.*offset",
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), "no quantized layers"),
        (lambda: one_conv().train(), "eval()"),
        (lambda: one_conv(weight_quantizer="ewgs", weight_bits=8), "0: .*8 bits"),
    ],
)
def test_what_cannot_be_represented_is_named(make, reason) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=reason.replace("()", re.escape("()"))):
        IntegerWriter(fold(trace(make(), torch.rand(2, 3, 8, 8)).graph))


def test_an_uncalibrated_layer_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    quantize_model(net, QuantConfig(output_scale="always"))
    with pytest.raises(ValueError, match="0: has no scale"):
        trace(net.eval(), torch.rand(2, 3, 8, 8))


def test_the_model_is_left_as_it_was() -> None:
    images = torch.rand(2, 3, 8, 8)
    net = one_conv()
    before = net(images)
    with pytest.raises(ValueError, match="cannot be exported"):
        trace(nn.Sequential(net, nn.Softplus()).eval(), images)
    assert torch.equal(net(images), before)


def test_layers_with_weights_or_inputs_in_full_precision() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    rules = (QuantRule(pattern="0", act_bits=32), QuantRule(pattern="2", weight_bits=32))
    net = quantized(net, images, rules=rules)
    graph = fold(trace(net, images).graph)
    assert not list(graph.having("IntegerConv"))
    found = execute(graph, {"images": images.numpy()})["output"]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(images))
