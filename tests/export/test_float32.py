"""The full-precision twin computes what torch computes without rounding."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, QuantRule, quantize_model, quantized_layers, set_scales
from tr_det.export.float32 import Float32Writer
from tr_det.export.fold import fold
from tr_det.export.runtimes import open_runtime
from tr_det.export.trace import trace


class Net(nn.Module):
    """A float stem, a strided block with a 1 x 1 shortcut, a shared layer, a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.conv = nn.Conv2d(8, 16, 3, 2, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.shared = nn.Conv2d(16, 16, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(16)])
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (self.norm(self.conv(x)) + self.shortcut(x)).relu()
        both = [norm(self.shared(x)) for norm in self.norms]
        return self.last((both[0] + both[1]).relu().mean((2, 3)))


def calibrated(weight_quantizer, act_quantizer):
    torch.manual_seed(1)
    net = Net()
    for norm in (net.norm, *net.norms):
        nn.init.normal_(norm.weight, 1, 0.4)
        nn.init.normal_(norm.bias, 0, 0.4)
    config = QuantConfig(
        weight_quantizer=weight_quantizer,
        act_quantizer=act_quantizer,
        learn_weight_scale=True,
        output_scale="auto",
        rules=(QuantRule(pattern="stem", skip=True),),
    )
    quantize_model(net, config)
    images = torch.rand(2, 3, 17, 24)
    set_scales(net, lambda: net(images))
    with torch.no_grad():
        for _ in range(3):
            net(images)
    return net.eval(), images


def unrounded(net):
    """Return a copy in plain torch, with quantized weights and inputs as they come.

    An input is what its quantizer makes of it, had that infinitely many levels: the line through
    two of the quantizer's own levels.
    """
    net = copy.deepcopy(net)
    for name, layer in list(quantized_layers(net)):
        quantizer, inner = layer.input_quantizer, copy.deepcopy(layer)
        one, two = (float(quantizer.levels()[i]) for i in (1, 2))
        centre = float(quantizer.rounding().step)  # of the codes 1 and 2, as 0 is the first
        inner.weight.data = layer.weight_quantizer(layer.weight).detach()
        inner.weight_quantizer = inner.input_quantizer = None

        class Line(nn.Module):
            def __init__(self, inner, slope, first):
                super().__init__()
                self.inner, self.slope, self.first = inner, slope, first

            def forward(self, x):
                return self.inner(x * self.slope + self.first)

        slope = (two - one) / centre
        parent = net.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Line(inner, slope, one - slope * centre))
    return net.eval()


@pytest.mark.parametrize(
    "quantizers", [("lsq", "lsq"), ("fixed_grid", "fixed_grid"), ("dorefa", "pact")]
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_computes_what_torch_does_without_rounding(quantizers, runtime) -> None:
    net, _ = calibrated(*quantizers)
    model = Float32Writer(fold(trace(net, torch.rand(2, 3, 17, 24)).graph)).write({})
    images = torch.rand(3, 3, 22, 15)
    found = open_runtime(model.SerializeToString(), runtime).run({"images": images.numpy()})
    with torch.no_grad():
        expected = unrounded(net)(images)
    np.testing.assert_allclose(found["output"], expected, rtol=1e-4, atol=1e-5)


def test_a_signed_bit_becomes_the_line_through_its_two_levels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    quantize_model(net, QuantConfig(act_bits=1, signed_input=True))
    images = torch.randn(2, 3, 8, 8)
    set_scales(net, lambda: net(images))
    model = Float32Writer(fold(trace(net, images).graph)).write({})
    found = open_runtime(model.SerializeToString(), "onnxruntime").run({"images": images.numpy()})
    layer, quantizer = net[0], net[0].input_quantizer
    top = torch.tensor([quantizer.high])
    with torch.no_grad():
        line = images * quantizer.values(top) / quantizer.centres(top)
        sums = nn.functional.conv2d(line, layer.quantized_weight(), layer.bias)
        np.testing.assert_allclose(found["output"], net[1](sums), rtol=1e-4, atol=1e-5)


def test_it_is_an_ordinary_network() -> None:
    net, images = calibrated("lsq", "lsq")
    model = Float32Writer(fold(trace(net, images).graph)).write({})
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 5
    assert {"QuantizeLinear", "DequantizeLinear", "Round", "Slice"}.isdisjoint(kinds)
    strides = [
        list(attribute.ints)
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "strides"
    ]
    assert strides.count([2, 2]) == 2
    weights = sum(p.numel() for n, p in net.named_parameters() if p.ndim > 1)
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    # The shared layer has two norms: its weight stays one.
    assert sum(a.size for a in stored if a.ndim in (2, 4)) == weights
