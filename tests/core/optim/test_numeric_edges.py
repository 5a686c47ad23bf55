"""Zero, empty, huge and half-precision weights, and layers whose gradients come late."""

import math

import pytest
import torch
from small_runs import NAMES, OPTIMIZERS, make_model, make_optimizer, tr_group, tr_groups, train

import tr_det.core
from tr_det.core.optim.keys import TENSORS
from tr_det.core.transition import UPDATE_RULES

every_optimizer = pytest.mark.parametrize("name", NAMES)


def one_weight(weight, name="SGDT", bits=2, **options):
    """Return a parameter and an optimizer that schedules it alone."""
    group = tr_group(weight.clone(), bits, scale=None)
    settings = {"lr": 0.1, "total_steps": 50, "tr_factor": 0.1, "tr_momentum": 0.5, **options}
    return group["params"][0], getattr(tr_det.core, name)([group], **settings)


def steps(parameter, optimizer, gradients):
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "update"),
    [(n, "pi") for n in NAMES] + [("SGDT", u) for u in UPDATE_RULES if u != "pi"],
)
@pytest.mark.parametrize(
    ("weight", "gradient"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 4)),
        (torch.zeros(3, 4), torch.ones(3, 4)),
        (torch.full((1,), 0.3), torch.full((1,), 1e-3)),
        (torch.full((1, 1, 1, 1), -2.0), torch.full((1, 1, 1, 1), 1e6)),
        (torch.full((5,), 1e-30), torch.full((5,), 1e-30)),
        (torch.zeros(0, 4), torch.zeros(0, 4)),
    ],
    ids=["zeros", "zero weights", "one element", "huge gradient", "tiny numbers", "no elements"],
)
def test_controllers_and_weights_stay_finite(name, update, weight, gradient) -> None:
    signs = [(-1) ** (step // 3) for step in range(30)]
    for bits in (1, 4):
        parameter, optimizer = one_weight(weight, name, bits, tr_update=update)
        steps(parameter, optimizer, [sign * gradient for sign in signs])
        group = optimizer.param_groups[0]
        assert torch.isfinite(parameter).all()
        assert 0 <= group["talr"] < math.inf
        assert 0 <= group["running_tr"] <= 1
        assert 0 <= group["transition_rate"] <= 1


@every_optimizer
def test_groups_without_parameters_or_gradients_do_nothing(name) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name)
    optimizer.add_param_group({"params": []})
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [group["tr_updates"] for group in tr_groups(optimizer)] == [0, 0]


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


@pytest.mark.parametrize(
    ("name", "update"), [(n, "additive") for n in NAMES] + [("SGDT", u) for u in UPDATE_RULES]
)
def test_a_layer_without_gradient_is_left_alone_and_starts_late(name, update) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name, tr_update=update, tr_schedule="constant")
    start = model[3].weight.clone()
    train(model, optimizer, range(8), without=["3.weight"])
    group = tr_groups(optimizer)[0]
    assert torch.equal(model[3].weight, start)
    assert (group["running_tr"], group["tr_mass"], group["tr_updates"]) == (0, 0, 0)
    for updates in range(1, 5):
        train(model, optimizer, [7 + updates])
        assert group["tr_updates"] == updates
        # measurements are one fewer: a rate needs two updates (k_0 = 0)
        assert group["tr_mass"] == pytest.approx(1 - 0.5 ** (updates - 1))
        assert updates > 1 or group["running_tr"] == 0
    assert group["tr_step"] == 12
    before = [model[3].weight.clone(), *(group[key].clone() for key in TENSORS)]
    train(model, optimizer, [12], without=["3.weight"])
    assert all(map(torch.equal, before, [model[3].weight, *(group[key] for key in TENSORS)]))
