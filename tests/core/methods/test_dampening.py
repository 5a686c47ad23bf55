"""Dampening against the loss's gradient in float64."""

import math

import numpy as np
import pytest
import torch
from small_runs import assert_equal, leaves
from torch import nn

from tests.core.methods.oscillation import at_random, codes_of, layers, optimizer_of
from tr_det.core import QUANTIZERS, ConfigError, QuantConfig, attach, build_method, quantize_model
from tr_det.core.quantizers import FREE


def pull_of(w, centre, low, high, how, axis=0):
    """Return the gradient of sum or mean of (centre - clip(w))^2 in w, float64."""
    w = np.asarray(w, np.float64)
    count = {"sum": 1, "mean": w.size, "kernel_mean": w.size / w.shape[axis]}[how]
    return np.where((w >= low) & (w <= high), 2 * (w - centre), 0) / count


def lambda_at(t, total, first, last, start):
    """Return lambda of update t, counted from 1."""
    if t < start * total:
        return first
    place = (t - start * total) / (total - start * total)
    return last + (first - last) / 2 * (1 + math.cos(math.pi * place))


def dampened(model, weight, **options):
    """Return a weight's gradient after an update in which the task gives it none."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = build_method("dampening", **{"weight": 1.0, "weight_final": None, **options})
    attach([method], model, optimizer, 10)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return weight.grad


def one_layer(name="lsq", bits=3, layer=None, **options):
    model = nn.Sequential(layer or nn.Linear(3, 2, bias=False), nn.LayerNorm(2))
    quantize_model(
        model, QuantConfig(weight_bits=bits, act_bits=32, weight_quantizer=name, **options)
    )
    return model


@pytest.mark.parametrize(("how", "count"), [("sum", 1), ("kernel_mean", 3), ("mean", 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gradient_worked_out_by_hand(how, count, dtype):
    model = one_layer(learn_weight_scale=True)
    weight, quantizer = model[0].weight, model[0].weight_quantizer
    with torch.no_grad():
        quantizer.scale.fill_(0.3)
        weight.copy_(torch.tensor([[0.1, 0.2, -0.4], [1.5, -2.0, 0.44]]))
    weight.data = weight.data.to(dtype)
    gradient = dampened(model, weight, aggregation=how)
    expected = torch.tensor([[0.2, -0.2, -0.2], [0.0, 0.0, 0.28]], dtype=torch.float64) / count
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance / 10)
    assert gradient.dtype == dtype
    assert quantizer.scale.grad is None


@pytest.mark.parametrize("name", ["SGD", "SGDT"])
@pytest.mark.parametrize(
    ("first", "last", "start", "with_freezing"),
    [(0.0, 0.5, 0.25, True), (0.0, 0.5, 0.25, False), (0.3, None, 0.0, True)],
)
def test_a_long_run_equals_one_with_gradients_edited_by_hand(
    name, first, last, start, with_freezing
):
    """Both runs have the same momentum, decay, TR scheduling and freezing."""
    steps = 300
    runs = []
    for by_hand in (False, True):
        model = layers()
        optimizer = optimizer_of(model, name, steps)
        methods = [build_method("tracker", momentum=0.1), build_method("freezing", threshold=0.15)]
        methods = methods if with_freezing else []
        if not by_hand:
            methods.append(build_method("dampening", weight=first, weight_final=last, start=start))
        attach(methods, model, optimizer, steps)
        runs.append((model, optimizer))
    (model, optimizer), (edited, by_hand) = runs
    most = 0.0
    for step in range(steps):
        for each in (model, edited):
            at_random(each, step)
        strength = lambda_at(step + 1, steps, first, first if last is None else last, start)
        for index, layer in enumerate(edited):
            if step % 7 == index:  # without gradient there is no pull either
                layer.weight.grad = model[index].weight.grad = None
                continue
            bits, held = layer.weight_quantizer.bits, layer.weight_quantizer.held
            codes, scale = codes_of(layer), layer.weight_quantizer.scale.item()
            if held is not None:
                codes = np.where(held == FREE, codes, held)
            low, high = -(2 ** (bits - 1)) * scale, (2 ** (bits - 1) - 1) * scale
            weight = layer.weight.detach().numpy()
            pull = strength * pull_of(weight, codes * scale, low, high, "kernel_mean")
            layer.weight.grad += torch.from_numpy(pull).float()
            most = max(most, np.abs(pull).max())
        for made in (optimizer, by_hand):
            made.step()
        found, expected = (
            [t for layer in each for t in (layer.weight, layer.weight.grad) if t is not None]
            for each in (model, edited)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert most > 0.02
    held = model[0].weight_quantizer.held
    assert (held is not None and bool((held != FREE).any())) == with_freezing


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_pull_is_towards_latent_values_even_where_levels_differ(bits):
    """Eq. 13 of TR scheduling: round(clip(g w / s)) / g has the levels of s = 1 for every s."""
    model = one_layer("fixed_grid", bits)
    weight, scale, g = model[0].weight, 0.2, 2 ** (bits - 1)
    w = np.array([[0.011, 0.083, -0.064], [-0.13, 0.31, -0.27]], np.float32)
    with torch.no_grad():
        model[0].weight_quantizer.scale.fill_(scale)
        weight.copy_(torch.from_numpy(w))
    low, high = (-scale, scale) if bits == 1 else (-scale, (g - 1) / g * scale)
    if bits == 1:
        centre = np.where(w < 0, -scale, scale)
    else:
        centre = np.rint(np.clip(g * w.astype(np.float64) / scale, -g, g - 1)) * scale / g
    gradient = dampened(model, weight, aggregation="sum").double().numpy()
    np.testing.assert_allclose(gradient, pull_of(w, centre, low, high, "sum"), atol=1e-6)
    assert (gradient != 0).sum() >= 3


@pytest.mark.parametrize("name", [n for n, q in sorted(QUANTIZERS.items()) if "weight" in q.roles])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_quantizer_has_the_gradient_of_the_loss(name, per_channel):
    torch.manual_seed(0)
    options = {"weight_options": {"per_channel": True}} if per_channel else {}
    try:
        model = one_layer(name, 2, nn.Conv2d(3, 5, 3, bias=False), **options)
    except ConfigError as error:
        pytest.skip(str(error))
    weight, quantizer = model[0].weight, model[0].weight_quantizer
    if quantizer.soft:
        pytest.skip("refused: needs hard weights")
    with torch.no_grad():
        weight.mul_(torch.linspace(0.5, 2, 5).view(-1, 1, 1, 1)).add_(0.01)
        quantizer.calibrate(weight)
        codes = quantizer.codes(weight)
        ends = (codes.new_full(codes.shape, end) for end in (quantizer.low, quantizer.high))
        centre, low, high = (quantizer.centres(each).double() for each in (codes, *ends))
    wide = weight.detach().double().requires_grad_()
    (centre - wide.clamp(low, high)).square().mean((1, 2, 3)).sum().backward()
    found = dampened(model, weight, aggregation="kernel_mean").double()
    torch.testing.assert_close(found, wide.grad, rtol=1e-4, atol=1e-7)
    assert 0.2 < (wide.grad != 0).double().mean() <= 1


def test_the_log_has_lambda_and_a_lambda_of_zero_changes_nothing():
    model, plain = layers(), layers()
    optimizer, other = (optimizer_of(each, "SGDT", 40) for each in (model, plain))
    method = build_method("dampening")
    attach([method], model, optimizer, 40)
    for step in range(40):
        at_random(model, step)
        optimizer.step()
        expected = lambda_at(step + 1, 40, 0.0, 0.1, 0.25)
        assert method.scalars()["tr/dampening"].item() == pytest.approx(expected, rel=1e-6)
        if step < 10:
            at_random(plain, step)
            other.step()
            assert_equal(leaves(dict(model.state_dict())), leaves(dict(plain.state_dict())))
    assert expected == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("weight", {"weight": -0.1}),
        ("weight", {"weight": True}),
        ("weight_final", {"weight_final": math.inf}),
        ("weight", {"weight_final": None}),
        ("aggregation", {"aggregation": "kernel"}),
        ("start", {"start": 1.0}),
        ("start", {"start": "0.5"}),
    ],
)
def test_other_options_are_refused(key, options):
    with pytest.raises(ConfigError, match=f"^{key}="):
        build_method("dampening", **options)
