"""TR scheduling with trained weight scales, against a count of codes by hand."""

import copy

import pytest
from small_runs import assert_equal, leaves, loss, make_model, snapshot

from tr_det.core import SGDT, ConfigError, attach, tr_param_groups

STEPS = 30
MOMENTUM = 0.8


def start(scales, quantizer="lsq", scale_lr_factor=0.5, attached=False, learn=True):
    model = make_model(weight_quantizer=quantizer, learn_weight_scale=learn)
    groups = tr_param_groups(model, 0.1, 1e-3, scale_lr_factor=scale_lr_factor)
    settings = {"tr_factor": 0.02, "tr_momentum": MOMENTUM, "tr_gain": 1.0, "tr_scales": scales}
    optimizer = SGDT(groups, lr=0.1, momentum=0.5, total_steps=STEPS, **settings)
    if attached:
        attach(["tracker"], model, optimizer, STEPS)
    return model, optimizer


def step(model, optimizer, index):
    optimizer.zero_grad()
    loss(model, index).backward()
    optimizer.step()


@pytest.mark.parametrize("scales", ["by_weight", "sum"])
@pytest.mark.parametrize("quantizer", ["lsq", "fixed_grid", "ewgs"])
@pytest.mark.parametrize("attached", [False, True])
def test_the_running_rate_is_that_of_what_is_followed(scales, quantizer, attached):
    factor = 50.0 if quantizer == "ewgs" else 0.5  # whose own one is a hundredth
    model, optimizer = start(scales, quantizer, factor, attached)
    layers = [m for m in model if getattr(m, "weight_quantizer", None) is not None]
    groups = [group for group in optimizer.param_groups if "quantizer" in group]
    running, rates, moved = [0.0] * len(layers), [0.0] * len(layers), 0
    for index in range(STEPS):
        former = [copy.deepcopy(layer.weight_quantizer) for layer in layers]
        before = [layer.weight_quantizer.codes(layer.weight) for layer in layers]
        running = [MOMENTUM * k + (1 - MOMENTUM) * r for k, r in zip(running, rates, strict=True)]
        step(model, optimizer, index)
        for place, layer in enumerate(layers):
            by_weight = former[place].codes(layer.weight)
            now = layer.weight_quantizer.codes(layer.weight)
            rates[place] = (by_weight != before[place]).float().mean().item()
            moved += (now != by_weight).sum().item()
            if scales == "sum":
                rates[place] += (now != by_weight).float().mean().item()
            assert groups[place]["transition_rate"].item() == pytest.approx(rates[place])
            assert groups[place]["running_tr"].item() == pytest.approx(running[place], abs=1e-6)
    assert moved > 0  # scales have made transitions


def test_scales_that_stand_still_change_nothing():
    runs = []
    for scales, learn in (("frozen", False), ("by_weight", True), ("sum", True)):
        model, optimizer = start(scales, scale_lr_factor=0.0, learn=learn)
        for index in range(10):
            step(model, optimizer, index)
        runs.append(leaves(dict(model.state_dict())))
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])


@pytest.mark.parametrize("scales", ["by_weight", "sum"])
def test_a_resumed_run_ends_alike(scales):
    model, optimizer = start(scales)
    for index in range(20):
        if index == 10:
            saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
        step(model, optimizer, index)
    again, other = start(scales)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for index in range(10, 20):
        step(again, other, index)
    assert_equal(snapshot(model, optimizer), snapshot(again, other))


def test_trained_scales_are_refused_unless_they_are_told_apart():
    with pytest.raises(ConfigError, match="learn_weight_scale=True.*set tr_scales"):
        start("frozen")
