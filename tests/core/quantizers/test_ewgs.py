"""EWGS against its equations in float64: values, gradients, the first interval, the scale after."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tr_det.core import ConfigError, QuantConfig, build_quantizer, quantize_model


def with_interval(bits, signed, lower, upper, **options):
    quantizer = build_quantizer("ewgs", bits, signed, **options)
    with torch.no_grad():
        quantizer.lower.copy_(torch.as_tensor(lower))
        quantizer.upper.copy_(torch.as_tensor(upper))
    return quantizer


def oracle(x, grad, lower, upper, bits, signed, delta):
    """Return values, dL/dx and each element's terms of dL/dl and dL/du: Eqs. 1, 2, 3 and 6."""
    steps = 2**bits - 1
    raw = (x - lower) / (upper - lower)
    a = np.clip(raw, 0, 1)
    d = np.rint(a * steps) / steps
    g = 2 * grad if signed else grad
    g = g * (1 + delta * np.sign(g) * (a - d)) * ((raw >= 0) & (raw <= 1))
    length = upper - lower
    dl, du = g * (x - upper) / length**2, -g * (x - lower) / length**2
    return (2 * (d - 0.5) if signed else d), g / length, dl, du


def test_the_discretiser_scales_gradients_by_the_rounding_error():
    """Four levels, delta 0.5; worked out by hand."""
    quantizer = with_interval(2, False, 0.0, 1.0, ewgs_factor=0.5)
    x = torch.tensor([0, 0.1, 0.3, 0.5, 0.7, 0.95, 1], requires_grad=True)
    out = quantizer(x)
    out.backward(torch.tensor([1.0, -1, -1, 1, -1, -1, 0]))
    torch.testing.assert_close(out.detach(), torch.tensor([0, 0, 1, 2, 2, 3, 3]) / 3)
    expected = [1, -0.95, -1.0166667, 0.9166667, -0.9833333, -1.025, 0]
    torch.testing.assert_close(x.grad, torch.tensor(expected))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("signed", "axis"), [(True, None), (True, 0), (True, 1), (False, None)])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.2])
def test_values_and_gradients_are_the_papers(bits, signed, axis, delta):
    rng = np.random.default_rng(bits)
    shape, steps = (3, 5, 4, 2), 2**bits - 1
    options = {} if axis is None else {"per_channel": True, "channels": shape[axis], "axis": axis}
    size = () if axis is None else (shape[axis],)
    lower = rng.uniform(-0.9, -0.3, size).astype(np.float32)
    upper = rng.uniform(0.2, 0.7, size).astype(np.float32)
    quantizer = with_interval(bits, signed, lower, upper, ewgs_factor=delta, **options)
    view = [-1 if d == axis else 1 for d in range(4)] if axis is not None else []
    lower, upper = (v.astype(np.float64).reshape(view) for v in (lower, upper))
    t = rng.uniform(-0.3, 1.3, shape) * steps
    t = np.where(np.abs(t - np.floor(t) - 0.5) < 0.01, t + 0.03, t)  # no ties
    t = np.where((np.abs(t) < 0.01) | (np.abs(t - steps) < 0.01), t + 0.03, t)
    x = (lower + t / steps * (upper - lower)).astype(np.float32)
    grad = rng.normal(size=shape).astype(np.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer.zero_grad()
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        value, dx, dl, du = oracle(
            x.astype(np.float64), grad.astype(np.float64), lower, upper, bits, signed, delta
        )
        np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-6)
        np.testing.assert_allclose(given.grad.numpy(), dx, rtol=1e-5)
        others = tuple(d for d in range(4) if d != axis)
        for ours, terms in ((quantizer.lower, dl), (quantizer.upper, du)):
            size = np.abs(terms).sum(others).max()
            np.testing.assert_allclose(ours.grad.numpy(), terms.sum(others), atol=2e-5 * size)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_weights_have_half_integer_levels_and_inputs_start_at_zero(bits):
    steps = 2**bits - 1
    weights = with_interval(bits, True, -0.7, 0.7)
    odd = torch.arange(-steps, steps + 1, 2) / steps
    torch.testing.assert_close(weights.levels(), odd)
    assert set(weights(torch.linspace(-2, 2, 501)).unique().tolist()) == set(
        weights.levels().tolist()
    )
    inputs = with_interval(bits, False, 0.1, 1.7)
    torch.testing.assert_close(inputs.levels(), torch.arange(2**bits) / steps)
    out = inputs(torch.linspace(0, 9, 501))
    assert (out.min().item(), out.max().item()) == (0, 1)


def test_ties_go_to_the_even_multiple_of_the_step():
    assert with_interval(1, True, -1.0, 1.0)(torch.tensor(0.0)).item() == -1
    assert with_interval(2, True, -1.0, 1.0)(torch.tensor(0.0)).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("bits", [1, 4])
def test_the_first_interval(bits):
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 0.3
    exact = x.double().numpy()
    weights = build_quantizer("ewgs", bits, True)
    weights.calibrate(x)
    assert weights.upper.item() == pytest.approx(3 * exact.std(ddof=1), rel=1e-6)
    assert weights.lower.item() == -weights.upper.item()
    inputs = build_quantizer("ewgs", bits, False)
    exact = np.abs(exact) + 0.05
    inputs.calibrate(torch.tensor(exact).float())
    assert inputs.lower.item() == pytest.approx(exact.min(), rel=1e-6)
    upper = 3 * exact.std(ddof=1) / math.sqrt(1 - 2 / math.pi)
    assert inputs.upper.item() == pytest.approx(upper, rel=1e-6)


@pytest.mark.parametrize("data", ["zeros", "constant", "far from zero", "one"])
def test_any_data_give_an_interval(data):
    x = {
        "zeros": torch.zeros(9),
        "constant": torch.full((9,), 5.0),
        "far from zero": 10 + torch.rand(99, generator=torch.Generator().manual_seed(0)) / 10,
        "one": torch.tensor([0.3]),
    }[data]
    for signed in (True, False):
        quantizer = build_quantizer("ewgs", 4, signed)
        quantizer.calibrate(x)
        assert (quantizer.upper - quantizer.lower).item() > 1e-3
        assert torch.isfinite(quantizer(x)).all()
        if data == "far from zero" and not signed:
            assert len(quantizer.codes(x).unique()) > 4


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_inputs_that_can_be_negative_have_a_symmetric_interval(bits):
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(500, generator=torch.Generator().manual_seed(1))
    weights = build_quantizer("ewgs", bits, True)
    inputs = build_quantizer("ewgs", bits, True, role="input")
    for quantizer in (weights, inputs):
        quantizer.calibrate(x)
        quantizer(x).backward(grad)
    assert torch.equal(inputs(x), weights(x))
    assert inputs.lower is None
    torch.testing.assert_close(inputs.upper.grad, weights.upper.grad - weights.lower.grad)


def test_unsigned_weights_and_negative_inputs_are_refused():
    with pytest.raises(ConfigError) as error:
        build_quantizer("ewgs", 4, False, role="weight")
    assert error.value.key == "signed"
    with pytest.raises(ValueError, match="negative"):
        build_quantizer("ewgs", 4, False).calibrate(torch.tensor([-1.0, 1.0]))


def test_a_norm_or_an_output_scale_must_follow():
    def scales(output_scale, weight, act, *after):
        model = nn.Sequential(nn.Linear(4, 4), *after)
        config = QuantConfig(weight_quantizer=weight, act_quantizer=act, output_scale=output_scale)
        quantize_model(model, config)
        return model[0].output_scale is not None

    for weight, act in (("ewgs", "ewgs"), ("ewgs", "lsq"), ("lsq", "ewgs")):
        assert scales("auto", weight, act)
        assert not scales("never", weight, act, nn.LayerNorm(4))
        with pytest.raises(ConfigError) as error:
            scales("never", weight, act)
        assert error.value.key == "output_scale"
    assert not scales("auto", "lsq", "lsq")
    assert not scales("never", "lsq", "lsq")
