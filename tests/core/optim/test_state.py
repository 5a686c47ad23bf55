"""TR-scheduled optimizers between steps: resume, copies, hooks, GradScaler, refusals."""

import copy
import pickle

import pytest
import torch
from small_runs import (
    NAMES,
    STEPS,
    assert_equal,
    leaves,
    loss,
    make_model,
    make_optimizer,
    pair,
    snapshot,
    through_file,
    tr_groups,
    train,
)
from torch import Tensor, nn

import tr_det.core
from tr_det.core import ConfigError, build_quantizer, tr_param_groups

FUSED = ("SGDT", "AdamT", "AdamWT", "AdagradT")  # torch has it for these on the CPU
every_optimizer = pytest.mark.parametrize("name", NAMES)

# --- resume ---------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("stop", [0, 1, 11])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name: str, stop: int) -> None:
    whole, stopped, resumed = pair(name), pair(name), pair(name, seed=1)
    train(*whole)
    assert all(group["running_tr"] > 0 for group in tr_groups(whole[1]))
    train(*stopped, range(stop))
    state = through_file([part.state_dict() for part in stopped])
    for part, saved in zip(resumed, state, strict=True):
        part.load_state_dict(saved)
    assert_equal(snapshot(*resumed), snapshot(*stopped))
    train(*resumed, range(stop, STEPS))
    assert_equal(snapshot(*resumed), snapshot(*whole))


@pytest.mark.parametrize(
    "settings",
    [
        {"tr_update": "pi", "tr_momentum": None},
        {"tr_update": "momentum", "tr_signal": "effective_step_size"},
        {"tr_update": "pi", "tr_granularity": "model", "tr_schedule": "linear"},
        {"tr_update": "pi", "tr_factor": "auto", "tr_warmup": 5},
    ],
)
def test_every_kind_of_controller_resumes_bit_for_bit(settings: dict) -> None:
    whole, stopped, resumed = pair(**settings), pair(**settings), pair(seed=1, **settings)
    train(*whole)
    train(*stopped, range(7))
    for part, saved in zip(resumed, [part.state_dict() for part in stopped], strict=True):
        part.load_state_dict(through_file(saved))
    train(*resumed, range(7, STEPS))
    assert_equal(snapshot(*resumed), snapshot(*whole))


@every_optimizer
def test_loading_twice_equals_loading_once(name: str) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(7))
    state = through_file([model.state_dict(), optimizer.state_dict()])
    for _ in range(2):
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    train(model, optimizer, range(7, STEPS))
    whole = pair(name)
    train(*whole)
    assert_equal(snapshot(model, optimizer), snapshot(*whole))


def test_rewinding_forgets_the_codes_of_the_future() -> None:
    model, optimizer = pair()
    train(model, optimizer, range(3))
    state = through_file([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, range(3, STEPS))
    expected = snapshot(model, optimizer)
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    train(model, optimizer, range(3, STEPS))
    assert_equal(snapshot(model, optimizer), expected)


@every_optimizer
def test_state_dict_is_a_snapshot_of_plain_values(name: str) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(2))
    groups = optimizer.state_dict()["param_groups"]
    values = leaves(optimizer.state_dict()).values()
    assert all(isinstance(v, Tensor | int | float | str | None) for v in values)
    before = copy.deepcopy(groups)
    train(model, optimizer, range(2, 5))
    assert_equal(leaves(groups), leaves(before))
    assert all("quantizer" in group for group in optimizer.param_groups[1:3])


# --- checkpoints of something else ----------------------------------------------------------------


def _of_another_model() -> dict:
    model = nn.ModuleDict({"head": make_model()})
    return make_optimizer(model).state_dict()


def _of_swapped_weights() -> dict:
    groups = tr_param_groups(make_model(), 0.05)
    groups[1], groups[2] = groups[2], groups[1]
    return tr_det.core.SGDT(groups, lr=0.05, total_steps=STEPS).state_dict()


def _of_other_bits() -> dict:
    return make_optimizer(make_model(bits=3)).state_dict()


def _of_another_optimizer() -> dict:
    return pair("AdamT")[1].state_dict()


def _of_an_older_version() -> dict:
    state = pair()[1].state_dict()
    for group in state["param_groups"]:
        group.pop("tr_mass", None)
    return state


def _of_torch() -> dict:
    groups = tr_det.core.without_transition(tr_param_groups(make_model(), 0.05))
    return torch.optim.SGD(groups, lr=0.05).state_dict()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (_of_another_model, r"'head\.3\.weight' where this model has '3\.weight'"),
        (_of_swapped_weights, r"'5\.weight' where this model has '3\.weight'"),
        (_of_other_bits, r"'3\.weight' is for 3 bits, this model has 2"),
        (_of_another_optimizer, "written by TR-scheduled Adam, this is SGD"),
        (_of_an_older_version, r"'3\.weight' lacks \['tr_mass'\]"),
        (_of_torch, "has 0 TR-scheduled weights, this optimizer has 2"),
    ],
)
def test_foreign_checkpoint_is_refused_and_changes_nothing(saved, message: str) -> None:
    model, optimizer = pair()
    train(model, optimizer, range(2))
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved())
    assert_equal(snapshot(model, optimizer), before)


def test_checkpoint_with_groups_in_another_order_is_refused() -> None:
    """Both groups hold one parameter, so torch's own check of sizes passes."""

    def build(order: slice):
        weight, bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        quantizer = build_quantizer("fixed_grid", 2, signed=True, learn_scale=False)
        groups = [{"params": [weight], "name": "w", "quantizer": quantizer}, {"params": [bias]}]
        return tr_det.core.SGDT(groups[order], lr=0.1, total_steps=1)

    optimizer = build(slice(None))
    with pytest.raises(ValueError, match="'w'"):
        optimizer.load_state_dict(build(slice(None, None, -1)).state_dict())
    assert "talr" in optimizer.param_groups[0]


# --- copies ---------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("stop", [0, 6])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_copy_continues_like_the_original_on_its_own_weights(name, stop, duplicate) -> None:
    original = pair(name)
    train(*original, range(stop))
    before = snapshot(*original)
    twin = duplicate(original)
    train(*twin, range(stop, STEPS))
    assert_equal(snapshot(*original), before)
    train(*original, range(stop, STEPS))
    assert_equal(snapshot(*twin), snapshot(*original))


# --- learning-rate schedulers, GradScaler, torch's options ----------------------------------------


@every_optimizer
def test_plain_groups_follow_the_scheduler_and_tr_groups_do_not(name: str) -> None:
    model, optimizer = pair(name)
    start = copy.deepcopy(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    for step in range(3):
        train(model, optimizer, [step])
        scheduler.step()
    moved = [k for k, p in model.named_parameters() if not torch.equal(p, start.get_parameter(k))]
    assert moved == ["3.weight", "5.weight"]


@pytest.mark.parametrize(
    ("name", "fused"), [(name, False) for name in NAMES] + [(name, True) for name in FUSED]
)
def test_step_that_grad_scaler_skips_leaves_no_trace(name: str, fused: bool) -> None:
    options = {"fused": True} if fused else {}
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


@pytest.mark.parametrize(
    ("name", "option"), [(name, "foreach") for name in NAMES] + [(name, "fused") for name in FUSED]
)
def test_torch_option_changes_nothing_but_rounding(name: str, option: str) -> None:
    default, special = pair(name, foreach=False), pair(name, **{option: True})
    train(*default)
    train(*special)
    expected = snapshot(*default)
    for path, value in snapshot(*special).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, expected[path], rtol=1e-3, atol=1e-5, msg=path)


def test_differentiable_is_refused() -> None:
    with pytest.raises(ValueError, match="^differentiable=True: must be False"):
        pair(differentiable=True)


# --- groups that cannot work ----------------------------------------------------------------------


def test_learned_weight_scale_in_a_tr_group_is_refused() -> None:
    model = make_model(learn_weight_scale=True)
    message = r"^learn_weight_scale=True: must be False under TR scheduling.*\(3\.weight\)"
    with pytest.raises(ConfigError, match=message):
        make_optimizer(model)


@pytest.mark.parametrize("count", [0, 2])
def test_tr_group_holds_exactly_one_weight(count: int) -> None:
    quantizer = build_quantizer("fixed_grid", 2, signed=True, learn_scale=False)
    params = [nn.Parameter(torch.randn(3)) for _ in range(count)]
    group = {"params": params, "name": "w", "quantizer": quantizer}
    with pytest.raises(ValueError, match=f"^w: params={count}: must be one"):
        tr_det.core.SGDT([group], lr=0.1, total_steps=1)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("total_steps", 0, "at least 1"),
        ("tr_factor", 0.0, r"in \(0, 1\]"),
        ("tr_factor", 1.5, r"in \(0, 1\], or 'auto'"),
        ("tr_factor", None, "'auto'"),
        ("tr_momentum", "x", r"in \[0, 1\)"),
        ("tr_gain", float("inf"), "finite"),
        ("tr_momentum", 1.0, r"in \[0, 1\)"),
        ("tr_momentum", -0.1, r"in \[0, 1\)"),
        ("tr_schedule", "cosin", "'cosine'"),
        ("tr_final", 1.5, r"in \[0, 1\]"),
        ("tr_update", "additiv", "'additive'"),
        ("tr_signal", "rate", "'transition_rate'"),
        ("tr_granularity", "channel", "'layer', 'model'"),
        ("tr_gain", -1.0, "not negative"),
        ("tr_decay", "none", "'talr', 'lr'"),
        ("tr_factr", 0.1, "left out; there are .*'tr_factor'"),
    ],
)
def test_argument_out_of_range_is_refused(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value!r}: must be .*{allowed}"):
        pair(**{key: value})


# --- one step -------------------------------------------------------------------------------------


def test_weights_and_groups_survive_an_error_in_the_torch_step(monkeypatch) -> None:
    model, optimizer = pair()
    train(model, optimizer, range(2))
    loss(model, 2).backward()
    weights = [group["params"][0] for group in tr_groups(optimizer)]
    before = [(w.data_ptr(), w.grad, w.grad.clone(), w.detach().clone()) for w in weights]
    rates = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]

    def fail(self, closure=None) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    for weight, (pointer, grad, grad_value, value) in zip(weights, before, strict=True):
        assert weight.data_ptr() == pointer
        assert torch.equal(weight, value)
        assert weight.grad is grad
        assert torch.equal(grad, grad_value)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == rates


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
    torch_class = next(c for c in type(optimizer).__mro__ if c.__module__.startswith("torch.optim"))
    torch_class([nn.Parameter(torch.zeros(1))], lr=0.1).step()
    train(model, optimizer, [2, 3])
    assert fired == 4 * once


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


def test_hook_sees_the_finished_step() -> None:
    model, optimizer = pair()
    seen = []
    optimizer.register_step_post_hook(
        lambda o, *_: seen.append((snapshot(model, o), o.transition_metrics()))
    )
    train(model, optimizer, [0])
    ((state, metrics),) = seen
    assert_equal(state, snapshot(model, optimizer))
    groups = tr_groups(optimizer)
    assert metrics.names == ("3.weight", "5.weight")
    for key, vector in (
        ("target_tr", metrics.target),
        ("running_tr", metrics.running),
        ("talr", metrics.talr),
        ("transition_rate", metrics.rate),
    ):
        assert torch.equal(vector, torch.tensor([float(group[key]) for group in groups]))


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
@pytest.mark.parametrize("maximize", [False, True])
def test_step_leaves_gradients_as_they_are(name: str, maximize: bool) -> None:
    model, optimizer = pair(name, maximize=maximize)
    train(model, optimizer, range(2))
    before = {
        key: (p.grad, p.grad.clone()) for key, p in model.named_parameters() if p.requires_grad
    }
    optimizer.step()
    for key, (grad, value) in before.items():
        assert model.get_parameter(key).grad is grad
        assert torch.equal(grad, value)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_reaches_every_parameter(set_to_none: bool) -> None:
    model, optimizer = pair()
    train(model, optimizer, [0])
    optimizer.zero_grad(set_to_none=set_to_none)
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(grad is None if set_to_none else not grad.any() for grad in grads)


def test_accumulated_gradients_make_one_update_and_one_count() -> None:
    accumulated, summed = pair(), pair()
    model, optimizer = accumulated
    before = [model[i].weight_quantizer.codes(model[i].weight) for i in (3, 5)]
    for step in range(3):
        loss(model, step).backward()
    optimizer.step()
    (loss(summed[0], 0) + loss(summed[0], 1) + loss(summed[0], 2)).backward()
    summed[1].step()
    for i, codes, group in zip((3, 5), before, tr_groups(optimizer), strict=True):
        changed = model[i].weight_quantizer.codes(model[i].weight) != codes
        assert changed.any()
        assert group["transition_rate"].item() == pytest.approx(changed.float().mean().item())
        assert group["tr_step"] == 1
    for a, b in zip(model.parameters(), summed[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_fails_moves_no_controller(monkeypatch) -> None:
    model, optimizer = pair("SGDT")
    train(model, optimizer, range(3))
    groups = [group for group in optimizer.param_groups if "talr" in group]
    keys = ("talr", "running_tr", "target_tr", "tr_step")
    before = [[float(group[key]) for key in keys] for group in groups]
    monkeypatch.setattr(optimizer, "torch_step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, optimizer, range(3, 4))
    assert [[float(group[key]) for key in keys] for group in groups] == before
    monkeypatch.undo()
    train(model, optimizer, range(3, 4))
    assert [[float(group[key]) for key in keys] for group in groups] != before


def test_a_group_that_comes_late_joins_the_clock() -> None:
    model, optimizer = pair("SGDT")
    train(model, optimizer, range(3))
    weight = nn.Parameter(torch.randn(4))
    quantizer = build_quantizer("fixed_grid", 2, signed=True, learn_scale=False)
    optimizer.add_param_group({"params": [weight], "name": "late", "quantizer": quantizer})
    assert optimizer.param_groups[-1]["tr_step"] == 3
