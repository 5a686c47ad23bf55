"""Quantization networks against their equations in float64: values, gradients, first values."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tr_det.core import ConfigError, QuantConfig, attach, build_quantizer, quantize_model
from tr_det.core.quantizers.kmeans import cluster_centres

SETS = {  # by sign and bits: the levels in units of alpha
    True: lambda b: [-1, 1] if b == 1 else list(range(1 - 2 ** (b - 1), 2 ** (b - 1))),
    False: lambda b: list(range(2**b)),
}
KINDS = [
    ("weight", True, None),
    ("weight", True, 0),
    ("weight", True, 1),
    ("input", True, None),
    ("input", False, None),
]


def sigmoid(z):
    return 1 / (1 + np.exp(-np.clip(z, -700, 700)))


def network(x, alpha, beta, biases, temperature, levels):
    """Return the soft values of x; biases have one more dimension than x, the first."""
    total = np.zeros_like(x)
    for size, bias in zip(np.diff(levels), biases, strict=True):
        total = total + size * sigmoid(temperature * (beta * x - bias))
    return alpha * (total + levels[0])


def slope(function, at, size=1e-6):
    return (function(at + size) - function(at - size)) / (2 * size)


def ready(bits, signed, values, **options):
    quantizer = build_quantizer("qnet", bits, signed, **options)
    quantizer.attached = True
    with torch.no_grad():
        for name, value in values.items():
            getattr(quantizer, name).copy_(torch.as_tensor(value))
    return quantizer


def drawn(bits, role, signed, axis, seed):
    """Return a quantizer with random numbers, the same in float64 to broadcast, x and its levels.

    The thresholds lie near the midpoints between levels, in a random order.
    """
    rng = np.random.default_rng(seed)
    shape, levels = (3, 5, 4, 2), np.array(SETS[signed](bits))
    options = {"role": role}
    if axis is not None:
        options |= {"per_channel": True, "channels": shape[axis], "axis": axis}
    size = () if axis is None else (shape[axis],)
    middles = (levels[1:] + levels[:-1]) / 2
    values = {
        "alpha": rng.uniform(0.2, 0.5, size),
        "beta": rng.uniform(2.0, 5.0, size),
        "biases": middles + rng.uniform(-0.3, 0.3, (*size, len(middles))),
    }
    values = {name: value.astype(np.float32) for name, value in values.items()}
    quantizer = ready(bits, signed, values, **options)
    view = [-1 if d == axis else 1 for d in range(4)] if axis is not None else []
    wide = {name: values[name].astype(np.float64).reshape(view) for name in ("alpha", "beta")}
    rows = np.moveaxis(values["biases"].astype(np.float64), -1, 0)
    wide["biases"] = rows.reshape(len(middles), *(view or [1] * 4))
    spread = rng.uniform(levels[0] - 2, levels[-1] + 2, shape)
    with torch.no_grad():
        quantizer.biases.copy_(quantizer.biases[..., torch.randperm(len(middles))])
    return quantizer, wide, (spread / wide["beta"]).astype(np.float32), levels, rng


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("role", "signed", "axis"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_soft_values_and_gradients_are_the_papers(bits, role, signed, axis, temperature):
    quantizer, p, x, levels, rng = drawn(bits, role, signed, axis, bits)
    quantizer.temperature.fill_(temperature)
    wide, grad = x.astype(np.float64), rng.normal(size=x.shape).astype(np.float32)
    fixed = {"temperature": temperature, "levels": levels}
    value = network(wide, **p, **fixed)
    others = tuple(dim for dim in range(4) if dim != axis)
    order = quantizer.biases.detach().argsort(-1).numpy()
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer.zero_grad()
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        reach = np.abs(value).max()
        np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-6 * (1 + reach))
        dx = grad * slope(lambda at: network(at, **p, **fixed), wide)
        np.testing.assert_allclose(given.grad.numpy(), dx, atol=1e-4 * np.abs(dx).max())
        for name in ("alpha", "beta"):
            terms = grad * slope(
                lambda at, name=name: network(wide, **{**p, name: at}, **fixed), p[name]
            )
            found = getattr(quantizer, name).grad.numpy()
            bound = 1e-4 * np.abs(terms).sum(others).max()
            np.testing.assert_allclose(found, terms.sum(others), atol=bound)
        expected = np.stack(
            [
                (
                    grad
                    * slope(
                        lambda at, size=size: (
                            p["alpha"] * size * sigmoid(temperature * (p["beta"] * wide - at))
                        ),
                        bias,
                    )
                ).sum(others)
                for size, bias in zip(np.diff(levels), p["biases"], strict=True)
            ],
            -1,
        )
        found = np.take_along_axis(quantizer.biases.grad.numpy(), order, -1)
        np.testing.assert_allclose(found, expected, atol=1e-4 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("role", "signed", "axis"), KINDS)
def test_evaluation_has_steps(bits, role, signed, axis):
    quantizer, p, x, levels, _ = drawn(bits, role, signed, axis, 50 + bits)
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
    step = p["alpha"] * (2 if signed and bits == 1 else 1)
    start = p["alpha"] * levels[0]
    np.testing.assert_array_equal(np.rint((expected - start) / step), passed)
    out.sum().backward()
    inside = (scaled > p["biases"].min(0) - 0.15) & (scaled < p["biases"].max(0) + 0.15)
    assert (given.grad.numpy()[inside] == 1).all()
    assert (given.grad.numpy()[(scaled < levels[0] - 1.5) | (scaled > levels[-1] + 1.5)] == 0).all()
    assert quantizer.alpha.grad is None
    # A hot network is the steps.
    soft = network(x.astype(np.float64), **p, temperature=1e5, levels=levels)
    np.testing.assert_allclose(soft[clear], expected[clear], atol=1e-9)


def test_three_levels_worked_out_by_hand():
    values = {"alpha": 0.5, "beta": 2.0, "biases": [0.5, -0.5]}
    quantizer = ready(2, True, values, temperature_start=4.0, temperature_end=4.0)
    x = torch.tensor([-9.0, -0.25, 0.0, 0.25, 9.0], requires_grad=True)
    out = quantizer(x)  # beta x: -18, -0.5, 0, 0.5, 18
    far = 1 / (1 + np.exp(4))
    expected = [-0.5, 0.5 * (0.5 + far - 1), 0, 0.5 * (1 - far + 0.5 - 1), 0.5]
    torch.testing.assert_close(out.detach(), torch.tensor(expected, dtype=torch.float32))
    out[1].backward()  # A' is 1/4 at the threshold
    slope_there = 0.5 * 2 * 4 * (0.25 + far * (1 - far))
    assert x.grad.tolist() == pytest.approx([0, slope_there, 0, 0, 0], rel=1e-5)
    assert quantizer.biases.grad.tolist() == pytest.approx(
        [-0.5 * 4 * far * (1 - far), -0.5 * 4 * 0.25], rel=1e-5
    )
    levels = quantizer.eval()(torch.tensor([-0.2501, -0.25, 0.2499, 0.25]))
    assert levels.tolist() == [-0.5, 0, 0, 0.5]  # at a threshold the upper one
    assert quantizer.rounding() is quantizer.kernel() is None


@pytest.mark.parametrize("signed", [True, False])
def test_values_at_equal_numbers_are_equal_wherever_they_lie(signed):
    """torch's sigmoid is not such a function on CPUs."""
    quantizer = ready(4, signed, {})
    quantizer.calibrate(torch.randn(999, generator=torch.Generator().manual_seed(0)).abs())
    quantizer.temperature.fill_(3.0)
    for number in torch.linspace(-1, 1, 31).tolist():
        out = quantizer(torch.full((37,), number))
        assert (out == out[0]).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
@pytest.mark.parametrize(("role", "signed", "axis"), KINDS)
def test_the_first_values(bits, role, signed, axis):
    """beta = 5 p / (4 q), thresholds between clusters of k-means, alpha by least squares."""
    x = torch.randn(6, 7, 90, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.relu()
    options = {} if axis is None else {"per_channel": True, "channels": x.shape[axis], "axis": axis}
    quantizer = build_quantizer("qnet", bits, signed, role=role, **options)
    quantizer.calibrate(x)
    rows = x.double().numpy()
    count = 1 if axis is None else x.shape[axis]
    rows = np.moveaxis(rows, axis or 0, 0).reshape(count, -1)
    levels = SETS[signed](bits)
    for row, alpha, beta, biases in zip(
        rows,
        quantizer.alpha.detach().reshape(-1).numpy(),
        quantizer.beta.detach().reshape(-1).numpy(),
        quantizer.biases.detach().reshape(-1, len(levels) - 1).numpy(),
        strict=True,
    ):
        expected = 5 * max(levels) / (4 * np.abs(row).max())
        assert beta == pytest.approx(expected, rel=1e-6)
        found = naive_clusters(row * expected, len(levels))
        np.testing.assert_allclose(biases, (found[1:] + found[:-1]) / 2, atol=1e-4)
        assert (np.diff(biases) > 0).all()
        taken = np.asarray(levels)[(row[:, None] * expected >= biases).sum(1)]
        assert alpha == pytest.approx(row @ taken / (taken @ taken), rel=1e-4)
    assert not quantizer.needs_scale_after(quantizer.spec)


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


def test_clusters_get_nearer_to_the_numbers_every_round():
    numbers = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    errors = [
        (numbers[..., None] - cluster_centres(numbers, 6, rounds)[:, None]).square().amin(-1).sum()
        for rounds in range(12)
    ]
    assert all(later <= sooner for sooner, later in zip(errors, errors[1:]))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
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
    config = QuantConfig(
        weight_quantizer="qnet",
        act_quantizer="qnet",
        weight_options=options,
        act_options=options,
    )
    quantize_model(model, config)
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
    values = {"alpha": 0.5, "beta": 2.0, "biases": [-0.5, 0.5]}
    quantizer = ready(2, True, values)
    x = torch.linspace(-2, 2, 41)
    assert quantizer.is_calibrated
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    for step in range(4):
        quantizer.anneal(step, 3)
        torch.testing.assert_close(compiled(x), quantizer(x))


def test_it_learns_levels_that_are_not_its_first():
    """The levels of three clusters are found from thresholds and levels that are off."""
    torch.manual_seed(0)
    quantizer = ready(2, True, {"alpha": 0.5, "beta": 1.5, "biases": [-0.2, 0.9]})
    x = torch.randint(-1, 2, (512,)) * 1.0
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for step in range(400):
        quantizer.anneal(step, 400)
        optimizer.zero_grad()
        (quantizer(x + 0.1 * torch.randn(512)) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer.eval()(x) - x).abs().max() < 0.02


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature_start": 0.0}, "temperature_start"),
        ({"temperature_start": "1"}, "temperature_start"),
        ({"temperature_end": True}, "temperature_end"),
        ({"temperature_start": 5.0, "temperature_end": 4.0}, "temperature_end"),
        ({"temperature_end": float("inf")}, "temperature_end"),
        ({"estimator": "clip"}, "estimator"),
    ],
)
def test_what_it_cannot_do_is_refused(options, key):
    with pytest.raises(ConfigError) as error:
        build_quantizer("qnet", 2, True, **options)
    assert error.value.key == key
