"""`QuantConv2d` and `QuantLinear`: values and gradients by hand, scales, state, precision."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tr_det.core import (
    OutputScale,
    QuantConfig,
    QuantConv2d,
    QuantLinear,
    QuantRule,
    build_quantizer,
    quantize_model,
    set_scales,
)

PLAIN = {"conv": lambda **options: nn.Conv2d(4, 6, 3, **options), "linear": lambda: nn.Linear(4, 6)}
QUANTIZER_KEYS = {
    f"{child}.{key}"
    for child in ("weight_quantizer", "input_quantizer")
    for key in ("scale", "_extra_state")
} | {"output_scale.scale"}
each_kind = pytest.mark.parametrize("kind", PLAIN)


def _layer(kind: str, bits: int = 4, output_scale: bool = False, signed_input=False, **options):
    torch.manual_seed(0)
    parts = {
        "weight_quantizer": build_quantizer("fixed_grid", bits, signed=True),
        "input_quantizer": build_quantizer("fixed_grid", bits, signed=signed_input),
        "output_scale": OutputScale() if output_scale else None,
    }
    if kind == "conv":
        return QuantConv2d(4, 6, 3, **options, **parts)
    return QuantLinear(4, 6, **parts)


def _input(kind: str, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, 4, 7, 7) if kind == "conv" else (5, 4), generator=generator)


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    """Set the scales from x and run the model on it."""
    set_scales(model, lambda: model(x))
    return model(x)


def _by_hand(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """Eq. 13, from two bits on."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    gamma = 2 ** (bits - signed)
    return (gamma * x / scale).clamp(low, high).round() / gamma


def _quantized_by_hand(layer, x: Tensor, bits: int = 4, signed_input: bool = False):
    return (
        _by_hand(x, layer.input_quantizer.scale, bits, signed_input),
        _by_hand(layer.weight, layer.weight_quantizer.scale, bits, True),
    )


@pytest.mark.parametrize(("bits", "signed_input"), [(2, False), (4, True), (8, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("conv", {"padding": 1}),
        ("conv", {"stride": 2, "bias": False}),
        ("conv", {"groups": 2, "padding": 2, "dilation": 2}),
        ("conv", {"padding": 1, "padding_mode": "circular"}),
        ("linear", {}),
    ],
)
def test_the_forward_is_that_of_quantized_tensors(kind, options, bits, signed_input, dtype):
    layer = _layer(kind, bits, signed_input=signed_input, **options).to(dtype)
    x = _input(kind).to(dtype) - 0.5 * signed_input
    y = _forward(layer, x)
    x_q, w_q = _quantized_by_hand(layer, x, bits, signed_input)
    plain = PLAIN[kind](**options).to(dtype)
    plain.load_state_dict({**layer.state_dict(), "weight": w_q}, strict=False)
    assert y.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(y, plain(x_q), rtol=tolerance, atol=tolerance)


@each_kind
def test_gradients_reach_weight_input_bias_and_scales(kind):
    """Straight-through: dL/dx is dL/dx_q over s, and zero where x is clipped."""
    layer, x = _layer(kind, output_scale=True), _input(kind).requires_grad_()
    _forward(layer, x)
    with torch.no_grad():  # narrow the ranges, so that weights and inputs are clipped
        layer.weight_quantizer.scale.mul_(0.5)
        layer.input_quantizer.scale.mul_(0.5)
    y = layer(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)

    x_q, w_q = (part.detach().requires_grad_() for part in _quantized_by_hand(layer, x))
    scale = layer.output_scale.scale.detach().clone().requires_grad_()
    unscaled = F.conv2d(x_q, w_q) if kind == "conv" else F.linear(x_q, w_q)
    (unscaled * scale).backward(upstream)
    for latent, quantized, quantizer in (
        (x, x_q, layer.input_quantizer),
        (layer.weight, w_q, layer.weight_quantizer),
    ):
        s, (low, high) = quantizer.scale.detach(), (quantizer.spec.low, quantizer.spec.high)
        code = 2 ** (4 - quantizer.signed) * latent.detach() / s
        inside = (code >= low) & (code <= high)
        assert 0 < inside.sum() < inside.numel()
        by_hand = torch.where(inside, quantized.grad / s, 0)
        torch.testing.assert_close(latent.grad, by_hand, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            quantizer.scale.grad, -(by_hand * latent.detach() / s).sum(), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(layer.output_scale.scale.grad, scale.grad, rtol=1e-5, atol=1e-5)
    dims = (0, 2, 3) if kind == "conv" else (0,)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(dims), rtol=1e-5, atol=1e-5)


@each_kind
def test_full_precision_checkpoint_loads_by_name(kind):
    layer, plain = _layer(kind, output_scale=True), PLAIN[kind]()
    result = layer.load_state_dict(plain.state_dict(), strict=False)
    assert set(result.missing_keys) == QUANTIZER_KEYS
    assert result.unexpected_keys == []
    assert torch.equal(layer.weight, plain.weight)
    assert not layer.weight_quantizer.is_calibrated


@each_kind
def test_output_scale_starts_at_the_ratio_of_mean_outputs_without_bias(kind):
    layer, x = _layer(kind, output_scale=True), _input(kind)
    with torch.no_grad():
        layer.bias.fill_(7.0)
    y = _forward(layer, x)
    function = F.conv2d if kind == "conv" else F.linear
    full, quantized = function(x, layer.weight), function(*_quantized_by_hand(layer, x))
    scale = full.abs().mean() / quantized.abs().mean()
    assert abs(scale.item() - 1.0) > 0.01
    torch.testing.assert_close(layer.output_scale.scale, scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(y, quantized * scale + 7.0, rtol=1e-5, atol=1e-5)


def test_output_scale_of_an_all_zero_output_is_one():
    layer = _layer("linear", output_scale=True)
    _forward(layer, torch.zeros(2, 4))
    assert layer.output_scale.scale.item() == 1.0


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_before_the_output_scale_is_set_raises(training):
    """A fixed grid without its output scale is off by a factor, with full-precision inputs too."""
    model = nn.Sequential(nn.Linear(4, 3)).train(training)
    quantize_model(model, QuantConfig(act_bits=32))
    model[0].weight_quantizer.calibrate(model[0].weight)
    with pytest.raises(RuntimeError, match=r"^0\.output_scale: no scale yet"):
        model(_input("linear"))


@each_kind
def test_the_first_input_sets_the_scales_for_good(kind):
    """A head that several pyramid levels share is calibrated by the first of them."""
    layer, twin = _layer(kind, output_scale=True), _layer(kind, output_scale=True)
    one, other = _input(kind, seed=1), 10 * _input(kind, seed=2)
    set_scales(layer, lambda: (layer(one), layer(other)))
    _forward(twin, one)
    layer(other)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])


def test_autocast_leaves_weight_codes_as_they_are():
    layer, x = _layer("conv"), _input("conv")
    expected = _forward(layer, x)
    codes, weight = layer.weight_quantizer.codes(layer.weight), layer.quantized_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight_quantizer.codes(layer.weight), codes)
        assert torch.equal(layer.quantized_weight(), weight)
        y = layer(x)
    assert torch.equal(weight.bfloat16().float() * 8, codes.float())
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("output_scale", [False, True])
@each_kind
def test_autocast_output_has_the_dtype_of_the_torch_layer(kind, output_scale):
    with torch.autocast("cpu", torch.bfloat16):
        y = _forward(_layer(kind, output_scale=output_scale), _input(kind))
        assert y.dtype == PLAIN[kind]()(_input(kind)).dtype == torch.bfloat16


@pytest.mark.parametrize("key", ["weight_bits", "act_bits"])
def test_a_full_precision_part_is_passed_through(key):
    model, x = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), _input("linear")
    quantize_model(model, QuantConfig(rules=(QuantRule(pattern="0", **{key: 32}),)))
    layer = model[0]
    y = _forward(layer, x)
    quantizers = {"weight_bits": layer.weight_quantizer, "act_bits": layer.input_quantizer}
    assert [name for name, quantizer in quantizers.items() if quantizer is None] == [key]
    parts = {"weight_bits": layer.weight, "act_bits": x}
    for name, quantizer in quantizers.items():
        if quantizer is not None:
            parts[name] = _by_hand(parts[name], quantizer.scale, 4, name == "weight_bits")
    expected = F.linear(parts["act_bits"], parts["weight_bits"], layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
