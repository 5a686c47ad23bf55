"""DoReFa-Net against its equations in float64: values, gradients, and the refits in a run."""

import numpy as np
import pytest
import quantizer_kit as kit
import torch
from torch import nn

from tr_det.core import SGDT, QuantConfig, attach, build_quantizer, quantize_model, tr_param_groups


def weight_oracle(w, grad, bits, over):
    """Return values and dL/dw: Eqs. 5 and 7 to 9, without the gradient of the maximum."""
    if bits == 1:
        return np.where(w < 0, -1, 1) * np.abs(w).mean(over, keepdims=True), grad
    tanh = np.tanh(w)
    most = np.abs(tanh).max(over, keepdims=True)
    steps = 2**bits - 1
    rounded = np.rint(steps * (tanh / (2 * most) + 0.5)) / steps
    return 2 * rounded - 1, grad * (1 - tanh**2) / most


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@kit.every_axis
@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_values_and_gradients_of_weights_match_the_paper(bits, axis, size):
    rng, steps = np.random.default_rng(bits), 2**bits - 1
    most = kit.spread(np.tanh(size * kit.drawn(rng, 0.5, 1, axis)), axis)
    t = kit.off_ties(rng.uniform(0, steps - 0.1, kit.SHAPE))
    t[:, :, 0, 0] = steps  # the largest weight of each channel
    w = np.arctanh((2 * t / steps - 1) * most).astype(np.float32)
    grad = rng.normal(size=kit.SHAPE).astype(np.float32)
    quantizer = kit.build("dorefa", bits, True, {}, axis)
    quantizer.calibrate(torch.tensor(w))
    value, dw = weight_oracle(
        w.astype(np.float64), grad.astype(np.float64), bits, kit.other_dims(axis)
    )
    assert dw[:, :, 0, 0].all()
    tolerance = ({"rtol": 1e-5, "atol": 1e-6}, {"rtol": 2e-5, "atol": 1e-6}, 0)
    kit.check_quantizer(quantizer, w, grad, value, dw, {}, axis, tolerance=tolerance)
    if bits > 1:
        given, half = torch.tensor(w), 2 ** (bits - 1)
        codes = np.rint((value + 1) / 2 * steps) - half
        np.testing.assert_array_equal(quantizer.codes(given).numpy(), codes)
        ours = quantizer.normalized(given).numpy()
        np.testing.assert_allclose(ours, t - half, atol=1e-6 * 2**bits)


@pytest.mark.parametrize(
    ("signed", "bits"), [(False, 1), (False, 2), (False, 8), (True, 2), (True, 3), (True, 8)]
)
def test_values_and_gradients_of_inputs_match_the_paper(signed, bits):
    rng = np.random.default_rng(bits)
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    t = kit.off_ties(rng.uniform(-1.5 * steps, 1.5 * steps, kit.SHAPE), -steps, 0, steps)
    x = (t / steps).astype(np.float32)
    grad = rng.normal(size=kit.SHAPE).astype(np.float32)
    quantizer = build_quantizer("dorefa", bits, signed, role="input")  # without attach
    quantizer.calibrate(torch.tensor(x).abs())
    assert not list(quantizer.parameters())
    least = -1 if signed else 0
    value = np.rint(steps * np.clip(x.astype(np.float64), least, 1)) / steps
    dx = grad * ((x >= least) & (x <= 1))
    tolerance = ({"rtol": 1e-6}, {"rtol": 0}, 0)
    kit.check_quantizer(quantizer, x, grad, value, dx, {}, tolerance=tolerance)
    assert 0 in quantizer.levels()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("transition", [False, True])
def test_the_fit_follows_the_weight(per_channel, bits, transition):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
    options = {"per_channel": per_channel}
    config = QuantConfig(weight_bits=bits, weight_quantizer="dorefa", weight_options=options)
    quantize_model(model, config)
    if transition:
        optimizer = SGDT(tr_param_groups(model, 0.1), lr=0.1, total_steps=5)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach([], model, optimizer, 5)
    quantizer, seen = model[0].weight_quantizer, []
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 6).relu())[:, 0].sum().backward()
        optimizer.step()
        rows = model[0].weight.detach().double().numpy()
        rows = np.abs(rows if per_channel else rows.reshape(1, -1))
        expected = rows.mean(1) if bits == 1 else np.tanh(rows).max(1)
        np.testing.assert_allclose(quantizer.reach.reshape(-1).numpy(), expected, rtol=1e-6)
        seen.append(quantizer.reach.sum().item())
    assert len(set(seen)) == 5


@pytest.mark.parametrize("bits", [2, 3, 7])
def test_saturated_small_and_no_weights(bits):
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    quantizer = build_quantizer("dorefa", bits, True)
    quantizer.attached = True
    for size in (1e-7, 1e-3, 3.0, 20.0):  # tanh(20) is 1 in float32
        quantizer.calibrate(size * torch.linspace(-1, 1, 9))
        centres = quantizer.centres(codes)
        assert torch.isfinite(centres).all()
        assert torch.equal(quantizer.codes(centres).long(), codes)
    quantizer.calibrate(torch.zeros(4))
    zeros = torch.zeros(4, requires_grad=True)
    out = quantizer(zeros)
    out.sum().backward()
    assert out.abs().max() <= 1 / (2**bits - 1) + 1e-6  # an inner level
    assert zeros.grad.tolist() == [1.0] * 4


def test_what_it_cannot_quantize_is_refused():
    kit.check_refused("bits", "dorefa", 1, True, role="input")
    kit.check_refused("signed", "dorefa", 4, False, role="weight")
