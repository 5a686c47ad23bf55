"""Laws of the TR-scheduled optimizers at the ends of their controller.

* gain 0: U stays at the base LR for ever, and what is left is the torch optimizer.
* target 0: U falls to 0, the weights stop, and with them the transitions.
* U is never negative, whatever the gradients.
* A layer without a gradient does not take part in an update.
"""

from __future__ import annotations

import math

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, LinearParamScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tr_det.core
from tr_det.core import build_quantizer

EPS32 = 2.0**-23
OPTIMIZERS = {
    "SGDT": [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}, {"maximize": True}],
    "AdamT": [{}, {"weight_decay": 1e-2, "amsgrad": True}, {"foreach": True}],
    "AdamWT": [
        {},
        {"weight_decay": 0.2, "tr_decay": "talr"},
        {"weight_decay": 0.2, "tr_decay": "lr"},
    ],
    "NAdamT": [
        {},
        {"weight_decay": 1e-2},
        {"weight_decay": 0.2, "decoupled_weight_decay": True},
    ],
    "AdamaxT": [{}, {"weight_decay": 1e-2, "foreach": True}],
    "RMSpropT": [{}, {"momentum": 0.9, "centered": True, "weight_decay": 1e-2}],
    "AdagradT": [{}, {"lr_decay": 0.1, "weight_decay": 1e-2}],
}
VARIANTS = [(name, kwargs) for name, many in OPTIMIZERS.items() for kwargs in many]
every_variant = pytest.mark.parametrize(
    ("name", "kwargs"), VARIANTS, ids=[f"{n}-{'-'.join(k) or 'defaults'}" for n, k in VARIANTS]
)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def make_quantizer(bits: int, scale: float = 0.3) -> nn.Module:
    """Return a signed fixed-grid quantizer with a frozen scale."""
    quantizer = build_quantizer("fixed_grid", bits, True)
    with torch.no_grad():
        quantizer.scale.fill_(scale)
    quantizer.scale.requires_grad_(False)
    return quantizer


def make_layers(
    seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[list[dict], torch.Generator]:
    """Return TR groups of a conv, a linear and a one-element layer, and the generator used."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for name, shape, bits in [("conv", (4, 2, 3, 3), 2), ("fc", (5, 6), 4), ("one", (1,), 1)]:
        weight = nn.Parameter(0.1 * torch.randn(shape, generator=generator).to(dtype))
        groups.append({"params": [weight], "quantizer": make_quantizer(bits), "name": name})
    return groups, generator


def weights_of(groups: list[dict]) -> list[torch.Tensor]:
    """Return copies of the weights."""
    return [group["params"][0].detach().clone() for group in groups]


def codes_of(groups: list[dict]) -> list[torch.Tensor]:
    """Return the integer codes of the weights."""
    return [group["quantizer"].codes(group["params"][0]).clone() for group in groups]


@pytest.mark.parametrize("lr", [2.0**-6, 0.01], ids=["lr_exact", "lr_rounded"])
@every_variant
def test_zero_gain_equals_torch(name: str, kwargs: dict, lr: float) -> None:
    """With ``tr_gain=0`` the TALR is the LR at every update, the weights are torch's to a few ulps.

    Why not bit for bit: U is a single precision tensor where torch has a Python float (equal for
    2^-6, one rounding off for 0.01), and a product with it may be rounded in another order. So each
    update may differ by an ulp of the weight and a few ulps of its own size; over the updates these
    add up, at worst, linearly. The directions themselves are the same: the gradients do not depend
    on the weights.
    """
    steps = 40
    groups, generator = make_layers()
    reference = [nn.Parameter(weight) for weight in weights_of(groups)]
    start = weights_of(groups)
    ours = getattr(tr_det.core, name)(
        groups, lr=lr, total_steps=steps, tr_factor=0.05, tr_gain=0.0, **kwargs
    )
    torch_kwargs = {key: value for key, value in kwargs.items() if key != "tr_decay"}
    theirs = getattr(torch.optim, name[:-1])(reference, lr=lr, **torch_kwargs)
    bound = [torch.zeros_like(weight) for weight in start]
    for t in range(steps):
        before = [parameter.detach().clone() for parameter in reference]
        for group, parameter in zip(groups, reference, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            group["params"][0].grad = parameter.grad.clone()
        ours.step()
        theirs.step()
        for index, (group, parameter) in enumerate(zip(ours.param_groups, reference, strict=True)):
            assert float(group["talr"]) == torch.tensor(lr, dtype=torch.float32).item()
            size = torch.maximum(before[index].abs(), parameter.detach().abs())
            change = (parameter.detach() - before[index]).abs()
            bound[index] += EPS32 * (size + 4 * change)
            difference = (group["params"][0].detach() - parameter.detach()).abs()
            assert bool((difference <= bound[index]).all()), (name, t, group["name"])
    for old, parameter in zip(start, reference, strict=True):
        assert bool(((old - parameter).abs() > 1000 * EPS32).any())  # The bound means something.
    assert any(float(group["running_tr"]) > 0 for group in ours.param_groups)


@every_optimizer
def test_zero_target_stops_transitions(name: str) -> None:
    """With R = 0 held, U = lr - eta sum K falls to 0; then weights and codes stay for ever.

    The gain is larger than the paper's: with eta = lr the fall is exponential (K is about
    proportional to U) and takes long to reach 0 itself. The one-element layer is left out: it may
    change its code too seldom.
    """
    groups, generator = make_layers(seed=1)
    groups = groups[:2]
    lr = 0.02
    optimizer = getattr(tr_det.core, name)(
        groups,
        lr=lr,
        total_steps=300,
        tr_factor=0.05,
        tr_momentum=0.9,
        tr_gain=0.1,
        tr_schedule=ConstantParamScheduler(0.0),
    )
    talr = [[lr] for _ in groups]
    stopped_at = [None] * len(groups)
    for t in range(300):
        old_weights, old_codes = weights_of(groups), codes_of(groups)
        for group in groups:
            weight = group["params"][0]
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        for i, group in enumerate(optimizer.param_groups):
            value = float(group["talr"])
            assert float(group["target_tr"]) == 0.0
            assert value <= talr[i][-1] * (1 + EPS32), (name, t)
            talr[i].append(value)
            if value == 0.0:
                stopped_at[i] = t if stopped_at[i] is None else stopped_at[i]
                assert torch.equal(old_weights[i], group["params"][0]), (name, t)
                assert torch.equal(old_codes[i], codes_of(groups)[i]), (name, t)
    for i, group in enumerate(optimizer.param_groups):
        assert stopped_at[i] is not None, name
        assert 1 < stopped_at[i] < 250, (name, stopped_at)
        assert float(group["running_tr"]) < 0.9 ** (299 - stopped_at[i] - 2)  # No k since then.


def test_decay_by_lr_moves_weights_of_a_stopped_layer() -> None:
    """AdamWT with ``tr_decay="lr"``: at U = 0 exactly the decay is left; with "talr" nothing is."""
    final = {}
    for decay in ("talr", "lr"):
        groups, generator = make_layers(seed=1)
        groups = groups[:1]
        optimizer = tr_det.core.AdamWT(
            groups,
            lr=2.0**-6,
            total_steps=400,
            tr_factor=0.05,
            tr_momentum=0.5,
            tr_gain=0.5,
            tr_decay=decay,
            tr_schedule=ConstantParamScheduler(0.0),
            weight_decay=0.25,
        )
        weight = groups[0]["params"][0]
        seen = 0
        for _ in range(60):
            old = weight.detach().clone()
            weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
            if float(optimizer.param_groups[0]["talr"]) == 0.0:
                seen += 1
                expected = old * (1 - 2.0**-6 * 0.25) if decay == "lr" else old
                torch.testing.assert_close(weight.detach(), expected, rtol=2 * EPS32, atol=0)
        final[decay] = seen
    assert min(final.values()) > 10, final


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
    name: str,
    lr: float,
    tr_factor: float,
    tr_momentum: float,
    gain: float | None,
    grad_scale: float,
    bits: int,
    seed: int,
) -> None:
    """U >= 0 and finite, 0 <= K <= 1, U_t = max(0, U_{t-1} + eta (R_t - K_t)) at every update."""
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(0.1 * torch.randn(3, 4, generator=generator))
    group = {"params": [weight], "quantizer": make_quantizer(bits), "name": "w"}
    steps = 12
    optimizer = getattr(tr_det.core, name)(
        [group],
        lr=lr,
        total_steps=steps,
        tr_factor=tr_factor,
        tr_momentum=tr_momentum,
        tr_gain=gain,
    )
    eta = lr if gain is None else gain
    previous = lr
    for t in range(steps):
        weight.grad = grad_scale * torch.randn(weight.shape, generator=generator)
        optimizer.step()
        (state,) = optimizer.param_groups
        talr, running = float(state["talr"]), float(state["running_tr"])
        target = tr_factor * math.sqrt(bits) * 0.5 * (1 + math.cos(math.pi * t / steps))
        assert math.isfinite(talr)
        assert talr >= 0.0
        assert 0.0 <= running <= 1.0 + 4 * EPS32
        assert float(state["target_tr"]) == pytest.approx(target, rel=4 * EPS32, abs=1e-12)
        expected = max(0.0, previous + eta * (target - running))
        size = max(previous, expected, eta * target, eta * running)
        assert abs(talr - expected) <= 4 * EPS32 * size
        previous = talr
        assert bool(torch.isfinite(weight).all())


@every_optimizer
def test_layer_without_gradient_is_left_alone(name: str) -> None:
    """``grad is None``: weight, TALR and running TR of that layer stay; the others move on.

    The gain is small, so that no TALR falls to 0: there every weight would stay.
    """
    groups, generator = make_layers(seed=2)
    optimizer = getattr(tr_det.core, name)(
        groups, lr=0.02, total_steps=50, tr_factor=0.05, tr_momentum=0.9, tr_gain=1e-3
    )

    def step(skipped: int | None) -> None:
        for index, group in enumerate(groups):
            weight = group["params"][0]
            noise = torch.randn(weight.shape, generator=generator)
            weight.grad = None if index == skipped else noise
        optimizer.step()

    for _ in range(8):
        step(None)
    for skipped in (0, 1, 2):
        for _ in range(3):
            old = weights_of(groups)
            shown = [(float(g["talr"]), float(g["running_tr"])) for g in optimizer.param_groups]
            step(skipped)
            for index, group in enumerate(optimizer.param_groups):
                now = (float(group["talr"]), float(group["running_tr"]))
                same = torch.equal(old[index], group["params"][0])
                assert same == (index == skipped), (name, index, skipped)
                assert (now == shown[index]) == (index == skipped), (name, index, skipped)


@every_optimizer
def test_layer_without_gradient_from_the_start_keeps_the_base_lr(name: str) -> None:
    """A layer whose first gradient comes late starts then like any other: K = 0, U from the LR."""
    groups, generator = make_layers(seed=3)
    optimizer = getattr(tr_det.core, name)(
        groups, lr=0.02, total_steps=50, tr_factor=0.05, tr_momentum=0.9
    )
    late = groups[1]["params"][0]
    start = late.detach().clone()
    for _ in range(4):
        for index in (0, 2):
            weight = groups[index]["params"][0]
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    assert torch.equal(late, start)
    late.grad = torch.randn(late.shape, generator=generator)
    optimizer.step()
    shown = optimizer.param_groups[1]
    assert float(shown["running_tr"]) == 0.0
    assert float(shown["talr"]) == pytest.approx(0.02 * (1 + float(shown["target_tr"])), rel=1e-6)
    assert not torch.equal(late, start)


def test_changed_codes_are_counted_once_after_a_skipped_update() -> None:
    """Codes compare with those of the layer's previous update, not with those of a skipped one."""
    weight = nn.Parameter(torch.full((10,), 0.01))
    other = nn.Parameter(torch.full((10,), 0.01))
    groups = [
        {"params": [weight], "quantizer": make_quantizer(1), "name": "a"},
        {"params": [other], "quantizer": make_quantizer(1), "name": "b"},
    ]
    optimizer = tr_det.core.SGDT(groups, lr=0.1, total_steps=10, tr_factor=1e-3, tr_momentum=0.5)

    def step(gradient: torch.Tensor | None) -> float:
        weight.grad = gradient
        other.grad = torch.zeros(10)
        optimizer.step()
        return float(optimizer.param_groups[0]["running_tr"])

    push = torch.zeros(10)
    push[:3] = 1.0
    assert step(push) == 0.0  # Three of ten weights now are negative.
    assert step(None) == 0.0  # Not looked at.
    assert step(torch.zeros(10)) == pytest.approx(0.5 * 0.3, rel=1e-6)
    assert step(torch.zeros(10)) == pytest.approx(0.25 * 0.3, rel=1e-6)


def test_any_param_scheduler_sets_the_target() -> None:
    """R_t = lambda sqrt(bits) schedule(t / T), here with fvcore's linear decay."""
    groups, generator = make_layers(seed=4)
    optimizer = tr_det.core.SGDT(
        groups,
        lr=0.02,
        total_steps=10,
        tr_factor=0.01,
        tr_schedule=LinearParamScheduler(1.0, 0.2),
    )
    for t in range(10):
        for group in groups:
            weight = group["params"][0]
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        for group, bits in zip(optimizer.param_groups, (2, 4, 1), strict=True):
            expected = 0.01 * math.sqrt(bits) * (1.0 - 0.8 * t / 10)
            assert float(group["target_tr"]) == pytest.approx(expected, rel=2 * EPS32)
