"""DSQ against its equations in float64: values, gradients, the first range."""

import math

import numpy as np
import pytest
import torch

from tr_det.core import ConfigError, build_quantizer


def soft(x, lower, upper, alpha, steps):
    """Return Q_S as the paper has it: an asymptotic function in each interval, joined."""
    delta = (upper - lower) / steps
    k = np.log(2 / alpha - 1) / delta
    s = 1 / np.tanh(k * delta / 2)
    i = np.clip(np.floor((x - lower) / delta), 0, steps - 1)
    phi = s * np.tanh(k * (x - (lower + (i + 0.5) * delta)))
    inside = lower + delta * (i + (phi + 1) / 2)
    return np.where(x < lower, lower, np.where(x > upper, upper, inside))


def hard(x, lower, upper, steps):
    """Return the value with sgn(phi) for phi."""
    delta = (upper - lower) / steps
    i = np.floor((x - lower) / delta)
    sign = np.where(x > lower + (i + 0.5) * delta, 1, -1)
    return np.clip(lower + delta * (i + (sign + 1) / 2), lower, upper)


def slope(function, at, size=1e-6):
    return (function(at + size) - function(at - size)) / (2 * size)


def with_range(bits, signed, lower, upper, alpha, **options):
    quantizer = build_quantizer("dsq", bits, signed, **options)
    with torch.no_grad():
        for name, value in (("lower", lower), ("upper", upper), ("alpha", alpha)):
            getattr(quantizer, name).copy_(torch.as_tensor(value))
    return quantizer


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(
    ("signed", "role", "axis"),
    [
        (True, "weight", None),
        (True, "weight", 0),
        (True, "weight", 1),
        (True, "input", None),
        (False, "input", None),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_hard_and_gradients_are_the_soft_functions(bits, signed, role, axis, seed):
    rng = np.random.default_rng(10 * bits + seed)
    shape, steps = (3, 5, 4, 2), 2**bits - 1
    options = {} if axis is None else {"per_channel": True, "channels": shape[axis], "axis": axis}
    size = () if axis is None else (shape[axis],)
    lower = rng.uniform(-0.9, -0.3, size).astype(np.float32)
    upper = rng.uniform(0.2, 0.7, size).astype(np.float32)
    alpha = rng.uniform(0.05, 0.45, size).astype(np.float32)
    quantizer = with_range(bits, signed, lower, upper, alpha, role=role, **options)
    view = [-1 if d == axis else 1 for d in range(4)] if axis is not None else []
    p = {
        name: v.astype(np.float64).reshape(view)
        for name, v in {"lower": lower, "upper": upper, "alpha": alpha}.items()
    }
    # In units of the step: away from the middles, where the code changes, and the intervals' ends.
    t = np.floor(rng.uniform(-0.3, 1.3, shape) * steps) + rng.choice([0.1, 0.3, 0.6, 0.9], shape)
    x = (p["lower"] + t / steps * (p["upper"] - p["lower"])).astype(np.float32)
    grad = rng.normal(size=shape).astype(np.float32)
    wide = x.astype(np.float64)
    others = tuple(d for d in range(4) if d != axis)
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer.zero_grad()
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        value = hard(wide, p["lower"], p["upper"], steps)
        np.testing.assert_allclose(out.detach().numpy(), value, atol=2e-7)
        dx = slope(lambda at: soft(at, **p, steps=steps), wide, 1e-7)
        # float32 places x within a step to about 1e-7 of the range
        np.testing.assert_allclose(given.grad.numpy(), grad * dx, atol=2e-6 * steps)
        for name, value in p.items():
            terms = grad * slope(
                lambda at, name=name: soft(wide, **{**p, name: at}, steps=steps), value
            )
            found = getattr(quantizer, name).grad.numpy()
            bound = 1e-5 * (1 + np.abs(terms).sum(others).max())
            np.testing.assert_allclose(found, terms.sum(others), atol=bound)


def test_four_levels_worked_out_by_hand():
    """l = 0, u = 3: the step is 1. alpha = 0.2 gives kappa = log 9 and tanh(kappa / 2) = 0.8."""
    quantizer = with_range(2, False, 0.0, 3.0, 0.2)
    x = torch.tensor([-1.0, 0.5 + 1e-6, 1.0, 1.4, 5.0], requires_grad=True)
    out = quantizer(x)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), torch.tensor([0.0, 1, 1, 1, 3]))
    kappa = math.log(9)
    middle, end = kappa / 1.6, kappa * (1 - 0.8**2) / 1.6
    near = kappa * (1 - math.tanh(0.1 * kappa) ** 2) / 1.6
    torch.testing.assert_close(x.grad, torch.tensor([0, middle, end, near, 0]))


def test_the_smaller_alpha_the_steeper_the_middle_and_the_flatter_the_ends():
    for x, sign in ((0.5, 1), (0.05, -1)):
        slopes = []
        for alpha in (0.4, 0.2, 0.01):
            given = torch.tensor(x, requires_grad=True)
            with_range(2, False, 0.0, 3.0, alpha)(given).backward()
            slopes.append(sign * given.grad.item())
        assert slopes == sorted(slopes)


@pytest.mark.parametrize(("alpha", "used"), [(-3.0, 1e-4), (0.0, 1e-4), (0.7, 0.4999)])
def test_alpha_out_of_its_range_is_used_at_the_bound_and_keeps_its_gradient(alpha, used):
    results = []
    for value in (alpha, used):
        quantizer = with_range(3, True, -1.0, 1.0, value)
        given = torch.linspace(-1.2, 1.2, 38, requires_grad=True)
        quantizer(given).backward(torch.randn(38, generator=torch.Generator().manual_seed(0)))
        results.append((given.grad, *(p.grad for p in quantizer.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert results[0][-1] != 0


def test_a_range_that_collapses_stays_finite():
    quantizer = with_range(3, True, 0.5, 0.5, 0.2)
    given = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    quantizer(given).sum().backward()
    end = math.log(9) * (1 - 0.8**2) / 1.6
    torch.testing.assert_close(given.grad, torch.tensor([0, end, 0]))
    assert quantizer.upper.grad.item() == 1  # of the one above
    assert quantizer.lower.grad.item() == pytest.approx(2 - end)  # below, and at l itself
    assert torch.isfinite(quantizer.alpha.grad)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_first_range(axis):
    x = torch.randn(6, 7, 30, generator=torch.Generator().manual_seed(0))
    others = tuple(d for d in range(3) if d != axis)
    options = {} if axis is None else {"per_channel": True, "channels": x.shape[axis], "axis": axis}
    for role, signed in (("weight", True), ("weight", False), ("input", True), ("input", False)):
        if role == "input" and axis is not None:
            continue
        data = x if signed else x.abs()
        std = data.double().numpy().std(others, ddof=1)
        quantizer = build_quantizer("dsq", 4, signed, role=role, alpha=0.3, **options)
        quantizer.calibrate(data)
        upper = 3 * std if signed else 3 * std / math.sqrt(1 - 2 / math.pi)
        lower = -upper if signed else 0 * upper
        np.testing.assert_allclose(quantizer.upper.detach().numpy(), upper, rtol=1e-6)
        np.testing.assert_allclose(quantizer.lower.detach().numpy(), lower, rtol=1e-6)
        np.testing.assert_allclose(quantizer.alpha.detach().numpy(), 0.3 + 0 * std, rtol=1e-6)
        assert not quantizer.needs_scale_after(quantizer.spec)


def test_inputs_far_from_zero_are_in_the_range():
    x = 10 + torch.rand(99, generator=torch.Generator().manual_seed(0)) / 10
    quantizer = build_quantizer("dsq", 4, False)
    quantizer.calibrate(x)
    expected = x.double().min() + 3 * x.double().std()
    assert quantizer.upper.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (x < quantizer.upper).float().mean() > 0.8


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1, 1, "0.2", None])
def test_alphas_out_of_the_papers_interval_are_refused(alpha):
    with pytest.raises(ConfigError) as error:
        build_quantizer("dsq", 4, True, alpha=alpha)
    assert error.value.key == "alpha"


def test_there_is_no_other_estimator():
    for estimator in ("round", "ewgs", "identity"):
        with pytest.raises(ConfigError) as error:
            build_quantizer("dsq", 4, True, estimator=estimator)
        assert error.value.key == "estimator"
