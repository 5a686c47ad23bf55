"""LSQ+ against its equations in float64, and the searches for its first ranges by brute force."""

import math

import numpy as np
import pytest
import quantizer_kit as kit
import torch

from tr_det.core import build_quantizer
from tr_det.core.quantizers import range_search
from tr_det.core.quantizers.range_search import best_range, best_scale

DATA = {
    "normal": lambda r: r.normal(0.4, 1.0, 300),
    "one-sided": lambda r: np.maximum(r.normal(size=300), 0),
    "swish": lambda r: (x := r.normal(size=300)) / (1 + np.exp(-3 * x)),
    "tailed": lambda r: r.standard_t(2, 300),
    "far": lambda r: 1000 + r.normal(size=300),
    "small": lambda r: 1e-12 * r.normal(size=300),
    "two": lambda r: r.normal(size=2),
}


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@kit.every_kind
def test_values_and_gradients_match_the_paper(bits, signed, role, axis):
    if bits == 1 and role == "weight":
        return
    rng, (low, high) = np.random.default_rng(bits), kit.bounds(bits, signed)
    scale = kit.drawn(rng, 0.1, 0.5, axis)
    offset = np.float32(rng.normal() if role == "input" else 0.0)
    wide, beta = kit.spread(scale, axis), float(offset)
    t = kit.off_ties(rng.uniform(low - 1.5, high + 1.5, kit.SHAPE), low, high)
    x = (t * wide + beta).astype(np.float32)
    grad = rng.normal(size=kit.SHAPE).astype(np.float32)
    value, dx, *each = kit.step_size_oracle(
        x.astype(np.float64), grad.astype(np.float64), wide, beta, low, high
    )
    values = {"scale": scale, "offset": offset} if role == "input" else {"scale": scale}
    # N: the weights that share the step, or the features of one sample.
    count = x[0].size if role == "input" else x.size / scale.size
    for scaled, factor in ((False, 1.0), (True, 1 / math.sqrt(count * max(high, 1)))):
        options = {"role": role, "gradient_scale": scaled}
        quantizer = kit.build("lsq_plus", bits, signed, values, axis, **options)
        assert (quantizer.offset is None) == (role == "weight")
        terms = {name: factor * term for name, term in zip(values, each)}
        tolerance = ({"rtol": 1e-5, "atol": 1e-6}, {"rtol": 1e-6}, 1e-5)
        kit.check_quantizer(quantizer, x, grad, value, dx, terms, axis, tolerance=tolerance)


@pytest.mark.parametrize("bits", [2, 3, 8])
@kit.every_axis
def test_the_first_step_size_of_weights_is_from_mean_and_deviation(bits, axis):
    x = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0)) - 0.4
    others, wide = kit.other_dims(axis, 3), x.double().numpy()
    mu, sigma = wide.mean(others), wide.std(others, ddof=1)
    quantizer = build_quantizer("lsq_plus", bits, True, **kit.per_channel(axis, x.shape))
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
    errors, steps, offsets = brute_range(x.double().numpy(), *kit.bounds(bits, signed)).T
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
    """The range search of Nagel et al.: i/100 of max|x| over Q_P, i = 1..100."""
    low, high = kit.bounds(bits, signed)
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
            ends = kit.bounds(4, signed)
            step, offset = best_range(torch.full((9,), x), *ends)
            found = [step.item() * end + offset.item() for end in ends]
            assert found == pytest.approx((low, upper), rel=1e-6, abs=1e-12 * (upper - low))
            assert step > 0


def test_what_it_cannot_quantize_is_refused():
    kit.check_refused("bits", "lsq_plus", 1, True, role="weight")
    kit.check_refused("signed", "lsq_plus", 2, False, role="weight")
    kit.check_refused("gradient_scale", "lsq_plus", 2, True, gradient_scale=1)
    quantizer = build_quantizer("lsq_plus", 1, True, role="input")
    quantizer.calibrate(torch.tensor([-0.25, 0.75]))
    assert quantizer.levels().tolist() == pytest.approx([-0.25, 0.75])
