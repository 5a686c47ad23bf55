"""DoReFa-Net against its equations in float64: values, gradients, and the refits in a run."""

import numpy as np
import pytest
import torch
from torch import nn

from tr_det.core import (
    SGDT,
    ConfigError,
    QuantConfig,
    attach,
    build_quantizer,
    quantize_model,
    tr_param_groups,
)

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def rounded(r, bits):
    """quantize_k of the paper, Eq. 5."""
    steps = 2**bits - 1
    return np.rint(steps * r) / steps


def weight_oracle(w, grad, bits, over):
    """Return values and dL/dw: Eqs. 7 to 9, without the gradient of the maximum."""
    if bits == 1:
        return np.where(w < 0, -1, 1) * np.abs(w).mean(over, keepdims=True), grad
    tanh = np.tanh(w)
    most = np.abs(tanh).max(over, keepdims=True)
    return 2 * rounded(tanh / (2 * most) + 0.5, bits) - 1, grad * (1 - tanh**2) / most


def away_from_ties(t):
    return np.where(np.abs(t - np.floor(t) - 0.5) < 0.02, t + 0.06, t)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_values_and_gradients_of_weights_are_the_papers(bits, axis, size):
    rng, shape = np.random.default_rng(bits), (4, 5, 3, 3)
    steps, over = 2**bits - 1, tuple(d for d in range(4) if d != axis)
    most = np.tanh(size * rng.uniform(0.5, 1, [5 if d == axis == 1 else 4 for d in [axis]]))
    most = most[0] if axis is None else most.reshape([-1 if d == axis else 1 for d in range(4)])
    t = away_from_ties(rng.uniform(0, steps - 0.1, shape))
    t[:, :, 0, 0] = steps  # the largest weight of each channel
    w = np.arctanh((2 * t / steps - 1) * most).astype(np.float32)
    grad = rng.normal(size=shape).astype(np.float32)
    options = {} if axis is None else {"per_channel": True, "channels": shape[axis], "axis": axis}
    quantizer = build_quantizer("dorefa", bits, True, **options)
    quantizer.calibrate(torch.tensor(w))
    quantizer.attached = True
    value, dw = weight_oracle(w.astype(np.float64), grad.astype(np.float64), bits, over)
    assert dw[:, :, 0, 0].all()
    for layout in LAYOUTS:
        given = torch.tensor(w).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(given.grad.numpy(), dw, rtol=2e-5, atol=1e-6)
        if bits > 1:
            codes = np.rint((value + 1) / 2 * steps) - 2 ** (bits - 1)
            np.testing.assert_array_equal(quantizer.codes(given).numpy(), codes)
            units = t - 2 ** (bits - 1)
            ours = quantizer.normalized(given).numpy()
            np.testing.assert_allclose(ours, units, atol=1e-6 * 2**bits)


@pytest.mark.parametrize(
    ("signed", "bits"),
    [(False, bits) for bits in range(1, 9)] + [(True, bits) for bits in range(2, 9)],
)
def test_values_and_gradients_of_inputs_are_the_papers(signed, bits):
    rng = np.random.default_rng(bits)
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    t = away_from_ties(rng.uniform(-1.5 * steps, 1.5 * steps, (3, 5, 4, 2)))
    t = np.where((np.abs(np.abs(t) - steps) < 0.02) | (np.abs(t) < 0.02), t + 0.06, t)
    x = (t / steps).astype(np.float32)
    grad = rng.normal(size=x.shape).astype(np.float32)
    quantizer = build_quantizer("dorefa", bits, signed, role="input")
    quantizer.calibrate(torch.tensor(x).abs())
    assert not list(quantizer.parameters())
    least = -1 if signed else 0
    y = np.clip(x.astype(np.float64), least, 1)
    value = np.rint(steps * y) / steps if signed else rounded(y, bits)
    for layout in LAYOUTS:
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)  # without attach
        out.backward(torch.tensor(grad).to(memory_format=layout))
        np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-6)
        np.testing.assert_array_equal(given.grad.numpy(), grad * ((x >= least) & (x <= 1)))
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


@pytest.mark.parametrize("bits", range(2, 8))
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


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_codes_of_the_same_numbers_in_float32(bits, dtype):
    quantizer = build_quantizer("dorefa", bits, True).eval()
    w = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantizer.calibrate(w)
    codes = quantizer.codes(w)
    assert torch.equal(codes, quantizer.codes(w.float()))
    assert torch.equal(quantizer(w), quantizer.values(codes).to(dtype))


def test_a_norm_or_an_output_scale_must_follow_weights_of_more_than_one_bit():
    for bits, needed in ((1, False), (2, True), (4, True)):
        model = nn.Sequential(nn.Linear(4, 4))
        quantize_model(
            model,
            QuantConfig(weight_bits=bits, weight_quantizer="dorefa", act_quantizer="dorefa"),
        )
        assert (model[0].output_scale is not None) == needed
        assert not model[0].input_quantizer.adapts
        assert model[0].weight_quantizer.adapts


def test_what_it_cannot_quantize_is_refused():
    for bits, signed, role, key in (
        (1, True, "input", "bits"),
        (4, False, "weight", "signed"),
    ):
        with pytest.raises(ConfigError) as error:
            build_quantizer("dorefa", bits, signed, role=role)
        assert error.value.key == key
