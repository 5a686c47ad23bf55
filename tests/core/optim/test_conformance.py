"""What every TR-scheduled optimizer must do with every registered quantizer, and in any company."""

import contextlib
import copy
import itertools

import pytest
import torch
from small_runs import NAMES, STEPS, loss, make_model, make_optimizer, pair, tr_groups, train
from torch import nn

import tr_det.core
from tr_det.core import (
    QUANTIZERS,
    ConfigError,
    QuantConfig,
    attach,
    quantize_model,
    set_scales,
    tr_param_groups,
)

every_optimizer = pytest.mark.parametrize("name", NAMES)


def configs():
    """Return what every quantizer can do, for weights, for inputs or for both."""
    made = set()
    for name, bits in itertools.product(sorted(QUANTIZERS), (1, 2, 4, 8)):
        accepted = {}
        for key in ("weight_quantizer", "act_quantizer"):
            with contextlib.suppress(ConfigError):
                QuantConfig(weight_bits=bits, act_bits=bits, **{key: name})
                accepted[key] = name
        made.add(QuantConfig(weight_bits=bits, act_bits=bits, **accepted))
    return sorted(made, key=repr)


@every_optimizer
@pytest.mark.parametrize(
    "config", configs(), ids=lambda c: f"{c.weight_quantizer}-{c.act_quantizer}-{c.weight_bits}"
)
@pytest.mark.parametrize("update", ["additive", "pi"])
def test_the_groups_say_what_happened_to_the_codes(name, config, update) -> None:
    """The rate, the running rate and the bounds of the TALR, against codes taken from outside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    quantize_model(model, config)
    lr = 0.5 if name == "SGDT" else 0.01
    optimizer = getattr(tr_det.core, name)(
        tr_param_groups(model, lr), lr=lr, total_steps=12, tr_momentum=0.5, tr_update=update
    )
    attach([], model, optimizer, 12)
    layers = model[1], model[3]
    running = [0.0, 0.0]
    moved = 0.0
    for step in range(12):
        optimizer.zero_grad()
        loss(model, step).backward()
        quantizers = [copy.deepcopy(layer.weight_quantizer) for layer in layers]  # lsbq refits
        before = [q.codes(layer.weight) for q, layer in zip(quantizers, layers, strict=True)]
        shown = [group["transition_rate"].item() for group in tr_groups(optimizer)]
        optimizer.step()
        for index, layer in enumerate(layers):
            group = tr_groups(optimizer)[index]
            codes = quantizers[index].codes(layer.weight)
            share = (codes != before[index]).double().mean().item()
            running[index] = 0.5 * running[index] + 0.5 * shown[index]
            assert group["transition_rate"].item() == pytest.approx(share)
            assert group["running_tr"].item() == pytest.approx(running[index], abs=1e-7)
            assert 0 <= group["talr"].item() < 1e3
            moved += share
    assert moved > 0


OPTIONS = {
    "SGDT": [{"nesterov": True}, {"momentum": 0.0}, {"dampening": 0.3}, {"maximize": True}],
    "AdamT": [{"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.0}],
    "AdamWT": [{"tr_decay": "lr"}, {"amsgrad": True, "maximize": True}],
    "NAdamT": [{"decoupled_weight_decay": True}, {"maximize": True}],
    "AdamaxT": [{"maximize": True}],
    "RMSpropT": [{"centered": True}, {"momentum": 0.0, "maximize": True}],
    "AdagradT": [{"lr_decay": 0.1, "initial_accumulator_value": 0.1}, {"maximize": True}],
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in NAMES for options in [{}, *OPTIONS[name]]],
)
def test_a_device_takes_another_way_to_the_same_numbers(name, options, request) -> None:
    """There g_t is computed first and multiplied by U_t where that is."""
    host = pair(name, tr_update="pi", **options)
    train(*host, range(8))
    request.getfixturevalue("like_a_device")
    device = pair(name, tr_update="pi", **options)
    train(*device, range(8))
    for (key, ours), theirs in zip(host[0].named_parameters(), device[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=key)
    for ours, theirs in zip(tr_groups(host[1]), tr_groups(device[1]), strict=True):
        assert ours["talr"].item() == pytest.approx(theirs["talr"].item(), rel=1e-4)
        assert ours["transition_rate"] == theirs["transition_rate"]
        assert (ours["lr"], ours["weight_decay"], ours.get("fused")) == (
            theirs["lr"],
            theirs["weight_decay"],
            theirs.get("fused"),
        )


@every_optimizer
@pytest.mark.parametrize("clip", ["value", "norm"])
def test_clipped_gradients_are_the_ones_that_count(name, clip) -> None:
    """Clipping between backward and step is as good as gradients that came out small."""
    runs = []
    for by_hand in (False, True):
        model, optimizer = pair(name)
        for step in range(6):
            optimizer.zero_grad()
            loss(model, step).backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            if clip == "value" and by_hand:
                for grad in grads:
                    grad.copy_(grad.clamp(-0.01, 0.01))
            elif clip == "value":
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            elif by_hand:
                total = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
                for grad in grads:
                    grad.mul_((0.05 / (total + 1e-6)).clamp(max=1.0))
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        runs.append((list(model.parameters()), [g["talr"] for g in tr_groups(optimizer)]))
    for ours, theirs in zip(runs[0][0], runs[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*[torch.stack(talr) for _, talr in runs], rtol=1e-4, atol=0)


@every_optimizer
def test_training_under_bfloat16_autocast_keeps_single_precision_state(name) -> None:
    model, optimizer = pair(name)
    losses = []
    for step in 5 * list(range(8)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, step)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-8:]) < sum(losses[:8])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(group["running_tr"] > 0 for group in tr_groups(optimizer))


@every_optimizer
def test_a_compiled_model_trains_like_the_eager_one(name) -> None:
    torch._dynamo.reset()
    eager, compiled = pair(name), pair(name)
    train(*eager, range(6))
    train(torch.compile(compiled[0], backend="aot_eager", fullgraph=True), compiled[1], range(6))
    for (key, ours), theirs in zip(
        eager[0].named_parameters(), compiled[0].parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=key)


@every_optimizer
def test_an_average_of_weights_quantizes_its_own_weights(name) -> None:
    model, optimizer = pair(name)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay, use_buffers=False)
    expected = model[3].weight.detach().clone()
    for step in range(10):
        train(model, optimizer, [step])
        average.update_parameters(model)
        # the first call copies
        expected = (
            model[3].weight.detach().clone()
            if step == 0
            else expected.lerp(model[3].weight.detach(), 0.1)
        )
    torch.testing.assert_close(average.module[3].weight, expected, rtol=1e-5, atol=1e-6)
    own = average.module[3]
    codes = own.weight_quantizer.codes(own.weight)
    assert not torch.equal(codes, model[3].weight_quantizer.codes(model[3].weight))
    average.eval()
    before = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        loss(average, 0)
    assert str(optimizer.state_dict()) == str(before)


def test_a_layer_used_twice_has_one_controller_and_one_count_per_step() -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 6)
    model = nn.Sequential(head, nn.ReLU(), head, nn.ReLU(), nn.Linear(6, 4))
    quantize_model(model, QuantConfig(weight_bits=2, signed_input=True))
    set_scales(model, lambda: loss(model, 0))
    optimizer = make_optimizer(model)
    train(model, optimizer, range(STEPS))
    assert [group["name"] for group in tr_groups(optimizer)] == ["0.weight", "4.weight"]
    assert [group["tr_updates"] for group in tr_groups(optimizer)] == [STEPS, STEPS]


@every_optimizer
@pytest.mark.parametrize("frozen", ["3.weight", "0.weight"])
def test_a_frozen_parameter_is_left_out(name, frozen) -> None:
    model = make_model()
    model.get_parameter(frozen).requires_grad_(False)
    before = model.get_parameter(frozen).clone()
    optimizer = make_optimizer(model, name)
    train(model, optimizer, range(4))
    assert torch.equal(model.get_parameter(frozen), before)
    assert frozen not in [group["name"] for group in tr_groups(optimizer)]


def conv_run(name, steps, layout="flat", state=None):
    """Return weights and optimizer after steps with given gradients, in a memory layout."""
    torch.manual_seed(0)
    values = torch.randn(8, 4, 3, 3)
    if layout == "slice":
        weight = nn.Parameter(torch.zeros(8, 6, 3, 3)[:, :4].copy_(values))
    else:
        form = torch.channels_last if layout == "channels last" else torch.contiguous_format
        weight = nn.Parameter(values.contiguous(memory_format=form))
    quantizer = tr_det.core.build_quantizer("fixed_grid", 2, signed=True, learn_scale=False)
    quantizer.calibrate(values)
    group = {"params": [weight], "name": "w", "quantizer": quantizer}
    options = {"momentum": 0.9} if name in ("SGDT", "RMSpropT") else {}
    optimizer = getattr(tr_det.core, name)([group], lr=0.05, total_steps=20, **options)
    if state is not None:
        with torch.no_grad():
            weight.copy_(state[0])
        quantizer.load_state_dict(state[1])
        optimizer.load_state_dict(state[2])
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        weight.grad = torch.randn(8, 4, 3, 3, generator=generator)  # always flat
        if layout == "slice":
            weight.grad = torch.zeros(8, 6, 3, 3)[:, :4].copy_(weight.grad)
        optimizer.step()
    return weight, quantizer, optimizer


@every_optimizer
@pytest.mark.parametrize("layout", ["channels last", "slice"])
def test_the_layout_of_memory_changes_no_number(name, layout) -> None:
    expected, ours = conv_run(name, range(6))[0], conv_run(name, range(6), layout)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_a_state_saved_in_another_layout_is_continued(name) -> None:
    expected = conv_run(name, range(6))[0]
    weight, quantizer, optimizer = conv_run(name, range(3), "channels last")
    saved = (weight.detach(), quantizer.state_dict(), copy.deepcopy(optimizer.state_dict()))
    ours = conv_run(name, range(3, 6), state=saved)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_layer_at_rest_shows_no_transitions() -> None:
    model, optimizer = pair()
    train(model, optimizer, range(3))
    assert optimizer.transition_metrics().rate[1] > 0
    optimizer.zero_grad()
    loss(model, 3).backward()
    model[5].weight.grad = None
    optimizer.step()
    assert optimizer.transition_metrics().rate[1] == 0
    assert tr_groups(optimizer)[1]["transition_rate"] > 0  # what its next update will be told


def test_hooks_after_loading_find_the_quantizers() -> None:
    _, optimizer = pair()
    found = []
    optimizer.register_load_state_dict_post_hook(lambda o: found.append(len(tr_groups(o))))
    optimizer.load_state_dict(optimizer.state_dict())
    assert found == [2]


def test_one_controller_for_all_asks_for_one_learning_rate() -> None:
    groups = tr_param_groups(make_model(), 0.05)
    tr = [group for group in groups if "quantizer" in group]
    tr[1]["lr"] = 0.01
    with pytest.raises(
        ValueError, match=r"^5\.weight: lr=0\.01: must be that of '3\.weight', 0\.05"
    ):
        tr_det.core.SGDT(groups, lr=0.05, total_steps=9, tr_granularity="model")
