"""The fixed-grid quantizer (Eq. 13 of the TR paper) against formulas in double precision.

    x_q   = round(clip(gamma x / s, alpha, beta)) / gamma        (sign for binary weights)
    dL/dx = dL/dx_q / s           where alpha <= gamma x / s <= beta, else 0
    dL/ds = -sum dL/dx_q x / s^2  over the same elements

The mask looks at the value *before* rounding, bounds included. gamma is a power of two, so that
dividing by it is exact and the values can be compared with ``==``; only inputs near a rounding tie
are avoided, since the last bit of ``gamma x / s`` decides their side.
"""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tr_det.core import build_quantizer

BITS = range(1, 9)
ALL = [(bits, signed) for bits in BITS for signed in (True, False)]
every_grid = pytest.mark.parametrize(
    ("bits", "signed"), ALL, ids=[f"{'signed' if s else 'unsigned'}{b}" for b, s in ALL]
)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def grid(bits: int, signed: bool) -> tuple[int, int, int]:
    """Return (alpha, beta, gamma), as a table of the paper's text."""
    if bits == 1:
        return (-1, 1, 1) if signed else (0, 1, 1)
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    return 0, 2**bits - 1, 2**bits


def make(bits: int, signed: bool, scale: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a quantizer with the given scale."""
    quantizer = build_quantizer("fixed_grid", bits, signed).to(dtype)
    with torch.no_grad():
        quantizer.scale.fill_(scale)
    return quantizer


def reference_codes(x: np.ndarray, scale: float, bits: int, signed: bool) -> np.ndarray:
    """Return the integer codes."""
    alpha, beta, gamma = grid(bits, signed)
    normalised = np.clip(gamma * x / scale, alpha, beta)
    if bits == 1 and signed:
        return np.where(normalised >= 0, 1, -1)
    return np.rint(normalised).astype(np.int64)


def steps(quantizer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return gamma times the level of each code: the code itself, -1 or 1 on the binary grid."""
    codes = quantizer.codes(x).long()
    return 2 * codes + 1 if quantizer.bits == 1 and quantizer.signed else codes


def reference_mask(x: np.ndarray, scale: float, bits: int, signed: bool) -> np.ndarray:
    """Return where the gradient passes."""
    alpha, beta, gamma = grid(bits, signed)
    return (alpha <= gamma * x / scale) & (gamma * x / scale <= beta)


def sample(bits: int, signed: bool, scale: float, seed: int) -> np.ndarray:
    """Return inputs of every region, none within 1e-4 of a step from a tie or from a bound.

    Uniform over a range wider than the grid, dense around both bounds and around zero, plus zero,
    huge values and denormals.
    """
    alpha, beta, gamma = grid(bits, signed)
    rng = np.random.default_rng(seed)
    step = scale / gamma
    normalised = np.concatenate(
        [
            rng.uniform(alpha - 3, beta + 3, 600),
            alpha + rng.normal(0, 0.05, 50),
            beta + rng.normal(0, 0.05, 50),
            alpha + np.array([-1e-3, 1e-3]),
            beta + np.array([-1e-3, 1e-3]),
            rng.normal(0, 0.2, 50),
        ]
    )
    if bits == 1 and signed:
        near_tie = np.abs(normalised) < 1e-4
    else:
        near_tie = np.abs(normalised - np.floor(normalised) - 0.5) < 1e-4
    near_bound = (np.abs(normalised - alpha) < 1e-4) | (np.abs(normalised - beta) < 1e-4)
    x = (normalised * step)[~(near_tie | near_bound)]
    extremes = [0.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 1e-30, 1e-42]
    return np.concatenate([x, np.array(extremes)])


@every_grid
@pytest.mark.parametrize("scale", [0.3, 1.7, 0.0123])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_values_and_codes_equal_eq_13(
    bits: int, signed: bool, scale: float, dtype: torch.dtype
) -> None:
    """The output is code / gamma exactly, in the dtype of the input."""
    _, _, gamma = grid(bits, signed)
    x = torch.tensor(sample(bits, signed, scale, seed=bits), dtype=dtype)
    quantizer = make(bits, signed, scale, dtype)
    expected = reference_codes(x.double().numpy(), scale, bits, signed)
    output = quantizer(x)
    assert output.dtype == dtype
    assert output.shape == x.shape
    np.testing.assert_array_equal(output.detach().double().numpy(), expected / gamma)
    np.testing.assert_array_equal(steps(quantizer, x).numpy(), expected)
    # Random data reaches every level of the grid up to 6 bits (600 points), and both ends always.
    assert {expected.min(), expected.max()} == set(grid(bits, signed)[:2])
    if bits <= 6:
        assert len(np.unique(expected)) == 2**bits


@every_grid
@pytest.mark.parametrize("scale", [0.3, 1.7])
def test_gradients_equal_the_formulas(bits: int, signed: bool, scale: float) -> None:
    """dL/dx and dL/ds are those of the header, element by element and summed."""
    values = sample(bits, signed, scale, seed=100 + bits)
    upstream = np.random.default_rng(7).normal(size=values.shape)
    mask = reference_mask(values, scale, bits, signed)
    quantizer = make(bits, signed, scale)
    x = torch.tensor(values, requires_grad=True)
    quantizer(x).backward(torch.tensor(upstream))
    expected_x = np.where(mask, upstream / scale, 0.0)
    expected_s = -math.fsum(g * v / scale**2 for g, v, ok in zip(upstream, values, mask) if ok)
    assert 20 < mask.sum() < mask.size - 20
    np.testing.assert_allclose(x.grad.numpy(), expected_x, rtol=1e-12, atol=0)
    assert quantizer.scale.grad.shape == ()
    assert float(quantizer.scale.grad) == pytest.approx(expected_s, rel=1e-10)


@every_grid
def test_gradients_in_float32_equal_the_formulas(bits: int, signed: bool) -> None:
    """The same in single precision; the huge inputs are finite and must not give nan or inf.

    The sum of about 700 terms of size up to 3 / s is good to 1e-4 of the sum of their magnitudes.
    """
    scale = float(np.float32(0.3))
    values = sample(bits, signed, scale, seed=200 + bits).astype(np.float32)
    upstream = np.random.default_rng(8).normal(size=values.shape).astype(np.float32)
    exact = values.astype(np.float64)
    mask = reference_mask(exact, scale, bits, signed)
    quantizer = make(bits, signed, scale, torch.float32)
    x = torch.tensor(values, requires_grad=True)
    quantizer(x).backward(torch.tensor(upstream))
    expected_x = np.where(mask, upstream / scale, 0.0)
    terms = (upstream.astype(np.float64) * exact / scale**2)[mask]
    np.testing.assert_allclose(x.grad.numpy(), expected_x, rtol=1e-6, atol=0)
    assert math.isfinite(float(quantizer.scale.grad))
    assert float(quantizer.scale.grad) == pytest.approx(
        -terms.sum(), rel=0, abs=1e-5 * np.abs(terms).sum()
    )


@every_grid
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_gradient_mask_includes_both_bounds(bits: int, signed: bool, dtype: torch.dtype) -> None:
    """At alpha and beta the gradient passes; one representable number further out it does not.

    s is a power of two: every product and quotient here is exact, in any order.
    """
    scale = 0.5
    alpha, beta, gamma = grid(bits, signed)
    low = torch.tensor(alpha * scale / gamma, dtype=dtype)
    high = torch.tensor(beta * scale / gamma, dtype=dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    x = torch.stack(
        [
            torch.nextafter(low, -infinity),
            low,
            torch.nextafter(low, infinity),
            torch.nextafter(high, -infinity),
            high,
            torch.nextafter(high, infinity),
        ]
    ).requires_grad_()
    quantizer = make(bits, signed, scale, dtype)
    output = quantizer(x)
    output.sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 2.0, 2.0, 2.0, 0.0]
    ends = [alpha / gamma] * 3 + [beta / gamma] * 3
    assert output.tolist() == ends
    inside = x.detach()[1:5].double()
    # Terms of size up to 2 that nearly cancel: an absolute tolerance.
    assert float(quantizer.scale.grad) == pytest.approx(-4.0 * float(inside.sum()), abs=2e-6)


@pytest.mark.parametrize("bits", BITS)
def test_zero_has_a_level_except_in_the_binary_signed_grid(bits: int) -> None:
    """0 -> 0 with an open gradient; binary weights have no zero and send 0 and -0 to +1."""
    for signed in (True, False):
        x = torch.tensor([0.0, -0.0], dtype=torch.float64, requires_grad=True)
        quantizer = make(bits, signed, 0.25)
        output = quantizer(x)
        output.sum().backward()
        expected = 1 if (bits == 1 and signed) else 0
        assert output.tolist() == [expected] * 2
        assert quantizer.codes(x).tolist() == [0, 0]
        assert x.grad.tolist() == [4.0, 4.0]
        assert float(quantizer.scale.grad) == 0.0


@every_grid
def test_levels_are_the_sorted_values_of_the_grid(bits: int, signed: bool) -> None:
    """2^bits levels, spaced by 1 / gamma, whatever the scale; the fixed ends of the paper."""
    for scale in (0.3, 5.0):
        quantizer = make(bits, signed, scale)
        levels = quantizer.levels().double()
        if bits == 1:
            expected = [-1.0, 1.0] if signed else [0.0, 1.0]
        elif signed:
            count = 2 ** (bits - 1)
            expected = [k / count for k in range(-count, count)]
            assert expected[0] == -1
            assert expected[-1] == 1 - 2.0 ** (1 - bits)
        else:
            expected = [k / 2**bits for k in range(2**bits)]
            assert expected[-1] == 1 - 2.0**-bits
        assert levels.shape == (2**bits,)
        assert levels.tolist() == expected
        assert not levels.requires_grad
        x = torch.linspace(-2 * scale, 2 * scale, 20011, dtype=torch.float64)
        assert torch.equal(torch.unique(quantizer(x).detach()), levels)


@every_grid
def test_codes_have_the_integer_type_and_range_of_the_grid(bits: int, signed: bool) -> None:
    """int8 for signed, uint8 for unsigned; -1 and 0 for binary weights, else alpha to beta."""
    alpha, beta, gamma = (-1, 0, 1) if bits == 1 and signed else grid(bits, signed)
    quantizer = make(bits, signed, 0.3)
    x = torch.tensor(sample(bits, signed, 0.3, seed=5)).reshape(1, -1, 1)
    codes = quantizer.codes(x)
    assert codes.dtype == (torch.int8 if signed else torch.uint8)
    assert codes.shape == x.shape
    assert int(codes.min()) == alpha
    assert int(codes.max()) == beta
    assert torch.equal(steps(quantizer, x).double() / gamma, quantizer(x).detach())


@every_grid
def test_codes_have_no_side_effect(bits: int, signed: bool) -> None:
    """No gradient, no change of input or state, the same answer in training and evaluation."""
    quantizer = make(bits, signed, 0.3)
    x = torch.tensor(sample(bits, signed, 0.3, seed=6), requires_grad=True)
    before_x = x.detach().clone()
    before = copy.deepcopy(quantizer.state_dict())
    first = quantizer.train().codes(x)
    assert not first.requires_grad
    assert first.grad_fn is None
    second = quantizer.eval().codes(x)
    assert torch.equal(first, second)
    assert torch.equal(before_x, x)
    assert x.grad is None
    assert quantizer.scale.grad is None
    after = quantizer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_grid
@pytest.mark.parametrize("scale", [0.3, 1.7, 0.0123])
def test_requantizing_scaled_levels_is_idempotent(bits: int, signed: bool, scale: float) -> None:
    """q(s q(x)) = q(x): level times s lies in the middle of its own cell.

    Without the factor s this does not hold (the output grid is fixed), except where s = 1.
    """
    x = torch.tensor(sample(bits, signed, scale, seed=9))
    quantizer = make(bits, signed, scale)
    with torch.no_grad():
        once = quantizer(x)
        assert torch.equal(quantizer(scale * once), once)
        unit = make(bits, signed, 1.0)
        assert torch.equal(unit(unit(x)), unit(x))
        assert torch.equal(unit(unit.levels().double()), unit.levels().double())


@every_grid
def test_input_and_scale_have_one_common_unit(bits: int, signed: bool) -> None:
    """Scaling x and s by the same power of two changes no output."""
    x = torch.tensor(sample(bits, signed, 0.3, seed=10)[:-2])
    with torch.no_grad():
        expected = make(bits, signed, 0.3)(x)
        for factor in (0.125, 64.0):
            assert torch.equal(make(bits, signed, 0.3 * factor)(x * factor), expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_unsigned_grid_sends_negatives_to_zero_without_gradient(bits: int) -> None:
    """An unsigned quantizer after a ReLU: negative inputs give 0 and no gradient at all."""
    x = torch.tensor([-5.0, -1.0, -1e-3, -1e-30], dtype=torch.float64, requires_grad=True)
    quantizer = make(bits, False, 0.7)
    output = quantizer(x)
    output.sum().backward()
    assert output.tolist() == [0.0] * 4
    assert x.grad.tolist() == [0.0] * 4
    assert float(quantizer.scale.grad) == 0.0


@quick
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    scale=st.floats(1e-3, 1e3),
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
)
def test_quantizer_is_monotone_and_within_its_levels(
    bits: int, signed: bool, scale: float, values: list[float]
) -> None:
    """If x <= y then q(x) <= q(y) and codes(x) <= codes(y); every output is a level."""
    x = torch.tensor(sorted(values), dtype=torch.float64)
    quantizer = make(bits, signed, scale)
    with torch.no_grad():
        output = quantizer(x)
        codes = quantizer.codes(x).long()
    assert bool((output.diff() >= 0).all())
    assert bool((codes.diff() >= 0).all())
    assert bool(torch.isin(output, quantizer.levels().double()).all())


@quick
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    scale=st.floats(1e-2, 1e2),
    position=st.floats(0.0, 1.0),
)
def test_rounding_error_is_at_most_half_a_step_inside_the_bounds(
    bits: int, signed: bool, scale: float, position: float
) -> None:
    """|q(x) - x / s| <= 1 / (2 gamma) between the bounds (b >= 2, and 1 bit unsigned)."""
    alpha, beta, gamma = grid(bits, signed)
    if bits == 1 and signed:
        return
    x = (alpha + position * (beta - alpha)) * scale / gamma
    with torch.no_grad():
        output = make(bits, signed, scale)(torch.tensor([x], dtype=torch.float64))
    assert abs(float(output) - x / scale) <= 0.5 / gamma * (1 + 1e-9)


@quick
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    scale=st.floats(1e-2, 1e2),
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
)
def test_gradients_are_linear_in_the_upstream_gradient(
    bits: int, signed: bool, scale: float, values: list[float]
) -> None:
    """Twice the upstream gradient gives exactly twice both gradients."""
    results = []
    for factor in (1.0, 2.0):
        x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        quantizer = make(bits, signed, scale)
        (factor * quantizer(x).sum()).backward()
        results.append((x.grad, quantizer.scale.grad))
    assert torch.equal(2 * results[0][0], results[1][0])
    assert torch.equal(2 * results[0][1], results[1][1])


def test_frozen_scale_gets_no_gradient_and_changes_no_input_gradient() -> None:
    """The scale of a weight quantizer is frozen under TR; dL/dx must not care."""
    values = sample(2, True, 0.3, seed=12)
    grads = []
    for frozen in (False, True):
        quantizer = make(2, True, 0.3)
        quantizer.scale.requires_grad_(not frozen)
        x = torch.tensor(values, requires_grad=True)
        quantizer(x).sum().backward()
        grads.append(x.grad)
        assert (quantizer.scale.grad is None) == frozen
    assert torch.equal(*grads)


def test_scale_learns_from_inputs_without_gradient() -> None:
    """A network input needs no gradient; the scale of its quantizer still gets one."""
    quantizer = make(4, False, 0.3)
    quantizer(torch.tensor([0.05, 0.1, 9.0], dtype=torch.float64)).sum().backward()
    assert float(quantizer.scale.grad) == pytest.approx(-0.15 / 0.09, rel=1e-6)


@every_grid
@pytest.mark.parametrize("shape", [(500,), (8, 4, 3, 3)])
def test_initial_scale_is_three_standard_deviations(
    bits: int, signed: bool, shape: tuple[int, ...]
) -> None:
    """Signed: 3 std(x). Unsigned: 3 std(x) / sqrt(1 - 2 / pi). Unbiased, over all elements."""
    rng = np.random.default_rng(bits)
    values = rng.normal(0.2, 0.7, shape)
    if not signed:
        values = np.abs(values)
    values = values.astype(np.float32)
    x = torch.tensor(values, requires_grad=True)
    quantizer = build_quantizer("fixed_grid", bits, signed)
    quantizer.calibrate(x)
    deviation = math.sqrt(
        math.fsum((float(v) - float(values.mean(dtype=np.float64))) ** 2 for v in values.flat)
        / (values.size - 1)
    )
    expected = 3 * deviation / (1 if signed else math.sqrt(1 - 2 / math.pi))
    assert isinstance(quantizer.scale, nn.Parameter)
    assert quantizer.scale.shape == ()
    assert quantizer.scale.is_leaf
    assert quantizer.scale.grad is None
    assert float(quantizer.scale.detach()) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(x.detach().numpy(), values)


def test_initial_scale_is_unbiased_on_two_elements() -> None:
    """std([0, 1]) = sqrt(1/2) unbiased, 1/2 biased: the two are far apart here."""
    quantizer = build_quantizer("fixed_grid", 4, True)
    quantizer.calibrate(torch.tensor([0.0, 1.0]))
    assert float(quantizer.scale.detach()) == pytest.approx(3 * math.sqrt(0.5), rel=1e-6)


def test_calibration_replaces_the_scale_of_earlier_data() -> None:
    """The same data at ten times the size gives ten times the scale."""
    x = torch.linspace(-1.0, 2.0, 33)
    quantizer = build_quantizer("fixed_grid", 3, True)
    quantizer.calibrate(x)
    first = float(quantizer.scale.detach())
    parameter = quantizer.scale
    quantizer.calibrate(10 * x)
    assert float(quantizer.scale.detach()) == pytest.approx(10 * first, rel=1e-5)
    assert quantizer.scale is parameter  # An optimizer may hold it already.


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [0, 9, 2.5, -1, 32])
def test_bits_out_of_range_raise_with_value_and_range(bits: float, signed: bool) -> None:
    """The message names what was given and what is allowed."""
    with pytest.raises(ValueError) as error:
        build_quantizer("fixed_grid", bits, signed)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", str(error.value))
    message = str(error.value)
    assert re.search(rf"(?<![\d.]){re.escape(str(bits))}(?![\d.]*\d)", message), message
    assert {"1", "8"} <= {number.lstrip("-") for number in numbers}, message


def test_unknown_quantizer_raises_with_name() -> None:
    """The registry names what it was asked for."""
    with pytest.raises((ValueError, KeyError), match="no_such_quantizer"):
        build_quantizer("no_such_quantizer", 4, True)


def test_supplement_s5_example_holds() -> None:
    """S5: 2 bits, alpha = -2, beta = 1, gamma = 2, s = 0.3, weights from N(0, 0.1^2)."""
    weights = torch.tensor(np.random.default_rng(0).normal(0, 0.1, 200_000))
    quantizer = make(2, True, 0.3)
    assert quantizer.levels().tolist() == [-1.0, -0.5, 0.0, 0.5]
    assert set(quantizer.levels().diff().tolist()) == {0.5}  # delta^t
    # Transition points split [-0.3, 0.15] at 0.3 / 2 * (-1.5, -0.5, 0.5).
    edges = torch.tensor([-0.225, -0.075, 0.075], dtype=torch.float64)
    assert quantizer.codes(edges - 1e-6).tolist() == [-2, -1, 0]
    assert quantizer.codes(edges + 1e-6).tolist() == [-1, 0, 1]
    codes = quantizer.codes(weights)
    share = [float((codes == level).double().mean()) for level in (-2, -1, 0, 1)]
    # Normal distribution function at -2.25, -0.75 and 0.75 standard deviations.
    phi = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (-2.25, -0.75, 0.75)]
    expected = [phi[0], phi[1] - phi[0], phi[2] - phi[1], 1 - phi[2]]
    assert share == pytest.approx(expected, abs=0.004)
    assert expected == pytest.approx([0.012, 0.215, 0.547, 0.226], abs=1e-3)
    # Clipping points -3 and +1.5 standard deviations: 0.14 % and 6.7 % of weights learn nothing.
    x = weights.clone().requires_grad_()
    quantizer(x).sum().backward()
    dead = x.grad == 0
    assert float((dead & (weights < 0)).double().mean()) == pytest.approx(0.0014, abs=5e-4)
    assert float((dead & (weights > 0)).double().mean()) == pytest.approx(0.0668, abs=0.003)
    assert bool((dead == ((weights < -0.3) | (weights > 0.15))).all())


def test_supplement_s5_weight_changes_level_with_the_scale() -> None:
    """Fig. S7: -0.2 is on the second level for s = 0.3 and on the first one for s = 0.2."""
    weight = torch.tensor([-0.2], dtype=torch.float64)
    levels = make(2, True, 0.3).levels().tolist()
    assert make(2, True, 0.3)(weight).tolist() == [levels[1]] == [-0.5]
    assert make(2, True, 0.2)(weight).tolist() == [levels[0]] == [-1.0]
    assert make(2, True, 0.3).codes(weight).tolist() == [-1]
    assert make(2, True, 0.2).codes(weight).tolist() == [-2]
