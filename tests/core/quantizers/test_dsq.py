"""DSQ against its equations in float64: values, gradients, the first range."""

import math

import numpy as np
import pytest
import quantizer_kit as kit
import torch

from tr_det.core import build_quantizer


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


def with_range(bits, signed, lower, upper, alpha):
    return kit.build("dsq", bits, signed, {"lower": lower, "upper": upper, "alpha": alpha})


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@kit.every_kind
def test_values_are_hard_and_gradients_those_of_the_soft_function(bits, signed, role, axis):
    rng, steps = np.random.default_rng(10 * bits), 2**bits - 1
    ranges = {"lower": (-0.9, -0.3), "upper": (0.2, 0.7), "alpha": (0.05, 0.45)}
    values = {name: kit.drawn(rng, *ends, axis) for name, ends in ranges.items()}
    quantizer = kit.build("dsq", bits, signed, values, axis, role=role)
    p = {name: kit.spread(value, axis) for name, value in values.items()}
    # In units of the step: away from the middles, where the code changes, and the intervals' ends.
    t = np.floor(rng.uniform(-0.3, 1.3, kit.SHAPE) * steps) + rng.choice(
        [0.1, 0.3, 0.6, 0.9], kit.SHAPE
    )
    x = (p["lower"] + t / steps * (p["upper"] - p["lower"])).astype(np.float32)
    grad = rng.normal(size=kit.SHAPE).astype(np.float32)
    wide = x.astype(np.float64)

    def by(name):
        return lambda at: soft(wide, **{**p, name: at}, steps=steps)

    value = hard(wide, p["lower"], p["upper"], steps)
    dx = grad * kit.slope(lambda at: soft(at, **p, steps=steps), wide, 1e-7)
    terms = {name: grad * kit.slope(by(name), p[name]) for name in p}
    # float32 places x within a step to about 1e-7 of the range
    tolerance = ({"atol": 2e-7}, {"atol": 2e-6 * steps, "rtol": 1e-7}, 1e-5)
    kit.check_quantizer(
        quantizer, x, grad, value, dx, terms, axis, tolerance=tolerance, absolute=1e-5
    )


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


@kit.every_kind
def test_the_first_range(role, signed, axis):
    x = torch.randn(6, 7, 30, 2, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.abs()
    std = x.double().numpy().std(kit.other_dims(axis), ddof=1)
    options = kit.per_channel(axis, x.shape)
    quantizer = build_quantizer("dsq", 4, signed, role=role, alpha=0.3, **options)
    quantizer.calibrate(x)
    upper = 3 * std if signed else 3 * std / math.sqrt(1 - 2 / math.pi)
    expected = {"upper": upper, "lower": -upper if signed else 0 * upper, "alpha": 0.3 + 0 * std}
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(quantizer, name).detach().numpy(), value, rtol=1e-6)


def test_inputs_far_from_zero_are_in_the_range():
    x = 10 + torch.rand(99, generator=torch.Generator().manual_seed(0)) / 10
    quantizer = build_quantizer("dsq", 4, False)
    quantizer.calibrate(x)
    expected = x.double().min() + 3 * x.double().std()
    assert quantizer.upper.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (x < quantizer.upper).float().mean() > 0.8


def test_what_it_cannot_do_is_refused():
    for alpha in (0.0, 0.5, -1, "0.2", None):
        kit.check_refused("alpha", "dsq", 4, True, alpha=alpha)
    kit.check_refused("estimator", "dsq", 4, True, estimator="round")
