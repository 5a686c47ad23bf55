"""Quantization networks against the paper's sums of sigmoids in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from tr_det.core import ConfigError, QuantConfig, attach, build_quantizer, quantize_model
from tr_det.core.quantizers.kmeans import cluster_centres

KINDS = [
    *((bits, True, "weight", axis) for bits in (1, 2, 3, 4) for axis in (None, 0, 1)),
    *((bits, signed, "input", None) for bits in (1, 2, 4) for signed in (True, False)),
]
SHAPE = (3, 4, 5)


def levels_of(bits, signed):
    """Return the integer levels and their steps s_i."""
    if signed and bits == 1:
        levels = np.array([-1.0, 1.0])
    elif signed:
        levels = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), dtype=float)
    else:
        levels = np.arange(2**bits, dtype=float)
    return levels, np.diff(levels)


def made(bits, signed, role, axis, seed, **options):
    """Return a quantizer with random numbers, in unsorted order, and these in float64."""
    rng = np.random.default_rng(seed)
    if axis is not None:
        options |= {"per_channel": True, "channels": SHAPE[axis], "axis": axis}
    quantizer = build_quantizer("qnet", bits, signed, role=role, **options)
    quantizer.attached = True
    levels, _ = levels_of(bits, signed)
    rows = 1 if axis is None else SHAPE[axis]
    alpha, beta = rng.uniform(0.2, 0.6, (rows,)), rng.uniform(1.5, 4.0, (rows,))
    middles = (levels[1:] + levels[:-1]) / 2
    biases = middles + rng.uniform(-0.3, 0.3, (rows, len(middles)))
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor(alpha).view(quantizer.alpha.shape))
        quantizer.beta.copy_(torch.tensor(beta).view(quantizer.beta.shape))
        mixed = torch.tensor(biases)[:, torch.randperm(len(middles))]
        quantizer.biases.copy_(mixed.view(quantizer.biases.shape))
    numbers = [t.detach().double().numpy() for t in (quantizer.alpha, quantizer.beta)]
    sorted_biases = np.sort(quantizer.biases.detach().double().numpy().reshape(rows, -1), 1)
    x = rng.normal(size=SHAPE) if signed else np.abs(rng.normal(size=SHAPE))
    return quantizer, x.astype(np.float32), *(n.reshape(rows) for n in numbers), sorted_biases


def by_rows(x, axis):
    return x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


@pytest.mark.parametrize(("bits", "signed", "role", "axis"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_training_computes_the_papers_sum_and_its_derivatives(
    bits, signed, role, axis, temperature
):
    quantizer, x, alpha, beta, biases = made(
        bits, signed, role, axis, bits, temperature_start=temperature
    )
    levels, steps = levels_of(bits, signed)
    grad = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    given = torch.tensor(x, requires_grad=True)
    out = quantizer.train()(given)
    out.backward(torch.tensor(grad))
    order = quantizer.biases.detach().view(len(biases), -1).argsort(1)
    found = quantizer.biases.grad.view(len(biases), -1).gather(1, order).numpy()
    for row, (xs, gs) in enumerate(zip(by_rows(x, axis), by_rows(grad, axis), strict=True)):
        xs, gs, a, b = xs.astype(np.float64), gs.astype(np.float64), alpha[row], beta[row]
        sigmoid = 1 / (1 + np.exp(-temperature * (b * xs[:, None] - biases[row])))
        inner = (sigmoid * steps).sum(1) + levels[0]  # no step taken: the lowest level
        slope = sigmoid * (1 - sigmoid) * steps * temperature
        close = {"rtol": 2e-5, "atol": 2e-5}
        shown = by_rows(out.detach().numpy(), axis)[row]
        np.testing.assert_allclose(shown, a * inner, **close)
        shown = by_rows(given.grad.numpy(), axis)[row]
        np.testing.assert_allclose(shown, gs * a * b * slope.sum(1), **close)
        for parameter, expected in (
            (quantizer.alpha, (gs * inner).sum()),
            (quantizer.beta, (gs * a * xs * slope.sum(1)).sum()),
        ):
            assert parameter.grad.view(-1)[row].item() == pytest.approx(
                expected, rel=1e-4, abs=1e-4
            )
        expected = -(gs[:, None] * a * slope).sum(0)
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "signed", "role", "axis"), KINDS)
def test_evaluation_takes_steps(bits, signed, role, axis):
    quantizer, x, alpha, beta, biases = made(bits, signed, role, axis, bits)
    levels, _ = levels_of(bits, signed)
    given = torch.tensor(x)
    out, codes = quantizer.eval()(given).detach().numpy(), quantizer.codes(given).numpy()
    for row, xs in enumerate(by_rows(x, axis)):
        passed = (beta[row] * xs[:, None].astype(np.float64) >= biases[row]).sum(1)
        np.testing.assert_array_equal(by_rows(codes, axis)[row], passed + quantizer.low)
        np.testing.assert_allclose(
            by_rows(out, axis)[row], alpha[row] * levels[passed], rtol=1e-6, atol=1e-7
        )


def test_the_first_numbers_are_the_papers():
    x = torch.tensor([-2.0, -1.9, -0.1, 0.0, 0.1, 0.2, 1.8, 2.0])
    quantizer = build_quantizer("qnet", 2, True)
    quantizer.calibrate(x)
    beta = 5 * 1 / (4 * 2.0)
    assert quantizer.beta.item() == pytest.approx(beta)
    assert quantizer.alpha.item() == pytest.approx(1 / beta)
    centres = beta * np.array([-1.95, 0.05, 1.9])
    expected = (centres[1:] + centres[:-1]) / 2
    np.testing.assert_allclose(quantizer.biases.detach().numpy(), expected, rtol=1e-6)


def test_clusters_are_as_good_as_the_best_of_all_cuts():
    rows = np.random.default_rng(0).normal(size=(5, 40))
    for row in rows:
        ours = cluster_centres(torch.tensor(row)[None], 3)[0].numpy()
        error = (np.abs(row[:, None] - ours).min(1) ** 2).sum()
        ordered = np.sort(row)
        best = min(
            sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, (i, j)))
            for i in range(1, 38)
            for j in range(i + 1, 39)
        )
        assert error < 1.3 * best  # Lloyd's algorithm ends in a local minimum


def test_the_temperature_follows_the_run():
    model = nn.Sequential(nn.Linear(3, 3))
    options = {"temperature_start": 2.0, "temperature_end": 10.0}
    quantize_model(
        model,
        QuantConfig(weight_bits=2, act_bits=32, weight_quantizer="qnet", weight_options=options),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach([], model, optimizer, 4)
    seen = []
    for _ in range(4):
        seen.append(model[0].weight_quantizer.temperature.item())
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    assert seen == [2.0, 4.0, 6.0, 8.0]
    assert model[0].weight_quantizer.temperature.item() == 10.0


def test_what_it_cannot_be_is_refused():
    for options, key in (
        ({"temperature_start": 0}, "temperature_start"),
        ({"temperature_start": 5.0, "temperature_end": 4.0}, "temperature_end"),
    ):
        with pytest.raises(ConfigError) as error:
            build_quantizer("qnet", 2, True, **options)
        assert error.value.key == key
