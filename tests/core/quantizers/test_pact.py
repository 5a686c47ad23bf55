"""PACT against its equations in float64: values, gradients, the first alpha, its decay."""

import math

import numpy as np
import pytest
import torch
from quantizer_kit import SHAPE, build, check_quantizer, check_refused, off_ties
from torch import nn

from tr_det.core import QuantConfig, build_quantizer, quantize_model, tr_param_groups

every_input = pytest.mark.parametrize(
    ("signed", "bits"), [(False, 1), (False, 2), (False, 8), (True, 2), (True, 3), (True, 8)]
)


def oracle(x, grad, alpha, bits, signed):
    """Return values, dL/dx and dL/dalpha's terms: Eqs. 1 to 3, and their odd extension."""
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    least = -alpha if signed else 0.0
    y = np.clip(x, least, alpha)
    below, above = x < least, x >= alpha
    dalpha = grad * above - grad * (below & signed)
    return np.rint(y * steps / alpha) * alpha / steps, grad * ~(below | above), dalpha


@every_input
def test_values_and_gradients_match_the_paper(signed, bits):
    rng = np.random.default_rng(bits)
    alpha = np.float32(rng.uniform(0.2, 5.0))
    quantizer = build("pact", bits, signed, {"alpha": alpha}, role="input")
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    # Some are below zero: those give nothing.
    t = off_ties(rng.uniform(-1.4 * steps, 1.4 * steps, SHAPE), -steps, steps)
    x = (t * alpha / steps).astype(np.float32)
    grad = rng.normal(size=SHAPE).astype(np.float32)
    value, dx, dalpha = oracle(
        x.astype(np.float64), grad.astype(np.float64), float(alpha), bits, signed
    )
    tolerance = ({"rtol": 1e-6}, {"rtol": 0}, 1e-6)
    check_quantizer(quantizer, x, grad, value, dx, {"alpha": dalpha}, tolerance=tolerance)


@every_input
def test_codes_are_symmetric_and_zero_has_a_level(signed, bits):
    levels = build("pact", bits, signed, {"alpha": 1.5}, role="input").levels()
    assert len(levels) == (2**bits - 1 if signed else 2**bits)
    assert 0 in levels
    assert levels[-1].item() == pytest.approx(1.5)
    if signed:
        assert torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize("signed", [True, False])
def test_the_first_alpha(signed):
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) + 0.2
    x = x if signed else x.relu()
    quantizer = build_quantizer("pact", 4, signed, role="input")
    quantizer.calibrate(x)
    expected = 3 * x.double().numpy().std(ddof=1)
    expected /= 1 if signed else math.sqrt(1 - 2 / math.pi)
    assert quantizer.alpha.item() == pytest.approx(expected, rel=1e-6)
    papers = build_quantizer("pact", 4, signed, role="input", initial=10)
    papers.calibrate(x[:0])
    assert not papers.is_calibrated
    papers.calibrate(x)
    assert papers.alpha.item() == 10


def test_decay_is_that_of_alphas_group():
    for options, expected in (({}, 0.0), ({"decay": 0.3}, 0.3)):
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        quantize_model(
            model, QuantConfig(weight_quantizer="lsq", act_quantizer="pact", act_options=options)
        )
        groups = tr_param_groups(model, lr=1.0, weight_decay=0.01)
        for layer in (model[0], model[2]):
            for parameter, decay in ((layer.input_quantizer.alpha, expected), (layer.weight, 0.01)):
                of = [g for g in groups if any(p is parameter for p in g["params"])]
                assert [g["weight_decay"] for g in of] == [decay]


def test_what_it_cannot_quantize_is_refused():
    check_refused("bits", "pact", 1, True, role="input")
    check_refused("role", "pact", 4, True, role="weight")
    for initial in (0.0, "10", True):
        check_refused("initial", "pact", 4, False, initial=initial)
    check_refused("decay", "pact", 4, False, decay=-0.1)
