"""One step of a TR-scheduled optimizer, with what torch puts around it."""

import copy

import pytest
import torch
from small_runs import (
    NAMES,
    assert_equal,
    loss,
    pair,
    snapshot,
    torch_class,
    tr_group,
    tr_groups,
    train,
)
from torch import Tensor, nn

every_optimizer = pytest.mark.parametrize("name", NAMES)
FUSED = ("SGDT", "AdamT", "AdamWT", "AdagradT")  # torch has it for these on the CPU


@pytest.mark.parametrize(
    ("name", "options"), [(n, {}) for n in NAMES] + [(n, {"fused": True}) for n in FUSED]
)
def test_step_that_grad_scaler_skips_leaves_no_trace(name: str, options: dict) -> None:
    plain, scaled = pair(name, **options), pair(name, **options)
    train(*plain, range(4))
    model, optimizer = scaled
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, overflows in ((0, False), (1, False), (1, True), (2, False), (3, True), (3, False)):
        optimizer.zero_grad()
        scaler.scale(loss(model, step)).backward()
        before = snapshot(model, optimizer)
        if overflows:
            model[3].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if overflows:
            assert_equal(snapshot(model, optimizer), before)
    assert [group["tr_step"] for group in tr_groups(optimizer)] == [4, 4]
    assert_equal(snapshot(*scaled), snapshot(*plain))


@pytest.mark.parametrize("name", FUSED)
def test_fused_changes_nothing_but_rounding(name: str) -> None:
    default, fused = pair(name, foreach=False), pair(name, fused=True)
    train(*default)
    train(*fused)
    expected = snapshot(*default)
    for path, value in snapshot(*fused).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, expected[path], rtol=1e-3, atol=1e-5, msg=path)


@pytest.mark.usefixtures("place")
def test_a_step_that_fails_changes_nothing_and_can_be_repeated(monkeypatch) -> None:
    model, optimizer = pair()
    train(model, optimizer, range(3))
    optimizer.zero_grad()
    loss(model, 3).backward()
    before = snapshot(model, optimizer)
    grads = [(p.grad, copy.copy(p.grad)) for p in model.parameters()]

    def fail(self, closure=None) -> None:
        raise MemoryError

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(MemoryError):
        optimizer.step()
    assert_equal(snapshot(model, optimizer), before)
    for parameter, (grad, value) in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, value)
    monkeypatch.undo()
    model_again, optimizer_again = pair()
    train(model_again, optimizer_again, range(4))
    optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(model_again.parameters()))


@every_optimizer
def test_hooks_fire_once_per_step(name: str) -> None:
    model, optimizer = pair(name)
    fired = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    once = ["pre", "post"]
    train(model, optimizer, [0])
    assert fired == once
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, [1])
    assert fired == 2 * once
    # torch wraps the step of the plain class when that is first used
    torch_class(optimizer)([nn.Parameter(torch.zeros(1))], lr=0.1).step()
    train(model, optimizer, [2, 3])
    assert fired == 4 * once


def test_hook_sees_the_finished_step() -> None:
    model, optimizer = pair()
    seen = []
    optimizer.register_step_post_hook(
        lambda o, *_: seen.append((snapshot(model, o), o.transition_metrics()))
    )
    train(model, optimizer, [0])
    ((state, metrics),) = seen
    assert_equal(state, snapshot(model, optimizer))
    assert metrics.names == ("3.weight", "5.weight")
    for key, vector in (
        ("target_tr", metrics.target),
        ("running_tr", metrics.running),
        ("talr", metrics.talr),
        ("transition_rate", metrics.rate),
    ):
        shown = [float(group[key]) for group in tr_groups(optimizer)]
        assert torch.equal(vector, torch.tensor(shown))


def test_one_controller_per_model_follows_the_means_over_all_weights() -> None:
    model, optimizer = pair(tr_granularity="model")
    train(model, optimizer, range(5))
    groups = tr_groups(optimizer)
    sizes = [group["params"][0].numel() for group in groups]
    talr = groups[0]["talr"].item()
    running = [(0.5 * (g["running_tr"] + g["transition_rate"])).item() for g in groups]
    train(model, optimizer, [5])
    assert groups[0]["talr"].item() == groups[1]["talr"].item()
    assert [group["running_tr"].item() for group in groups] == pytest.approx(running)
    assert running[0] != running[1]
    error = sum(
        size / sum(sizes) * (group["target_tr"] - k)
        for size, group, k in zip(sizes, groups, running, strict=True)
    )
    assert groups[0]["talr"].item() == pytest.approx(max(0.0, talr + 0.1 * error), rel=1e-5)


def test_closure_is_called_once_with_gradients_and_its_loss_returned() -> None:
    with_closure, without = pair(), pair()
    losses = []

    def closure() -> Tensor:
        with_closure[1].zero_grad()
        losses.append(loss(with_closure[0], 0))
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        returned = with_closure[1].step(closure)
    assert len(losses) == 1
    assert returned is losses[0]
    train(*without, [0])
    assert_equal(snapshot(*with_closure), snapshot(*without))
    assert without[1].step() is None


@every_optimizer
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("maximize", [False, True])
def test_step_leaves_gradients_as_they_are(name: str, maximize: bool) -> None:
    model, optimizer = pair(name, maximize=maximize)
    train(model, optimizer, range(2))
    before = [(p, p.grad, p.grad.clone()) for p in model.parameters() if p.requires_grad]
    optimizer.step()
    for parameter, grad, value in before:
        assert parameter.grad is grad
        assert torch.equal(grad, value)


def test_a_group_added_late_has_the_step_number_of_the_others() -> None:
    model, optimizer = pair()
    train(model, optimizer, range(3))
    optimizer.add_param_group(tr_group(torch.randn(4), name="late"))
    assert optimizer.param_groups[-1]["tr_step"] == 3
