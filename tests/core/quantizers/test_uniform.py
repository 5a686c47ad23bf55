"""Uniform levels against torchao's vectors and the formulas in float64."""

import numpy as np
import pytest
import torch
from quantizer_kit import FEW_BITS, check_refused, every_axis, other_dims, per_channel

from tr_det.core import build_quantizer

P = [-1, -0.7, -0.2, 0, 0.1, 0.3, 0.45, 0.9, 1.6]
VECTORS = [
    (2, {}, [-1.166667, *[-0.388889] * 2, *[0.388889] * 4, *[1.166667] * 2]),
    (3, {}, [-1.142857, -0.685714, -0.228571, *[0.228571] * 4, 0.685714, 1.6]),
    (
        4,
        {"grid": "full", "reach": "max"},
        [-1.066667, -0.64, -0.213333, 0, 0, 0.213333, 0.426667, 0.853333, 1.493333],
    ),
]


@pytest.mark.parametrize(("bits", "options", "expected"), VECTORS)
def test_values_of_torchaos_parq(bits, options, expected):
    """At ties (0.1 and 0 on the grids without zero) the upper level, as sgn(0) = +1 has it."""
    quantizer = build_quantizer("uniform", bits, True, **options)
    quantizer.calibrate(torch.tensor(P))
    out = quantizer.eval()(torch.tensor(P))
    torch.testing.assert_close(out.detach(), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("bits", "options", "expected"),
    [
        (
            3,
            {"grid": "narrow", "reach": "max"},
            [-1.6, -1.066667, -0.533333, 0, 0.533333, 1.066667, 1.6],
        ),
        (2, {"center": True}, [-0.996914, -0.224897, 0.547119, 1.319136]),
        (4, {}, [0.213333 * (k - 7.5) for k in range(16)]),
    ],
)
def test_levels_of_torchaos_parq(bits, options, expected):
    quantizer = build_quantizer("uniform", bits, True, **options)
    quantizer.calibrate(torch.tensor(P))
    torch.testing.assert_close(quantizer.levels(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_centred_grid_without_zero_says_what_its_levels_are():
    quantizer = build_quantizer("uniform", 3, True, center=True)
    quantizer.calibrate(torch.tensor([-1.0, 0.0, 2.0, 4.0]))
    grid = quantizer.grid()
    codes = torch.arange(grid.low, grid.high + 1)
    by_hand = grid.step * (grid.mul * codes + grid.add) + grid.offset
    torch.testing.assert_close(by_hand, quantizer.levels())


@pytest.mark.parametrize("bits", FEW_BITS)
@pytest.mark.parametrize("grid", ["half", "narrow", "full"])
@pytest.mark.parametrize("reach", ["mean", "max"])
@pytest.mark.parametrize("center", [False, True])
@every_axis
def test_values_codes_and_gradients(bits, grid, reach, center, axis):
    if bits == 1 and grid != "half":
        check_refused("bits", "uniform", bits, True, grid=grid)
        return
    x = np.random.default_rng(bits).standard_t(4, (4, 5, 3)).astype(np.float32)
    options = {"grid": grid, "reach": reach, "center": center} | per_channel(axis, x.shape)
    quantizer = build_quantizer("uniform", bits, True, **options)
    given = torch.tensor(x, requires_grad=True)
    quantizer.calibrate(given)
    others = other_dims(axis, 3)
    w = x.astype(np.float64)
    mean = w.mean(others, keepdims=True) if center else 0.0
    w = w - mean
    q_max = np.abs(w).max(others, keepdims=True)
    if reach == "mean":
        q_max = np.minimum(bits * np.abs(w).mean(others, keepdims=True), q_max)
    if grid == "half":
        s = q_max / (2 ** (bits - 1) - 0.5)
        unrounded = np.clip(w, -q_max, q_max) / s - 0.5
        expected = s * (np.rint(unrounded) + 0.5)
    else:
        s = q_max / (2 ** (bits - 1) - (1 if grid == "narrow" else 0.5))
        low = -(2 ** (bits - 1)) + (1 if grid == "narrow" else 0)
        unrounded = np.clip(w / s, low, 2 ** (bits - 1) - 1)
        expected = s * np.rint(unrounded)
    clear = np.abs(unrounded - np.floor(unrounded) - 0.5) > 1e-4
    assert clear.mean() > 0.9
    out = quantizer.eval()(given)
    np.testing.assert_allclose(
        out.detach().numpy()[clear], (expected + mean)[clear], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(quantizer.codes(given).numpy()[clear], np.rint(unrounded)[clear])
    grad = torch.randn(x.shape)
    out.backward(grad)
    assert torch.equal(given.grad, grad)


def test_what_it_cannot_quantize_is_refused():
    check_refused("grid", "uniform", 2, True, grid="other")
    check_refused("reach", "uniform", 2, True, reach="median")
    check_refused("center", "uniform", 2, True, center=1)
    check_refused("role", "uniform", 2, True, role="input")
