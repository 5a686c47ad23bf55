"""QIL against its equations in float64: values, gradients, the first interval."""

import math

import numpy as np
import pytest
import torch

from tr_det.core import ConfigError, build_quantizer


def transformer(x, center, half_length, gamma):
    """Return Eqs. 2 to 4 of the paper, with the sign in front."""
    c, d = center, half_length
    alpha, beta = 1 / (2 * d), 1 / 2 - c / (2 * d)
    size, sign = np.abs(x), np.sign(x)
    inside = np.maximum(alpha * size + beta, 0) ** gamma
    return np.where(size < c - d, 0, np.where(size > c + d, sign, inside * sign))


def slope(function, at, size=1e-6):
    return (function(at + size) - function(at - size)) / (2 * size)


def with_interval(bits, signed, c, d, gamma=None, **options):
    quantizer = build_quantizer("qil", bits, signed, **options)
    with torch.no_grad():
        quantizer.center.copy_(torch.as_tensor(c))
        quantizer.half_length.copy_(torch.as_tensor(d))
        if gamma is not None:
            quantizer.gamma.copy_(torch.as_tensor(gamma))
    return quantizer


KINDS = [
    ("weight", True, None),
    ("weight", True, 0),
    ("weight", True, 1),
    ("input", True, None),
    ("input", False, None),
]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("role", "signed", "axis"), KINDS)
@pytest.mark.parametrize("pruned", [0.2, 0.0, -0.1])  # c - d
def test_values_and_gradients_are_the_papers(bits, role, signed, axis, pruned):
    if bits == 1 and signed:
        return
    rng = np.random.default_rng(bits)
    shape, q = (3, 5, 4, 2), 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    options = {"role": role}
    if axis is not None:
        options |= {"per_channel": True, "channels": shape[axis], "axis": axis}
    size = () if axis is None else (shape[axis],)
    d = rng.uniform(0.2, 0.7, size).astype(np.float32)
    c = (d + pruned * rng.uniform(0.5, 1, size)).astype(np.float32)
    gamma = rng.uniform(0.5, 1.5, size).astype(np.float32) if role == "weight" else None
    quantizer = with_interval(bits, signed, c, d, gamma, **options)
    view = [-1 if dim == axis else 1 for dim in range(4)] if axis is not None else []
    p = {"center": c, "half_length": d, "gamma": np.float32(1) if gamma is None else gamma}
    p = {name: v.astype(np.float64).reshape(view if v.ndim else []) for name, v in p.items()}

    # Places on the way from 0 to 1, off the bounds, off the ties and above the floor of gradients.
    code = rng.uniform(-0.3, 1.3, shape) * q
    code = np.where(np.abs(code - np.floor(code) - 0.5) < 0.02, code + 0.05, code)
    place = np.sign(code) * np.abs(code / q) ** (1 / p["gamma"])
    place = np.where((np.abs(place) < 0.01) | (np.abs(place - 1) < 0.01), place + 0.02, place)
    magnitude = np.maximum(p["center"] - p["half_length"] + 2 * p["half_length"] * place, 0.01)
    x = (magnitude * (rng.choice([-1, 1], shape) if signed else 1)).astype(np.float32)
    wide, grad = x.astype(np.float64), rng.normal(size=shape).astype(np.float32)
    exact = transformer(wide, **p) * q
    clear = np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1e-3
    assert clear.mean() > 0.9
    others = tuple(dim for dim in range(4) if dim != axis)
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer.zero_grad()
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        value = np.rint(exact) / q
        np.testing.assert_allclose(out.detach().numpy()[clear], value[clear], atol=1e-6)
        np.testing.assert_array_equal(quantizer.codes(given).numpy()[clear], np.rint(exact)[clear])
        np.testing.assert_allclose(quantizer.normalized(given).numpy(), exact, atol=2e-5 * q)
        dx = grad * slope(lambda at: transformer(at, **p), wide)
        np.testing.assert_allclose(given.grad.numpy(), dx, rtol=1e-4, atol=1e-5)
        for name, parameter in quantizer.named_parameters():
            terms = grad * slope(
                lambda at, name=name: transformer(wide, **{**p, name: at}), p[name]
            )
            bound = 2e-5 * np.abs(terms).sum(others).max()
            np.testing.assert_allclose(parameter.grad.numpy(), terms.sum(others), atol=bound)


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


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_first_interval(axis):
    x = torch.randn(6, 7, 30, generator=torch.Generator().manual_seed(0)) + 0.1
    others = tuple(dim for dim in range(3) if dim != axis)
    options = {} if axis is None else {"per_channel": True, "channels": x.shape[axis], "axis": axis}
    weights = build_quantizer("qil", 4, True, **options)
    weights.calibrate(x)
    half = 1.5 * x.double().numpy().std(others, ddof=1)
    for parameter in (weights.center, weights.half_length):
        np.testing.assert_allclose(parameter.detach().numpy(), half, rtol=1e-6)
    assert (weights.gamma == 1).all()
    if axis is None:
        for signed in (True, False):
            inputs = build_quantizer("qil", 4, signed, role="input")
            data = x if signed else x.abs()
            inputs.calibrate(data)
            half = 1.5 * data.double().std() / (1 if signed else math.sqrt(1 - 2 / math.pi))
            assert inputs.center.item() == pytest.approx(half.item(), rel=1e-6)
            assert inputs.half_length.item() == inputs.center.item()
            assert inputs.gain().item() == pytest.approx(1 / (2 * half.item()), rel=1e-6)
            assert inputs.gamma is None


def test_gamma_is_for_weights_and_can_be_left_out():
    without = with_interval(3, True, 0.5, 0.4, learn_gamma=False)
    assert [name for name, _ in without.named_parameters()] == ["center", "half_length"]
    with_one = with_interval(3, True, 0.5, 0.4, 1.0)
    x = torch.randn(99, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(without(x), with_one(x))
    assert without.needs_scale_after(without.spec)


@pytest.mark.parametrize(
    ("bits", "signed", "options", "key"),
    [
        (1, True, {"role": "weight"}, "bits"),
        (1, True, {"role": "input"}, "bits"),
        (4, False, {"role": "weight"}, "signed"),
        (4, True, {"learn_gamma": 1}, "learn_gamma"),
        (4, True, {"estimator": "ewgs"}, "estimator"),
    ],
)
def test_what_it_cannot_do_is_refused(bits, signed, options, key):
    with pytest.raises(ConfigError) as error:
        build_quantizer("qil", bits, signed, **options)
    assert error.value.key == key
