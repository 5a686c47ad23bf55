"""LSQ against its equations in float64 and torch's own learnable quantizer."""

import math

import numpy as np
import pytest
import quantizer_kit as kit
import torch

from tr_det.core import build_quantizer
from tr_det.core.quantizers.range_search import best_scale


def case(bits, signed, role, axis, seed, **options):
    """Return a quantizer with its scales set, x, grad, the broadcast scale and the code bounds."""
    rng, (low, high) = np.random.default_rng(seed), kit.bounds(bits, signed)
    scale = kit.drawn(rng, 0.1, 0.5, axis)
    quantizer = kit.build("lsq", bits, signed, {"scale": scale}, axis, role=role, **options)
    scale = kit.spread(scale, axis)
    t = rng.uniform(low - 1.5 if signed else 0.02, high + 1.5, kit.SHAPE)
    x = (kit.off_ties(t, low, high, margin=0.01) * scale).astype(np.float32)
    return quantizer, x, rng.normal(size=kit.SHAPE).astype(np.float32), scale, (low, high)


@pytest.mark.parametrize("bits", [2, 3, 8])
@kit.every_kind
@pytest.mark.parametrize("gradient_scale", [True, False])
def test_values_and_gradients_match_the_paper(bits, signed, role, axis, gradient_scale):
    quantizer, x, grad, scale, (low, high) = case(
        bits, signed, role, axis, bits, gradient_scale=gradient_scale
    )
    value, dx, terms, _ = kit.step_size_oracle(
        x.astype(np.float64), grad.astype(np.float64), scale, 0.0, low, high
    )
    # N: the weights that share the step, or the features of one sample.
    count = x[0].size if role == "input" else x.size / quantizer.scale.numel()
    factor = 1 / math.sqrt(count * high) if gradient_scale else 1.0
    tolerance = ({"rtol": 1e-6}, {"rtol": 1e-6}, 2e-6)
    terms = {"scale": factor * terms}
    kit.check_quantizer(quantizer, x, grad, value, dx, terms, axis, tolerance=tolerance)


@pytest.mark.parametrize("bits", [2, 3, 8])
@kit.every_axis
def test_the_first_step_size_is_2_mean_x_over_root_q_p(bits, axis):
    x = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    expected = 2 * np.abs(x.double().numpy()).mean(kit.other_dims(axis, 3))
    weights = build_quantizer("lsq", bits, True, **kit.per_channel(axis, x.shape))
    weights.calibrate(x)
    np.testing.assert_allclose(
        weights.scale.detach().numpy(), expected / math.sqrt(2 ** (bits - 1) - 1), rtol=1e-6
    )
    if axis is None:
        inputs = build_quantizer("lsq", bits, False)
        inputs.calibrate(x.abs())
        assert inputs.scale.item() == pytest.approx(expected / math.sqrt(2**bits - 1), rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
@kit.every_kind
def test_the_first_step_size_can_be_that_of_least_squared_error(bits, role, signed, axis):
    x = torch.randn(6, 7, 30, 2, generator=torch.Generator().manual_seed(bits))
    x = x if signed else x.abs()
    options = kit.per_channel(axis, x.shape)
    quantizer = build_quantizer("lsq", bits, signed, role=role, initial="mse", **options)
    quantizer.calibrate(x)
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)
    expected = best_scale(rows, *kit.bounds(bits, signed)).float()
    assert torch.equal(quantizer.scale.reshape(-1), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@kit.every_axis
def test_rounding_before_clamping_matches_torchs_learnable_quantizer(bits, axis):
    """Torch masks gradients by the rounded value, as the estimator "round" does."""
    quantizer, x, grad, _, (low, high) = case(bits, True, "weight", axis, 7, estimator="round")
    factor = 1.0 / math.sqrt(x.size / quantizer.scale.numel() * high)
    if axis is None:
        place, theirs = (), torch._fake_quantize_learnable_per_tensor_affine
    else:
        place, theirs = (axis,), torch._fake_quantize_learnable_per_channel_affine
    results = []
    for ours in (True, False):
        given = torch.tensor(x, requires_grad=True)
        scale = quantizer.scale if ours else quantizer.scale.detach().clone().requires_grad_()
        row = scale.view(-1)
        rest = (torch.zeros(len(row)), *place, low, high, factor)
        out = quantizer(given) if ours else theirs(given, row, *rest)
        out.backward(torch.tensor(grad))
        results.append((out.detach(), given.grad, scale.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_quantize_is_refused():
    for role in ("weight", "input"):
        kit.check_refused("bits", "lsq", 1, True, role=role)
    kit.check_refused("initial", "lsq", 2, True, initial="minmax")
