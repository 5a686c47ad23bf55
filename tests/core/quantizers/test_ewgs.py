"""EWGS against its equations in float64: values, gradients, the first interval, the scale after."""

import math

import numpy as np
import pytest
import quantizer_kit as kit
import torch

from tr_det.core import build_quantizer


def with_interval(bits, signed, lower, upper, axis=None, **options):
    return kit.build("ewgs", bits, signed, {"lower": lower, "upper": upper}, axis, **options)


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


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@pytest.mark.parametrize(("signed", "axis"), [(True, None), (True, 0), (True, 1), (False, None)])
@pytest.mark.parametrize("delta", [0.0, 0.2])
def test_values_and_gradients_match_the_paper(bits, signed, axis, delta):
    rng, steps = np.random.default_rng(bits), 2**bits - 1
    lower, upper = kit.drawn(rng, -0.9, -0.3, axis), kit.drawn(rng, 0.2, 0.7, axis)
    quantizer = with_interval(bits, signed, lower, upper, axis, ewgs_factor=delta)
    lower, upper = kit.spread(lower, axis), kit.spread(upper, axis)
    t = kit.off_ties(rng.uniform(-0.3, 1.3, kit.SHAPE) * steps, 0, steps, margin=0.01)
    x = (lower + t / steps * (upper - lower)).astype(np.float32)
    grad = rng.normal(size=kit.SHAPE).astype(np.float32)
    value, dx, dl, du = oracle(
        x.astype(np.float64), grad.astype(np.float64), lower, upper, bits, signed, delta
    )
    terms, tolerance = {"lower": dl, "upper": du}, ({"atol": 1e-6}, {"rtol": 1e-5}, 2e-5)
    kit.check_quantizer(quantizer, x, grad, value, dx, terms, axis, tolerance=tolerance)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_weights_have_half_integer_levels_and_inputs_start_at_zero(bits):
    steps = 2**bits - 1
    weights, inputs = with_interval(bits, True, -0.7, 0.7), with_interval(bits, False, 0.1, 1.7)
    torch.testing.assert_close(weights.levels(), torch.arange(-steps, steps + 1, 2) / steps)
    torch.testing.assert_close(inputs.levels(), torch.arange(2**bits) / steps)


def test_other_estimators_have_no_factor():
    kit.check_refused("ewgs_factor", "lsq", 4, True, ewgs_factor=0.1)
    kit.check_refused("ewgs_factor", "lsq", 4, True, ewgs_factor=float("inf"), estimator="ewgs")


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


def test_inputs_far_from_zero_are_in_the_interval():
    x = 10 + torch.rand(99, generator=torch.Generator().manual_seed(0)) / 10
    quantizer = build_quantizer("ewgs", 4, False)
    quantizer.calibrate(x)
    expected = x.double().min() + 3 * x.double().std()
    assert quantizer.upper.item() == pytest.approx(expected.item(), rel=1e-6)
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


def test_unsigned_weights_are_refused():
    kit.check_refused("signed", "ewgs", 4, False, role="weight")
