"""Ternary levels against torchao's vectors and a brute-force optimum."""

import numpy as np
import pytest
import torch
from quantizer_kit import check_refused, every_axis, per_channel

from tr_det.core import build_quantizer

P = [-1, -0.7, -0.2, 0, 0.1, 0.3, 0.45, 0.9, 1.6]


@pytest.mark.parametrize(("fit", "size"), [("mean", 0.641667), ("max", 1.066667)])
def test_values_of_torchaos_parq(fit, size):
    quantizer = build_quantizer("ternary", 2, True, fitted_by=fit)
    quantizer.calibrate(torch.tensor(P))
    out = quantizer.eval()(torch.tensor(P)).detach()
    expected = [size * np.sign(p) * (abs(p) > size / 2) for p in P]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(quantizer.codes(torch.tensor(P)), np.sign(expected))


@every_axis
def test_the_optimum_is_that_of_all_thresholds(axis):
    x = np.random.default_rng(0).standard_t(3, (4, 6, 5)).astype(np.float32)
    options = per_channel(axis, x.shape)
    quantizer = build_quantizer("ternary", 2, True, fitted_by="optimal", **options)
    given = torch.tensor(x, requires_grad=True)
    quantizer.calibrate(given)
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    shown = quantizer.size.double().numpy().reshape(-1)
    for row, size in zip(rows.astype(np.float64), shown, strict=True):
        errors = {}
        for threshold in np.abs(row):
            kept = np.abs(row) >= threshold
            v = np.abs(row)[kept].mean()
            errors[v] = ((row - np.where(kept, v * np.sign(row), 0)) ** 2).sum()
        assert size == pytest.approx(min(errors, key=errors.get), rel=1e-6)
    grad = torch.randn(x.shape)
    quantizer.eval()(given).backward(grad)
    assert torch.equal(given.grad, grad)


def test_what_it_cannot_quantize_is_refused():
    for bits in (1, 3):
        check_refused("bits", "ternary", bits, True)
    check_refused("fitted_by", "ternary", 2, True, fitted_by="median")
    check_refused("role", "ternary", 2, True, role="input")
