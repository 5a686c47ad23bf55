"""What counts as an update, in which order things happen in it, and what the log says of it."""

import copy

import pytest
import torch
from small_runs import (
    NAMES,
    batch,
    loss,
    make_model,
    make_optimizer,
    pair,
    snapshot,
    through_file,
    train,
)
from torch import nn

from tr_det.core import (
    CodeBook,
    ConfigError,
    Method,
    QuantConfig,
    attach,
    is_calibrated,
    quantize_model,
    set_scales,
)
from tr_det.core.methods.telemetry import Telemetry


class Diary(Method):
    """Writes down what happens."""

    edits_gradients = True

    def __init__(self):
        self.entries = []

    def edit_gradients(self):
        self.entries.append("edit")

    def after_update(self, step, updates):
        self.entries.append(step)


def plain(model, lr=0.1, cls=torch.optim.SGD, **options):
    return cls(model.parameters(), lr=lr, **options)


class Outer(torch.optim.SGD):
    """As Detectron2's clipping makes them: torch fires its hooks for both classes' steps."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("cls", [torch.optim.SGD, Outer])
def test_only_the_outermost_step_counts(cls):
    model, diary = make_model(), Diary()
    optimizer = plain(model, cls=cls)
    attached = attach([diary], model, optimizer, 5)
    train(model, optimizer, range(3))
    assert diary.entries == ["edit", 0, "edit", 1, "edit", 2]
    assert attached.step == 3


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_step_that_raises_is_no_update_and_the_next_one_is(scheduled, monkeypatch):
    model, diary = make_model(), Diary()
    optimizer = make_optimizer(model) if scheduled else plain(model, cls=Outer)
    attached = attach([diary], model, optimizer, 5)
    train(model, optimizer, [0])
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "_init_group", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, optimizer, [1])
    assert attached.step == 1
    train(model, optimizer, [2])
    assert attached.step == 2
    assert diary.entries == ["edit", 0, "edit", "edit", 1]


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_step_that_a_scaler_leaves_out_is_none(scheduled):
    model, diary = make_model(), Diary()
    optimizer = make_optimizer(model, "AdamT") if scheduled else plain(model, fused=True)
    attached = attach([diary], model, optimizer, 5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss(model, step)).backward()
        if step == 1:
            model[3].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert attached.step == 3
    assert diary.entries == ["edit", 0, "edit", 1, "edit", 2]


def test_a_step_that_the_guard_leaves_out_is_none():
    model, diary = make_model(), Diary()
    optimizer = make_optimizer(model, tr_nonfinite="skip")
    attached = attach([diary], model, optimizer, 5)
    loss(model, 0).backward()
    model[3].weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert attached.step == 0
    train(model, optimizer, [1])
    assert attached.step == 1


def test_clipping_comes_after_edits_and_before_the_update_on_unscaled_gradients():
    class Edit(Method):
        edits_gradients = True

        def setup(self, run):
            self.weight = run.model[0].weight

        def edit_gradients(self):
            seen.append(self.weight.grad.abs().max().item())
            self.weight.grad.fill_(10.0)

    seen = []
    model = make_model()
    optimizer = plain(model, lr=1.0)
    before = model[0].weight.detach().clone()
    parameters = []

    def clip(given):
        parameters.append(len(given))
        nn.utils.clip_grad_value_(given, 0.25)

    attach([Edit()], model, optimizer, 1, clip=clip)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    value = loss(model, 0)
    (expected,) = torch.autograd.grad(value, model[0].weight, retain_graph=True)
    scaler.scale(value).backward()
    model[1].bias.grad = None
    scaler.step(optimizer)
    assert seen == pytest.approx([expected.abs().max().item()], rel=1e-6)
    torch.testing.assert_close(model[0].weight, before - 0.25)
    assert parameters == [sum(1 for _ in model.parameters() if _.requires_grad) - 1]


def test_a_closure_is_refused_where_gradients_are_edited_and_fine_elsewhere():
    model = make_model()
    optimizer = plain(model)
    attach([Diary()], model, optimizer, 1)
    with pytest.raises(ConfigError, match="^closure="):
        optimizer.step(lambda: loss(model, 0))
    model = make_model()
    optimizer = make_optimizer(model)
    attached = attach(["tracker"], model, optimizer, 1)

    def closure():
        optimizer.zero_grad()
        value = loss(model, 0)
        value.backward()
        return value

    assert optimizer.step(closure) > 0
    assert attached.step == 1


def test_a_second_attach_and_a_method_twice_are_refused():
    model, optimizer = pair()
    attach([], model, optimizer, 1)
    with pytest.raises(ConfigError, match=r"^optimizer=.*without methods"):
        attach([], model, optimizer, 1)
    with pytest.raises(ConfigError, match=r"^methods='tracker': must be named once"):
        attach(["tracker", "tracker"], *pair(), 1)
    with pytest.raises(ConfigError, match=r"^method='traker': .*did you mean 'tracker'"):
        attach(["traker"], *pair(), 1)


# --- calibration ----------------------------------------------------------------------------------


def uncalibrated():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)
    )
    quantize_model(model, QuantConfig(signed_input=True))
    return model


def test_scales_are_set_by_the_first_training_batch_and_nothing_else_happens():
    x, _ = batch(0)
    ours, theirs = uncalibrated(), uncalibrated()
    attach([], ours, plain(ours), 1)
    with pytest.raises(RuntimeError, match="no scale yet"):
        ours.eval()(x)
    torch.manual_seed(3)
    set_scales(theirs.train(), lambda: theirs(x))
    torch.manual_seed(3)
    out = ours.train()(x)
    assert is_calibrated(ours)
    torch.manual_seed(3)
    assert torch.equal(out, theirs(x))
    for (name, value), expected in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), name
    assert not ours._forward_pre_hooks


def test_it_unwraps_what_trains_in_parallel():
    model = uncalibrated()
    wrapped = nn.DataParallel(model)  # on the CPU: a wrapper and no more
    attached = attach(["weight_average"], wrapped, plain(model), 1)
    assert attached.model is model
    wrapped(batch(0)[0])
    assert is_calibrated(model)


# --- resuming -------------------------------------------------------------------------------------


def test_a_run_goes_on_only_with_its_own_methods():
    model, optimizer = pair()
    attach(["tracker"], model, optimizer, 9)
    train(model, optimizer, range(3))
    saved = through_file(optimizer.state_dict())
    other, resumed = pair()
    attach(["weight_average"], other, resumed, 9)
    with pytest.raises(ValueError, match=r"\['tracker'\], this run has \['weight_average'\]"):
        resumed.load_state_dict(saved)
    other, resumed = pair()
    attached = attach(["tracker", Telemetry(lambda step: False, print)], other, resumed, 9)
    resumed.load_state_dict(saved)
    assert attached.step == 3
    untouched = copy.deepcopy(saved)
    resumed.load_state_dict(saved)
    assert saved.keys() == untouched.keys()


def test_quantizers_know_their_place_in_the_run():
    """At the start, after each update and when a run goes on, before the next forward."""

    def started():
        model = make_model()
        quantizer, places = model[3].weight_quantizer, []
        quantizer.adapts = True
        quantizer.anneal = lambda step, total: places.append((step, total))
        quantizer.end_update = lambda step, total, weight: places.append(weight is not None)
        optimizer = make_optimizer(model)
        attach([], model, optimizer, 9)
        return model, optimizer, places

    model, optimizer, places = started()
    train(model, optimizer, range(2))
    assert places == [(0, 9), True, (1, 9), True, (2, 9)]
    _, resumed, others = started()
    resumed.load_state_dict(optimizer.state_dict())
    assert others == [(0, 9), (2, 9)]


# --- the log --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", *NAMES])
def test_the_log_says_what_the_update_did_with_any_optimizer(name):
    model = make_model()
    optimizer = plain(model, lr=0.3) if name == "SGD" else make_optimizer(model, name, lr=0.3)
    written = {}
    telemetry = Telemetry(lambda step: step % 3 == 2, lambda step, s: written.update({step: s}))
    attach([telemetry], model, optimizer, 9)
    for step in range(9):
        layers = {n: model[int(n)] for n in ("3", "5")}
        before = {n: layer.weight_quantizer.codes(layer.weight) for n, layer in layers.items()}
        train(model, optimizer, [step])
        if step % 3 != 2:
            continue
        rates = []
        for n, layer in layers.items():
            quantizer, old = layer.weight_quantizer, before[n]
            new = quantizer.codes(layer.weight)
            rates.append((new != old).double().mean().item())
            gamma = 2 ** (quantizer.bits - 1)
            moved = (new.double() - old.double()).abs().mean().item() / gamma
            units = (layer.weight.double() / quantizer.scale.double() * gamma).clamp(
                -gamma, gamma - 1
            )
            points = torch.arange(-gamma, gamma - 1).double() + 0.5
            distance = (units.flatten()[:, None] - points).abs().amin(1).mean().item()
            for key, value in (("rate", rates[-1]), ("step_size", moved), ("distance", distance)):
                assert written[step][f"tr_layers/{n}/{key}"] == pytest.approx(value, abs=1e-6), key
        assert written[step]["tr/rate"] == pytest.approx(sum(rates) / 2, abs=1e-7)
        assert ("tr/talr" in written[step]) == (name != "SGD")
    assert sorted(written) == [2, 5, 8]
    assert sum(scalars["tr/rate"] for scalars in written.values()) > 0


def test_updates_that_are_not_logged_cost_a_plain_optimizer_nothing(monkeypatch):
    model = make_model()
    optimizer = plain(model)
    calls = []
    attach([Telemetry(lambda step: step == 2, lambda *_: None)], model, optimizer, 9)
    begin = CodeBook.begin
    monkeypatch.setattr(CodeBook, "begin", lambda *a, **k: (calls.append(1), begin(*a, **k))[1])
    train(model, optimizer, range(6))
    assert len(calls) == 1


def test_looking_changes_no_number():
    runs = []
    for methods in ([], [Telemetry(lambda step: True, lambda *_: None), "tracker"]):
        model, optimizer = pair()
        attach(methods, model, optimizer, 9)
        train(model, optimizer, range(9))
        state = snapshot(model, optimizer)
        runs.append({key: value for key, value in state.items() if "/tr_det/" not in key})
    first, second = runs
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
