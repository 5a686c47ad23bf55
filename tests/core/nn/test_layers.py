"""`QuantConv2d` and `QuantLinear`: values and gradients by hand, scales, state, precision."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tr_det.core import (
    OutputScale,
    QuantConfig,
    QuantConv2d,
    Quantizer,
    QuantLinear,
    QuantRule,
    build_quantizer,
    quantize_model,
    set_scales,
)

KINDS = ["conv", "linear"]
QUANTIZER_KEYS = {
    f"{child}.{key}"
    for child in ("weight_quantizer", "input_quantizer")
    for key in ("scale", "_extra_state")
} | {"output_scale.scale"}


def _layer(kind: str, bits: int = 4, output_scale: bool = False, signed_input=False, **kwargs):
    torch.manual_seed(0)
    parts = {
        "weight_quantizer": build_quantizer("fixed_grid", bits, signed=True),
        "input_quantizer": build_quantizer("fixed_grid", bits, signed=signed_input),
        "output_scale": OutputScale() if output_scale else None,
    }
    if kind == "conv":
        return QuantConv2d(4, 6, 3, **{"padding": 1, **kwargs}, **parts)
    return QuantLinear(4, 6, **parts)


def _input(kind: str, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, 4, 7, 7) if kind == "conv" else (5, 4), generator=generator)


def _model(**options) -> nn.Sequential:
    """Return a quantized model, scales not set: a conv with a norm and a linear without."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(150, 3)
    )
    quantize_model(model, QuantConfig(**{"weight_bits": 3, "act_bits": 5, **options}))
    return model


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    """Set the scales from x and run the model on it."""
    set_scales(model, lambda: model(x))
    return model(x)


def _calibrated() -> nn.Sequential:
    model = _model()
    _forward(model, _input("conv"))
    return model.eval()


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


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed_input", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"stride": 2, "padding": 0, "bias": False}, {"groups": 2, "padding": 2, "dilation": 2}],
)
def test_conv_forward_is_conv2d_of_quantized_tensors(bits, signed_input, kwargs) -> None:
    layer = _layer("conv", bits, signed_input=signed_input, **kwargs)
    x = _input("conv") - 0.5 * signed_input
    y = _forward(layer, x)
    options = {key: value for key, value in {"padding": 1, **kwargs}.items() if key != "bias"}
    expected = F.conv2d(*_quantized_by_hand(layer, x, bits, signed_input), layer.bias, **options)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_linear_forward_is_linear_of_quantized_tensors(bits: int) -> None:
    layer, x = _layer("linear", bits), _input("linear")
    y = _forward(layer, x)
    expected = F.linear(*_quantized_by_hand(layer, x, bits), layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_padding_mode_pads_the_quantized_input() -> None:
    layer, x = _layer("conv", padding_mode="circular"), _input("conv")
    y = _forward(layer, x)
    x_q, w_q = _quantized_by_hand(layer, x)
    expected = F.conv2d(F.pad(x_q, (1, 1, 1, 1), mode="circular"), w_q, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_weight_input_bias_and_scales(kind: str) -> None:
    """Straight through: those of the quantized tensors over s, zero where the grid clips."""
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
    unscaled = F.conv2d(x_q, w_q, padding=1) if kind == "conv" else F.linear(x_q, w_q)
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


@pytest.mark.parametrize(
    ("kind", "plain"), [("conv", nn.Conv2d(4, 6, 3)), ("linear", nn.Linear(4, 6))]
)
def test_full_precision_checkpoint_loads_by_name(kind: str, plain: nn.Module) -> None:
    layer = _layer(kind, output_scale=True)
    result = layer.load_state_dict(plain.state_dict(), strict=False)
    assert set(result.missing_keys) == QUANTIZER_KEYS
    assert result.unexpected_keys == []
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    assert not layer.weight_quantizer.is_calibrated


@pytest.mark.parametrize("kind", KINDS)
def test_output_scale_starts_at_the_ratio_of_mean_outputs_without_bias(kind: str) -> None:
    layer, x = _layer(kind, output_scale=True), _input(kind)
    with torch.no_grad():
        layer.bias.fill_(7.0)
    y = _forward(layer, x)
    function = (lambda x, w: F.conv2d(x, w, padding=1)) if kind == "conv" else F.linear
    full, quantized = function(x, layer.weight), function(*_quantized_by_hand(layer, x))
    scale = full.abs().mean() / quantized.abs().mean()
    assert abs(scale.item() - 1.0) > 0.01
    torch.testing.assert_close(layer.output_scale.scale, scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(y, quantized * scale + 7.0, rtol=1e-5, atol=1e-5)


def test_output_scale_of_an_all_zero_output_is_one() -> None:
    layer = _layer("linear", output_scale=True)
    _forward(layer, torch.zeros(2, 4))
    assert layer.output_scale.scale.item() == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_input_leaves_all_scales_to_the_next(kind: str) -> None:
    layer, x = _layer(kind, output_scale=True), _input(kind)
    expected = _layer(kind, output_scale=True)
    empty = _forward(layer, x[:0])
    assert empty.shape[0] == 0
    empty.sum().backward()
    assert not layer.output_scale.is_calibrated
    torch.testing.assert_close(layer(x), _forward(expected, x))
    assert layer.output_scale.is_calibrated


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_before_the_scales_are_set_raises_with_the_layer(training: bool) -> None:
    model = _model().train(training)
    with pytest.raises(RuntimeError, match=r"^0\.weight_quantizer: no scale yet; .*set_scales"):
        model(_input("conv"))
    assert not any(m.is_calibrated for m in model.modules() if isinstance(m, Quantizer))
    assert torch.isfinite(_forward(model, _input("conv"))).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_before_the_output_scale_is_set_raises(training: bool) -> None:
    """A fixed grid without its output scale is off by a factor; full-precision inputs or not."""
    model = nn.Sequential(nn.Linear(4, 3)).train(training)
    quantize_model(model, QuantConfig(act_bits=32))
    model[0].weight_quantizer.calibrate(model[0].weight)
    with pytest.raises(RuntimeError, match=r"^0\.output_scale: no scale yet"):
        model(_input("linear"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_input_sets_the_scales_for_good(kind: str) -> None:
    """A head that several pyramid levels share is calibrated by the first of them."""
    layer, twin = _layer(kind, output_scale=True), _layer(kind, output_scale=True)
    one, other = _input(kind, seed=1), 10 * _input(kind, seed=2)
    set_scales(layer, lambda: (layer(one), layer(other)))
    _forward(twin, one)
    layer(other)
    set_scales(layer, lambda: layer(other))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])


def test_loaded_model_is_not_calibrated_anew() -> None:
    source, model = _calibrated(), _model()
    model.load_state_dict(source.state_dict())
    model.train()(10 * _input("conv", seed=2))
    scales = {key: value for key, value in source.state_dict().items() if key.endswith("scale")}
    assert len(scales) == 5
    assert all(torch.equal(model.state_dict()[key], value) for key, value in scales.items())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("options", "child", "codes"),
    [
        ({"weight_bits": 2}, "weight_quantizer", ".*has fixed_grid with codes -4 to 3, .* -2 to 1"),
        ({"act_bits": 4}, "input_quantizer", ".*codes 0 to 31, .*codes 0 to 15"),
        ({"signed_input": True}, "input_quantizer", ".*codes 0 to 31, .*codes -16 to 15"),
        ({"weight_quantizer": "lsq"}, "weight_quantizer", ".*has fixed_grid .*has lsq"),
    ],
)
def test_checkpoint_of_another_bit_width_is_refused(options, child, codes, strict) -> None:
    model = _model(**options)
    with pytest.raises(RuntimeError, match=rf"0\.{child}: {codes}"):
        model.load_state_dict(_calibrated().state_dict(), strict=strict)
    assert not getattr(model[0], child).is_calibrated


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_give_the_same_results_and_share_nothing(duplicate) -> None:
    model = _calibrated()
    twin, x = duplicate(model), _input("conv", seed=3)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin[0].weight_quantizer.scale.mul_(0.5)
    assert not torch.equal(twin(x), model(x))
    with pytest.raises(RuntimeError, match="no scale yet"):
        duplicate(_model()).eval()(x)


def test_autocast_leaves_weight_codes_as_they_are() -> None:
    model, x = _calibrated(), _input("conv", seed=3)
    layer = model[0]
    codes, weight = layer.weight_quantizer.codes(layer.weight), layer.quantized_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight_quantizer.codes(layer.weight), codes)
        assert torch.equal(layer.quantized_weight(), weight)
        y = model(x)
    assert torch.equal(weight.bfloat16().float() * 4, codes.float())
    torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)


def test_half_precision_input_is_divided_in_single_precision() -> None:
    """As inside autocast: a quotient in bfloat16 would cross transition points."""
    layer, x = _layer("linear", bits=8), torch.rand(64, 4).bfloat16()
    _forward(layer, x.float())
    assert torch.equal(layer.input_quantizer.codes(x), layer.input_quantizer.codes(x.float()))


@pytest.mark.parametrize("output_scale", [False, True])
@pytest.mark.parametrize(
    ("kind", "plain"), [("conv", nn.Conv2d(4, 6, 3)), ("linear", nn.Linear(4, 6))]
)
def test_autocast_output_has_the_dtype_of_the_torch_layer(kind, plain, output_scale) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = _forward(_layer(kind, output_scale=output_scale), _input(kind))
        assert y.dtype == plain(_input(kind)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_double_layer_computes_in_double(kind: str) -> None:
    layer, x = _layer(kind, bits=8).double(), _input(kind).double()
    y = _forward(layer, x)
    parts = _quantized_by_hand(layer, x, bits=8)
    expected = (
        F.linear(*parts, layer.bias)
        if kind == "linear"
        else F.conv2d(*parts, layer.bias, padding=1)
    )
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)


def test_channels_last_gives_the_same_values() -> None:
    model, x = _calibrated()[0], _input("conv", seed=3)
    expected = model(x)
    y = copy.deepcopy(model).to(memory_format=torch.channels_last)(
        x.to(memory_format=torch.channels_last)
    )
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["weight", "input"])
def test_full_precision_part_is_passed_through(part: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    key = {"weight": "weight_bits", "input": "act_bits"}[part]
    quantize_model(model, QuantConfig(rules=(QuantRule(pattern="0", **{key: 32}),)))
    layer, x = model[0], _input("linear")
    y = _forward(layer, x)
    w, x_q = layer.weight, x
    if part == "weight":
        assert layer.weight_quantizer is None
        x_q = _by_hand(x, layer.input_quantizer.scale, 4, False)
    else:
        assert layer.input_quantizer is None
        w = _by_hand(w, layer.weight_quantizer.scale, 4, True)
    torch.testing.assert_close(y, F.linear(x_q, w, layer.bias), rtol=1e-6, atol=1e-6)


def test_an_average_of_weights_made_before_the_first_forward_can_be_evaluated() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    quantize_model(model, QuantConfig())
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    _forward(model, torch.rand(5, 4))
    average.update_parameters(model)
    x = torch.rand(5, 4)
    torch.testing.assert_close(average.eval()(x), model.eval()(x))
