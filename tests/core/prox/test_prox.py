"""Proximal maps against torchao's vectors and their formulas in float64."""

import math

import numpy as np
import pytest
import torch

from tr_det.core.prox import PROX_MAPS

Q = [-1.5, -0.5, 0.5, 1.5]
P = [-2, -1.2, -0.9, -0.3, 0.2, 0.7, 1.3, 1.9]
VECTORS = {
    ("parq", 25): [-1.5, -1.2151, -0.8925, -0.3226, 0.2151, 0.6774, 1.3226, 1.5],
    ("parq", 50): [-1.5, -1.4, -0.8, -0.5, 0.4, 0.5, 1.5, 1.5],
    ("parq", 0): [-1.5, -1.2, -0.9, -0.3, 0.2, 0.7, 1.3, 1.5],
    ("binary_relax", 25): [-1.875, -1.275, -0.8, -0.35, 0.275, 0.65, 1.35, 1.8],
}


@pytest.mark.parametrize(("name", "n"), VECTORS)
def test_vectors_over_a_hundred_updates(name, n):
    x, levels = torch.tensor([P]), torch.tensor([Q])
    nearest = levels[0][(x[0][:, None] - levels).abs().argmin(1)][None]
    prox = PROX_MAPS[name]
    out = prox.apply(x, nearest, levels, prox.softness(n, 0, 100, 10.0))
    torch.testing.assert_close(out[0], torch.tensor(VECTORS[name, n]), atol=5e-5, rtol=0)


@pytest.mark.parametrize("steepness", [0.5, 10.0, 20.0])
@pytest.mark.parametrize("n", [10, 30, 55, 89])
def test_parq_is_piecewise_affine_between_any_levels(n, steepness):
    rng = np.random.default_rng(n)
    levels = np.sort(rng.normal(size=(3, 6)))
    x = rng.normal(size=(3, 40)) * 2

    def s(f):
        return 1 / (1 + math.exp(steepness * (f - 0.5)))

    r = (s((n - 10) / 80) - s(1)) / (s(0) - s(1))
    expected = np.empty_like(x)
    for row in range(3):
        for i, u in enumerate(x[row]):
            low = max([q for q in levels[row] if q < u], default=levels[row][0])
            high = min([q for q in levels[row] if q >= u], default=levels[row][-1])
            middle = (low + high) / 2
            expected[row, i] = min(max(middle + (u - middle) / r, low), high)
    prox = PROX_MAPS["parq"]
    softness = prox.softness(n, 10, 90, steepness)
    given = torch.tensor(x)
    out = prox.apply(given, given, torch.tensor(levels), softness)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9)
    assert all(
        prox.softness(k, 10, 90, steepness) > prox.softness(k + 1, 10, 90, steepness)
        for k in range(10, 89)
    )
