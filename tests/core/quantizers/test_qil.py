"""QIL against its equations in float64: values, gradients, the first interval."""

import math

import numpy as np
import pytest
import quantizer_kit as kit
import torch

from tr_det.core import build_quantizer


def transformer(x, center, half_length, gamma):
    """Return Eqs. 2 to 4 of the paper, with the sign in front."""
    c, d = center, half_length
    alpha, beta = 1 / (2 * d), 1 / 2 - c / (2 * d)
    size, sign = np.abs(x), np.sign(x)
    inside = np.maximum(alpha * size + beta, 0) ** gamma
    return np.where(size < c - d, 0, np.where(size > c + d, sign, inside * sign))


def with_interval(bits, signed, c, d, gamma=None, axis=None, **options):
    values = {"center": c, "half_length": d} | ({} if gamma is None else {"gamma": gamma})
    return kit.build("qil", bits, signed, values, axis, **options)


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@kit.every_kind
@pytest.mark.parametrize("pruned", [0.2, 0.0, -0.1])  # c - d
def test_values_and_gradients_match_the_paper(bits, role, signed, axis, pruned):
    if bits == 1 and signed:
        return
    rng, q = np.random.default_rng(bits), 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    d = kit.drawn(rng, 0.2, 0.7, axis)
    c = (d + pruned * kit.drawn(rng, 0.5, 1, axis)).astype(np.float32)
    gamma = kit.drawn(rng, 0.5, 1.5, axis) if role == "weight" else None
    quantizer = with_interval(bits, signed, c, d, gamma, axis, role=role)
    p = {"center": c, "half_length": d, "gamma": np.float32(1) if gamma is None else gamma}
    p = {name: kit.spread(v, axis) for name, v in p.items()}

    # Places on the way from 0 to 1, off the bounds, off the ties and above the floor of gradients.
    code = kit.off_ties(rng.uniform(-0.3, 1.3, kit.SHAPE) * q)
    place = np.sign(code) * np.abs(code / q) ** (1 / p["gamma"])
    place = np.where((np.abs(place) < 0.01) | (np.abs(place - 1) < 0.01), place + 0.02, place)
    magnitude = np.maximum(p["center"] - p["half_length"] + 2 * p["half_length"] * place, 0.01)
    x = (magnitude * (rng.choice([-1, 1], kit.SHAPE) if signed else 1)).astype(np.float32)
    wide, grad = x.astype(np.float64), rng.normal(size=kit.SHAPE).astype(np.float32)
    exact = transformer(wide, **p) * q
    clear = np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1e-3
    assert clear.mean() > 0.9

    def by(name):
        return lambda at: transformer(wide, **{**p, name: at})

    dx = grad * kit.slope(lambda at: transformer(at, **p), wide)
    terms = {name: grad * kit.slope(by(name), p[name]) for name, _ in quantizer.named_parameters()}
    tolerance = ({"atol": 1e-6}, {"rtol": 1e-4, "atol": 1e-5}, 2e-5)
    value = np.rint(exact) / q
    kit.check_quantizer(
        quantizer, x, grad, value, dx, terms, axis, tolerance=tolerance, clear=clear
    )
    given = torch.tensor(x)
    np.testing.assert_array_equal(quantizer.codes(given).numpy()[clear], np.rint(exact)[clear])
    np.testing.assert_allclose(quantizer.normalized(given).numpy(), exact, atol=2e-5 * q)


def test_two_bits_worked_out_by_hand():
    """c = 0.6, d = 0.4: pruned below 0.2, clipped above 1; gamma 2 squares what is between."""
    quantizer = with_interval(2, True, 0.6, 0.4, 2.0)
    x = torch.tensor([-1.5, -0.8, -0.7, -0.1, 0.0, 0.6, 0.8, 2.0], requires_grad=True)
    out = quantizer(x)  # squares: 1, 0.5625, 0.390625, 0, 0, 0.25, 0.5625, 1
    out.sum().backward()
    assert out.tolist() == [-1, -1, 0, 0, 0, 0, 1, 1]
    slopes = [0, 2 * 0.75 / 0.8, 2 * 0.625 / 0.8, 0, 0, 2 * 0.5 / 0.8, 2 * 0.75 / 0.8, 0]
    torch.testing.assert_close(x.grad, torch.tensor(slopes))
    assert quantizer.levels().tolist() == [-1, 0, 1]
    assert quantizer.kernel() is quantizer.rounding() is None


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_ascend_and_centres_have_them(bits, c, gamma):
    quantizer = with_interval(bits, True, c, 0.5, gamma)
    codes = quantizer.codes(torch.linspace(-2, 2, 4001)).long()  # with 0
    assert (codes.diff() >= 0).all()
    assert quantizer.codes(torch.zeros(1)).item() == 0
    possible = codes.unique()
    if c >= 0.5:
        assert possible.tolist() == list(range(quantizer.low, quantizer.high + 1))
    assert torch.equal(quantizer.codes(quantizer.centres(possible)).long(), possible)


def test_gradients_stay_finite_where_the_power_is_steep():
    """Weights within a thousandth of the interval's lower end have the slope at that thousandth."""
    quantizer = with_interval(4, True, 0.6, 0.4, 0.5)
    x = torch.tensor([0.2 + 1e-6, 0.2 + 1e-7], requires_grad=True)
    quantizer(x).sum().backward()
    expected = 0.5 * 1e-3**-0.5 / 0.8
    torch.testing.assert_close(x.grad, torch.tensor([expected, expected]), rtol=1e-4, atol=0)
    at_zero = torch.tensor([0.0, 3e38, 0.2, -3e38], requires_grad=True)
    quantizer(at_zero).sum().backward()
    for p in quantizer.parameters():
        assert torch.isfinite(p.grad)


@pytest.mark.parametrize("signed", [True, False])
def test_an_interval_that_collapses_stays_finite(signed):
    quantizer = with_interval(3, signed, 0.5, -0.1, 1.0 if signed else None)
    x = torch.tensor([0.1, 0.5, 0.9, 3e38], requires_grad=True)
    out = quantizer(x)
    assert (out[0], out[2], out[3]) == (0, 1, 1)
    out.sum().backward()
    for tensor in (x, *quantizer.parameters()):
        assert torch.isfinite(tensor.grad).all()


@kit.every_kind
def test_the_first_interval(role, signed, axis):
    x = torch.randn(6, 7, 30, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    x = x if signed else x.abs()
    quantizer = build_quantizer("qil", 4, signed, role=role, **kit.per_channel(axis, x.shape))
    quantizer.calibrate(x)
    half = 1.5 * x.double().numpy().std(kit.other_dims(axis), ddof=1)
    half /= 1 if signed else math.sqrt(1 - 2 / math.pi)
    for parameter in (quantizer.center, quantizer.half_length):
        np.testing.assert_allclose(parameter.detach().numpy(), half, rtol=1e-6)
    np.testing.assert_allclose(quantizer.gain().numpy(), 1 / (2 * half), rtol=1e-6)
    assert quantizer.gamma is None if role == "input" else (quantizer.gamma == 1).all()


def test_gamma_is_for_weights_and_can_be_left_out():
    without = with_interval(3, True, 0.5, 0.4, learn_gamma=False)
    assert [name for name, _ in without.named_parameters()] == ["center", "half_length"]
    with_one = with_interval(3, True, 0.5, 0.4, 1.0)
    x = torch.randn(99, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(without(x), with_one(x))


def test_what_it_cannot_do_is_refused():
    kit.check_refused("bits", "qil", 1, True, role="weight")
    kit.check_refused("bits", "qil", 1, True, role="input")
    kit.check_refused("signed", "qil", 4, False, role="weight")
    kit.check_refused("learn_gamma", "qil", 4, True, learn_gamma=1)
    kit.check_refused("estimator", "qil", 4, True, estimator="ewgs")
