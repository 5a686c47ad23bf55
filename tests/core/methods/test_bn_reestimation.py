"""Re-estimated statistics equal float64 means over batches, and are undone after evaluation."""

import copy
from functools import partial

import pytest
import torch
from small_runs import assert_equal, leaves, snapshot
from torch import nn

from tr_det.core import (
    ConfigError,
    QuantConfig,
    attach,
    build_method,
    quantize_model,
    set_scales,
)
from tr_det.core.methods import bn_reestimation

BATCHES = 4


def images(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randn(6, 3, 5, 5, generator=generator)


def net(seed=0):
    """Return a net with dropout and input quantizers whose ranges track the training data."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=None), nn.Flatten(), nn.Linear(5, 2)),
        nn.BatchNorm1d(2, track_running_stats=False),
    )
    inputs = {"act_quantizer": "running_minmax", "signed_input": True}
    quantize_model(model, QuantConfig(weight_bits=3, weight_quantizer="lsq", **inputs))
    set_scales(model, lambda: model(images(0)))
    return model


def start(*others, available=BATCHES + 3, model=None):
    """Return (model, optimizer, method, attached)."""
    model = model or net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def data():
        for index in range(available):
            yield partial(model, images(1000 + index))

    method = build_method("bn_reestimation", batches=BATCHES)
    return model, optimizer, method, attach([method, *others], model, optimizer, 20, batches=data)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(images(step)).square().sum().backward()
        optimizer.step()


def means_over_batches(model, indices):
    """Return each norm's statistics by torch's own cumulative average, in float64."""
    twin = copy.deepcopy(model).double().eval()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for index in indices:
            twin(images(1000 + index).double())
    return {name: value for name, value in twin.state_dict().items() if "running_" in name}


def check_statistics(model, expected):
    state = model.state_dict()
    assert len(expected) == 4
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("available", "used"), [(7, 4), (2, 2)])
def test_statistics_are_means_over_batches(available, used):
    model, optimizer, _, attached = start(available=available)
    train(model, optimizer, range(6))
    expected = means_over_batches(model, range(used))
    before = copy.deepcopy(model.state_dict())
    with attached.evaluating():
        check_statistics(model, expected)
        state = model.state_dict()
        assert {name for name in state if not torch.equal(state[name], before[name])} == {*expected}


def test_after_an_evaluation_everything_is_as_before():
    model, optimizer, _, attached = start()
    train(model, optimizer, range(3))
    model[1].eval()  # a mode of its own

    def everything():
        values = {
            f"{name}.{key}": copy.deepcopy(getattr(module, key))
            for name, module in model.named_modules()
            for key in ("training", "momentum", "seen", "_forward_hooks")
            if getattr(module, key, None) is not None
        }
        return {**snapshot(model, optimizer), **values, "rng": torch.get_rng_state()}

    before = everything()
    assert any(key.endswith(".seen") for key in before)
    with attached.evaluating():
        within = {key: value for key, value in everything().items() if "running" not in key}
        assert_equal(within, {key: before[key] for key in within})
    assert_equal(everything(), before)
    with pytest.raises(ZeroDivisionError), attached.evaluating():
        1 / 0  # noqa: B018
    assert_equal(everything(), before)

    def fails():
        model(images(0))
        torch.rand(1)
        1 / 0  # noqa: B018

    attached.methods[0]._batches = lambda: [fails]
    with pytest.raises(ZeroDivisionError), attached.evaluating():
        pass
    assert_equal(everything(), before)


def test_statistics_are_those_of_the_average():
    model, optimizer, _, attached = start(build_method("weight_average", decay=0.9))
    train(model, optimizer, range(8))
    average = attached.methods[0].average
    with torch.no_grad():
        other = copy.deepcopy(model)
        for name, value in other.state_dict().items():
            if name in average:
                value.copy_(average[name])
    expected = means_over_batches(other, range(BATCHES))
    before = copy.deepcopy(model.state_dict())
    with attached.evaluating():
        check_statistics(model, expected)
        assert torch.equal(model[0].weight, average["0.weight"])
    assert_equal(leaves(dict(model.state_dict())), leaves(dict(before)))


def test_processes_share_the_mean_over_all_batches(monkeypatch):
    """What another process would add: three batches where this one has two."""
    model, optimizer, method, attached = start()
    train(model, optimizer, range(3))
    norms = bn_reestimation._norms(model)
    sent = []
    monkeypatch.setattr(
        bn_reestimation, "over_processes", lambda tensor, how: sent.append((tensor, how)) or tensor
    )
    method._batches = lambda: [partial(model, images(i)) for i in (1002, 1003, 1004)]
    method._estimated(norms)
    others, how = sent[0]
    assert how == "sum"
    method._batches = lambda: [partial(model, images(i)) for i in (1000, 1001)]
    monkeypatch.setattr(bn_reestimation, "over_processes", lambda tensor, how: tensor + others)
    expected = means_over_batches(model, range(5))
    with attached.evaluating():
        check_statistics(model, expected)


class Shared(nn.Module):
    """A norm that runs twice, one that never runs, one that sometimes gets an empty batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.rarely = nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.norm(x[:2]).sum() + self.norm(3 * x[2:] + 1).sum()
        chosen = x[:3] if x[0, 0, 0, 0] > 0 else x[:0]
        return self.conv(x).sum() + y + self.rarely(chosen).sum()


def test_norms_of_detectors():
    """A norm gets the mean over its calls with data; without any it keeps its statistics."""
    model = Shared()
    quantize_model(model, QuantConfig(act_bits=32, weight_quantizer="lsq"))
    set_scales(model, lambda: model(images(0)))
    model.unused.running_mean.fill_(7.0)
    model.unused.running_var.fill_(3.0)
    model.norm.running_var.fill_(torch.nan)  # e.g. after an overflow
    _, _, _, attached = start(model=model)
    inputs = [images(1000 + index).double() for index in range(BATCHES)]
    calls = [part for x in inputs for part in (x[:2], 3 * x[2:] + 1)]
    with_data = [x[:3] for x in inputs if x[0, 0, 0, 0] > 0]
    assert 0 < len(with_data) < BATCHES
    with attached.evaluating():
        for norm, seen in ((model.norm, calls), (model.rarely, with_data)):
            mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
            variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
            torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=1e-6)
        assert (model.unused.running_mean == 7).all()
        assert (model.unused.running_var == 3).all()
        assert model.unused.num_batches_tracked == 0


def test_a_function_may_set_the_mode_of_a_detector():
    modes = []
    model, _, method, attached = start()

    def forward():
        model.training = True
        modes.append([module.training for module in model.modules()])
        model(images(0))

    method._batches = lambda: [forward]
    model.eval()
    with attached.evaluating():
        assert not any(module.training for module in model.modules())
    on = [type(module).__name__ for module, mode in zip(model.modules(), modes[0]) if mode]
    assert on == ["Sequential", "BatchNorm2d", "BatchNorm2d"]


@pytest.mark.parametrize("value", [0, 2.5, True])
def test_other_numbers_of_batches_are_refused(value):
    with pytest.raises(ConfigError, match=f"^batches={value}: must be an integer"):
        build_method("bn_reestimation", batches=value)


def test_an_evaluation_without_a_batch_is_refused():
    *_, attached = start(available=0)
    with pytest.raises(RuntimeError, match="no batch has reached"), attached.evaluating():
        pass
