"""The fixed-grid quantizer (Eq. 13 of the TR paper) against formulas in double precision.

    x_q   = round(clip(gamma x / s, alpha, beta)) / gamma        (sign for binary weights)
    dL/dx = dL/dx_q / s           where alpha <= gamma x / s <= beta, else 0
    dL/ds = -sum dL/dx_q x / s^2  over the same elements

gamma is a power of two, so that dividing by it is exact and values can be compared with ``==``.
"""

import math

import numpy as np
import pytest
import torch
from quantizer_kit import check_refused

from tr_det.core import build_quantizer

ALL = [(bits, signed) for bits in range(1, 9) for signed in (True, False)]
every_grid = pytest.mark.parametrize(("bits", "signed"), ALL)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def grid(bits, signed):
    """Return (alpha, beta, gamma), as a table of the paper's text."""
    if bits == 1:
        return (-1, 1, 1) if signed else (0, 1, 1)
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    return 0, 2**bits - 1, 2**bits


def make(bits, signed, scale, dtype=torch.float64):
    quantizer = build_quantizer("fixed_grid", bits, signed).to(dtype)
    torch.nn.init.constant_(quantizer.scale, scale)
    return quantizer


def sample(bits, signed, scale, seed):
    """Return inputs of every region, none within 1e-4 of a step from a tie or from a bound."""
    alpha, beta, gamma = grid(bits, signed)
    rng = np.random.default_rng(seed)
    units = np.concatenate(
        [
            rng.uniform(alpha - 3, beta + 3, 600),
            alpha + rng.normal(0, 0.05, 50),
            beta + rng.normal(0, 0.05, 50),
            np.array([alpha - 1e-3, alpha + 1e-3, beta - 1e-3, beta + 1e-3]),
            rng.normal(0, 0.2, 50),
        ]
    )
    binary = bits == 1 and signed
    from_tie = np.abs(units) if binary else np.abs(units - np.floor(units) - 0.5)
    distance = np.minimum(from_tie, np.minimum(np.abs(units - alpha), np.abs(units - beta)))
    extremes = [0.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 1e-30, 1e-42]
    return np.concatenate([units[distance > 1e-4] * scale / gamma, extremes])


@every_grid
@pytest.mark.parametrize("scale", [0.3, 1.7])
@every_dtype
def test_values_codes_and_gradients_equal_eq_13(bits, signed, scale, dtype):
    alpha, beta, gamma = grid(bits, signed)
    scale = float(np.float32(scale))
    values = torch.tensor(sample(bits, signed, scale, seed=bits), dtype=dtype)
    upstream = torch.tensor(np.random.default_rng(7).normal(size=values.shape), dtype=dtype)
    exact, grad = values.double().numpy(), upstream.double().numpy()
    units = gamma * exact / scale
    steps = np.rint(np.clip(units, alpha, beta))
    if bits == 1 and signed:
        steps = np.where(units >= 0, 1, -1)
    mask = (alpha <= units) & (units <= beta)
    assert 20 < mask.sum() < mask.size - 20
    assert {steps.min(), steps.max()} == {alpha, beta}

    quantizer, x = make(bits, signed, scale, dtype), values.requires_grad_()
    out = quantizer(x)
    out.backward(upstream)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.detach().double().numpy(), steps / gamma)
    codes = quantizer.codes(x).numpy()
    assert codes.dtype == (np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(codes, (steps - 1) / 2 if bits == 1 and signed else steps)
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(x.grad.numpy(), np.where(mask, grad / scale, 0), rtol=rtol)
    terms = (grad * exact / scale**2)[mask]
    # Single precision: about 700 terms of size up to 3 / s.
    bound = (1e-12 if dtype == torch.float64 else 1e-5) * np.abs(terms).sum()
    assert quantizer.scale.grad.shape == ()
    assert quantizer.scale.grad.item() == pytest.approx(-math.fsum(terms), rel=0, abs=bound)


@every_grid
@every_dtype
def test_gradient_mask_includes_both_bounds(bits, signed, dtype):
    """One representable number further out it is closed; s is a power of two: all is exact."""
    alpha, beta, gamma = grid(bits, signed)
    low, high = (torch.tensor(end * 0.5 / gamma, dtype=dtype) for end in (alpha, beta))
    down, up = (torch.tensor(way * math.inf, dtype=dtype) for way in (-1, 1))
    ends = [torch.nextafter(low, down), low, torch.nextafter(low, up)]
    ends += [torch.nextafter(high, down), high, torch.nextafter(high, up)]
    x = torch.stack(ends).requires_grad_()
    quantizer = make(bits, signed, 0.5, dtype)
    output = quantizer(x)
    output.sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 2.0, 2.0, 2.0, 0.0]
    assert output.tolist() == [alpha / gamma] * 3 + [beta / gamma] * 3
    inside = x.detach()[1:5].double()
    # Terms of size up to 2 that nearly cancel: an absolute tolerance.
    assert float(quantizer.scale.grad) == pytest.approx(-4.0 * float(inside.sum()), abs=2e-6)


@every_grid
def test_the_grid_is_fixed_and_zero_has_a_level_except_for_binary_weights(bits, signed):
    alpha, _, gamma = grid(bits, signed)
    binary = bits == 1 and signed
    for scale in (0.3, 5.0):
        quantizer = make(bits, signed, scale)
        levels = [-1, 1] if binary else [(alpha + k) / gamma for k in range(2**bits)]
        assert quantizer.levels().tolist() == levels
        x = torch.linspace(-2 * scale, 2 * scale, 20011, dtype=torch.float64)
        assert torch.unique(quantizer(x)).tolist() == levels
        zeros = torch.tensor([0.0, -0.0], dtype=torch.float64, requires_grad=True)
        output = quantizer(zeros)
        output.sum().backward()
        assert output.tolist() == [int(binary)] * 2
        assert quantizer.codes(zeros).tolist() == [0, 0]
        assert zeros.grad.tolist() == [1 / scale] * 2
        assert quantizer.scale.grad.item() == 0


def test_the_scale_learns_from_inputs_without_gradient():
    quantizer = make(4, False, 0.3)
    quantizer(torch.tensor([0.05, 0.1, 9.0], dtype=torch.float64)).sum().backward()
    assert float(quantizer.scale.grad) == pytest.approx(-0.15 / 0.09, rel=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_the_first_scale_is_three_standard_deviations(bits, signed):
    """Signed: 3 std(x). Unsigned: 3 std(x) / sqrt(1 - 2 / pi). Unbiased, over all elements."""
    values = np.random.default_rng(bits).normal(0.2, 0.7, (8, 4, 3, 3)).astype(np.float32)
    values = values if signed else np.abs(values)
    expected = 3 * values.astype(np.float64).std(ddof=1)
    expected /= 1 if signed else math.sqrt(1 - 2 / math.pi)
    quantizer = build_quantizer("fixed_grid", bits, signed)
    parameter = quantizer.scale  # an optimizer may hold it already
    for size in (1, 10):
        quantizer.calibrate(size * torch.tensor(values))
        assert quantizer.scale.item() == pytest.approx(size * expected, rel=1e-6)
    assert quantizer.scale is parameter


def test_what_it_cannot_quantize_is_refused():
    for bits in (0, 9, 2.5, -1, True):
        check_refused("bits", "fixed_grid", bits, True)
    with pytest.raises(ValueError, match="no_such_quantizer"):
        build_quantizer("no_such_quantizer", 4, True)


def test_supplement_s5_example_holds():
    """S5: 2 bits, alpha = -2, beta = 1, gamma = 2, s = 0.3, weights from N(0, 0.1^2)."""
    weights = torch.tensor(np.random.default_rng(0).normal(0, 0.1, 200_000))
    quantizer = make(2, True, 0.3)
    assert quantizer.levels().tolist() == [-1.0, -0.5, 0.0, 0.5]
    # Transition points split [-0.3, 0.15] at 0.3 / 2 * (-1.5, -0.5, 0.5).
    edges = torch.tensor([-0.225, -0.075, 0.075], dtype=torch.float64)
    assert quantizer.codes(edges - 1e-6).tolist() == [-2, -1, 0]
    assert quantizer.codes(edges + 1e-6).tolist() == [-1, 0, 1]
    codes = quantizer.codes(weights)
    share = [float((codes == level).double().mean()) for level in (-2, -1, 0, 1)]
    # Normal distribution function at -2.25, -0.75 and 0.75 standard deviations.
    assert share == pytest.approx([0.0122, 0.2144, 0.5467, 0.2266], abs=0.004)
    # Clipping points -3 and +1.5 standard deviations: 0.14 % and 6.7 % of weights learn nothing.
    x = weights.clone().requires_grad_()
    quantizer(x).sum().backward()
    dead = x.grad == 0
    assert torch.equal(dead, (weights < -0.3) | (weights > 0.15))
    assert float((dead & (weights < 0)).double().mean()) == pytest.approx(0.0014, abs=5e-4)
    assert float((dead & (weights > 0)).double().mean()) == pytest.approx(0.0668, abs=0.003)
