"""Laws of the TR-scheduled optimizers at the ends of their controller.

* Without quantized weights, and in ordinary groups, they are torch's bit for bit.
* gain 0: U stays at the base LR, and what is left is the torch optimizer.
* target 0: U falls to 0, the weights stop, and with them the transitions.
* U is never negative, whatever the gradients.
"""

from __future__ import annotations

import math

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import NAMES, VARIANTS, tr_group
from torch import nn

import tr_det.core

EPS32 = 2.0**-23
every_variant = pytest.mark.parametrize(
    ("name", "kwargs"), VARIANTS, ids=[f"{n}-{'-'.join(k) or 'defaults'}" for n, k in VARIANTS]
)
every_optimizer = pytest.mark.parametrize("name", NAMES)


def make_layers(seed: int = 0) -> tuple[list[dict], torch.Generator]:
    """Return TR groups of a conv, a linear and a one-element layer, and the generator used."""
    generator = torch.Generator().manual_seed(seed)
    layers = [("conv", (4, 2, 3, 3), 2), ("fc", (5, 6), 4), ("one", (1,), 1)]
    groups = [
        tr_group(0.1 * torch.randn(shape, generator=generator), bits, name)
        for name, shape, bits in layers
    ]
    return groups, generator


def weights_of(groups: list[dict]) -> list[torch.Tensor]:
    """Return copies of the weights."""
    return [group["params"][0].detach().clone() for group in groups]


def codes_of(groups: list[dict]) -> list[torch.Tensor]:
    """Return the integer codes of the weights."""
    return [group["quantizer"].codes(group["params"][0]).clone() for group in groups]


def torch_twin(name: str, params: list, kwargs: dict) -> torch.optim.Optimizer:
    """Return the torch optimizer with the same arguments, but for those of TR scheduling."""
    own = {key: value for key, value in kwargs.items() if key != "tr_decay"}
    return getattr(torch.optim, name[:-1])(params, **own)


@every_variant
def test_without_gain_equals_torch_and_ordinary_groups_do_bit_for_bit(name, kwargs) -> None:
    """With ``tr_gain=0`` the TALR is the LR at every update, the weights are torch's to a few ulps.

    Why not bit for bit: U is a single precision tensor where torch has a Python float, and a
    product with it may be rounded in another order. So each update may differ by an ulp of the
    weight and a few ulps of its own size; over the updates these add up, at worst, linearly. The
    directions themselves are the same: the gradients do not depend on the weights. Two ordinary
    groups in between have options of their own and a moving LR.
    """
    groups, generator = make_layers()
    start = weights_of(groups)
    plain = [torch.randn(shape, generator=generator) for shape in [(7,), (3, 2, 3, 3), (4,)]]

    def mixed(groups: list[dict]) -> list[dict]:
        a, b, c = (nn.Parameter(value.clone()) for value in plain)
        first = {"params": [a, b], "weight_decay": 0.0, "lr": 0.003}
        return [groups[0], first, groups[1], groups[2], {"params": [c]}]

    kwargs = {"lr": 0.01, **kwargs}
    scheduled = getattr(tr_det.core, name)(
        mixed(groups), total_steps=40, tr_factor=0.05, tr_gain=0.0, **kwargs
    )
    reference = torch_twin(
        name, mixed([{"params": [nn.Parameter(weight.clone())]} for weight in start]), kwargs
    )
    bounds: dict = {}
    for _ in range(40):
        pairs = [
            (group, p, q)
            for group, other in zip(scheduled.param_groups, reference.param_groups, strict=True)
            for p, q in zip(group["params"], other["params"], strict=True)
        ]
        before = [q.detach().clone() for _, _, q in pairs]
        for _, p, q in pairs:
            q.grad = torch.randn(q.shape, generator=generator)
            p.grad = q.grad.clone()
        scheduled.step()
        reference.step()
        for (group, p, q), old in zip(pairs, before, strict=True):
            if "quantizer" not in group:
                assert torch.equal(p, q)
                continue
            assert float(group["talr"]) == torch.tensor(0.01).item()
            size, change = torch.maximum(old.abs(), q.detach().abs()), (q.detach() - old).abs()
            bounds[p] = bounds.get(p, 0.0) + EPS32 * (size + 4 * change)
            assert bool(((p - q).abs() <= bounds[p]).all()), group["name"]
        for optimizer in (scheduled, reference):
            for index in (1, 4):
                optimizer.param_groups[index]["lr"] *= 0.98
    for old, new in zip(start, weights_of(groups), strict=True):
        assert bool(((old - new).abs() > 1000 * EPS32).any())  # the bound means something
    assert any(group.get("running_tr", 0) > 0 for group in scheduled.param_groups)


@every_variant
def test_a_replay_equals_torch_with_a_learning_rate_of_each_layer(name, kwargs) -> None:
    """Bounds as above; past the end of the run the last TALR is held."""
    groups, generator = make_layers()
    start, steps = weights_of(groups), 12
    kwargs = {"lr": 0.01, **kwargs}
    kwargs.pop("tr_decay", None)  # torch has no other learning rate for the decay
    curves = {
        group["name"]: (0.02 * torch.rand(steps, generator=generator)).tolist() for group in groups
    }
    replayed = getattr(tr_det.core, name)(groups, total_steps=steps, tr_replay=curves, **kwargs)
    parameters = [nn.Parameter(weight.clone()) for weight in start]
    reference = torch_twin(name, [{"params": [p]} for p in parameters], kwargs)
    bounds = [torch.zeros(()) for _ in groups]
    for step in range(steps + 3):
        before = [p.detach().clone() for p in parameters]
        for group, own in zip(groups, reference.param_groups, strict=True):
            (p,), (q,) = group["params"], own["params"]
            own["lr"] = curves[group["name"]][min(step, steps - 1)]
            q.grad = torch.randn(q.shape, generator=generator)
            p.grad = q.grad.clone()
        replayed.step()
        reference.step()
        for i, (group, p, old) in enumerate(zip(groups, parameters, before, strict=True)):
            size, change = torch.maximum(old.abs(), p.detach().abs()), (p.detach() - old).abs()
            bounds[i] = bounds[i] + EPS32 * (size + 4 * change)
            assert bool(((group["params"][0] - p).abs() <= bounds[i]).all()), group["name"]


@pytest.mark.parametrize(
    ("curves", "more", "message"),
    [
        (
            {"conv": [0.1] * 5, "fc": [0.1] * 5},
            {},
            "tr_replay='0 numbers for one': must be the TALRs of 5",
        ),
        ({}, {"tr_granularity": "model"}, "tr_granularity='model': must be 'layer' with tr_replay"),
    ],
)
def test_a_replay_needs_a_curve_of_each_layer(curves, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        tr_det.core.SGDT(make_layers()[0], lr=0.1, total_steps=5, tr_replay=curves, **more)


@every_variant
def test_model_without_quantizers_equals_torch_bit_for_bit(name: str, kwargs: dict) -> None:
    """Its gradients depend on the weights, so differences would grow; some are missing."""

    def train(make) -> torch.Tensor:
        generator = torch.Generator().manual_seed(11)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        own = {"params": list(model[3].parameters()), "lr": 0.004, "weight_decay": 0.0}
        optimizer = make([{"params": list(model[0].parameters())}, own])
        for step in range(20):
            optimizer.zero_grad()
            model(torch.randn(5, 2, 4, 4, generator=generator)).square().mean().backward()
            if step % 3 == 2:
                model[0].bias.grad = None
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    kwargs = {"lr": 0.01, **kwargs}
    scheduled = train(lambda groups: getattr(tr_det.core, name)(groups, total_steps=20, **kwargs))
    assert torch.equal(scheduled, train(lambda groups: torch_twin(name, groups, kwargs)))


@every_optimizer
def test_zero_target_stops_transitions(name: str) -> None:
    """With R = 0 held, U = lr - eta sum K falls to 0; then weights and codes stay for ever.

    The gain is larger than the paper's: with eta = lr the fall is exponential (K is about
    proportional to U) and takes long to reach 0 itself. The one-element layer is left out: it may
    change its code too seldom.
    """
    groups, generator = make_layers(seed=1)
    groups = groups[:2]
    optimizer = getattr(tr_det.core, name)(
        groups,
        lr=0.02,
        total_steps=300,
        tr_factor=0.05,
        tr_momentum=0.9,
        tr_gain=0.1,
        tr_schedule=ConstantParamScheduler(0.0),
    )
    talr = [[0.02] for _ in groups]
    for _ in range(300):
        old_weights, old_codes = weights_of(groups), codes_of(groups)
        for group in groups:
            group["params"][0].grad = torch.randn(group["params"][0].shape, generator=generator)
        optimizer.step()
        for i, group in enumerate(optimizer.param_groups):
            assert float(group["target_tr"]) == 0.0
            assert float(group["talr"]) <= talr[i][-1] * (1 + EPS32)
            talr[i].append(float(group["talr"]))
            if talr[i][-1] == 0.0:
                assert torch.equal(old_weights[i], group["params"][0])
                assert torch.equal(old_codes[i], codes_of(groups)[i])
    for values, group in zip(talr, optimizer.param_groups, strict=True):
        stopped = values.index(0.0) - 1
        assert 1 < stopped < 250
        assert float(group["running_tr"]) < 0.9 ** (299 - stopped - 2)  # no k since then


@every_optimizer
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lr=st.floats(1e-4, 1.0),
    tr_factor=st.floats(1e-5, 0.5),
    tr_momentum=st.floats(0.0, 0.999),
    gain=st.one_of(st.none(), st.floats(0.0, 10.0)),
    grad_scale=st.floats(0.0, 1e3),
    bits=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_talr_is_never_negative_and_follows_its_line(
    name, lr, tr_factor, tr_momentum, gain, grad_scale, bits, seed
) -> None:
    """U >= 0 and finite, 0 <= K <= 1, U_t = max(0, U_{t-1} + eta (R_t - K_t)) at every update."""
    generator = torch.Generator().manual_seed(seed)
    group = tr_group(0.1 * torch.randn(3, 4, generator=generator), bits)
    (weight,) = group["params"]
    options = {"tr_factor": tr_factor, "tr_momentum": tr_momentum, "tr_gain": gain}
    optimizer = getattr(tr_det.core, name)([group], lr=lr, total_steps=12, **options)
    eta = lr if gain is None else gain
    previous = lr
    for t in range(12):
        weight.grad = grad_scale * torch.randn(weight.shape, generator=generator)
        optimizer.step()
        (state,) = optimizer.param_groups
        talr, running = float(state["talr"]), float(state["running_tr"])
        target = tr_factor * math.sqrt(bits) * 0.5 * (1 + math.cos(math.pi * t / 12))
        assert math.isfinite(talr)
        assert talr >= 0.0
        assert 0.0 <= running <= 1.0 + 4 * EPS32
        assert float(state["target_tr"]) == pytest.approx(target, rel=4 * EPS32, abs=1e-12)
        expected = max(0.0, previous + eta * (target - running))
        size = max(previous, expected, eta * target, eta * running)
        assert abs(talr - expected) <= 4 * EPS32 * size
        previous = talr
        assert bool(torch.isfinite(weight).all())
