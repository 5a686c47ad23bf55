"""Weights and groups at the edge of what numbers can do."""

import math

import pytest
import torch
from small_runs import NAMES, OPTIMIZERS, loss, make_model, make_optimizer, tr_groups
from torch import nn

import tr_det.core
from tr_det.core import (
    QuantConfig,
    build_quantizer,
    quantize_model,
    set_scales,
    tr_param_groups,
)

every_optimizer = pytest.mark.parametrize("name", NAMES)


def calibrated(bits, data):
    """Return a quantizer for TR scheduling."""
    quantizer = build_quantizer("fixed_grid", bits, signed=True, learn_scale=False)
    quantizer.calibrate(data)
    return quantizer


def one_weight(weight, name="SGDT", bits=2, **options):
    """Return a parameter and an optimizer that schedules it alone."""
    parameter = nn.Parameter(weight.clone())
    quantizer = calibrated(bits, weight if weight.numel() else torch.ones(1))
    group = {"params": [parameter], "name": "w", "quantizer": quantizer}
    settings = {"lr": 0.1, "total_steps": 50, "tr_factor": 0.1, "tr_momentum": 0.5, **options}
    return parameter, getattr(tr_det.core, name)([group], **settings)


def steps(parameter, optimizer, gradients):
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def assert_sound(parameter, optimizer):
    group = optimizer.param_groups[0]
    assert torch.isfinite(parameter).all()
    assert 0 <= group["talr"] < math.inf
    assert 0 <= group["running_tr"] <= 1
    assert 0 <= group["transition_rate"] <= 1


@every_optimizer
@pytest.mark.parametrize("update", ["additive", "multiplicative", "momentum", "pi"])
@pytest.mark.parametrize(
    ("weight", "gradient"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 4)),
        (torch.zeros(3, 4), torch.ones(3, 4)),
        (torch.full((1,), 0.3), torch.full((1,), 1e-3)),
        (torch.full((1, 1, 1, 1), -2.0), torch.full((1, 1, 1, 1), 1e6)),
        (torch.full((5,), 1e-30), torch.full((5,), 1e-30)),
    ],
    ids=["zero weights at rest", "zero weights", "one element", "huge gradient", "tiny numbers"],
)
def test_controllers_and_weights_stay_finite(name, update, weight, gradient) -> None:
    signs = [(-1) ** (step // 3) for step in range(30)]
    for bits in (1, 4):
        parameter, optimizer = one_weight(weight, name, bits, tr_update=update)
        steps(parameter, optimizer, [sign * gradient for sign in signs])
        assert_sound(parameter, optimizer)


@every_optimizer
@pytest.mark.parametrize("bits", [1, 3])
def test_a_weight_without_elements_is_left_alone(name, bits) -> None:
    parameter, optimizer = one_weight(torch.zeros(0, 4), name, bits)
    steps(parameter, optimizer, 3 * [torch.zeros(0, 4)])
    assert_sound(parameter, optimizer)


def test_one_element_has_a_rate_of_zero_or_one() -> None:
    parameter, optimizer = one_weight(torch.tensor([0.2]), tr_gain=0.0)
    rates = []
    for sign in (1.0, -1.0, 1.0, 1.0):
        steps(parameter, optimizer, [torch.tensor([sign * 20.0])])
        rates.append(optimizer.param_groups[0]["transition_rate"].item())
    assert rates == [1.0, 1.0, 1.0, 0.0]


@every_optimizer
def test_groups_without_parameters_or_gradients_do_nothing(name) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name)
    optimizer.add_param_group({"params": []})
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [group["tr_updates"] for group in tr_groups(optimizer)] == [0, 0]


# --- precision ------------------------------------------------------------------------------------

DIGITS = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 5e-3}


@pytest.mark.usefixtures("place")
@every_optimizer
@pytest.mark.parametrize("dtype", DIGITS)
def test_latents_of_any_precision_train_like_float64_ones(name, dtype) -> None:
    """Twenty updates from the same gradients; errors are one rounding of the weight per update."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, generator=generator).to(dtype)
    gradients = [torch.randn(64, generator=generator).to(dtype) for _ in range(20)]
    runs = []
    for kind in (dtype, torch.float64):
        decay = OPTIMIZERS[name]["weight_decay"]
        # the controller stands still, or codes at a transition point would lead runs apart
        # torch's eps of 1e-8 is zero in float16, and its Adam then divides by zero
        eps = {} if name == "SGDT" else {"eps": 1e-4}
        parameter, optimizer = one_weight(
            start.to(kind), name, lr=0.02, tr_gain=0.0, weight_decay=decay, **eps
        )
        steps(parameter, optimizer, gradients)
        assert parameter.dtype == kind
        assert all(
            optimizer.param_groups[0][key].dtype == torch.float32
            for key in ("talr", "running_tr", "transition_rate", "tr_mass")
        )
        runs.append(parameter.detach().double())
    torch.testing.assert_close(*runs, rtol=20 * DIGITS[dtype], atol=20 * DIGITS[dtype])


@pytest.fixture(params=["host", "device"])
def place(request):
    """Take either way of making an update."""
    if request.param == "device":
        request.getfixturevalue("like_a_device")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_weight_moves_by_the_talr_itself(dtype) -> None:
    """1.003 lies between two numbers of bfloat16, 1.0003 of float16; times 100 it shows."""
    talr = 1.003 if dtype == torch.bfloat16 else 1.0003
    parameter, optimizer = one_weight(torch.zeros(4, dtype=dtype), lr=talr, tr_gain=0.0)
    steps(parameter, optimizer, [torch.full((4,), 1000.0)])
    expected = torch.tensor(-1000.0 * talr).to(dtype)
    assert expected != -1000.0
    assert parameter[0].item() == expected.item()


@pytest.mark.usefixtures("place")
def test_decay_of_a_half_precision_weight_is_not_rounded_twice() -> None:
    """120 * 0.6975 is 83.5 in bfloat16; with 0.6975 rounded first it would be 84."""
    parameter, optimizer = one_weight(
        torch.full((4,), 120.0).bfloat16(), "AdamWT", lr=1.0, tr_gain=0.0, weight_decay=0.3025
    )
    steps(parameter, optimizer, [torch.zeros(4)])
    assert parameter[0].item() == 83.5


def test_a_model_in_bfloat16_trains_and_quantizes() -> None:
    model = make_model().bfloat16()
    optimizer = make_optimizer(model)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator).bfloat16()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(group["talr"].dtype == torch.float32 for group in tr_groups(optimizer))


# --- layers that wake up --------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["additive", "multiplicative", "momentum", "pi"])
def test_a_layer_without_gradient_stands_still_and_then_starts_like_any_other(update) -> None:
    model = make_model()
    optimizer = make_optimizer(model, tr_update=update, tr_schedule="constant")
    asleep = model[3].weight.clone()
    for step in range(12):
        optimizer.zero_grad()
        loss(model, step).backward()
        if step < 8:
            model[3].weight.grad = None
        optimizer.step()
        group = tr_groups(optimizer)[0]
        if step < 8:
            assert torch.equal(model[3].weight, asleep)
            assert (group["running_tr"], group["tr_mass"], group["tr_updates"]) == (0, 0, 0)
        else:
            own = step - 7  # updates of its own
            assert group["tr_updates"] == own
            # measurements are one fewer: a rate needs two updates (k_0 = 0)
            assert group["tr_mass"] == pytest.approx(1 - 0.5 ** (own - 1))
            if own == 1:
                assert group["running_tr"] == 0
    assert group["tr_step"] == 12


def test_pi_reads_a_late_layers_rate_at_its_full_value() -> None:
    """Else it would take the start from zero for a standstill and speed the layer up."""
    rng = torch.Generator().manual_seed(0)
    parameter, optimizer = one_weight(
        torch.randn(4000, generator=rng),
        tr_update="pi",
        tr_momentum=0.9,
        tr_schedule="constant",
        tr_factor=1e-9,
        tr_final=0.0,
    )
    other = nn.Parameter(torch.randn(8, generator=rng))
    optimizer.add_param_group(
        {"params": [other], "name": "awake", "quantizer": calibrated(2, other)}
    )
    rates = []
    for step in range(24):
        other.grad = torch.randn(8, generator=rng)
        if step >= 20:
            parameter.grad = torch.randn(4000, generator=rng)
        optimizer.step()
        if step in (20, 21, 22):  # what the controller has seen at step 23
            rates.append(optimizer.param_groups[0]["transition_rate"].item())
    group = optimizer.param_groups[0]
    weights = [0.81, 0.9, 1.0]
    mean = sum(w * rate for w, rate in zip(weights, rates, strict=True)) / sum(weights)
    assert (group["running_tr"] / group["tr_mass"]).item() == pytest.approx(mean, rel=1e-4)


def test_quantizing_a_layer_of_one_weight_is_possible() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    quantize_model(model, QuantConfig(signed_input=True))
    set_scales(model, lambda: model(torch.ones(2, 1)))
    optimizer = tr_det.core.SGDT(tr_param_groups(model, 0.1), lr=0.1, total_steps=3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 1)).sum().backward()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
