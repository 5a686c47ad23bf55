"""What counts as an update, the order of its parts, calibration, resuming, refused arguments."""

import pytest
import torch
import torch.distributed as dist
from small_runs import (
    assert_equal,
    batch,
    leaves,
    loss,
    make_model,
    make_optimizer,
    pair,
    snapshot,
    through_file,
    train,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.core import (
    ConfigError,
    Method,
    QuantConfig,
    attach,
    is_calibrated,
    quantize_model,
    set_scales,
)
from tr_det.core.methods.telemetry import Telemetry


class Recorder(Method):
    """Stores the order of events."""

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
    """Like Detectron2's subclass for clipping: torch fires step hooks for both classes' `step`."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("cls", [torch.optim.SGD, Outer])
def test_only_the_outermost_step_counts(cls):
    model, recorder = make_model(), Recorder()
    optimizer = plain(model, cls=cls)
    attached = attach([recorder], model, optimizer, 5)
    train(model, optimizer, range(3))
    assert recorder.entries == ["edit", 0, "edit", 1, "edit", 2]
    assert attached.step == 3


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_step_that_raises_is_no_update_and_the_next_one_is(scheduled, monkeypatch):
    model, recorder = make_model(), Recorder()
    optimizer = make_optimizer(model) if scheduled else plain(model, cls=Outer)
    attached = attach([recorder], model, optimizer, 5)
    train(model, optimizer, [0])
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "_init_group", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, optimizer, [1])
    assert attached.step == 1
    train(model, optimizer, [2])
    assert attached.step == 2
    assert recorder.entries == ["edit", 0, "edit", "edit", 1]


@pytest.mark.parametrize("skipped_by", ["scaler", "scaler of a plain optimizer", "guard"])
def test_a_skipped_step_is_no_update(skipped_by):
    model, recorder = make_model(), Recorder()
    if skipped_by == "scaler of a plain optimizer":
        optimizer = plain(model, fused=True)
    else:
        optimizer = make_optimizer(model, "AdamT", tr_nonfinite="skip")
    attached = attach([recorder], model, optimizer, 5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=skipped_by != "guard")
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss(model, step)).backward()
        if step == 1:
            model[3].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert attached.step == 3
    before_skip = ["edit"] if skipped_by == "guard" else []  # the guard sees edited gradients
    assert recorder.entries == ["edit", 0, *before_skip, "edit", 1, "edit", 2]


def test_clipping_comes_after_edits_and_before_the_update_on_unscaled_gradients():
    class Edit(Method):
        edits_gradients = True

        def setup(self, run):
            self.weight = run.model[0].weight

        def edit_gradients(self):
            seen.append(self.weight.grad.abs().max().item())
            self.weight.grad.fill_(10.0)

    model, seen, clipped = make_model(), [], []
    optimizer = plain(model, lr=1.0)
    before = model[0].weight.detach().clone()

    def clip(given):
        clipped.extend(given)
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
    assert [*map(id, clipped)] == [id(p) for p in model.parameters() if p.grad is not None]


def test_a_closure_is_refused_where_gradients_are_edited_and_fine_elsewhere():
    model = make_model()
    optimizer = plain(model)
    attach([Recorder()], model, optimizer, 1)
    with pytest.raises(ConfigError, match="^closure="):
        optimizer.step(lambda: loss(model, 0))
    train(model, optimizer, [0])
    optimizer.step(None)  # as accelerate's optimizers call it
    model, optimizer = pair()
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
    with pytest.raises(ConfigError, match=r"^optimizer='SGDT': .* not passed to attach before"):
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


@pytest.mark.parametrize("autocast", [False, True])
def test_scales_are_set_by_the_first_training_batch_and_nothing_else_happens(autocast):
    """Autocast caches cast weights; those of calibration, without gradient, must not be reused."""
    (x, _), results = batch(0), []
    for by_attach in (True, False):
        model = uncalibrated()
        torch.manual_seed(3)  # dropout in the calibrating forward
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if by_attach:
                attach([], model, plain(model), 1)
                with pytest.raises(RuntimeError, match="no scale yet"):
                    model.eval()(x)
            else:
                set_scales(model, lambda: model(x))  # noqa: B023
            torch.manual_seed(3)
            out = model.train()(x)
        out.square().mean().backward()
        assert is_calibrated(model)
        assert not model._forward_pre_hooks
        gradients = [p.grad for p in model.parameters()]
        results.append(leaves([out, dict(model.state_dict()), gradients]))
    assert_equal(*results)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_may_be_wrapped_before(one_process):
    """The other order, attach and then wrap, is tested with two processes (test_conformance)."""
    runs = []
    for parallel in (False, True):
        model = uncalibrated()
        optimizer = plain(model, momentum=0.9)
        wrapped = DistributedDataParallel(model) if parallel else model
        attached = attach(["tracker", "weight_average"], wrapped, optimizer, 4)
        torch.manual_seed(1)
        train(wrapped, optimizer, range(4))
        assert attached.step == 4
        assert attached.model is model
        runs.append(snapshot(model, optimizer))
    assert_equal(*runs)


# --- resuming -------------------------------------------------------------------------------------


def test_a_run_is_resumed_only_with_its_own_methods():
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
    for _ in range(2):
        resumed.load_state_dict(saved)
        assert attached.step == 3


def test_quantizers_are_told_the_progress_of_the_run():
    """At the start, after each update, and on resuming (before the first forward)."""

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
