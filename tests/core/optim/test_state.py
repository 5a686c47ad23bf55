"""TR-scheduled optimizers between steps: resume, copies, hooks, GradScaler, refusals."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tr_det.core
from tr_det.core import QuantConfig, QuantRule, build_quantizer, quantize_model, tr_param_groups

STEPS = 20
OPTIMIZERS = {
    "SGDT": {"momentum": 0.9, "weight_decay": 1e-2},
    "AdamT": {"weight_decay": 1e-2},
    "AdamWT": {"weight_decay": 1e-1},
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def _model(seed: int = 0, bits: int = 2, **options) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    rules = (QuantRule(pattern="0", skip=True), QuantRule(pattern="5", weight_bits=4))
    quantize_model(model, QuantConfig(weight_bits=bits, rules=rules, **options))
    return model


def _optimizer(model: nn.Module, name: str = "SGDT", **kwargs):
    lr = 0.05 if name == "SGDT" else 0.01
    own = {**OPTIMIZERS[name], **kwargs}
    groups = tr_param_groups(model, lr, own.pop("weight_decay"))
    options = {"total_steps": STEPS, "tr_factor": 0.05, "tr_momentum": 0.5, "tr_gain": 0.1}
    return getattr(tr_det.core, name)(groups, **{"lr": lr, **options, **own})


def _pair(name: str = "SGDT", seed: int = 0, **kwargs):
    model = _model(seed)
    return model, _optimizer(model, name, **kwargs)


def _loss(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)
    return F.mse_loss(model(x), y)


def _train(model: nn.Module, optimizer, steps=range(STEPS)) -> None:
    for step in steps:
        optimizer.zero_grad()
        _loss(model, step).backward()
        optimizer.step()


def _leaves(value: object, path: str = "") -> dict[str, object]:
    """Flatten nested dicts, lists and tuples into {path: leaf}."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, item in items for k, v in _leaves(item, f"{path}/{key}").items()}


def _snapshot(model: nn.Module, optimizer) -> dict[str, object]:
    """Everything that a run depends on: weights, scales, momentum, controllers."""
    return _leaves(copy.deepcopy([model.state_dict(), optimizer.state_dict()]))


def _assert_equal(actual: dict[str, object], expected: dict[str, object]) -> None:
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(actual[path], value, rtol=0, atol=0, msg=path)
        else:
            assert actual[path] == value, path


def _through_file(value: object) -> object:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _tr_groups(optimizer) -> list[dict]:
    return [group for group in optimizer.param_groups if "quantizer" in group]


# --- resume ---------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("stop", [0, 1, 2, 11])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name: str, stop: int) -> None:
    whole, stopped, resumed = _pair(name), _pair(name), _pair(name, seed=1)
    _train(*whole)
    assert all(group["running_tr"] > 0 for group in _tr_groups(whole[1]))
    _train(*stopped, range(stop))
    state = _through_file([part.state_dict() for part in stopped])
    for part, saved in zip(resumed, state, strict=True):
        part.load_state_dict(saved)
    _assert_equal(_snapshot(*resumed), _snapshot(*stopped))
    _train(*resumed, range(stop, STEPS))
    _assert_equal(_snapshot(*resumed), _snapshot(*whole))


@pytest.mark.parametrize(
    "settings",
    [
        {"tr_update": "pi", "tr_momentum": None},
        {"tr_update": "momentum", "tr_signal": "effective_step_size"},
        {"tr_update": "pi", "tr_granularity": "model", "tr_schedule": "linear"},
    ],
)
def test_every_kind_of_controller_resumes_bit_for_bit(settings: dict) -> None:
    whole, stopped, resumed = _pair(**settings), _pair(**settings), _pair(seed=1, **settings)
    _train(*whole)
    _train(*stopped, range(7))
    for part, saved in zip(resumed, [part.state_dict() for part in stopped], strict=True):
        part.load_state_dict(_through_file(saved))
    _train(*resumed, range(7, STEPS))
    _assert_equal(_snapshot(*resumed), _snapshot(*whole))


@every_optimizer
def test_loading_twice_equals_loading_once(name: str) -> None:
    model, optimizer = _pair(name)
    _train(model, optimizer, range(7))
    state = _through_file([model.state_dict(), optimizer.state_dict()])
    for _ in range(2):
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    _train(model, optimizer, range(7, STEPS))
    whole = _pair(name)
    _train(*whole)
    _assert_equal(_snapshot(model, optimizer), _snapshot(*whole))


def test_rewinding_forgets_the_codes_of_the_future() -> None:
    model, optimizer = _pair()
    _train(model, optimizer, range(3))
    state = _through_file([model.state_dict(), optimizer.state_dict()])
    _train(model, optimizer, range(3, STEPS))
    expected = _snapshot(model, optimizer)
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    _train(model, optimizer, range(3, STEPS))
    _assert_equal(_snapshot(model, optimizer), expected)


@every_optimizer
def test_state_dict_is_a_snapshot_of_plain_values(name: str) -> None:
    model, optimizer = _pair(name)
    _train(model, optimizer, range(2))
    groups = optimizer.state_dict()["param_groups"]
    leaves = _leaves(optimizer.state_dict())
    assert all(isinstance(v, Tensor | int | float | str | None) for v in leaves.values())
    before = copy.deepcopy(groups)
    _train(model, optimizer, range(2, 5))
    _assert_equal(_leaves(groups), _leaves(before))
    assert all("quantizer" in group for group in optimizer.param_groups[1:3])


# --- checkpoints of something else ----------------------------------------------------------------


def _of_another_model() -> dict:
    model = nn.ModuleDict({"head": _model()})
    return _optimizer(model).state_dict()


def _of_swapped_weights() -> dict:
    groups = tr_param_groups(_model(), 0.05)
    groups[1], groups[2] = groups[2], groups[1]
    return tr_det.core.SGDT(groups, lr=0.05, total_steps=STEPS).state_dict()


def _of_other_bits() -> dict:
    return _optimizer(_model(bits=3)).state_dict()


def _of_torch() -> dict:
    groups = tr_det.core.without_transition(tr_param_groups(_model(), 0.05))
    return torch.optim.SGD(groups, lr=0.05).state_dict()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (_of_another_model, r"'head\.3\.weight' where this model has '3\.weight'"),
        (_of_swapped_weights, r"'5\.weight' where this model has '3\.weight'"),
        (_of_other_bits, r"'3\.weight' is for 3 bits, this model has 2"),
        (_of_torch, "has 0 TR-scheduled weights, this optimizer has 2"),
    ],
)
def test_foreign_checkpoint_is_refused_and_changes_nothing(saved, message: str) -> None:
    model, optimizer = _pair()
    _train(model, optimizer, range(2))
    before = _snapshot(model, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved())
    _assert_equal(_snapshot(model, optimizer), before)


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
    pair = _pair(name)
    _train(*pair, range(stop))
    before = _snapshot(*pair)
    twin = duplicate(pair)
    _train(*twin, range(stop, STEPS))
    _assert_equal(_snapshot(*pair), before)
    _train(*pair, range(stop, STEPS))
    _assert_equal(_snapshot(*twin), _snapshot(*pair))


def test_copy_leaves_the_callback_to_its_run() -> None:
    _, optimizer = _pair()
    optimizer.step_callback = lambda optimizer: None
    assert copy.deepcopy(optimizer).step_callback is None
    assert pickle.loads(pickle.dumps(optimizer)).step_callback is None


# --- learning-rate schedulers, GradScaler, torch's options ----------------------------------------


@every_optimizer
def test_plain_groups_follow_the_scheduler_and_tr_groups_do_not(name: str) -> None:
    model, optimizer = _pair(name)
    _loss(model, 0)  # sets the scales
    start = copy.deepcopy(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    for step in range(3):
        _train(model, optimizer, [step])
        scheduler.step()
    moved = [k for k, p in model.named_parameters() if not torch.equal(p, start.get_parameter(k))]
    assert moved == ["3.weight", "5.weight"]


@every_optimizer
@pytest.mark.parametrize("fused", [False, True])
def test_step_that_grad_scaler_skips_leaves_no_trace(name: str, fused: bool) -> None:
    plain, scaled = _pair(name, fused=fused), _pair(name, fused=fused)
    _train(*plain, range(4))
    model, optimizer = scaled
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, overflows in ((0, False), (1, False), (1, True), (2, False), (3, True), (3, False)):
        optimizer.zero_grad()
        scaler.scale(_loss(model, step)).backward()
        before = _snapshot(model, optimizer)
        if overflows:
            model[3].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if overflows:
            _assert_equal(_snapshot(model, optimizer), before)
    assert [group["tr_step"] for group in _tr_groups(optimizer)] == [4, 4]
    _assert_equal(_snapshot(*scaled), _snapshot(*plain))


@every_optimizer
@pytest.mark.parametrize("option", ["fused", "foreach"])
def test_torch_option_changes_nothing_but_rounding(name: str, option: str) -> None:
    default, special = _pair(name, foreach=False), _pair(name, **{option: True})
    _train(*default)
    _train(*special)
    expected = _snapshot(*default)
    for path, value in _snapshot(*special).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, expected[path], rtol=1e-3, atol=1e-5, msg=path)


def test_differentiable_is_refused() -> None:
    with pytest.raises(ValueError, match="differentiable=True"):
        _pair(differentiable=True)


# --- groups that cannot work ----------------------------------------------------------------------


def test_learned_weight_scale_in_a_tr_group_is_refused() -> None:
    model = _model(learn_weight_scale=True)
    with pytest.raises(
        ValueError, match=r"^3\.weight: .*scale is trained.*learn_weight_scale=False"
    ):
        _optimizer(model)


@pytest.mark.parametrize("count", [0, 2])
def test_tr_group_holds_exactly_one_weight(count: int) -> None:
    quantizer = build_quantizer("fixed_grid", 2, signed=True, learn_scale=False)
    params = [nn.Parameter(torch.randn(3)) for _ in range(count)]
    group = {"params": params, "name": "w", "quantizer": quantizer}
    with pytest.raises(ValueError, match=f"^w: .*holds {count} parameters; must be one"):
        tr_det.core.SGDT([group], lr=0.1, total_steps=1)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("total_steps", 0, "at least 1"),
        ("tr_factor", 0.0, "positive"),
        ("tr_momentum", 1.0, r"in \[0, 1\)"),
        ("tr_momentum", -0.1, r"in \[0, 1\)"),
        ("tr_schedule", "cosin", "'cosine'"),
        ("tr_final", 1.5, r"in \[0, 1\]"),
        ("tr_update", "additiv", "'additive'"),
        ("tr_signal", "rate", "'transition_rate'"),
        ("tr_granularity", "channel", "'layer', 'model'"),
        ("tr_gain", -1.0, "not negative"),
        ("tr_decay", "none", "'talr', 'lr'"),
    ],
)
def test_argument_out_of_range_is_refused(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value!r}: must be .*{allowed}"):
        _pair(**{key: value})


# --- one step -------------------------------------------------------------------------------------


def test_weights_and_groups_survive_an_error_in_the_torch_step(monkeypatch) -> None:
    model, optimizer = _pair()
    _train(model, optimizer, range(2))
    _loss(model, 2).backward()
    weights = [group["params"][0] for group in _tr_groups(optimizer)]
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
def test_hooks_and_callback_fire_once_per_step(name: str) -> None:
    model, optimizer = _pair(name)
    fired = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    optimizer.step_callback = lambda _: fired.append("callback")
    once = ["pre", "callback", "post"]
    _train(model, optimizer, [0])
    assert fired == once
    optimizer.load_state_dict(optimizer.state_dict())
    _train(model, optimizer, [1])
    assert fired == 2 * once
    # torch wraps the step of the plain class when that is first used
    torch_class = next(c for c in type(optimizer).__mro__ if c.__module__.startswith("torch.optim"))
    torch_class([nn.Parameter(torch.zeros(1))], lr=0.1).step()
    _train(model, optimizer, [2, 3])
    assert fired == 4 * once


def test_one_controller_per_model_follows_the_means_over_all_weights() -> None:
    model, optimizer = _pair(tr_granularity="model")
    _train(model, optimizer, range(5))
    groups = _tr_groups(optimizer)
    sizes = [group["params"][0].numel() for group in groups]
    talr = groups[0]["talr"].item()
    running = [(0.5 * (g["running_tr"] + g["transition_rate"])).item() for g in groups]
    _train(model, optimizer, [5])
    assert groups[0]["talr"].item() == groups[1]["talr"].item()
    assert [group["running_tr"].item() for group in groups] == pytest.approx(running)
    assert running[0] != running[1]
    error = sum(
        size / sum(sizes) * (group["target_tr"] - k)
        for size, group, k in zip(sizes, groups, running, strict=True)
    )
    assert groups[0]["talr"].item() == pytest.approx(max(0.0, talr + 0.1 * error), rel=1e-5)


def test_callback_sees_the_finished_step() -> None:
    model, optimizer = _pair()
    seen = []
    optimizer.step_callback = lambda o: seen.append((_snapshot(model, o), o.transition_metrics()))
    _train(model, optimizer, [0])
    ((snapshot, metrics),) = seen
    _assert_equal(snapshot, _snapshot(model, optimizer))
    groups = _tr_groups(optimizer)
    assert metrics.names == ("3.weight", "5.weight")
    for key, vector in (
        ("target_tr", metrics.target),
        ("running_tr", metrics.running),
        ("talr", metrics.talr),
        ("transition_rate", metrics.rate),
    ):
        assert torch.equal(vector, torch.tensor([float(group[key]) for group in groups]))


def test_closure_is_called_once_with_gradients_and_its_loss_returned() -> None:
    with_closure, without = _pair(), _pair()
    losses = []

    def closure() -> Tensor:
        with_closure[1].zero_grad()
        losses.append(_loss(with_closure[0], 0))
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        returned = with_closure[1].step(closure)
    assert len(losses) == 1
    assert returned is losses[0]
    _train(*without, [0])
    _assert_equal(_snapshot(*with_closure), _snapshot(*without))
    assert without[1].step() is None


@every_optimizer
@pytest.mark.parametrize("maximize", [False, True])
def test_step_leaves_gradients_as_they_are(name: str, maximize: bool) -> None:
    model, optimizer = _pair(name, maximize=maximize)
    _train(model, optimizer, range(2))
    before = {
        key: (p.grad, p.grad.clone()) for key, p in model.named_parameters() if p.requires_grad
    }
    optimizer.step()
    for key, (grad, value) in before.items():
        assert model.get_parameter(key).grad is grad
        assert torch.equal(grad, value)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_reaches_every_parameter(set_to_none: bool) -> None:
    model, optimizer = _pair()
    _train(model, optimizer, [0])
    optimizer.zero_grad(set_to_none=set_to_none)
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(grad is None if set_to_none else not grad.any() for grad in grads)


def test_accumulated_gradients_make_one_update_and_one_count() -> None:
    accumulated, summed = _pair(), _pair()
    model, optimizer = accumulated
    model(torch.randn(16, 6, generator=torch.Generator().manual_seed(0)))  # sets the scales
    summed[0].load_state_dict(model.state_dict())
    before = [model[i].weight_quantizer.codes(model[i].weight) for i in (3, 5)]
    for step in range(3):
        _loss(model, step).backward()
    optimizer.step()
    (_loss(summed[0], 0) + _loss(summed[0], 1) + _loss(summed[0], 2)).backward()
    summed[1].step()
    for i, codes, group in zip((3, 5), before, _tr_groups(optimizer), strict=True):
        changed = model[i].weight_quantizer.codes(model[i].weight) != codes
        assert changed.any()
        assert group["transition_rate"].item() == pytest.approx(changed.float().mean().item())
        assert group["tr_step"] == 1
    for a, b in zip(model.parameters(), summed[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_fails_moves_no_controller(monkeypatch) -> None:
    model, optimizer = _pair("SGDT")
    _train(model, optimizer, range(3))
    groups = [group for group in optimizer.param_groups if "talr" in group]
    keys = ("talr", "running_tr", "target_tr", "tr_step")
    before = [[float(group[key]) for key in keys] for group in groups]
    monkeypatch.setattr(optimizer, "_torch_step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _train(model, optimizer, range(3, 4))
    assert [[float(group[key]) for key in keys] for group in groups] == before
    monkeypatch.undo()
    _train(model, optimizer, range(3, 4))
    assert [[float(group[key]) for key in keys] for group in groups] != before


def test_a_group_that_comes_late_joins_the_clock() -> None:
    model, optimizer = _pair("SGDT")
    _train(model, optimizer, range(3))
    weight = nn.Parameter(torch.randn(4))
    quantizer = build_quantizer("fixed_grid", 2, signed=True, learn_scale=False)
    optimizer.add_param_group({"params": [weight], "name": "late", "quantizer": quantizer})
    assert optimizer.param_groups[-1]["tr_step"] == 3
