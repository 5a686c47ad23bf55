import re

import pytest
import torch
import torch.nn.functional as F
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


class Between(nn.Module):
    """Two convolutions with a function between them and one behind."""

    def __init__(self, between=torch.relu, behind=lambda x: x, **buffers) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.between, self.behind = between, behind
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x):
        return self.behind(self.second(self.between(self.first(x))))


def changed_after_reading(x):
    y = x + 1
    before = y.clone()
    F.relu_(y)
    return torch.cat((before[:, :4], y[:, 4:]), 1)


def changed_by_another_name(x):
    x = x * 1
    F.relu_(F.dropout(x, training=False))
    return x


@pytest.mark.parametrize(
    "between", [changed_after_reading, changed_by_another_name, lambda x: x.squeeze(1)]
)
def test_operations_in_place_change_what_is_read_later(between) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 14)
    net = quantized(Between(between), images, signed_input=True)
    found = execute(fold(trace(net, images).graph), {"images": images.numpy()})["output"]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(images))


def relu_on_a_part(x):
    x[:, :4].relu_()
    return x


def relu_on_a_view(x):
    x.view(x.shape).relu_()
    return x


FIVE = torch.ones(5, 1, 1)


def transposed(x):
    n, c, height, width = x.shape
    return x.reshape(n, c, width, height)


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (relu_on_a_part, "relu_ changes .* in place"),
        (relu_on_a_view, "relu_ changes .* in place"),
        (F.dropout, "train=True"),
        (lambda x: F.interpolate(x, scale_factor=1.5), "only by integers"),
        (lambda x: F.gelu(x).relu(), "aten.gelu.default"),
        (lambda x: x[:, :1] * FIVE, r"shape \(5, 1, 1\)"),
        (transposed, "nothing in common"),
        (lambda x: x if x.shape[0] == 2 else x * 2, "number of images to 2"),
        (lambda x: {"a": x, "b": None}, "output 'b'"),
        (lambda x: {"images": x}, "none of them 'images'"),
    ],
)
def test_what_would_be_exported_wrongly_is_refused(behind, reason) -> None:
    images = torch.rand(2, 3, 16, 16)
    net = quantized(Between(behind=behind), images)
    with pytest.raises(ValueError, match=reason):
        trace(net, images)


def test_buffers_are_left_alone() -> None:
    images = torch.rand(2, 3, 16, 16)
    net = quantized(Between(calls=torch.zeros(())), images)
    net.behind = lambda x: x * net.calls.add_(1)
    with pytest.raises(ValueError, match="calls of the model itself"):
        trace(net, images)
    assert net.calls == 0


def test_a_size_that_another_value_has_for_the_example_alone_is_not_taken_for_it() -> None:
    def behind(x):
        up = F.interpolate(F.max_pool2d(x, 2), scale_factor=2)  # one row less than an odd height
        return up + F.interpolate(F.max_pool2d(x, 4), size=up.shape[2:])

    torch.manual_seed(0)
    net = quantized(Between(behind=behind), torch.rand(2, 3, 16, 24))
    graph = fold(trace(net, torch.rand(2, 3, 16, 24)).graph)
    images = torch.rand(2, 3, 17, 25)
    found = execute(graph, {"images": images.numpy()})["output"]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(images))


@pytest.mark.parametrize("place", ["second.weight", "first.bias", "norm"])
def test_numbers_that_are_not_finite_are_refused(place) -> None:
    images = torch.rand(2, 3, 16, 16)
    net = quantized(Between(norm=torch.ones(())), images)
    net.behind = lambda x: x * net.norm
    net.state_dict()[place].view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"{place.partition('.')[0]}: .* not finite"):
        trace(net, images)


def test_outputs_may_have_the_names_of_operations() -> None:
    images = torch.rand(2, 3, 16, 14)
    net = quantized(Between(behind=lambda x: {"relu": x}), images)
    model = IntegerWriter(fold(trace(net, images).graph)).write({})
    assert [output.name for output in model.graph.output] == ["relu"]
