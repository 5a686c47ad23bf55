"""LSQ+ against its equations in float64, and the searches for its first ranges by brute force."""

import math

import numpy as np
import pytest
import torch

from tr_det.core import ConfigError, build_quantizer
from tr_det.core.quantizers import range_search
from tr_det.core.quantizers.range_search import best_range, best_scale

BOUNDS = {True: lambda b: (-(2 ** (b - 1)), 2 ** (b - 1) - 1), False: lambda b: (0, 2**b - 1)}
KINDS = [
    (bits, signed, role, axis)
    for bits in range(1, 9)
    for signed, role, axis in (
        (True, "weight", None),
        (True, "weight", 0),
        (True, "weight", 1),
        (True, "input", None),
        (False, "input", None),
    )
    if bits > 1 or role == "input"
]
DATA = {
    "normal": lambda r: r.normal(0.4, 1.0, 300),
    "one-sided": lambda r: np.maximum(r.normal(size=300), 0),
    "swish": lambda r: (x := r.normal(size=300)) / (1 + np.exp(-3 * x)),
    "tailed": lambda r: r.standard_t(2, 300),
    "far": lambda r: 1000 + r.normal(size=300),
    "small": lambda r: 1e-12 * r.normal(size=300),
    "two": lambda r: r.normal(size=2),
}


def oracle(x, grad, scale, offset, low, high):
    """Return values, dL/dx and each element's terms of dL/ds and dL/dbeta: Eqs. 3 to 6."""
    t = (x - offset) / scale
    code = np.rint(np.clip(t, low, high))
    inside = (t > low) & (t < high)
    ds = np.where(t <= low, low, np.where(t >= high, high, code - t))
    return code * scale + offset, grad * inside, grad * ds, grad * ~inside


@pytest.mark.parametrize(("bits", "signed", "role", "axis"), KINDS)
@pytest.mark.parametrize("gradient_scale", [True, False])
def test_values_and_gradients_are_the_papers(bits, signed, role, axis, gradient_scale):
    rng = np.random.default_rng(bits)
    (low, high), shape = BOUNDS[signed](bits), (3, 5, 4, 2)
    options = {} if axis is None else {"per_channel": True, "channels": shape[axis], "axis": axis}
    quantizer = build_quantizer(
        "lsq_plus", bits, signed, role=role, gradient_scale=gradient_scale, **options
    )
    scale = rng.uniform(0.1, 0.5, () if axis is None else (shape[axis],)).astype(np.float32)
    offset = np.float32(rng.normal() if role == "input" else 0.0)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor(scale))
        assert (quantizer.offset is None) == (role == "weight")
        if role == "input":
            quantizer.offset.copy_(torch.tensor(offset))
    wide, beta = scale.astype(np.float64), float(offset)
    if axis is not None:
        wide = wide.reshape([-1 if d == axis else 1 for d in range(4)])
    t = rng.uniform(low - 1.5, high + 1.5, shape)
    t = np.where(np.abs(t - np.floor(t) - 0.5) < 0.02, t + 0.06, t)  # no ties
    t = np.where((np.abs(t - low) < 0.02) | (np.abs(t - high) < 0.02), t + 0.06, t)
    x = (t * wide + beta).astype(np.float32)
    grad = rng.normal(size=shape).astype(np.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer.zero_grad()
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        value, dx, *terms = oracle(
            x.astype(np.float64), grad.astype(np.float64), wide, beta, low, high
        )
        np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(given.grad.numpy(), dx, rtol=1e-6)
        # N: the weights that share the step, or the features of one sample.
        count = x[0].size if role == "input" else x.size / scale.size
        factor = 1 / math.sqrt(count * max(high, 1)) if gradient_scale else 1.0
        others = tuple(d for d in range(4) if d != axis)
        for parameter, each in zip((quantizer.scale, quantizer.offset), terms, strict=True):
            if parameter is not None:
                size = factor * np.abs(each).sum(others).max()
                np.testing.assert_allclose(
                    parameter.grad.numpy(), factor * each.sum(others), atol=1e-5 * size
                )


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_first_step_size_of_weights_is_from_mean_and_deviation(bits, axis):
    x = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0)) - 0.4
    others = tuple(d for d in range(3) if d != axis)
    mu, sigma = x.double().numpy().mean(others), x.double().numpy().std(others, ddof=1)
    options = {} if axis is None else {"per_channel": True, "channels": x.shape[axis], "axis": axis}
    quantizer = build_quantizer("lsq_plus", bits, True, **options)
    quantizer.calibrate(x)
    expected = np.maximum(abs(mu - 3 * sigma), abs(mu + 3 * sigma)) / 2 ** (bits - 1)
    np.testing.assert_allclose(quantizer.scale.detach().numpy(), expected, rtol=1e-6)


def brute_range(x, low, high):
    """Return every candidate's error, step and offset; the lower end varies slowest."""
    least, most, mean, found = x.min(), x.max(), x.mean(), []
    for i in range(40):
        for j in range(40):
            lower, upper = least + (mean - least) * i / 40, most + (mean - most) * j / 40
            step = (upper - lower) / (high - low)
            offset = lower - low * step
            codes = np.clip(np.rint((x - offset) / step), low, high)
            found.append((((step * codes + offset - x) ** 2).sum(), step, offset))
    return np.array(found)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("data", DATA)
def test_the_first_range_of_inputs_has_the_least_error(bits, signed, data):
    x = torch.tensor(DATA[data](np.random.default_rng(bits)), dtype=torch.float32)
    x = x if signed else x.abs()
    errors, steps, offsets = brute_range(x.double().numpy(), *BOUNDS[signed](bits)).T
    quantizer = build_quantizer("lsq_plus", bits, signed, role="input")
    quantizer.calibrate(x)
    best = errors.argmin()
    close = np.flatnonzero(errors <= errors[best] + 1e-10 * x.double().square().sum().item())
    ours = (quantizer.scale.item(), quantizer.offset.item())
    nearest = close[np.abs(steps[close] / ours[0] - 1).argmin()]
    assert ours == pytest.approx((steps[nearest], offsets[nearest]), rel=2e-6, abs=1e-18)
    if data in ("normal", "swish", "tailed"):
        assert nearest == best  # no other is as good
    if data == "one-sided" and not signed and bits > 2:
        assert quantizer.offset.item() == 0  # ReLU's zeros have a level


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_the_best_scale_is_that_of_brute_force(bits, signed, monkeypatch):
    low, high = BOUNDS[signed](bits)
    rng = np.random.default_rng(bits)
    rows = np.stack([make(rng) for name, make in DATA.items() if name != "two"])
    rows = rows if signed else np.abs(rows)
    expected = []
    for row in rows:
        scales = np.abs(row).max() * np.arange(1, 101) / 100 / high
        codes = np.clip(np.rint(row / scales[:, None]), low, high)
        expected.append(scales[((codes * scales[:, None] - row) ** 2).sum(1).argmin()])
    found = best_scale(torch.tensor(rows), low, high)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    monkeypatch.setattr(range_search, "_BLOCK", 7 * len(rows) * 2**bits)
    assert torch.equal(best_scale(torch.tensor(rows), low, high), found)


def test_of_equally_good_ranges_the_first_is_taken():
    # -1 is -2 steps of i = 50 and -1 step of i = 100, both without an error.
    assert best_scale(torch.tensor([[-1.0], [1.0], [0.0]]), -2, 1).tolist() == [0.5, 1.0, 1.0]
    assert best_scale(torch.zeros(2, 3), 0, 15).tolist() == [1 / 15, 1 / 15]
    for x, low, upper in ((5.0, 0.0, 5.0), (-5.0, -5.0, 0.0), (0.0, 0.0, 1.0), (1e-30, 0.0, 1e-30)):
        for signed in (True, False):
            bounds = BOUNDS[signed](4)
            step, offset = best_range(torch.full((9,), x), *bounds)
            ends = [step.item() * bound + offset.item() for bound in bounds]
            assert ends == pytest.approx((low, upper), rel=1e-6, abs=1e-12 * (upper - low))
            assert step > 0


def test_what_it_cannot_quantize_is_refused():
    for bits, signed, options, key in (
        (1, True, {"role": "weight"}, "bits"),
        (2, False, {"role": "weight"}, "signed"),
        (2, True, {"gradient_scale": 1}, "gradient_scale"),
    ):
        with pytest.raises(ConfigError) as error:
            build_quantizer("lsq_plus", bits, signed, **options)
        assert error.value.key == key
    quantizer = build_quantizer("lsq_plus", 1, True, role="input")
    quantizer.calibrate(torch.tensor([-0.25, 0.75]))
    assert quantizer.levels().tolist() == pytest.approx([-0.25, 0.75])
