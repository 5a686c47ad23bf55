"""Quantization networks against their equations in float64: values, gradients, first values."""

import copy

import numpy as np
import pytest
import quantizer_kit as kit
import torch
from torch import nn

from tr_det.core import QuantConfig, attach, build_quantizer, quantize_model

SETS = {  # by sign and bits: the levels in units of alpha
    True: lambda b: [-1, 1] if b == 1 else list(range(1 - 2 ** (b - 1), 2 ** (b - 1))),
    False: lambda b: list(range(2**b)),
}


def sigmoid(z):
    return 1 / (1 + np.exp(-np.clip(z, -700, 700)))


def network(x, alpha, beta, biases, temperature, levels):
    """Return the soft values of x; biases have one more dimension than x, the first."""
    total = np.zeros_like(x)
    for size, bias in zip(np.diff(levels), biases, strict=True):
        total = total + size * sigmoid(temperature * (beta * x - bias))
    return alpha * (total + levels[0])


def random_network(bits, role, signed, axis, seed):
    """Return a quantizer with random numbers, the same in float64 to broadcast, x and its levels.

    The thresholds lie near the midpoints between levels, in a random order.
    """
    rng, levels = np.random.default_rng(seed), np.array(SETS[signed](bits))
    middles = (levels[1:] + levels[:-1]) / 2
    values = {"alpha": kit.drawn(rng, 0.2, 0.5, axis), "beta": kit.drawn(rng, 2.0, 5.0, axis)}
    moved = rng.uniform(-0.3, 0.3, (*values["alpha"].shape, len(middles)))
    biases = (middles + moved).astype(np.float32)
    shuffled = {"biases": biases[..., rng.permutation(len(middles))]}
    quantizer = kit.build("qnet", bits, signed, values | shuffled, axis, role=role)
    wide = {name: kit.spread(value, axis) for name, value in values.items()}
    wide["biases"] = np.stack([kit.spread(row, axis) for row in np.moveaxis(biases, -1, 0)])
    wide["biases"] = wide["biases"].reshape(len(middles), *(wide["alpha"].shape or [1] * 4))
    units = rng.uniform(levels[0] - 2, levels[-1] + 2, kit.SHAPE)
    return quantizer, wide, (units / wide["beta"]).astype(np.float32), levels, rng


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@kit.every_kind
@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_soft_values_and_gradients_match_the_paper(bits, role, signed, axis, temperature):
    quantizer, p, x, levels, rng = random_network(bits, role, signed, axis, bits)
    quantizer.temperature.fill_(temperature)
    wide, grad = x.astype(np.float64), rng.normal(size=x.shape).astype(np.float32)
    fixed = {"temperature": temperature, "levels": levels}

    def by(name):
        return lambda at: network(wide, **{**p, name: at}, **fixed)

    value = network(wide, **p, **fixed)
    dx = grad * kit.slope(lambda at: network(at, **p, **fixed), wide)
    terms = {name: grad * kit.slope(by(name), p[name]) for name in ("alpha", "beta")}
    tolerance = (
        {"atol": 1e-6 * (1 + np.abs(value).max())},
        {"atol": 1e-4 * np.abs(dx).max()},
        1e-4,
    )
    kit.check_quantizer(quantizer, x, grad, value, dx, terms, axis, tolerance=tolerance)
    expected = []
    for size, bias in zip(np.diff(levels), p["biases"], strict=True):
        one = kit.slope(lambda at, k=size: k * sigmoid(temperature * (p["beta"] * wide - at)), bias)
        expected.append((grad * p["alpha"] * one).sum(kit.other_dims(axis)))
    expected = np.stack(expected, -1)
    order = quantizer.biases.detach().argsort(-1).numpy()
    found = np.take_along_axis(quantizer.biases.grad.numpy(), order, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("bits", kit.FEW_BITS)
@kit.every_kind
def test_evaluation_has_steps(bits, role, signed, axis):
    quantizer, p, x, levels, _ = random_network(bits, role, signed, axis, 50 + bits)
    scaled = p["beta"] * x.astype(np.float64)
    clear = np.abs(scaled - p["biases"]).min(0) > 1e-3
    assert clear.mean() > 0.8
    passed = (scaled > p["biases"]).sum(0)
    given = torch.tensor(x, requires_grad=True)
    out = quantizer.eval()(given)
    expected = p["alpha"] * levels[passed]
    np.testing.assert_allclose(out.detach().numpy()[clear], expected[clear], rtol=1e-6)
    codes = quantizer.codes(given).numpy()
    np.testing.assert_array_equal(codes[clear], (passed + quantizer.low)[clear])
    out.sum().backward()
    inside = (scaled > p["biases"].min(0) - 0.15) & (scaled < p["biases"].max(0) + 0.15)
    assert (given.grad.numpy()[inside] == 1).all()
    assert (given.grad.numpy()[(scaled < levels[0] - 1.5) | (scaled > levels[-1] + 1.5)] == 0).all()
    assert quantizer.alpha.grad is None
    # At a high temperature the network equals the steps.
    soft = network(x.astype(np.float64), **p, temperature=1e5, levels=levels)
    np.testing.assert_allclose(soft[clear], expected[clear], atol=1e-9)


def test_at_a_threshold_evaluation_takes_the_upper_level():
    quantizer = kit.build("qnet", 2, True, {"alpha": 0.5, "beta": 2.0, "biases": [0.5, -0.5]})
    levels = quantizer.eval()(torch.tensor([-0.2501, -0.25, 0.2499, 0.25]))
    assert levels.tolist() == [-0.5, 0, 0, 0.5]


@pytest.mark.parametrize("signed", [True, False])
def test_values_at_equal_numbers_are_equal_wherever_they_lie(signed):
    """On CPUs the result of torch's sigmoid depends on the position in memory."""
    quantizer = kit.build("qnet", 4, signed, {})
    quantizer.calibrate(torch.randn(999, generator=torch.Generator().manual_seed(0)).abs())
    quantizer.temperature.fill_(3.0)
    for number in torch.linspace(-1, 1, 31).tolist():
        out = quantizer(torch.full((37,), number))
        assert (out == out[0]).all()


@pytest.mark.parametrize("bits", [1, 2, 5])
@kit.every_kind
def test_the_first_values(bits, role, signed, axis):
    """beta = 5 p / (4 q), thresholds between clusters of k-means, alpha by least squares."""
    x = torch.randn(6, 7, 90, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.relu()
    quantizer = build_quantizer("qnet", bits, signed, role=role, **kit.per_channel(axis, x.shape))
    quantizer.calibrate(x)
    rows = x.double().numpy()
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0)
    levels = np.array(SETS[signed](bits))
    names = ("alpha", "beta", "biases")
    found = [getattr(quantizer, name).detach().reshape(len(rows), -1).numpy() for name in names]
    for row, alpha, beta, biases in zip(rows.reshape(len(rows), -1), *found, strict=True):
        expected = 5 * max(levels) / (4 * np.abs(row).max())
        assert beta == pytest.approx(expected, rel=1e-6)
        centres = naive_clusters(row * expected, len(levels))
        np.testing.assert_allclose(biases, (centres[1:] + centres[:-1]) / 2, atol=1e-4)
        assert (np.diff(biases) > 0).all()
        taken = levels[(row[:, None] * expected >= biases).sum(1)]
        assert alpha == pytest.approx(row @ taken / (taken @ taken), rel=1e-4)


def naive_clusters(numbers, count, rounds=50):
    """Return the centres of 1-d k-means from the quantiles of the distinct numbers."""
    distinct = np.unique(numbers)
    centres = distinct[[int((i + 0.5) / count * len(distinct)) for i in range(count)]]
    for _ in range(rounds):
        nearest = np.abs(numbers[:, None] - centres).argmin(1)
        centres = np.array(
            [
                numbers[nearest == i].mean() if (nearest == i).any() else centres[i]
                for i in range(count)
            ]
        )
    return centres


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "numbers", [[0.0], [0.7, 0.7, 0.7], [0.0, 0.0, 1.0], [1e-30, 0], [1.0, 1.0 + 1e-6, 1.0 + 2e-6]]
)
def test_numbers_that_make_no_clusters_get_uniform_thresholds(bits, signed, numbers):
    quantizer = build_quantizer("qnet", bits, signed)
    quantizer.calibrate(torch.tensor(numbers))
    levels = np.array(SETS[signed](bits))
    if (bits, numbers) == (1, [0.0, 0.0, 1.0]):
        expected = [0.5 * quantizer.beta.item()]  # two clusters, two distinct numbers
    else:
        expected = (levels[1:] + levels[:-1]) / 2
    np.testing.assert_allclose(quantizer.biases.detach().numpy(), expected, rtol=1e-6)


def test_the_temperature_follows_the_run_and_is_in_no_checkpoint():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    options = {"temperature_start": 2.0, "temperature_end": 12.0}
    settings = {"weight_quantizer": "qnet", "act_quantizer": "qnet"}
    quantize_model(model, QuantConfig(**settings, weight_options=options, act_options=options))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach([], model, optimizer, 5)
    quantizers = [model[0].weight_quantizer, model[0].input_quantizer]
    states = []
    for step in range(5):
        states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
        assert [q.temperature.item() for q in quantizers] == pytest.approx([2.0 + 2 * step] * 2)
        optimizer.zero_grad()
        model(torch.randn(8, 4).relu()).square().sum().backward()
        optimizer.step()
    assert [q.temperature.item() for q in quantizers] == [12.0, 12.0]
    assert not any("temperature" in key for key in model.state_dict())
    model.load_state_dict(states[3][0])
    optimizer.load_state_dict(states[3][1])
    assert [q.temperature.item() for q in quantizers] == pytest.approx([8.0, 8.0])
    twin = copy.deepcopy(quantizers[0]).double()
    assert (twin.temperature.item(), twin.temperature.dtype) == (8.0, torch.float32)
    assert twin.temperature is not quantizers[0].temperature
    with torch.device("meta"):
        elsewhere = build_quantizer("qnet", 2, True, **options)
    assert elsewhere.to_empty(device="cpu").temperature.item() == 2.0


def test_a_compiled_network_sees_the_temperature_change():
    torch._dynamo.reset()
    quantizer = kit.build("qnet", 2, True, {"alpha": 0.5, "beta": 2.0, "biases": [-0.5, 0.5]})
    x = torch.linspace(-2, 2, 41)
    assert quantizer.is_calibrated
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    for step in range(4):
        quantizer.anneal(step, 3)
        torch.testing.assert_close(compiled(x), quantizer(x))


def test_what_it_cannot_do_is_refused():
    for start in (0.0, "1", 21.0):
        key = "temperature_end" if start == 21.0 else "temperature_start"
        kit.check_refused(key, "qnet", 2, True, temperature_start=start)
    for end in (True, float("inf")):
        kit.check_refused("temperature_end", "qnet", 2, True, temperature_end=end)
    kit.check_refused("estimator", "qnet", 2, True, estimator="clip")
